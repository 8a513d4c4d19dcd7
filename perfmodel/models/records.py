"""What the records of dimensions of the smaller families have in common: checks, and plain values there and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self, TypeVar

from perfmodel.errors import UnknownNameError, UnsupportedError
from perfmodel.models import checks
from perfmodel.models.stacks import LayerStack

__all__ = ["Record", "check_numbers", "check_probabilities", "check_sizes", "from_config", "number_of_labels"]

_VERSION = 1

_Dims = TypeVar("_Dims", bound="Record")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """Base of dimensions; a family adds its fields, ``parameters`` and what else :class:`ModelDims` asks for."""

    family: ClassVar[str]

    @property
    def stacks(self) -> tuple[LayerStack, ...]:
        """Layers that repeat; none, unless a family says which."""
        return ()

    @property
    def max_length(self) -> int | None:
        """Longest sequence; no limit, unless a family has one."""
        return None

    def with_depths(self, depths: Mapping[str, int]) -> Self:
        """The same model with another number of layers, by path of the stack.

        Raises
        ------
        UnknownNameError
            No such stack.
        """
        for path in depths:
            raise UnknownNameError("layer stack", path, ())
        return self

    def closed_form_flops(self, bindings: Mapping[str, int]) -> float | None:
        """Matrix flops of a training step by the field's formula; ``None`` where the field has none."""
        del bindings
        return None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and YAML; :meth:`from_dict` is the inverse."""
        return {
            "version": _VERSION,
            "family": self.family,
            **{key: _listed(value) for key, value in dataclasses.asdict(self).items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Dimensions from plain values.

        Raises
        ------
        UnknownNameError
            For a key that isn't a dimension.
        UnsupportedError
            For a missing dimension, another version or family, or values that don't make a model.
        """
        values = dict(data)
        version, family = values.pop("version", _VERSION), values.pop("family", cls.family)
        if version != _VERSION:
            raise UnsupportedError(f"dimensions of version {version!r}; this perfmodel reads version {_VERSION}")
        if family != cls.family:
            raise UnsupportedError(f"dimensions of family {family!r} don't make a model of family {cls.family!r}")
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        return cls(**checks.keywords_of(cls, f"a model of family {cls.family}", values))


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def from_config(kind: type[_Dims], config: Mapping[str, Any]) -> _Dims:
    """Dimensions from those keys of a Hugging Face config that are dimensions; a config has many others."""
    names = {field.name for field in dataclasses.fields(kind)}
    return kind.from_dict({key: value for key, value in config.items() if key in names and value is not None})


def number_of_labels(config: Mapping[str, Any]) -> dict[str, int]:
    """``num_labels`` of a Hugging Face config, which lists its classes in ``id2label``; empty if it doesn't."""
    return {"num_labels": len(config["id2label"])} if config.get("id2label") else {}


def check_sizes(record: Record, *names: str, least: int = 1) -> None:
    """Refuse fields that aren't integers of ``least`` or more; of a tuple, each."""
    for name in names:
        value = getattr(record, name)
        for size in value if isinstance(value, tuple) else (value,):
            checks.check_size(name, size, least=least)


def check_numbers(record: Record, *names: str) -> None:
    """Refuse fields that aren't positive numbers."""
    for name in names:
        checks.check_number(name, getattr(record, name))


def check_probabilities(record: Record, *names: str) -> None:
    """Refuse fields that aren't probabilities of dropout."""
    for name in names:
        checks.check_probability(name, getattr(record, name))
