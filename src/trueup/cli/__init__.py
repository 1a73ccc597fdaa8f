"""The command line: turns arguments into a Job and an exit code. Only this package uses typer, prints and exits.

Exit codes: 0 no fault was found; 1 a fault was found (--fail-on changes that); 2 the input cannot be used, or a fault requested
by name could not be examined (one sentence says why); 3 an error of trueup itself, which does not affect the other faults; 130
interrupted, or 128 plus the number of the signal that ended the process.
"""

from trueup.cli.entry import main

__all__ = ["main"]
