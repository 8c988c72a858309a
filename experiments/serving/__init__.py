"""Runs for programs that serve them: whole files, with the tokenizer and the settings."""
