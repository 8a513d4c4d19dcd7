"""Optimizer kernels: ``_foreach_`` ops over tensor lists, and ``torch.optim``'s fused kernels.

Both go through ``multi_tensor_apply``, which launches a kernel whenever its
argument block is full: of tensors, how many depends on the number of lists, or of
blocks, each of which takes a chunk of a tensor
(``aten/src/ATen/native/cuda/MultiTensorApply.cuh``).
"""

from __future__ import annotations

from collections.abc import Sequence

from perfmodel.ops import elementwise, reduction
from perfmodel.ops.common import arithmetic_dtype, is_in_place, members, nbytes, numel
from perfmodel.ops.cost import OpCost
from perfmodel.ops.registry import CostRule, register
from perfmodel.ops.tensor import OpCall, Tensor
from perfmodel.symbols import Dim

__all__: list[str] = []

#: Limits of one launch with 4 KB of kernel arguments: tensors by number of lists, blocks, elements of a block.
_MAX_TENSORS = (110, 64, 48, 36, 30)
_MAX_BLOCKS = 320
_CHUNK = 65536


def _launches(tensors: Sequence[Tensor], lists: int) -> int:
    """Kernels that ``multi_tensor_apply`` launches for lists as long as ``tensors``.

    The limit of blocks counts where sizes are numbers; a symbolic tensor is one block.
    """
    limit = _MAX_TENSORS[min(lists, len(_MAX_TENSORS)) - 1]
    launches = held = blocks = 0
    for tensor in tensors:
        size = tensor.numel
        chunks = -(-size // _CHUNK) if isinstance(size, int) else 1
        if chunks == 0:
            continue
        held += 1
        full, blocks = divmod(blocks + chunks, _MAX_BLOCKS)
        launches += full
        if full:
            held = 1 if blocks else 0
        if held == limit:
            launches += 1
            held = blocks = 0
    return launches + (blocks > 0)


def _lists(call: OpCall) -> int:
    return len({name.partition(".")[0] for name in call.inputs if "." in name})


# -- foreach -----------------------------------------------------------------------

_ARITHMETIC = (
    "abs", "acos", "add", "addcdiv", "addcmul", "asin", "atan", "ceil", "clamp_max", "clamp_min", "cos", "cosh", "div",
    "erf", "erfc", "exp", "expm1", "floor", "frac", "lerp", "lgamma", "log", "log10", "log1p", "log2", "maximum",
    "minimum", "mul", "neg", "pow", "reciprocal", "round", "rsqrt", "sigmoid", "sign", "sin", "sinh", "sqrt", "sub",
    "tan", "tanh", "trunc",
)  # fmt: skip


def _foreach(call: OpCall, *, family: str, steps: int, read: Dim | None = None, kernels: int = 0) -> OpCost:
    own = members(call, "self")
    written = own if is_in_place(call) else call.outputs
    # _foreach_pow of a number and a list has no list "self"; its results have the size of its exponents.
    sized = own or call.outputs
    lists = _lists(call) + (0 if is_in_place(call) else 1)
    return OpCost(
        family=family,
        dtype=arithmetic_dtype(call),
        vector_flops=numel(sized) * steps,
        read=nbytes(call.inputs.values()) if read is None else read,
        written=nbytes(written),
        kernels=_launches(sized, lists) + kernels,
    )


def _foreach_arithmetic(op: str) -> CostRule:
    steps = elementwise.STEPS[op]

    def rule(call: OpCall) -> OpCost:
        scaled = op in ("add", "sub") and call.attrs.get("alpha", 1) != 1
        return _foreach(call, family="elementwise", steps=steps + scaled)

    return rule


for _op in _ARITHMETIC:
    register(f"aten._foreach_{_op}", f"aten._foreach_{_op}_")(_foreach_arithmetic(_op))


@register("aten._foreach_norm", "aten._foreach_max", "aten._foreach_powsum")
def _foreach_reduction(call: OpCall) -> OpCost:
    """A value for each tensor: partial results of each chunk, then one kernel that combines them."""
    op = call.name.removeprefix("aten._foreach_")
    return _foreach(call, family="reduction", steps=reduction.STEPS[op if op == "max" else "norm"], kernels=1)


@register("aten._foreach_copy_")
def _foreach_overwrite(call: OpCall) -> OpCost:
    """Reads the sources, writes ``self`` without reading it."""
    return _foreach(call, family="copy", steps=0, read=nbytes(members(call, "src")))


@register("aten._foreach_copy")
def _foreach_functional_copy(call: OpCall) -> OpCost:
    """The sources in the shapes of ``self``."""
    return _foreach(call, family="copy", steps=0, read=nbytes(members(call, "src")))


@register("aten._foreach_clone")
def _foreach_clone(call: OpCall) -> OpCost:
    """A copy of each tensor."""
    return _foreach(call, family="copy", steps=0)


@register("aten._foreach_zero", "aten._foreach_zero_")
def _foreach_fill(call: OpCall) -> OpCost:
    """Writes only."""
    return _foreach(call, family="copy", steps=0, read=0)


@register("aten._amp_foreach_non_finite_check_and_unscale_")
def _unscale(call: OpCall) -> OpCost:
    """A test and a product for each gradient element."""
    return _foreach(call, family="elementwise", steps=2)


@register("aten._amp_update_scale_")
def _update_scale(call: OpCall) -> OpCost:
    """A few steps on one number; the scale and its growth counter are written."""
    scale, tracker = call.inputs["self"], call.inputs["growth_tracker"]
    return OpCost(
        family="elementwise",
        dtype=scale.dtype,
        vector_flops=2 * scale.numel,
        read=nbytes(call.inputs.values()),
        written=scale.nbytes + tracker.nbytes,
    )


# -- fused -------------------------------------------------------------------------


def _fused(call: OpCall, *, steps: int, updated: tuple[str, ...], unread: str = "") -> OpCost:
    own = members(call, "self")
    # With a gradient scaler the kernel also writes the unscaled gradients back.
    lists = updated + (("grads",) if "grad_scale" in call.inputs else ())
    read = nbytes(t for name, t in call.inputs.items() if not unread or not name.startswith(unread + "."))
    written: Dim = 0
    depth = 2  # parameters and gradients
    for name in lists:
        changed = members(call, name)
        written = written + nbytes(changed)
        depth += bool(changed) and name not in ("self", "grads")
    return OpCost(
        family="optimizer",
        dtype=own[0].dtype,
        vector_flops=numel(own) * (steps + ("grad_scale" in call.inputs)),
        read=read,
        written=written,
        kernels=_launches(own, depth),
    )


@register("aten._fused_adam_", "aten._fused_adamw_")
def _fused_adam(call: OpCall) -> OpCost:
    """Steps: decay 2, first moment 3 (lerp), second moment 4, denominator 3 (root, division, sum), update 3.

    One more for the largest second moment (``fused_adam_utils.cuh``). Step counters are read, not written.
    """
    amsgrad = bool(members(call, "max_exp_avg_sqs"))
    return _fused(call, steps=15 + amsgrad, updated=("self", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs"))


@register("aten._fused_sgd_")
def _fused_sgd(call: OpCall) -> OpCost:
    """Steps: decay 2, momentum 3 (its dampened sum), update 2. The first step doesn't read the momentum."""
    buffers = bool(members(call, "momentum_buffer_list"))
    first = "momentum_buffer_list" if call.attrs.get("is_first_step") else ""
    return _fused(call, steps=4 + 3 * buffers, updated=("self", "momentum_buffer_list"), unread=first)


@register("aten._fused_adagrad_")
def _fused_adagrad(call: OpCall) -> OpCost:
    """Steps: decay 2, sum of squares 2, root and sum 2, update 3."""
    return _fused(call, steps=9, updated=("self", "state_sums"))
