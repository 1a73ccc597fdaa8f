"""NUMBERS: pure functions of arrays, on numpy, scipy and scikit-learn only; unit and polarity on each."""
