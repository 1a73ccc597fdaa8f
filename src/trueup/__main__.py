"""Run as `python -m trueup`."""

import os
import sys

# `python -m` imports from the current folder first, and that folder may hold files of other people.
if not sys.flags.safe_path and sys.path[0] == os.getcwd() != os.path.dirname(
    os.path.dirname(os.path.abspath(__file__))
):
    del sys.path[0]

from trueup.cli import main

main()
