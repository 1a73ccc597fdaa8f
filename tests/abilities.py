"""What the installed libraries can do, found out without trueup."""

from __future__ import annotations

import pytest


def prefix_classifiers() -> bool:
    """Whether the installed PEFT knows the argument by which the installed transformers' classifiers take a prefix."""
    import inspect

    import transformers

    return "past_key_values" in inspect.signature(transformers.BertModel.forward).parameters


prefixes = pytest.mark.skipif(not prefix_classifiers(), reason="the installed PEFT cannot run a prefix on a classifier")
"""Marks a test in which a classifier has a prefix."""
