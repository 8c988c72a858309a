"""What a training will need: memory, communication, time."""
