"""What `experiments.benchmark` compares."""
