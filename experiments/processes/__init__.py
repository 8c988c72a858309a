"""Processes of one training: how they meet, end, and are told to."""
