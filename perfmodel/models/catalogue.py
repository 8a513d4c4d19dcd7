"""Published models by name."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from perfmodel.errors import UnknownNameError
from perfmodel.models.families import dims_from_dict, family_of
from perfmodel.models.stacks import ModelDims

__all__ = ["ModelEntry", "get", "names"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelEntry:
    """A published model.

    Attributes
    ----------
    name : str
    aliases : tuple of str
        Other names it is found by, such as its Hugging Face repository.
    dims : ModelDims
        Of its family (:mod:`perfmodel.models.families`).
    dtype : str
        PyTorch name of the type of the published weights.
    parameters : int
        Published count, with the language-modelling head, tied weights once.
    source : str
        Where dimensions and count come from.
    """

    name: str
    aliases: tuple[str, ...]
    dims: ModelDims
    dtype: str
    parameters: int
    source: str

    @property
    def task(self) -> str:
        """What it is trained on (:mod:`perfmodel.models.inputs`)."""
        return family_of(self.dims).task


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
    _, by_name = _load()
    try:
        return by_name[name.lower()]
    except KeyError:
        raise UnknownNameError("model", name, by_name, "`perfmodel models list` names all") from None


def names() -> tuple[str, ...]:
    """Names of all models, in the order of the file.

    >>> names()[:2]
    ('gpt2', 'gpt2-medium')
    """
    return tuple(_load()[0])


@functools.cache
def _load() -> tuple[dict[str, ModelEntry], dict[str, ModelEntry]]:
    """The entries by name, and by lower-case name or alias."""
    # libyaml's loader is some ten times faster than PyYAML's own, and not everywhere.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    entries: dict[str, ModelEntry] = {}
    for path in sorted(Path(__file__).with_name("published").glob("*.yaml")):
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
        for name, model in data["models"].items():
            entries[name] = _entry(name, model, data["architectures"][model["architecture"]])
    by_name = {key.lower(): entry for entry in entries.values() for key in (entry.name, *entry.aliases)}
    return entries, by_name


def _entry(name: str, model: Mapping[str, Any], architecture: Mapping[str, Any]) -> ModelEntry:
    return ModelEntry(
        name=name,
        aliases=tuple(model["aliases"]),
        dims=dims_from_dict({**architecture["dims"], **model["dims"]}),
        dtype=architecture["dtype"],
        parameters=model["parameters"],
        source=model.get("source", architecture["source"]),
    )
