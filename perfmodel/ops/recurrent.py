"""Recurrent layers: LSTM, GRU and plain cells.

Legend: ``T`` steps, ``B`` batch, ``D`` directions, ``H`` hidden units, ``G`` gates (4, 3,
1), ``W`` elements of all weight matrices. Each row of the batch meets each weight once
a step, so forward is ``2 T B W`` flops; backward needs that for the gradients of what
went in, and again for those of the weights.

The products with the input don't depend on each other and run as one for all steps.
Those with the hidden state wait for the step before: of each step a product and an
element-wise kernel follow each other, ``2 T`` kernels that no device can overlap
(Appleyard et al., Optimizing Performance of Recurrent Neural Networks on GPUs, 2016,
section 3). Gates before their non-linearity are written by the first product and read
by the steps. The recurrent weights are counted once: a layer that is worth running
keeps them in caches.
"""

from __future__ import annotations

from typing import NamedTuple

from perfmodel.dtypes import item_size
from perfmodel.ops.common import members, nbytes
from perfmodel.ops.cost import OpCost, RecurrentShape
from perfmodel.ops.registry import CostRule, register
from perfmodel.ops.tensor import OpCall
from perfmodel.symbols import Dim

__all__: list[str] = []


class _Cell(NamedTuple):
    """Gates, and steps for each hidden unit: forward, its biases', backward, and its biases'."""

    gates: int
    forward: int
    biases: int
    backward: int
    bias_gradients: int


_CELLS = {
    # Sums of both products 4; three sigmoids of 4 and a hyperbolic tangent 1; c = f c + i g 3; h = o tanh(c) 2.
    # Backward: dh 1; do 1; dc 6; di, df, dg 3; dc of the step before 1; three sigmoid' and tanh' of 3 each.
    "lstm": _Cell(4, 4 + 13 + 3 + 2, 8, 1 + 1 + 6 + 3 + 1 + 12, 4),
    # Sums of r and z 2, two sigmoids 8; n = tanh(a + r b) 3; h = n + z (h - n) 3.
    # Backward: dh 1; dz 2, dn 2, dh of the step before 1; tanh' 3; dr and db 2; two sigmoid' 6.
    "gru": _Cell(3, 2 + 8 + 3 + 3, 6, 1 + 2 + 2 + 1 + 3 + 2 + 6, 4),
    # Sum 1, tanh or relu 1. Backward: dh 1, tanh' 3.
    "rnn": _Cell(1, 2, 2, 4, 1),
}

#: Backward, after the steps: the input's gradient; the gradients of both weight matrices.
_KERNELS_FOR_INPUT, _KERNELS_FOR_WEIGHTS = 1, 2


def _layer(call: OpCall, cell: _Cell) -> tuple[RecurrentShape, Dim, Dim]:
    """The shape, multiply-adds of a pass through all weights, and the bytes of all gates."""
    x, state, weights = call.inputs["input"], call.inputs["states.0"], members(call, "weights")
    steps, batch, _ = x.shape
    directions = state.shape[0]
    hidden = weights[0].shape[0] // cell.gates
    matrices: Dim = 0
    for weight in weights:
        if len(weight.shape) == 2:
            matrices = matrices + weight.numel
    gates = steps * batch * directions * cell.gates * hidden * item_size(x.dtype)
    shape = RecurrentShape(steps=steps, directions=directions, b=batch, hidden=hidden, gates=cell.gates)
    return shape, steps * batch * matrices, gates


def _forward(cell: _Cell) -> CostRule:
    def rule(call: OpCall) -> OpCost:
        shape, products, gates = _layer(call, cell)
        steps = cell.forward + cell.biases * bool(call.attrs["has_biases"])
        return OpCost(
            family="recurrent",
            dtype=call.inputs["input"].dtype,
            matrix_flops=2 * products,
            vector_flops=steps * shape.steps * shape.b * shape.directions * shape.hidden,
            read=nbytes(call.inputs.values()) + gates,
            written=nbytes(call.outputs) + gates,
            shape=shape,
            kernels=shape.directions * (1 + 2 * shape.steps),
        )

    return rule


