"""Random numbers and dropout.

Each number costs the steps of Philox4x32-10, the generator of CUDA's kernels: ten
rounds of two wide products, four exclusive-ors and two key additions for four
numbers (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, 2011).
"""

from __future__ import annotations

from perfmodel.ops.common import nbytes, results
from perfmodel.ops.cost import OpCost
from perfmodel.ops.registry import CostRule, register
from perfmodel.ops.tensor import OpCall

__all__: list[str] = []

#: 10 rounds of 10 operations (a wide product is two halves) make four numbers.
_PHILOX_STEPS = 25

#: Steps that turn uniform bits into a number of the distribution.
_TRANSFORMS: dict[str, int] = {
    "rand": 1,
    "uniform_": 2,  # scale, shift
    "randint": 1,
    "random_": 1,
    "randn": 4,  # Box-Muller: logarithm, root, sine or cosine, product
    "normal": 6,
    "normal_": 6,
    "log_normal_": 7,
    "exponential_": 2,
    "cauchy_": 4,
    "geometric_": 3,
    "bernoulli": 1,  # comparison
    "bernoulli_": 1,
}
_LIKE = ("rand", "randint", "randn")

#: Comparison, product with the input, product with 1 / (1 - p).
_DROPOUT_STEPS = 3


def _draw(op: str, transform: int) -> CostRule:
    def rule(call: OpCall) -> OpCost:
        written = results(call)
        # Only probabilities and moments are read; any other operand just gives its shape.
        names: tuple[str, ...] = ("mean", "std", "p")
        if op == "bernoulli" and "p" not in call.attrs and "p" not in call.inputs:
            names = ("self",)
        return OpCost(
            family="random",
            dtype=written[0].dtype,
            vector_flops=written[0].numel * (_PHILOX_STEPS + transform),
            read=nbytes(call.inputs[name] for name in names if name in call.inputs),
            written=nbytes(written),
        )

    return rule


for _op, _transform in _TRANSFORMS.items():
    register(f"aten.{_op}")(_draw(_op, _transform))
for _op in _LIKE:
    register(f"aten.{_op}_like")(_draw(_op, _TRANSFORMS[_op]))


@register("aten.native_dropout")
def _dropout(call: OpCall) -> OpCost:
    """Writes the result and the mask; drawing is skipped outside training."""
    x = next(iter(call.inputs.values()))
    steps = _PHILOX_STEPS + _DROPOUT_STEPS if call.attrs.get("train", True) else 0
    return OpCost(
        family="random",
        dtype=x.dtype,
        vector_flops=x.numel * steps,
        read=nbytes(call.inputs.values()),
        written=nbytes(call.outputs),
    )


@register("aten.native_dropout_backward")
def _dropout_backward(call: OpCall) -> OpCost:
    """``g mask scale``: draws nothing."""
    grad = call.inputs["grad_output"]
    return OpCost(
        family="elementwise",
        dtype=grad.dtype,
        vector_flops=2 * grad.numel,
        read=nbytes(call.inputs.values()),
        written=nbytes(call.outputs),
    )


#: Comparison with zero, product with the slope, selection.
_RRELU_STEPS = 3


@register("aten.rrelu_with_noise", "aten.rrelu_with_noise_")
def _rrelu(call: OpCall) -> OpCost:
    """Draws a slope for each negative element and keeps it in ``noise``."""
    x = call.inputs["self"]
    training = bool(call.attrs.get("training", False))
    return OpCost(
        family="random",
        dtype=x.dtype,
        vector_flops=x.numel * (_RRELU_STEPS + (_PHILOX_STEPS + _TRANSFORMS["uniform_"]) * training),
        read=x.nbytes,
        written=nbytes(results(call)) + call.inputs["noise"].nbytes * training,
    )


@register("aten.rrelu_with_noise_backward")
def _rrelu_backward(call: OpCall) -> OpCost:
    """The gradient times the slope."""
    grad = call.inputs["grad_output"]
    return OpCost(
        family="elementwise",
        dtype=grad.dtype,
        vector_flops=grad.numel,
        read=nbytes(call.inputs.values()),
        written=nbytes(call.outputs),
    )
