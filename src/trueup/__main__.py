"""Run as `python -m trueup`."""

import os
import sys

# `python -m` looks for modules in the current folder first, and that may be where a stranger's files are.
if not sys.flags.safe_path and sys.path[0] == os.getcwd() != os.path.dirname(
    os.path.dirname(os.path.abspath(__file__))
):
    del sys.path[0]

from trueup.cli import main

main()