def _backward(cell: _Cell) -> CostRule:
    def rule(call: OpCall) -> OpCost:
        shape, products, gates = _layer(call, cell)
        for_weights = bool(call.attrs["for_weights"])
        for_biases = for_weights and bool(call.attrs["has_biases"])
        steps = cell.backward + cell.bias_gradients * for_biases
        after = _KERNELS_FOR_INPUT + _KERNELS_FOR_WEIGHTS * for_weights + for_biases
        return OpCost(
            family="recurrent",
            dtype=call.inputs["input"].dtype,
            matrix_flops=2 * products * (1 + for_weights),
            vector_flops=steps * shape.steps * shape.b * shape.directions * shape.hidden,
            read=nbytes(call.inputs.values()) + gates * (1 + for_weights),
            written=nbytes(call.outputs) + gates,
            shape=shape,
            kernels=shape.directions * (2 * shape.steps + after),
        )

    return rule


# -- the CPU's library ---------------------------------------------------------------

#: Numbers of the cells in ``mkldnn_rnn_layer``'s ``mode`` (``rnn_kind`` of oneDNN in ATen/native/mkldnn/RNN.cpp).
_ONEDNN_MODES = {0: "rnn", 1: "rnn", 2: "lstm", 3: "gru"}


def _onednn(call: OpCall) -> tuple[_Cell, RecurrentShape, Dim]:
    """A layer in one direction: cell, shape, multiply-adds of a pass."""
    cell = _CELLS[_ONEDNN_MODES[call.attrs["mode"]]]
    steps, batch, _ = call.inputs["input"].shape
    hidden = call.attrs["hidden_size"]
    width = call.inputs["input"].shape[2]
    shape = RecurrentShape(steps=steps, directions=1, b=batch, hidden=hidden, gates=cell.gates)
    return cell, shape, steps * batch * cell.gates * hidden * (width + hidden)


@register("aten.mkldnn_rnn_layer")
def _onednn_forward(call: OpCall) -> OpCost:
    """One call of the library."""
    cell, shape, products = _onednn(call)
    steps = cell.forward + cell.biases * bool(call.attrs["has_biases"])
    return OpCost(
        family="recurrent",
        dtype=call.inputs["input"].dtype,
        matrix_flops=2 * products,
        vector_flops=steps * shape.steps * shape.b * shape.hidden,
        read=nbytes(call.inputs.values()),
        written=nbytes(call.outputs),
        shape=shape,
    )


@register("aten.mkldnn_rnn_layer_backward")
def _onednn_backward(call: OpCall) -> OpCost:
    """One call, which makes all gradients."""
    cell, shape, products = _onednn(call)
    steps = cell.backward + cell.bias_gradients * bool(call.attrs["has_biases"])
    return OpCost(
        family="recurrent",
        dtype=call.inputs["input"].dtype,
        matrix_flops=4 * products,
        vector_flops=steps * shape.steps * shape.b * shape.hidden,
        read=nbytes(call.inputs.values()),
        written=nbytes(call.outputs),
        shape=shape,
    )


# -- one step ------------------------------------------------------------------------


def _fused_cell(cell: _Cell, backward: bool) -> CostRule:
    def rule(call: OpCall) -> OpCost:
        if backward:
            units = call.inputs["cx" if "cx" in call.inputs else "grad_hy"].numel
            steps = cell.backward + cell.bias_gradients * bool(call.attrs["has_bias"])
        else:
            units = call.outputs[0].numel
            steps = cell.forward + cell.biases * ("input_bias" in call.inputs)
        return OpCost(
            family="elementwise",
            dtype=call.outputs[0].dtype,
            vector_flops=steps * units,
            read=nbytes(call.inputs.values()),
            written=nbytes(call.outputs),
        )

    return rule


register("aten._thnn_fused_lstm_cell")(_fused_cell(_CELLS["lstm"], False))
register("aten._thnn_fused_lstm_cell_backward_impl")(_fused_cell(_CELLS["lstm"], True))
register("aten._thnn_fused_gru_cell")(_fused_cell(_CELLS["gru"], False))
register("aten._thnn_fused_gru_cell_backward")(_fused_cell(_CELLS["gru"], True))

for _name, _cell in _CELLS.items():
    register(f"perfmodel.{_name}")(_forward(_cell))
    register(f"perfmodel.{_name}_backward")(_backward(_cell))
