"""State-space scans of Mamba and Mamba-2.

**Mamba-2** works in chunks (Dao and Gu, Transformers are SSMs, 2024, section 6).
Legend: ``b`` batch, ``l`` positions, ``Q`` positions of a chunk, ``c = ceil(l / Q)`` chunks
and ``L = c Q`` positions with padding, ``h`` heads of ``p``, ``g`` groups that share their
B and C, ``n`` state. Forward is four products: the scores ``C B^T`` of each group, ``2 b L
Q g n`` flops; scores times ``x``, ``2 b L Q h p``; the state that a chunk leaves, ``2 b L h
p n``; and what it reads from the state before, as much. Backward makes the scores and
states again, and each of the four has two gradients. Within a chunk a position sees
itself and earlier ones; the kernels skip the rest in the products with ``x`` and
compute the scores in full. Kernels and what they hand on are those of
``mamba_ssm/ops/triton/ssd_combined.py``.

**Mamba** has no product for a matrix unit: each channel has a recurrence of ``n`` states
(Gu and Dao, 2023, section 3). One kernel runs it, parallel over batch and channels;
backward runs it again. Steps are those of the recurrence; that a block of threads
scans in a tree adds steps which are left out.
"""

from __future__ import annotations

from perfmodel.dtypes import item_size
from perfmodel.ops.common import nbytes
from perfmodel.ops.cost import OpCost
from perfmodel.ops.registry import register
from perfmodel.ops.tensor import OpCall
from perfmodel.symbols import Dim, ceil_div

__all__: list[str] = []

_FLOAT = 4  # bytes of the accumulators that kernels hand on

#: Bias 1, softplus 5 (see :mod:`perfmodel.ops.elementwise`), and their derivative.
_BIAS_STEPS, _SOFTPLUS_STEPS, _SOFTPLUS_BACKWARD_STEPS = 1, 5, 6

#: Skip connection ``D x``: product, sum; backward a sum for dx, and product and sum for dD. Gate: silu and a product.
_SKIP_STEPS, _SKIP_BACKWARD_STEPS, _GATE_STEPS, _GATE_BACKWARD_STEPS = 2, 4, 5, 14


