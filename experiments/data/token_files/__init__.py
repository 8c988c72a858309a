"""Token files that other programs wrote, one kind a file."""
