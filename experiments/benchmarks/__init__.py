"""What `python -m experiments.benchmark` measures.

Each module but `timing` is a benchmark: its `benchmark` yields the results so far, for JSON, and what to print next.
"""