class _Ssd:
    """Sizes of a call, and what forward and backward have in common."""

    def __init__(self, call: OpCall) -> None:
        x, b = call.inputs["x"], call.inputs["B"]
        batch, seq, heads, width = x.shape
        _, _, groups, state = b.shape
        chunk = call.attrs["chunk_size"]
        chunks = batch * ceil_div(seq, chunk)
        self.dtype = x.dtype
        self.positions = chunks * chunk * heads
        self.elements = batch * seq * heads * width
        self.visible = chunks * heads * (chunk * (chunk + 1) // 2)
        self.hidden = chunks * heads * (chunk * (chunk - 1) // 2)
        self.width = width
        self.states = chunks * heads * width * state
        self.scores = chunks * groups * chunk * chunk
        self.score_flops = 2 * self.scores * state
        self.value_flops = 2 * (self.visible + self.hidden) * width
        self.state_flops = 2 * self.positions * width * state
        # Step sizes and decays, of four bytes, and B times its decay.
        self.small = 2 * self.positions * _FLOAT
        self.scaled = self.positions * state


def _step_size_steps(call: OpCall, bias: str, softplus: str) -> int:
    return _BIAS_STEPS * (bias in call.inputs) + _SOFTPLUS_STEPS * bool(call.attrs.get(softplus))


@register("perfmodel.ssd_scan")
def _ssd(call: OpCall) -> OpCost:
    """Five kernels: decays, chunk states, their passing on, scores, and the output."""
    s = _Ssd(call)
    # Of a position: dt A, cumulative sum, decay to the end (2), times dt. Of a visible pair: its decay (2), times dt,
    # times the score. Of a state: decay and sum. Of an element: both parts of the output, one scaled.
    vector = (5 + _step_size_steps(call, "dt_bias", "dt_softplus")) * s.positions + s.scaled + 4 * s.visible
    vector = vector + 2 * s.states
    element_steps = 2 + _SKIP_STEPS * ("D" in call.inputs) + _GATE_STEPS * ("z" in call.inputs)
    handed_on = s.small + s.scores * _FLOAT + s.states * (_FLOAT + item_size(s.dtype))
    return OpCost(
        family="scan",
        dtype=s.dtype,
        matrix_flops=s.score_flops + s.value_flops + 2 * s.state_flops,
        vector_flops=vector + element_steps * s.elements,
        read=nbytes(call.inputs.values()) + handed_on,
        written=nbytes(call.outputs) + handed_on,
        masked=2 * s.hidden * s.width,
        kernels=5,
    )


@register("perfmodel.ssd_scan_backward")
def _ssd_backward(call: OpCall) -> OpCost:
    """Four kernels of forward again, ten of backward, and one for a gate."""
    s = _Ssd(call)
    gated = "z" in call.inputs
    # Of a position: those of forward again, their derivatives, sums for dt and A. Of a visible pair: the decay (2);
    # weights (2), their gradient (2), and its parts for dt and A (4). Of a state: passed on (2), its gradient passed
    # back (2), the decay's (2). Of an element: scaled both ways (2), and sums for dt (2).
    again = 5 + _step_size_steps(call, "dt_bias", "dt_softplus")
    softplus = _SOFTPLUS_BACKWARD_STEPS * bool(call.attrs.get("dt_softplus"))
    vector = (again + 6 + softplus) * s.positions + 3 * s.scaled + 10 * s.visible + 6 * s.states
    element_steps = 4 + _SKIP_BACKWARD_STEPS * ("D" in call.inputs) + _GATE_BACKWARD_STEPS * gated
    states = s.states * (_FLOAT + item_size(s.dtype))
    # Gradients of B and C by the states, of four bytes, to which those by the scores are added.
    parts = 2 * call.inputs["B"].numel * _FLOAT
    handed_on = s.small + 2 * s.scores * _FLOAT + 2 * states + parts
    again_flops = s.score_flops + s.state_flops
    return OpCost(
        family="scan",
        dtype=s.dtype,
        matrix_flops=again_flops + 2 * (s.score_flops + s.value_flops + 2 * s.state_flops),
        vector_flops=vector + element_steps * s.elements,
        read=nbytes(call.inputs.values()) + handed_on,
        written=nbytes(call.outputs) + handed_on,
        masked=2 * (2 * s.hidden * s.width),
        repeated=again_flops,
        kernels=14 + gated,
    )


def _selective_cost(call: OpCall, state_steps: int, steps: int) -> OpCost:
    u, states = call.inputs["u"], call.inputs["A"].shape[1]
    elements: Dim = u.numel
    return OpCost(
        family="scan",
        dtype="float32",  # the kernels' own arithmetic, whatever the operands' type
        vector_flops=elements * (states * state_steps + steps),
        read=nbytes(call.inputs.values()),
        written=nbytes(call.outputs),
    )


@register("perfmodel.selective_scan")
def _selective(call: OpCall) -> OpCost:
    """Of a state: delta A, exponential; delta u B; a h + b (2); C h, sum. Of a channel: delta u."""
    steps = 1 + _step_size_steps(call, "delta_bias", "delta_softplus")
    return _selective_cost(call, 7, steps + _SKIP_STEPS * ("D" in call.inputs) + _GATE_STEPS * ("z" in call.inputs))


@register("perfmodel.selective_scan_backward")
def _selective_backward(call: OpCall) -> OpCost:
    """Of a state: h again 5; dC 2; dh 3; dB 2; du 2; the decay's gradient 3, for delta 1 (sum), for A 2.

    Of a channel: delta u again, du and ddelta from it 3; derivative of the softplus, skip and gate.
    """
    softplus = _SOFTPLUS_BACKWARD_STEPS * bool(call.attrs.get("delta_softplus"))
    steps = 4 + _step_size_steps(call, "delta_bias", "delta_softplus") + softplus
    steps += _SKIP_BACKWARD_STEPS * ("D" in call.inputs) + _GATE_BACKWARD_STEPS * ("z" in call.inputs)
    return _selective_cost(call, 20, steps)
