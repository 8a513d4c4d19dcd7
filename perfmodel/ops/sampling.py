"""Images read at computed positions, Fourier transforms, distances: what isn't a product, a reduction or a copy."""

from __future__ import annotations

from perfmodel.ops.common import is_complex, levels, nbytes
from perfmodel.ops.cost import OpCost
from perfmodel.ops.registry import register
from perfmodel.ops.tensor import OpCall
from perfmodel.symbols import Dim, product

__all__: list[str] = []

#: Of a position: unnormalise 2 a dimension, floor, and weights of its corners; then a product and sum a corner.
_POSITION_STEPS = 10


def _corners(call: OpCall) -> int:
    return 4 if len(call.inputs["input"].shape) == 4 else 8


@register("aten.grid_sampler_2d", "aten.grid_sampler_3d")
def _grid_sample(call: OpCall) -> OpCost:
    """A weighted sum of the neighbours of each position, for each channel."""
    y = call.outputs[0]
    positions = y.shape[0] * product(y.shape[2:])
    return OpCost(
        family="gather",
        dtype=y.dtype,
        vector_flops=_POSITION_STEPS * positions + 2 * _corners(call) * y.numel,
        read=nbytes(call.inputs.values()),
        written=y.nbytes,
        rows=positions,
        cols=y.shape[1],
    )


@register("aten.grid_sampler_2d_backward", "aten.grid_sampler_3d_backward")
def _grid_sample_backward(call: OpCall) -> OpCost:
    """Zeros in the image's gradient, then a sum at each neighbour; the positions' gradient reads those again."""
    grad = call.inputs["grad_output"]
    positions = grad.shape[0] * product(grad.shape[2:])
    return OpCost(
        family="scatter",
        dtype=grad.dtype,
        vector_flops=_POSITION_STEPS * positions + 4 * _corners(call) * grad.numel,
        read=nbytes(call.inputs.values()) + grad.nbytes,
        written=nbytes(call.outputs) + grad.nbytes,
        rows=positions,
        cols=grad.shape[1],
        kernels=2,
    )


@register("aten.affine_grid_generator")
def _affine_grid(call: OpCall) -> OpCost:
    """A product of each position with a small matrix, as PyTorch composes it."""
    y = call.outputs[0]
    return OpCost(
        family="elementwise",
        dtype=y.dtype,
        vector_flops=2 * (y.shape[-1] + 1) * y.numel,
        read=nbytes(call.inputs.values()),
        written=y.nbytes,
    )


@register("aten.max_unpool2d", "aten.max_unpool3d")
def _unpool(call: OpCall) -> OpCost:
    """Zeros, then each value where it came from."""
    x = call.inputs["self"]
    return OpCost(
        family="scatter",
        dtype=x.dtype,
        read=nbytes(call.inputs.values()),
        written=nbytes(call.outputs) + x.nbytes,
        rows=x.numel,
        cols=1,
        kernels=2,
    )


#: Real operations of a complex transform of n points: 5 n log2 n (Cooley and Tukey, 1965, radix 2).
_FFT_STEPS = 5


@register("aten._fft_c2c", "aten._fft_r2c", "aten._fft_c2r")
def _fft(call: OpCall) -> OpCost:
    """Transforms along ``dim``; where one side is real, half of a complex one's operations."""
    x, y = call.inputs["self"], call.outputs[0]
    real_side = y if is_complex(x.dtype) and not is_complex(y.dtype) else x
    points = product(real_side.shape[d] for d in call.attrs["dim"])
    work = _FFT_STEPS * real_side.numel * levels(points)
    both_complex = is_complex(x.dtype) and is_complex(y.dtype)
    return OpCost(
        family="reduction",
        dtype="float64" if "complex128" in (x.dtype, y.dtype) else "float32",
        vector_flops=work if both_complex else work // 2,
        read=x.nbytes,
        written=y.nbytes,
        rows=real_side.numel // points,
        cols=points,
    )


@register("aten._cdist_forward")
def _distances(call: OpCall) -> OpCost:
    """Of each pair of rows: difference, power, sum."""
    y, width = call.outputs[0], call.inputs["x1"].shape[-1]
    return OpCost(
        family="reduction",
        dtype=y.dtype,
        vector_flops=3 * y.numel * width,
        read=nbytes(call.inputs.values()),
        written=y.nbytes,
        rows=y.numel,
        cols=width,
    )


@register("aten._cdist_backward")
def _distances_backward(call: OpCall) -> OpCost:
    """Of each pair of rows: difference, its share of the distance, product with the gradient, sum."""
    pairs, width = call.inputs["cdist"].numel, call.inputs["x1"].shape[-1]
    return OpCost(
        family="reduction",
        dtype=call.outputs[0].dtype,
        vector_flops=4 * pairs * width,
        read=nbytes(call.inputs.values()),
        written=nbytes(call.outputs),
        rows=call.inputs["x1"].numel,
        cols=pairs * width // call.inputs["x1"].numel,
    )


@register("aten._trilinear")
def _trilinear(call: OpCall) -> OpCost:
    """Sums over products of three operands, broadcast against each other (``nn.Bilinear``), on the vector unit."""
    operands = [call.inputs[name] for name in ("i1", "i2", "i3")]
    shapes = [list(tensor.shape) for tensor in operands]
    for shape, expanded in zip(shapes, ("expand1", "expand2", "expand3"), strict=True):
        for position in call.attrs[expanded]:
            shape.insert(position, 1)
    sizes: Dim = 1
    for column in zip(*shapes, strict=True):
        wide = [size for size in column if not (isinstance(size, int) and size == 1)]
        sizes = sizes * (wide[0] if wide else 1)
    return OpCost(
        family="reduction",
        dtype=operands[0].dtype,
        vector_flops=3 * sizes,
        read=nbytes(call.inputs.values()),
        written=nbytes(call.outputs),
        rows=call.outputs[0].numel,
        cols=sizes // call.outputs[0].numel,
    )
