"""Fine-tuning by a few new parameters, the model's own frozen.

A specification says what is added; :func:`apply` adds it to a module, ours or anyone's. For the methods that
peft has, parameters, arithmetic and memory are peft's. A module that peft made needs none of this: it is
captured as it is.

Importing this module doesn't import PyTorch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from perfmodel.errors import UnknownNameError, UnsupportedError

if TYPE_CHECKING:
    import torch

__all__ = [
    "ADAPTERS",
    "AdaLoRA",
    "Adapter",
    "BottleneckAdapter",
    "LoRA",
    "PrefixTuning",
    "PromptTuning",
    "QLoRA",
    "apply",
    "check_adapter",
]

#: ``targets`` for every linear layer but the output layer.
ALL_LINEAR = "all-linear"

#: Fields of specifications that count something.
_COUNTS = ("rank", "virtual_tokens", "size", "block")

#: Types that an adapter's weights can have.
_DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """What all fine-tuning methods share."""

    kind: ClassVar[str] = ""

    def __post_init__(self) -> None:
        _check(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types.

        >>> LoRA(rank=4).to_dict()["kind"]
        'lora'
        """
        return {"kind": self.kind, **{key: _plain(value) for key, value in asdict(self).items()}}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoRA(Adapter):
    """Low-rank adaptation (Hu et al. 2021): ``W x + (alpha / rank) B A x``, with ``A`` and ``B`` trained.

    Parameters
    ----------
    rank : int
    alpha : float
    targets : tuple of str, optional
        Which linear layers: the end of their path (``"q_proj"``, ``"mlp.down_proj"``), or ``("all-linear",)``
        for all but the output layer. The query and value projections (or the fused one) if left out, as in
        the paper's section 4.2.
    dropout : float
        Of the adapter's input.
    dtype : str, optional
        Type of ``A`` and ``B``. float32 if left out where the layer is in a 16-bit type, as in peft; else the layer's.
    """

    kind: ClassVar[str] = "lora"

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] | None = None
    dropout: float = 0.0
    dtype: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QLoRA(LoRA):
    """LoRA over a frozen base of four bits (Dettmers et al. 2023).

    Every linear layer but the output layer is stored as NormalFloat4, and its weight is made anew for each
    product, forward and backward. ``targets`` are all of them if left out, as in the paper's section 4.

    Parameters
    ----------
    block : int
        Weights that share a scale.
    double_quantization : bool
        Scales of 8 bits, with a float32 scale for each 256 of them, instead of float32.
    """

    kind: ClassVar[str] = "qlora"

    block: int = 64
    double_quantization: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaLoRA(Adapter):
    """LoRA with a trained diagonal between the factors (Zhang et al. 2023): ``W x + (alpha / rank) B E A x``.

    The orthogonality term of the loss (eq. 4) is part of the step. The rank allocator isn't: peft runs it by a
    call of its own (``update_and_allocate``) after the optimizer's step, every few steps of a phase of the training.

    Parameters
    ----------
    rank : int
        The initial rank.
    alpha : float
    targets : tuple of str, optional
    dropout : float
        See :class:`LoRA`.
    orthogonality : float
        Weight of the orthogonality term.
    dtype : str, optional
        See :class:`LoRA`.
    """

    kind: ClassVar[str] = "adalora"

    rank: int = 12
    alpha: float = 8.0
    targets: tuple[str, ...] | None = None
    dropout: float = 0.0
    orthogonality: float = 0.5
    dtype: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixTuning(Adapter):
    """Trained keys and values before those of the text, in every layer (Li and Liang 2021), without a projection.

    Parameters
    ----------
    virtual_tokens : int
        Length of the prefix.
    """

    kind: ClassVar[str] = "prefix-tuning"

    virtual_tokens: int = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTuning(Adapter):
    """Trained embeddings before those of the text (Lester et al. 2021); the sequence becomes longer by as many.

    Parameters
    ----------
    virtual_tokens : int
    """

    kind: ClassVar[str] = "prompt-tuning"

    virtual_tokens: int = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class BottleneckAdapter(Adapter):
    """Two thin layers with a residual after attention and after feed-forward (Houlsby et al. 2019, figure 2).

    Parameters
    ----------
    size : int
        Width of the bottleneck.
    targets : tuple of str, optional
        The layers whose results are adapted, see :class:`LoRA`: the last one of attention and of feed-forward
        if left out.
    train_norms : bool
        Whether the model's norms are trained too, as in the paper's section 2.1.
    """

    kind: ClassVar[str] = "bottleneck-adapter"

    size: int = 64
    targets: tuple[str, ...] | None = None
    train_norms: bool = True


def apply(module: torch.nn.Module, spec: Adapter) -> torch.nn.Module:
    """Add an adapter to a module, which is changed and returned; all that it had before is frozen.

    Parameters
    ----------
    module : torch.nn.Module
    spec : Adapter

    Raises
    ------
    UnsupportedError
        If the module has no layer that the specification can change.
    """
    check_adapter(spec)
    from perfmodel.models import adapters_modules

    return adapters_modules.apply(module, spec)


def check_adapter(spec: object) -> None:
    """Refuse what isn't a specification.

    Raises
    ------
    UnsupportedError
    """
    if not isinstance(spec, Adapter) or not spec.kind:
        known = ", ".join(sorted(cls.__name__ for cls in ADAPTERS.values()))
        raise UnsupportedError(f"adapter is a {type(spec).__name__}; give one of {known}, e.g. LoRA(rank=16)")


#: All of them, by ``kind``.
ADAPTERS: dict[str, type[Adapter]] = {
    cls.kind: cls for cls in (LoRA, QLoRA, AdaLoRA, PrefixTuning, PromptTuning, BottleneckAdapter)
}


def _check(spec: Adapter) -> None:
    """Refuse what no layer can be made of."""
    name = type(spec).__name__
    for field, value in asdict(spec).items():
        if field in _COUNTS and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UnsupportedError(f"{name}: {field} must be a positive integer, not {value!r}")
        if field == "targets" and isinstance(value, str):
            raise UnsupportedError(f"{name}: targets is a tuple of names; write targets=({value!r},)")
        if field == "dropout" and not 0 <= value <= 1:
            raise UnsupportedError(f"{name}: dropout is a share from 0 to 1, not {value!r}")
        if field == "dtype" and value not in (None, *_DTYPES):
            raise UnknownNameError(f"dtype of {name}", str(value), _DTYPES, f"give one of {', '.join(_DTYPES)}")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
