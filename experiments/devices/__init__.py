"""What machines have: their peaks and memory; compiling, also for those that are not here."""
