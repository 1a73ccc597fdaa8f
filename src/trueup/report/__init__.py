"""TELLING: a finished check as files, as a table, and as one self-contained page."""
