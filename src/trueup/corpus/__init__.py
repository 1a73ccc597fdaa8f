"""ON WHAT: the only room that reads data."""
