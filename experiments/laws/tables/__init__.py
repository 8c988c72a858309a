"""Tables of runs: the files that they are in, and what their columns and cells say."""
