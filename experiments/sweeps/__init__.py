"""Many trainings."""
