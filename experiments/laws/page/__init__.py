"""The page that tells of a table of runs and a law fitted to it: what is on it, as data, and how it is shown."""
