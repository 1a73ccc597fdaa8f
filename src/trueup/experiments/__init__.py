"""The experiments behind trueup's claims, which `trueup bench` repeats: one module each, with `Settings`, `run` and `table`."""
