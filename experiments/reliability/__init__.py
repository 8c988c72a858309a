"""Faults that a long training meets, made on purpose: `python -m experiments.reliability`."""
