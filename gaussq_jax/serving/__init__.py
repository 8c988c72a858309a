"""Trained weights for programs that serve them."""
