"""What the installed libraries can do, found out without trueup."""

from __future__ import annotations


def prefix_classifiers() -> bool:
    """Whether the installed PEFT knows the argument by which the installed transformers' classifiers take a prefix."""
    import inspect

    import transformers

    return "past_key_values" in inspect.signature(transformers.BertModel.forward).parameters
