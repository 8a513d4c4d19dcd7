"""Element-wise arithmetic, comparison, logic, selection and activations.

An op costs its number of steps for each element of the result, and moves each
operand once. :data:`STEPS` counts the steps of the formula as ATen's kernels write
it; an exponential, a division, a root, a hyperbolic tangent and the like are one
step each, constants that depend on scalars only are free.
"""

from __future__ import annotations

from perfmodel.ops.common import arithmetic_dtype, is_complex, nbytes, numel, results
from perfmodel.ops.cost import OpCost
from perfmodel.ops.registry import CostRule, register
from perfmodel.ops.tensor import OpCall
from perfmodel.symbols import Dim

__all__ = ["STEPS"]

#: Ops with an in-place variant (``add_``).
_IN_PLACE_TOO: dict[str, int] = {
    # one step: a sum, a product, a comparison, a selection, a special function
    **dict.fromkeys(
        (
            "abs", "acos", "acosh", "add", "asin", "asinh", "atan", "atan2", "atanh", "bitwise_and",
            "bitwise_left_shift", "bitwise_not", "bitwise_or", "bitwise_right_shift", "bitwise_xor", "ceil",
            "clamp_max", "clamp_min", "copysign", "cos", "cosh", "deg2rad", "digamma", "div", "eq", "erf", "erfc",
            "erfinv", "exp", "exp2", "expm1", "floor", "fmod", "ge", "gt", "heaviside", "i0", "le", "lgamma", "log",
            "log10", "log1p", "log2", "logical_and", "logical_not", "logical_or", "logical_xor", "lt", "masked_fill",
            "mul", "ne", "neg", "pow", "rad2deg", "reciprocal", "relu", "remainder", "round", "rsqrt", "sgn", "sign",
            "sin", "sinh", "sqrt", "square", "sub", "tan", "tanh", "threshold", "trunc",
        ),
        1,
    ),
    "clamp": 2,  # both bounds
    "floor_divide": 2,  # division, floor
    "frac": 2,  # x - trunc(x)
    "xlogy": 2,  # x log(y)
    "addcmul": 3,  # self + value a b
    "addcdiv": 3,  # self + value a / b
    "lerp": 3,  # a + weight (b - a)
    "logit": 3,  # log(x / (1 - x))
    "nan_to_num": 3,  # three replacements
    "sinc": 3,  # sin(pi x) / (pi x)
    "hypot": 4,  # sqrt(a^2 + b^2)
    "sigmoid": 4,  # 1 / (1 + exp(-x))
    "silu": 4,  # x / (1 + exp(-x))
    "mish": 4,  # x tanh(log1p(exp(x)))
    "leaky_relu": 2,  # slope x, selection
    "hardtanh": 2,  # both bounds
    "hardsigmoid": 4,  # min(max(x + 3, 0), 6) / 6
    "hardswish": 5,  # x min(max(x + 3, 0), 6) / 6
    "elu": 5,  # selection of c x or a expm1(b x)
    "celu": 5,
    "selu": 5,
    "gelu": 5,  # x/2 (1 + erf(x / sqrt 2)); see _GELU_TANH for the other formula
}  # fmt: skip

_OUT_OF_PLACE_ONLY: dict[str, int] = {
    **dict.fromkeys(
        (
            "angle", "complex", "fmax", "fmin", "isinf", "isnan", "isneginf", "isposinf", "maximum", "minimum", "rsub",
            "signbit", "where", "_conj_physical", "special_entr", "special_erfcx", "special_i0e", "special_i1",
            "special_i1e", "special_log_ndtr", "special_ndtri",
        ),
        1,
    ),
    "polar": 4,  # r cos(t), r sin(t)
    "linalg_cross": 3,  # two products and their difference
    "logaddexp": 6,  # max + log1p(exp(-|a - b|))
    "logaddexp2": 6,
    "special_xlog1py": 2,
    "hardshrink": 3,  # two comparisons, selection
    "softshrink": 3,
    "softplus": 5,  # log1p(exp(b x)) / b, selection
    "log_sigmoid_forward": 6,  # min(x, 0) - log1p(exp(-|x|))
    "_prelu_kernel": 2,
    "glu": 5,  # a sigmoid(b)
    # derivatives
    "threshold_backward": 1,
    "leaky_relu_backward": 2,
    "hardshrink_backward": 3,
    "softshrink_backward": 3,
    "hardtanh_backward": 3,
    "hardsigmoid_backward": 3,
    "tanh_backward": 3,  # g (1 - y^2)
    "sigmoid_backward": 3,  # g (1 - y) y
    "_prelu_kernel_backward": 4,  # a product and a selection for each of two gradients
    "logit_backward": 4,
    "elu_backward": 4,
    "hardswish_backward": 5,
    "softplus_backward": 6,  # z = exp(b y); g z / (1 + z), selection
    "silu_backward": 9,  # s = sigmoid(x); g s (1 + x (1 - s))
    "log_sigmoid_backward": 9,  # z = exp(-|x|); g (d - sign z / (1 + z))
    "gelu_backward": 11,  # g (cdf(x) + x pdf(x)): 4 for cdf, 4 for pdf
    "mish_backward": 13,  # g (t + x s (1 - t^2)), t = tanh(log1p(exp(x))), s = sigmoid(x)
    "glu_backward": 9,  # for each pair of inputs: s 4, its two gradients 5
}  # fmt: skip

