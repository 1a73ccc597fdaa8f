"""trueup: audit, repair, audit again. Importing it imports no torch."""

__version__ = "0.1.0"
