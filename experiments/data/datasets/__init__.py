"""TFDS builders of the project's own datasets."""
