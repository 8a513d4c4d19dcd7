"""A model of the catalogue, or of given dimensions, as a trainable PyTorch module."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch

from perfmodel.errors import UnknownNameError, UnsupportedError
from perfmodel.graph import huggingface
from perfmodel.models.catalogue import ModelEntry
from perfmodel.models.families import family_of
from perfmodel.models.stacks import ModelDims

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


def build(
    model: ModelEntry | ModelDims,
    *,
    implementation: str = "reference",
    layers: Mapping[str, int] | None = None,
    gradient_checkpointing: bool = False,
    dtype: str | None = None,
    device: str | None = "meta",
) -> tuple[torch.nn.Module, dict[str, str]]:
    """A module in training mode, and where its layer stacks are.

    Called with the keywords of :func:`perfmodel.models.inputs.batch_inputs`,
    both implementations return an output with ``.loss`` and ``.logits``, which
    keeps the logits alive through backward for as long as the caller keeps the output.

    Parameters
    ----------
    model : ModelEntry or ModelDims
    implementation : {"reference", "huggingface"}
        Our modules, or those of Hugging Face's transformers.
    layers : mapping of str to int, optional
        Numbers of layers other than the model's own, by path of the stack in the reference module.
    gradient_checkpointing : bool
        Recompute each layer in backward.
    dtype : str, optional
        Type of the parameters, one of :data:`DTYPES`; the entry's own, or
        float32 for dimensions, if left out. Tables of rotary positions stay float32.
    device : str, optional
        Where parameters are made: ``"meta"`` makes none; ``None`` is PyTorch's current default.

    Returns
    -------
    module : torch.nn.Module
    stacks : dict of str to str
        Path of each stack of the reference module in this module.

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
    >>> module, stacks = build(catalogue.get("llama-3.1-405b"), layers={"layers": 2})
    >>> stacks, len(module.get_submodule(stacks["layers"])), next(module.parameters()).device.type
    ({'layers': 'layers'}, 2, 'meta')
    """
    dims = model.dims if isinstance(model, ModelEntry) else model
    if layers is not None:
        dims = dims.with_depths(layers)
    if implementation not in IMPLEMENTATIONS:
        raise UnknownNameError(
            "implementation", implementation, IMPLEMENTATIONS, f"give one of {', '.join(IMPLEMENTATIONS)}"
        )
    wanted = dtype or (model.dtype if isinstance(model, ModelEntry) else "float32")
    if wanted not in DTYPES:
        raise UnknownNameError("dtype of parameters", wanted, DTYPES, f"give one of {', '.join(DTYPES)}")
    family = family_of(dims)
    with _default_dtype(DTYPES[wanted]), torch.device(device) if device else contextlib.nullcontext():
        if implementation == "huggingface":
            if family.config is None:
                raise UnsupportedError(
                    f"a model of family {dims.family} is captured from the reference modules only; "
                    "leave implementation out, or give 'reference'"
                )
            config = family.load(family.config).huggingface_config(dims)
            module = huggingface.build(config, family.task, gradient_checkpointing=gradient_checkpointing)
            return module, dict(huggingface.layer_stacks(config))
        make = family.load(family.module).build
        module = make(dims, gradient_checkpointing=gradient_checkpointing, return_logits=True)
        return module, {stack.path: stack.path for stack in dims.stacks}


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    # Not module.to(dtype) afterwards: that would also round the rotary tables.
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
