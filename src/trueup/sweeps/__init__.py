"""Sweeps: many cells (each a tuning, a check, or both) from one file, on one machine or several, and a comparison of results."""
