"""Measures: pure functions of arrays, on numpy, scipy and scikit-learn only. Each states its unit and polarity."""
