"""What is read, whoever wrote it, and what is written."""
