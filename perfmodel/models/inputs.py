"""Which inputs a training step of a model takes."""

from __future__ import annotations

from perfmodel.models.families import family_of
from perfmodel.models.stacks import ModelDims

__all__ = ["PARAMETER_DTYPE", "SYMBOLS", "InputSpec", "batch_inputs"]

#: Shape (a symbol's name or a number for each dimension) and PyTorch type of an input.
InputSpec = tuple[tuple[str | int, ...], str]

#: Sizes that stay symbols: sequences (or images, or samples) a step, tokens of each, and
#: tokens of each target where a model reads one sequence and writes another.
SYMBOLS = ("batch", "seq", "target_seq")

#: Instead of a type: that of the parameters.
PARAMETER_DTYPE = "parameters"

_TOKENS: InputSpec = (("batch", "seq"), "int64")

#: By task. A size that is neither a symbol nor a number is a field of the dimensions.
_INPUTS: dict[str, dict[str, InputSpec]] = {
    "causal-lm": {"input_ids": _TOKENS, "labels": _TOKENS},
    # Fine-tuning batches are padded, so attention gets a mask.
    "masked-lm": {"input_ids": _TOKENS, "labels": _TOKENS, "attention_mask": _TOKENS},
    "masked-positions": {
        "input_ids": _TOKENS,
        "masked_positions": (("batch", "max_predictions_per_seq"), "int64"),
        "labels": (("batch", "max_predictions_per_seq"), "int64"),
        "attention_mask": _TOKENS,
        "token_type_ids": _TOKENS,
        "next_sentence_label": (("batch",), "int64"),
    },
    "seq2seq-lm": {"input_ids": _TOKENS, "labels": (("batch", "target_seq"), "int64")},
    "speech-to-text": {"input_features": (("batch", "num_mel_bins", "num_frames"), PARAMETER_DTYPE), "labels": _TOKENS},
    "image-classification": {
        "pixel_values": (("batch", "num_channels", "image_size", "image_size"), "float32"),
        "labels": (("batch",), "int64"),
    },
    "classification": {
        "features": (("batch", "in_features"), PARAMETER_DTYPE),
        "labels": (("batch",), "int64"),
    },
    "click-through": {
        "dense": (("batch", "num_dense_features"), PARAMETER_DTYPE),
        "categories": (("num_tables", "batch", "lookups_per_table"), "int64"),
        "labels": (("batch",), PARAMETER_DTYPE),
    },
}


#: Inputs of models for which a field of the dimensions is true.
_ONLY_WITH = {"next_sentence_label": "next_sentence"}


def batch_inputs(dims: ModelDims, dtype: str = "float32") -> dict[str, InputSpec]:
    """Keyword arguments of one call of the model: shape and type of each.

    Parameters
    ----------
    dims : ModelDims
    dtype : str
        Type of the parameters, which some inputs have too.

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
    return {
        name: (tuple(size(of) for of in shape), dtype if kind == PARAMETER_DTYPE else kind)
        for name, (shape, kind) in inputs.items()
        if name not in _ONLY_WITH or getattr(dims, _ONLY_WITH[name])
    }
