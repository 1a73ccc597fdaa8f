"""What trueup's claims rest on, repeated by `trueup bench`: one module each, with `Settings`, `run` and `table`."""
