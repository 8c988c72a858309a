"""Sweeps: lists of trainings for `python -m experiments.sweep`."""
