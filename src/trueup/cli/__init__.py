"""argv -> Job -> exit code: the only place for typer, printing and exiting.

Exit codes: 0 no fault was found; 1 one was, or what --fail-on says; 2 the input cannot be used, or a fault asked
for by name could not be examined (one sentence says why); 3 an error of trueup itself, which costs other faults nothing; 130
interrupted, or 128 and the number of the signal that ended it.
"""

from trueup.cli.entry import main

__all__ = ["main"]
