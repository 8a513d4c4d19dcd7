"""How rotary frequencies are stretched to sequences longer than those of the first training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from perfmodel.errors import UnsupportedError
from perfmodel.models.checks import check_choice, check_number, check_size, keywords_of

__all__ = ["LinearRopeScaling", "RopeScaling", "YarnRopeScaling", "rope_scaling_from_dict"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeScaling:
    """How Llama 3.1 stretches rotary frequencies to long sequences (Hugging Face: ``rope_type="llama3"``).

    Attributes
    ----------
    factor : float
        By which low frequencies are divided.
    low_freq_factor, high_freq_factor : float
        Wavelengths above ``original_max_position_embeddings / low_freq_factor`` are
        stretched, those below ``… / high_freq_factor`` are kept, and those
        between are blended.
    original_max_position_embeddings : int
        Sequence length of the first training.
    rope_type : str
        ``"llama3"``.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int
    rope_type: str = field(default="llama3", init=False)

    def __post_init__(self) -> None:
        for name in ("factor", "low_freq_factor", "high_freq_factor"):
            check_number(f"rope_scaling.{name}", getattr(self, name))
        _check_length(self.original_max_position_embeddings)
        if self.high_freq_factor <= self.low_freq_factor:
            raise UnsupportedError(
                f"rope_scaling.high_freq_factor={self.high_freq_factor} must be above "
                f"low_freq_factor={self.low_freq_factor}; swap them"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearRopeScaling:
    """All frequencies divided by ``factor`` (Chen et al. 2023, arXiv:2306.15595; Gemma 3's full attention)."""

    factor: float
    rope_type: str = field(default="linear", init=False)

    def __post_init__(self) -> None:
        check_number("rope_scaling.factor", self.factor)


@dataclass(frozen=True, kw_only=True, slots=True)
class YarnRopeScaling:
    """YaRN (Peng et al. 2023, arXiv:2309.00071): DeepSeek-V3, gpt-oss.

    Attributes
    ----------
    factor : float
        By which low frequencies are divided.
    beta_fast, beta_slow : float
        Frequencies that turn more often than ``beta_fast`` within the first
        training's length are kept, those that turn less than ``beta_slow`` are stretched.
    original_max_position_embeddings : int
        Sequence length of the first training.
    mscale, mscale_all_dim : float, optional
        DeepSeek's factors of the attention temperature: the ratio scales the rotary
        tables, and the square of the second the attention scores.
    truncate : bool
        Whether the band between the two is rounded to whole dimensions.
    rope_type : str
        ``"yarn"``.
    """

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    rope_type: str = field(default="yarn", init=False)

    def __post_init__(self) -> None:
        for name in ("factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"):
            if getattr(self, name) is not None:
                check_number(f"rope_scaling.{name}", getattr(self, name))
        _check_length(self.original_max_position_embeddings)
        if not isinstance(self.truncate, bool):
            raise UnsupportedError(f"rope_scaling.truncate={self.truncate!r} is neither true nor false; write one")


AnyRopeScaling = RopeScaling | LinearRopeScaling | YarnRopeScaling

_KINDS: dict[str, type[AnyRopeScaling]] = {
    "llama3": RopeScaling,
    "linear": LinearRopeScaling,
    "yarn": YarnRopeScaling,
}


def rope_scaling_from_dict(data: Mapping[str, Any]) -> AnyRopeScaling:
    """The record of plain values; ``rope_type`` says which, ``"llama3"`` where it is left out.

    Raises
    ------
    UnknownNameError
        For an unknown type or key.
    UnsupportedError
        If keys are missing, or values make no scaling.

    Examples
    --------
    >>> rope_scaling_from_dict({"rope_type": "linear", "factor": 8.0})
    LinearRopeScaling(factor=8.0, rope_type='linear')
    """
    values = dict(data)
    kind = str(values.pop("rope_type", "llama3"))
    check_choice("rope_scaling.rope_type", kind, _KINDS)
    return _KINDS[kind](**keywords_of(_KINDS[kind], "rope_scaling", values))


def rope_scaling_to_dict(scaling: AnyRopeScaling) -> dict[str, Any]:
    """Keywords as Hugging Face's ``rope_parameters`` has them, without those that are left open."""
    return {key: value for key, value in dataclasses.asdict(scaling).items() if value is not None}


def _check_length(value: object) -> None:
    check_number("rope_scaling.original_max_position_embeddings", value)
    check_size("rope_scaling.original_max_position_embeddings", value)
