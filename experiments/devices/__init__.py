"""What machines have: their peaks, memory, and compilers for those that are not here."""
