"""What to train for a budget: what a law chooses between, what it costs where, and what is best."""
