"""What an op costs: flops by unit and type, bytes read and written."""

from __future__ import annotations

from dataclasses import dataclass, field

from perfmodel.families import FAMILIES
from perfmodel.symbols import Dim

__all__ = ["FAMILIES", "AttentionShape", "MatmulShape", "OpCost", "RecurrentShape"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MatmulShape:
    """``out[b, m, n] = x[b, m, k] @ w[b, k, n]``, the field's m, n, k.

    ``x_transposed`` and ``w_transposed`` tell the layout: whether the operand's
    reduction dimension is the slow one for ``x`` (wgrad) or the fast one for
    ``w`` (an ``nn.Linear`` weight in forward).

    A grouped product (routed experts) is ``groups`` products that share one
    dimension's size between them: their rows add up to ``m``, each with a weight
    of its own; or, where it's the weights' gradient, their ``k`` adds up to ``k``.
    ``skew`` is the largest group's share of it, in units of the balanced share.
    """

    b: Dim
    m: Dim
    n: Dim
    k: Dim
    x_transposed: bool = False
    w_transposed: bool = False
    groups: Dim = 1
    skew: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionShape:
    """Attention of ``q[b, heads, q_len, head_dim]`` over ``kv_len`` keys.

    ``window`` is how many keys a query sees at most, itself included, to its left
    (and as many to its right where it isn't causal). ``visible`` is the share of
    all pairs that packed documents leave visible, causality included.
    """

    b: Dim
    heads: Dim
    kv_heads: Dim
    q_len: Dim
    kv_len: Dim
    head_dim: Dim
    v_head_dim: Dim
    causal: bool
    window: Dim | None = None
    visible: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecurrentShape:
    """A recurrent layer: ``steps`` products ``[b, hidden] @ [hidden, gates * hidden]``, one after the other."""

    steps: Dim
    directions: int
    b: Dim
    hidden: Dim
    gates: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OpCost:
    """The cost of one op call.

    Attributes
    ----------
    family : str
        One of :data:`FAMILIES`.
    dtype : str
        PyTorch name of the type that the arithmetic runs in.
    matrix_flops : Dim
        Floating-point operations for a matrix unit, a multiply-add counted as
        two. Causal attention counts its full square here, as FlopCounterMode
        and the PaLM and Megatron conventions do.
    vector_flops : Dim
        Operations for a vector unit: one per element and arithmetic step; an
        exponential, division, root or the like counts as one too.
    read, written : Dim
        Bytes that the op reads and writes, each operand once.
    masked : Dim
        Part of ``matrix_flops`` that falls on pairs of positions which
        causality, a window or the borders of packed documents hide; a fused
        kernel skips them.
    repeated : Dim
        Part of ``matrix_flops`` that does forward work again (the scores which a
        fused attention backward recomputes): hardware flops, not model flops.
    repeated_masked : Dim
        Part of ``repeated`` at masked positions.
    shape : MatmulShape, AttentionShape or RecurrentShape, optional
        The geometry, for families whose speed depends on it.
    rows, cols : Dim
        For norms, softmax, reductions and gathers: how many rows of how many
        columns; 0 where it has no meaning.
    kernels : Dim
        Device kernels that eager PyTorch launches for the call, one after the
        other: of a recurrent layer some for each step of time.
    """

    family: str
    dtype: str
    matrix_flops: Dim = 0
    vector_flops: Dim = 0
    read: Dim = 0
    written: Dim = 0
    masked: Dim = 0
    repeated: Dim = 0
    repeated_masked: Dim = 0
    shape: MatmulShape | AttentionShape | RecurrentShape | None = field(default=None)
    rows: Dim = 0
    cols: Dim = 0
    kernels: Dim = 1
