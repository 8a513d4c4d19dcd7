"""Published models by name."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from perfmodel.errors import UnknownNameError
from perfmodel.models.dims import TransformerDims

__all__ = ["REFERENCE_STACK", "ModelEntry", "get", "names"]

#: Path of the layer stack in the reference modules.
REFERENCE_STACK = "layers"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelEntry:
    """A published model.

    Attributes
    ----------
    name : str
    aliases : tuple of str
        Other names it is found by, such as its Hugging Face repository.
    dims : TransformerDims
    dtype : str
        PyTorch name of the type of the published weights.
    task : {"causal-lm", "masked-lm"}
    parameters : int
        Published count, with the language-modelling head, tied weights once.
    source : str
        Where dimensions and count come from.
    stacks : mapping of str to str
        Path of the layer stack, by implementation (``"reference"``, ``"huggingface"``).
    """

    name: str
    aliases: tuple[str, ...]
    dims: TransformerDims
    dtype: str
    task: str
    parameters: int
    source: str
    stacks: Mapping[str, str]

    @property
    def max_seq_len(self) -> int:
        """Longest sequence in tokens; see :class:`TransformerDims` for how hard the limit is."""
        return self.dims.max_position_embeddings


def get(name: str) -> ModelEntry:
    """The model of this name or alias; case doesn't matter.

    Raises
    ------
    UnknownNameError
        If there is none; says which names are near.

    Examples
    --------
    >>> get("meta-llama/Llama-3.1-8B").name
    'llama-3.1-8b'
    """
    entries, by_name = _load()
    try:
        return by_name[name.lower()]
    except KeyError:
        raise UnknownNameError("model", name, by_name, f"known are {', '.join(sorted(entries))}") from None


def names() -> tuple[str, ...]:
    """Names of all models, in the order of the file.

    >>> names()[:2]
    ('gpt2', 'gpt2-medium')
    """
    return tuple(_load()[0])


@functools.cache
def _load() -> tuple[dict[str, ModelEntry], dict[str, ModelEntry]]:
    """The entries by name, and by lower-case name or alias."""
    text = Path(__file__).with_name("catalogue.yaml").read_text(encoding="utf-8")
    # libyaml's loader is some ten times faster than PyYAML's own, and not everywhere.
    data = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    entries = {
        name: _entry(name, model, data["architectures"][model["architecture"]])
        for name, model in data["models"].items()
    }
    by_name = {key.lower(): entry for entry in entries.values() for key in (entry.name, *entry.aliases)}
    return entries, by_name


def _entry(name: str, model: Mapping[str, Any], architecture: Mapping[str, Any]) -> ModelEntry:
    return ModelEntry(
        name=name,
        aliases=tuple(model["aliases"]),
        dims=TransformerDims.from_dict({**architecture["dims"], **model["dims"]}),
        dtype=architecture["dtype"],
        task=architecture["task"],
        parameters=model["parameters"],
        source=architecture["source"],
        stacks=MappingProxyType({"reference": REFERENCE_STACK, "huggingface": architecture["huggingface_stack"]}),
    )
