"""Recurrent layers as one op each, as an accelerator's library runs them.

PyTorch on a CPU takes a recurrent layer apart step by step, or calls a library of
the CPU's. On a GPU a layer is one call of cuDNN. Here a layer, with both its
directions, is ``perfmodel.lstm``, ``perfmodel.gru`` or ``perfmodel.rnn``, forward
and backward, for any number of steps.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from perfmodel.errors import CaptureError

__all__ = ["recurrent_as_one_op"]

#: Gates of a cell, and how many values of a hidden unit's size each step keeps for backward: the gates of all,
#: and the cell state of an LSTM, the recurrent part of the new gate of a GRU (what PyTorch's own fused cells keep,
#: aten/src/ATen/native/cuda/RNN.cu; of a plain cell the output is enough).
_CELLS = {"lstm": (4, 5), "gru": (3, 4), "rnn": (1, 0)}


@functools.cache
def _ops() -> Any:
    for cell, (gates, kept) in _CELLS.items():
        torch.library.define(
            f"perfmodel::{cell}",
            "(Tensor input, Tensor[] states, Tensor[] weights, bool has_biases, bool bidirectional, bool train) "
            "-> (Tensor, Tensor[], Tensor)",
        )
        torch.library.define(
            f"perfmodel::{cell}_backward",
            "(Tensor grad_output, Tensor[] grad_states, Tensor input, Tensor[] states, Tensor output, Tensor reserve, "
            "Tensor[] weights, bool has_biases, bool bidirectional, bool for_weights) "
            "-> (Tensor, Tensor[], Tensor[])",
        )
        torch.library.register_fake(f"perfmodel::{cell}", functools.partial(_fake_forward, gates, kept))
        torch.library.register_fake(f"perfmodel::{cell}_backward", _fake_backward)
    return torch.ops.perfmodel


def _fake_forward(
    gates: int, kept: int, source: Any, states: Any, weights: Any, _biases: bool, _bidirectional: bool, train: bool
) -> Any:
    steps, batch, _ = source.shape
    directions, _, width = states[0].shape
    hidden = weights[0].shape[0] // gates
    output = source.new_empty(steps, batch, directions * width)
    reserve = source.new_empty(directions, steps, batch, kept * hidden if train else 0)
    return output, [torch.empty_like(state) for state in states], reserve


def _fake_backward(_grad: Any, _grads: Any, source: Any, states: Any, _output: Any, _reserve: Any, weights: Any,
                   _biases: bool, _bidirectional: bool, for_weights: bool) -> Any:  # fmt: skip
    grads = [torch.empty_like(weight) for weight in weights] if for_weights else []
    return torch.empty_like(source), [torch.empty_like(state) for state in states], grads


class _Layer(torch.autograd.Function):
    """One layer in both directions; results are the output and the last states."""

    @staticmethod
    def forward(ctx: Any, cell: str, has_biases: bool, bidirectional: bool, n_states: int, *tensors: Any) -> Any:
        source, states, weights = tensors[0], list(tensors[1 : 1 + n_states]), list(tensors[1 + n_states :])
        train = any(ctx.needs_input_grad)
        output, last, reserve = getattr(_ops(), cell)(source, states, weights, has_biases, bidirectional, train)
        ctx.save_for_backward(*tensors, output, reserve)
        ctx.settings = cell, has_biases, bidirectional, n_states
        return output, *last

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        cell, has_biases, bidirectional, n_states = ctx.settings
        source, *rest, output, reserve = ctx.saved_tensors
        states, weights = rest[:n_states], rest[n_states:]
        for_weights = any(ctx.needs_input_grad[5 + n_states :])
        for_source, for_states, for_all = getattr(_ops(), f"{cell}_backward")(
            grads[0].contiguous(),
            list(grads[1:]),
            source,
            states,
            output,
            reserve,
            weights,
            has_biases,
            bidirectional,
            for_weights,
        )
        return None, None, None, None, for_source, *for_states, *(for_all or (None for _ in weights))


def _stack(
    cell: str,
    source: torch.Tensor,
    states: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[torch.Tensor, ...]:
    """All layers, as ``torch.lstm`` and the like are called; the last states of all layers behind the output."""
    directions = 2 if bidirectional else 1
    per_layer = len(weights) // num_layers
    # cuDNN takes the steps first.
    hidden = source.transpose(0, 1).contiguous() if batch_first else source
    last: list[tuple[torch.Tensor, ...]] = []
    for layer in range(num_layers):
        own = [state.narrow(0, layer * directions, directions) for state in states] if num_layers > 1 else states
        settings = (cell, has_biases, bidirectional, len(states))
        hidden, *ends = _Layer.apply(*settings, hidden, *own, *weights[layer * per_layer : (layer + 1) * per_layer])
        last.append(tuple(ends))
        if layer < num_layers - 1:
            hidden = torch.dropout(hidden, dropout, train)
    ends = [parts[0] if num_layers == 1 else torch.cat(parts) for parts in zip(*last, strict=True)]
    return (hidden.transpose(0, 1) if batch_first else hidden), *ends


def _lstm(source: Any, states: Any, weights: Any, *settings: Any) -> Any:
    return _stack("lstm", source, states, weights, *settings)


def _gru(source: Any, state: Any, weights: Any, *settings: Any) -> Any:
    return _stack("gru", source, [state], weights, *settings)


def _rnn(source: Any, state: Any, weights: Any, *settings: Any) -> Any:
    return _stack("rnn", source, [state], weights, *settings)


def _packed(*_arguments: Any) -> Any:
    raise CaptureError(
        "a recurrent layer gets a packed sequence, whose sizes are data; "
        "capture it with a padded batch of the mean length"
    )


_IN_PLACE_OF = {
    "lstm": (_lstm, _packed),
    "gru": (_gru, _packed),
    "rnn_tanh": (_rnn, _packed),
    "rnn_relu": (_rnn, _packed),
}


@contextlib.contextmanager
def recurrent_as_one_op() -> Iterator[None]:
    """While active, ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` are recorded as one op a layer.

    It needs PyTorch's Python dispatcher (``enable_python_dispatcher``).

    Raises
    ------
    CaptureError
        In the module's call, if it gets a packed sequence.
    """
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    kept: list[tuple[Any, dict[Any, Any]]] = []
    for name, (padded, packed) in _IN_PLACE_OF.items():
        packet = getattr(torch.ops.aten, name)
        for op, function in ((packet.input, padded), (packet.data, packed)):
            kept.append((op, dict(op.py_kernels)))
            op.py_kernels.clear()
            op.py_kernels[key] = function
            op._dispatch_cache.clear()
    try:
        yield
    finally:
        for op, kernels in kept:
            op.py_kernels.clear()
            op.py_kernels.update(kernels)
            op._dispatch_cache.clear()
