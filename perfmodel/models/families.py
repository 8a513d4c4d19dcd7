"""The kinds of model that can be built from dimensions: the one table that says who builds what."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from perfmodel.errors import UnknownNameError
from perfmodel.models.dims import TransformerDims
from perfmodel.models.stacks import ModelDims

__all__ = ["FAMILIES", "Family", "dims_from_dict", "family_of"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """A kind of model.

    Attributes
    ----------
    dims : type
        Its record of dimensions, with ``from_dict``.
    module : str
        Python module whose ``build(dims, *, gradient_checkpointing, return_logits)``
        makes the reference module; imports PyTorch.
    config : str, optional
        Python module whose ``huggingface_config(dims)`` gives the keywords of
        its Hugging Face config; ``None`` where transformers has no such model.
    task : str
        What it is trained on (:mod:`perfmodel.models.inputs`).
    """

    dims: Any
    module: str
    config: str | None
    task: str

    def load(self, module: str) -> Any:
        """One of the two modules, imported."""
        return importlib.import_module(module)


#: By the ``family`` of the dimensions.
FAMILIES: dict[str, Family] = {
    "decoder": Family(
        dims=TransformerDims, module="perfmodel.models.decoder", config="perfmodel.models.config", task="causal-lm"
    ),
    "encoder": Family(
        dims=TransformerDims, module="perfmodel.models.encoder", config="perfmodel.models.config", task="masked-lm"
    ),
}


def family_of(dims: ModelDims) -> Family:
    """The kind of model that these dimensions make."""
    return FAMILIES[dims.family]


def dims_from_dict(data: Mapping[str, Any]) -> ModelDims:
    """Dimensions of any family from plain values with a key ``family``.

    Raises
    ------
    UnknownNameError
        No such family, or a key that isn't a dimension of it.
    UnsupportedError
        A missing dimension, or values that don't make a model.
    """
    name = str(data.get("family"))
    if name not in FAMILIES:
        raise UnknownNameError("family", name, FAMILIES, f"give one of {', '.join(FAMILIES)}")
    dims: ModelDims = FAMILIES[name].dims.from_dict(data)
    return dims
