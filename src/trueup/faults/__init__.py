"""WHAT CAN BE WRONG: one folder each, found by being there. No fault imports another."""
