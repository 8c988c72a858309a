"""Experiment configurations: one runnable record per model family."""
