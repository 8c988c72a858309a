"""Scaling laws of runs: tables, fits, plans, reports."""
