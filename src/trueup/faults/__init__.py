"""The faults that trueup examines. Each folder of this package that defines a `Fault` is one. No fault imports another."""
