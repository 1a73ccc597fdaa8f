"""MANY: cells (one tuning, one check, or both) from one file, on one machine or several, and what they found side by side."""
