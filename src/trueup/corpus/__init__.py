"""Labelled data: the only package that reads data files and data sets."""
