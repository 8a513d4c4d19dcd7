"""Which inputs a training step of a model takes."""

from __future__ import annotations

from perfmodel.models.families import family_of
from perfmodel.models.stacks import ModelDims

__all__ = ["SYMBOLS", "InputSpec", "batch_inputs"]

#: Shape (a symbol's name or a number for each dimension) and PyTorch type of an input.
InputSpec = tuple[tuple[str | int, ...], str]

#: Sizes that stay symbols: sequences (or images, or samples) a step, tokens of each, and
#: tokens of each target where a model reads one sequence and writes another.
SYMBOLS = ("batch", "seq", "target_seq")

_TOKENS: InputSpec = (("batch", "seq"), "int64")

#: By task. A size that is neither a symbol nor a number is a field of the dimensions.
_INPUTS: dict[str, dict[str, InputSpec]] = {
    "causal-lm": {"input_ids": _TOKENS, "labels": _TOKENS},
    # Fine-tuning batches are padded, so attention gets a mask.
    "masked-lm": {"input_ids": _TOKENS, "labels": _TOKENS, "attention_mask": _TOKENS},
}


def batch_inputs(dims: ModelDims) -> dict[str, InputSpec]:
    """Keyword arguments of one call of the model: shape and type of each.

    Returns
    -------
    dict of str to (shape, dtype)
        Sizes named as in :data:`SYMBOLS`.

    Examples
    --------
    >>> from perfmodel.models import catalogue
    >>> batch_inputs(catalogue.get("gpt2").dims)["labels"]
    (('batch', 'seq'), 'int64')
    """

    def size(of: str | int) -> str | int:
        return of if isinstance(of, int) or of in SYMBOLS else int(getattr(dims, of))

    inputs = _INPUTS[family_of(dims).task]
    return {name: (tuple(size(of) for of in shape), dtype) for name, (shape, dtype) in inputs.items()}
