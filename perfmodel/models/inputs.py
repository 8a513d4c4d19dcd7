"""Which inputs a training step of a model takes."""

from __future__ import annotations

from perfmodel.errors import UnknownNameError
from perfmodel.models.catalogue import ModelEntry

__all__ = ["InputSpec", "batch_inputs"]

#: Shape (a symbol's name or a number for each dimension) and PyTorch type of an input.
InputSpec = tuple[tuple[str | int, ...], str]

_TOKENS: InputSpec = (("batch", "seq"), "int64")
_INPUTS: dict[str, tuple[str, ...]] = {
    "causal-lm": ("input_ids", "labels"),
    # Fine-tuning batches are padded, so attention gets a mask.
    "masked-lm": ("input_ids", "labels", "attention_mask"),
}


def batch_inputs(entry: ModelEntry) -> dict[str, InputSpec]:
    """Keyword arguments of one call of the model: shape and type of each.

    Returns
    -------
    dict of str to (shape, dtype)
        Sizes named ``"batch"`` and ``"seq"``: sequences, and tokens in each.

    Raises
    ------
    UnknownNameError
        If the entry's task isn't known.

    Examples
    --------
    >>> from perfmodel.models import catalogue
    >>> batch_inputs(catalogue.get("gpt2"))["labels"]
    (('batch', 'seq'), 'int64')
    """
    try:
        return dict.fromkeys(_INPUTS[entry.task], _TOKENS)
    except KeyError:
        raise UnknownNameError("task", entry.task, _INPUTS) from None
