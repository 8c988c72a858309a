"""A training's states on disk, whole or not there."""