#: Arithmetic steps for each element of the result, by op without namespace and trailing underscore.
STEPS: dict[str, int] = {**_IN_PLACE_TOO, **_OUT_OF_PLACE_ONLY}

#: x/2 (1 + tanh(c (x + 0.044715 x^3))), and its derivative (Hendrycks and Gimpel, 2016).
_GELU_TANH = {"gelu": 9, "gelu_backward": 18}

#: Real steps of complex arithmetic; two (both parts) for each step of other ops.
_COMPLEX_STEPS = {"mul": 6, "div": 11, "abs": 4}

#: Ops that take ``alpha``, one more product where it isn't 1.
_WITH_ALPHA = ("add", "sub", "rsub")


def _steps_of(op: str, call: OpCall, dtype: str) -> int:
    steps = STEPS[op]
    if op in _GELU_TANH and call.attrs.get("approximate") == "tanh":
        steps = _GELU_TANH[op]
    elif op in _WITH_ALPHA and call.attrs.get("alpha", 1) != 1:
        steps += 1
    return _COMPLEX_STEPS.get(op, 2 * steps) if is_complex(dtype) else steps


def _elementwise(op: str) -> CostRule:
    def rule(call: OpCall) -> OpCost:
        dtype = arithmetic_dtype(call)
        written = results(call)
        # A second output (the buffer of log_sigmoid, two gradients of prelu) comes of the same steps.
        elements: Dim = written[0].numel
        if op == "glu_backward":
            elements = call.inputs["grad_output"].numel
        return OpCost(
            family="elementwise",
            dtype=dtype,
            vector_flops=elements * _steps_of(op, call, dtype),
            read=nbytes(call.inputs.values()),
            written=nbytes(written),
        )

    return rule


for _op in STEPS:
    register(f"aten.{_op}")(_elementwise(_op))
for _op in _IN_PLACE_TOO:
    register(f"aten.{_op}_")(_elementwise(_op))


# -- losses ------------------------------------------------------------------------

#: Steps for each element, and the kernels where the loss is reduced. ``mse_loss`` and its like write the
#: element losses and reduce them by a second kernel.
_LOSSES: dict[str, tuple[int, int]] = {
    "mse_loss": (2, 2),  # (x - t)^2
    "huber_loss": (6, 2),
    "smooth_l1_loss": (6, 2),  # |x - t|, comparison, z^2 / 2b, z - b/2
    "binary_cross_entropy": (9, 2),  # (t - 1) max(log1p(-x), -100) - t max(log x, -100)
    "binary_cross_entropy_with_logits": (9, 5),  # (1 - t) x - log_sigmoid(x), composed of four kernels
    "soft_margin_loss": (4, 5),  # log1p(exp(-x t)), composed of four
}

_LOSS_DERIVATIVES: dict[str, int] = {
    "mse_loss_backward": 3,  # c (x - t) g
    "huber_loss_backward": 6,
    "smooth_l1_loss_backward": 6,
    "binary_cross_entropy_backward": 6,  # g (x - t) / max((1 - x) x, eps)
    "soft_margin_loss_backward": 6,
}

#: ``reduction`` of the schemas: 0 none, 1 mean (the default), 2 sum.
_NO_REDUCTION = 0


def _loss(op: str) -> CostRule:
    steps, kernels = _LOSSES[op]

    def rule(call: OpCall) -> OpCost:
        elements = call.inputs["self"].numel
        reduced = call.attrs.get("reduction", 1) != _NO_REDUCTION
        return OpCost(
            family="reduction" if reduced else "elementwise",
            dtype=arithmetic_dtype(call),
            vector_flops=elements * (steps + reduced),
            read=nbytes(call.inputs.values()),
            written=nbytes(call.outputs),
            rows=1 if reduced else 0,
            cols=elements if reduced else 0,
            kernels=kernels if reduced else kernels - 1,
        )

    return rule


def _loss_derivative(op: str) -> CostRule:
    steps = _LOSS_DERIVATIVES[op]

    def rule(call: OpCall) -> OpCost:
        return OpCost(
            family="elementwise",
            dtype=arithmetic_dtype(call),
            vector_flops=steps * numel(call.outputs),
            read=nbytes(call.inputs.values()),
            written=nbytes(call.outputs),
        )

    return rule


for _op in _LOSSES:
    register(f"aten.{_op}")(_loss(_op))
for _op in _LOSS_DERIVATIVES:
    register(f"aten.{_op}")(_loss_derivative(_op))
