"""Compares the runs of a sweep: `results.csv`, `report.html`, a table in the terminal."""
