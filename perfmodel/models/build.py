"""A model of the catalogue, or of given dimensions, as a trainable PyTorch module."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from perfmodel.errors import UnknownNameError
from perfmodel.graph import huggingface
from perfmodel.models import decoder, encoder
from perfmodel.models.catalogue import REFERENCE_STACK, ModelEntry
from perfmodel.models.config import huggingface_config
from perfmodel.models.dims import TransformerDims

__all__ = ["DTYPES", "IMPLEMENTATIONS", "build"]

#: Whose modules run.
IMPLEMENTATIONS = ("reference", "huggingface")

#: Types that parameters may have.
DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}

_TASKS = {"decoder": "causal-lm", "encoder": "masked-lm"}


def build(
    model: ModelEntry | TransformerDims,
    *,
    implementation: str = "reference",
    layers: int | None = None,
    gradient_checkpointing: bool = False,
    dtype: str | None = None,
    device: str | None = "meta",
) -> tuple[torch.nn.Module, str]:
    """A module in training mode, and the path of its layer stack.

    Called with the keywords of :func:`perfmodel.models.inputs.batch_inputs`,
    both implementations return an output with ``.loss`` and ``.logits``, which
    keeps the logits alive through backward for as long as the caller keeps the output.

    Parameters
    ----------
    model : ModelEntry or TransformerDims
    implementation : {"reference", "huggingface"}
        Our modules, or those of Hugging Face's transformers.
    layers : int, optional
        A number of layers other than the model's own.
    gradient_checkpointing : bool
        Recompute each layer in backward.
    dtype : str, optional
        Type of the parameters, one of :data:`DTYPES`; the entry's own, or
        float32 for dimensions, if left out. Tables of rotary positions stay float32.
    device : str, optional
        Where parameters are made: ``"meta"`` makes none; ``None`` is PyTorch's current default.

    Raises
    ------
    UnknownNameError
        No such implementation or dtype.
    UnsupportedError
        Dimensions that this implementation doesn't run.
    MissingDependencyError
        transformers is needed and isn't installed.

    Examples
    --------
    >>> from perfmodel.models import catalogue
    >>> module, stack = build(catalogue.get("llama-3.1-405b"), layers=2)
    >>> stack, len(module.get_submodule(stack)), next(module.parameters()).device.type
    ('layers', 2, 'meta')
    """
    dims = model.dims if isinstance(model, ModelEntry) else model
    if layers is not None:
        dims = dims.with_layers(layers)
    if implementation not in IMPLEMENTATIONS:
        raise UnknownNameError(
            "implementation", implementation, IMPLEMENTATIONS, f"give one of {', '.join(IMPLEMENTATIONS)}"
        )
    wanted = dtype or (model.dtype if isinstance(model, ModelEntry) else "float32")
    if wanted not in DTYPES:
        raise UnknownNameError("dtype of parameters", wanted, DTYPES, f"give one of {', '.join(DTYPES)}")
    with _default_dtype(DTYPES[wanted]), torch.device(device) if device else contextlib.nullcontext():
        if implementation == "huggingface":
            config = huggingface_config(dims)
            module = huggingface.build(config, _TASKS[dims.family], gradient_checkpointing=gradient_checkpointing)
            return module, huggingface.layer_stack(config)
        make = decoder.build if dims.family == "decoder" else encoder.build
        return make(dims, gradient_checkpointing=gradient_checkpointing, return_logits=True), REFERENCE_STACK


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    # Not module.to(dtype) afterwards: that would also round the rotary tables.
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
