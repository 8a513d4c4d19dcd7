"""Ops of our own, and those that FlopCounterMode has no formula for, against independent counts.

Each count is derived in the test, or made by FlopCounterMode on the same arithmetic
spelled out in ops that it knows.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import perfmodel as pm
from perfmodel.graph.capture.attention import attention_hint
from perfmodel.graph.capture.scan import selective_scan, ssd_scan
from perfmodel.ops import OpCost
from tests.ops.calls import cost_of, tensor


def counted_by_torch(run: Callable[[], torch.Tensor]) -> tuple[int, int]:
    """Forward and backward flops of a real run."""
    with FlopCounterMode(display=False) as forward:
        loss = run()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    return forward.get_total_flops(), backward.get_total_flops()


def ours(graph: pm.Graph) -> tuple[int, int]:
    return tuple(graph.flops(phase=phase, recompute=False) for phase in ("forward", "backward"))  # type: ignore[return-value]


# -- routed experts ---------------------------------------------------------------------


class Experts(nn.Module):
    """Two grouped products, as the experts of a transformer; ``loops`` multiplies expert by expert."""

    def __init__(self, experts: int, width: int, inner: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(experts, width, inner, dtype=torch.bfloat16))
        self.down = nn.Parameter(torch.randn(experts, inner, width, dtype=torch.bfloat16))

    def forward(self, rows: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        hidden = F.silu(torch._grouped_mm(rows, self.up, offs=ends))
        return torch._grouped_mm(hidden, self.down, offs=ends).float().mean()

    def loops(self, rows: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        parts = torch.tensor_split(rows, ends[:-1].long())
        pairs = zip(parts, self.up, self.down, strict=True)
        return torch.cat([F.silu(part @ up) @ down for part, up, down in pairs]).float().mean()


@pytest.mark.parametrize("ends", [[16, 32, 48, 64], [1, 60, 60, 64]])
def test_grouped_experts_make_as_many_flops_as_expert_by_expert(ends: list[int]) -> None:
    # Each of the M rows meets the k n weights of one expert: sum over experts of 2 rows_e k n = 2 M k n,
    # whatever the rows of each. Backward: as many for the rows, and as many for the weights.
    rows, experts, width, inner = 64, 4, 32, 48
    module = Experts(experts, width, inner)
    x = torch.randn(rows, width, dtype=torch.bfloat16).requires_grad_()
    offsets = torch.tensor(ends, dtype=torch.int32)
    graph = pm.capture(module, (x, offsets), optimizer=None)
    one_product = 2 * rows * width * inner
    assert ours(graph) == (2 * one_product, 4 * one_product)
    assert ours(graph) == counted_by_torch(lambda: module.loops(x, offsets))


def test_grouped_experts_read_every_weight() -> None:
    c = cost_of(
        "aten._grouped_mm",
        {"self": tensor(64, 32, dtype="bfloat16"), "mat2": tensor(4, 32, 48, dtype="bfloat16"),
         "offs": tensor(4, dtype="int32")},
        [tensor(64, 48, dtype="bfloat16")],
        skew=1.5,
    )  # fmt: skip
    assert c.read == 2 * (64 * 32 + 4 * 32 * 48) + 4 * 4
    assert (c.shape.m, c.shape.groups) == (64, 4)
    assert c.shape.skew == 1.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_grouped_products_of_other_types_are_captured_as_they_run(dtype: torch.dtype) -> None:
    module = Experts(4, 32, 48).to(dtype)
    x, offsets = torch.randn(64, 32, dtype=dtype), torch.tensor([16, 32, 48, 64], dtype=torch.int32)
    module(x, offsets).backward()
    assert ours(pm.capture(module, (x, offsets), optimizer=None))[0] == 2 * 2 * 64 * 32 * 48


# -- recurrent layers -------------------------------------------------------------------


def by_cells(layer: nn.RNNBase, x: torch.Tensor, states: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The layer with one matrix product a gate group, step and layer: what FlopCounterMode can see."""
    directions = 2 if layer.bidirectional else 1
    for index in range(layer.num_layers):
        sides = []
        for side in range(directions):
            suffix = f"_l{index}" + ("_reverse" if side else "")
            w_ih, w_hh = (getattr(layer, f"weight_{kind}{suffix}") for kind in ("ih", "hh"))
            cell, h = states[-1][index], states[0][index * directions + side]
            outputs = []
            for t in reversed(range(len(x))) if side else range(len(x)):
                a, b = x[t] @ w_ih.T, h @ w_hh.T
                if layer.mode == "LSTM":
                    i, f, g, o = (a + b).chunk(4, -1)
                    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
                    h = o.sigmoid() * cell.tanh()
                    if layer.proj_size:
                        h = h @ getattr(layer, f"weight_hr{suffix}").T
                elif layer.mode == "GRU":
                    (ar, az, an), (br, bz, bn) = a.chunk(3, -1), b.chunk(3, -1)
                    n = (an + (ar + br).sigmoid() * bn).tanh()
                    z = (az + bz).sigmoid()
                    h = n + z * (h - n)
                else:
                    h = (a + b).tanh()
                outputs.append(h)
            sides.append(torch.stack(outputs[::-1] if side else outputs))
        x = torch.cat(sides, -1)
    return x


class Recurrent(nn.Module):
    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor, *states: torch.Tensor) -> torch.Tensor:
        given: Any = states if self.layer.mode == "LSTM" else states[0]
        return self.layer(x, given)[0].square().mean()


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (nn.LSTM, {}),
        (nn.LSTM, {"num_layers": 2, "bidirectional": True, "bias": False}),
        (nn.LSTM, {"proj_size": 3}),
        (nn.GRU, {}),
        (nn.GRU, {"num_layers": 3, "bidirectional": True}),
        (nn.RNN, {"num_layers": 2}),
    ],
)
def test_recurrent_layers_make_as_many_flops_as_step_by_step(kind: Any, settings: dict[str, Any]) -> None:
    # Of each step and direction, [B, in] [in, G H] and [B, H] [H, G H], and with a projection [B, H] [H, P].
    # Everything needs a gradient, the first state too: backward is exactly twice forward.
    steps, batch, width, hidden = 5, 2, 7, 4
    layer = kind(width, hidden, **settings)
    layers = settings.get("num_layers", 1)
    directions = 2 if settings.get("bidirectional") else 1
    out = settings.get("proj_size", hidden)
    gates = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1}[layer.mode]
    x = torch.randn(steps, batch, width).requires_grad_()
    states = [torch.randn(layers * directions, batch, out).requires_grad_()]
    if kind is nn.LSTM:
        states.append(torch.randn(layers * directions, batch, hidden).requires_grad_())
    graph = pm.capture(Recurrent(layer), (x, *states), optimizer=None)
    forward = 0
    for index in range(layers):
        inputs = width if index == 0 else directions * out
        per_row = gates * hidden * (inputs + out) + (hidden * out if "proj_size" in settings else 0)
        forward += 2 * steps * batch * directions * per_row
    assert ours(graph) == (forward, 2 * forward)
    assert ours(graph) == counted_by_torch(lambda: by_cells(layer, x, tuple(states)).square().mean())


def test_the_steps_of_a_recurrent_layer_wait_for_each_other() -> None:
    # One product for all inputs; then in each step a product and the cell: 1 + 2 T kernels, in each direction.
    # Backward the same steps, then the gradients of the inputs, of two weights, and of the biases.
    x, y = torch.zeros(100, 2, 8), torch.zeros(300, 2, 8)
    for directions in (1, 2):
        module = Recurrent(nn.LSTM(8, 8, bidirectional=directions == 2))
        states = torch.zeros(directions, 2, 8)
        for sequence in (x, y):
            graph = pm.capture(module, (sequence, states, states), optimizer=None)
            forward, backward = (op for op, _ in graph.ops() if op.name.startswith("perfmodel.lstm"))
            steps = len(sequence)
            assert kernels(forward) == directions * (1 + 2 * steps)
            assert kernels(backward) == directions * (2 * steps + 4)


def kernels(op: Any) -> Any:
    from perfmodel.ops import cost

    found = cost(op)
    assert found is not None
    return found.kernels


def test_onednns_lstm_counts_as_ours() -> None:
    module = Recurrent(nn.LSTM(7, 4))
    states = torch.zeros(1, 2, 4)
    here, there = (
        pm.capture(module, (torch.zeros(5, 2, 7), states, states), optimizer=None, dispatch=dispatch)
        for dispatch in ("neutral", "cpu")
    )
    assert {"aten.mkldnn_rnn_layer", "aten.mkldnn_rnn_layer_backward"} <= {op.name for op, _ in there.ops()}
    assert ours(here) == ours(there)


# -- state-space scans ------------------------------------------------------------------


class Ssd(nn.Module):
    def __init__(self, chunk: int) -> None:
        super().__init__()
        self.chunk = chunk

    def forward(self, x: Any, dt: Any, A: Any, B: Any, C: Any, D: Any) -> torch.Tensor:
        return ssd_scan(x, dt, A, B, C, self.chunk, D).square().mean()


@pytest.mark.parametrize(("seq", "chunk", "groups"), [(32, 8, 1), (32, 8, 4), (27, 8, 2)])
def test_mambas_second_scan(seq: int, chunk: int, groups: int) -> None:
    batch, heads, width, state = 2, 4, 3, 5
    rows = batch * -(-seq // chunk) * chunk  # positions, the last chunk filled up
    scores = 2 * rows * chunk * groups * state  # C B^T within a chunk, shared by the heads of a group
    values = 2 * rows * chunk * heads * width  # scores times x
    states = 2 * rows * heads * width * state  # what a chunk leaves; and what it reads from before, as much
    forward = scores + values + 2 * states
    operands = [
        torch.randn(batch, seq, heads, width), torch.rand(batch, seq, heads), -torch.rand(heads),
        torch.randn(batch, seq, groups, state), torch.randn(batch, seq, groups, state), torch.randn(heads),
    ]  # fmt: skip
    for operand in operands:
        operand.requires_grad_()
    graph = pm.capture(Ssd(chunk), operands, optimizer=None)
    # Every product has two factors, so backward is twice forward, and the scores and states are made again.
    assert ours(graph) == (forward, 2 * forward)
    assert graph.flops(phase="backward") == 2 * forward + scores + states
    assert ours(graph) == counted_by_torch(lambda: Ssd(chunk)(*operands))
    # A position sees itself and those before it in its chunk; kernels skip the rest where x is multiplied.
    seen = torch.ones(chunk, chunk).tril().sum().item() / chunk**2
    assert graph.flops(phase="forward", causal="half") == forward - round((1 - seen) * values)


class Selective(nn.Module):
    def forward(self, u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, z: Any) -> torch.Tensor:
        return selective_scan(u, delta, A, B, C, D, z, delta_softplus=True).square().mean()


def test_mambas_first_scan() -> None:
    batch, channels, seq, state = 2, 3, 11, 4
    operands = [
        torch.randn(batch, channels, seq), torch.randn(batch, channels, seq), -torch.rand(channels, state),
        torch.randn(batch, state, seq), torch.randn(batch, state, seq), torch.randn(channels),
        torch.randn(batch, channels, seq),
    ]  # fmt: skip
    for operand in operands:
        operand.requires_grad_()
    one_op = pm.capture(Selective(), operands, optimizer=None)
    assert one_op.flops() == 0
    # Of a state: delta A, exp, (delta u) B, a h, + b, C h, sum. Of a channel and position: softplus 5, delta u,
    # D u and its sum, z sigmoid(z) 4 and its product. The loss: square, mean.
    elements = batch * channels * seq
    expected = elements * (7 * state + 5 + 1 + 2 + 5) + 2 * elements
    assert one_op.flops("vector", phase="forward") == expected
    # The same in plain PyTorch, one op a step of the formula; it also gives the first state its zeros.
    spelled_out = pm.capture(Selective(), operands, optimizer=None, dispatch="cpu")
    assert spelled_out.flops("vector", phase="forward") == expected


# -- attention --------------------------------------------------------------------------


def seen_by_mask(q: int, s: int, causal: bool, window: int | None) -> int:
    """Pairs that a mask leaves, one by one."""
    distance = torch.arange(q)[:, None] - torch.arange(s)
    mask = torch.ones(q, s, dtype=torch.bool)
    if causal:
        mask &= distance >= 0
    if window is not None:
        mask &= distance < window
        if not causal:
            mask &= distance > -window
    return int(mask.sum())


def attention(q_len: int, kv_len: int, d: int = 4, dv: int = 6, **attrs: Any) -> OpCost:
    q, k, v = tensor(2, 3, q_len, d), tensor(2, 3, kv_len, d), tensor(2, 3, kv_len, dv)
    return cost_of("perfmodel.attention", {"query": q, "key": k, "value": v}, [tensor(2, 3, q_len, dv)], **attrs)


@pytest.mark.parametrize(("q_len", "kv_len"), [(8, 8), (5, 9), (9, 5), (1, 7)])
@pytest.mark.parametrize("window", [None, 1, 3, 8, 20])
@pytest.mark.parametrize("causal", [True, False])
def test_fused_attention_skips_what_a_mask_hides(q_len: int, kv_len: int, window: int | None, causal: bool) -> None:
    attrs = {} if window is None else {"window": window}
    c = attention(q_len, kv_len, is_causal=causal, **attrs)
    assert c.matrix_flops - c.masked == 2 * 2 * 3 * seen_by_mask(q_len, kv_len, causal, window) * (4 + 6)
    assert c.matrix_flops == 2 * 2 * 3 * q_len * kv_len * (4 + 6)


def test_causal_attention_is_half_of_the_square_and_the_diagonal() -> None:
    # 1 + 2 + … + S pairs = S (S + 1) / 2, of S^2.
    c = attention(64, 64, is_causal=True)
    assert (c.matrix_flops - c.masked) / c.matrix_flops == 65 / 128


def test_packed_documents_see_themselves() -> None:
    # Documents of 3, 5 and 8 positions in a row of 16, causal: 6 + 15 + 36 of 256 pairs.
    lengths = (3, 5, 8)
    mask = torch.block_diag(*(torch.ones(length, length).tril() for length in lengths)).bool()
    share = mask.float().mean().item()
    assert mask.sum() == 6 + 15 + 36
    c = attention(16, 16, is_causal=True, visible=share)
    assert c.matrix_flops - c.masked == pytest.approx(2 * 2 * 3 * 57 * (4 + 6), rel=1e-4)
    # A share that is larger than what causality leaves doesn't undo causality.
    assert attention(16, 16, is_causal=True, visible=0.9).masked == attention(16, 16, is_causal=True).masked


class Windowed(nn.Module):
    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        with attention_hint(window=3):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True).square().mean()


@pytest.mark.parametrize("seq", [2, 16])
def test_a_captured_window_counts_its_pairs(seq: int) -> None:
    q = torch.randn(2, 3, seq, 4).requires_grad_()
    shapes = tuple({2: "seq"} for _ in range(3))
    graph = pm.capture(Windowed(), (q, q.detach().requires_grad_(), q.detach()), optimizer=None, dynamic_shapes=shapes)
    seen = 2 * 3 * seen_by_mask(seq, seq, True, 3)
    assert graph.flops(phase="forward", causal="half") == 2 * seen * (4 + 4)
    assert graph.flops(phase="backward", causal="half", recompute=False) == 2 * seen * 4 * 4
    longer = 2 * 3 * seen_by_mask(40, 40, True, 3)
    assert graph.at(seq=40).flops(phase="forward", causal="half") == 2 * longer * (4 + 4)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_kernels_with_lengths_equal_torchs_formula(causal: bool, packed: bool) -> None:
    documents, longest, heads, d = 3, 10, 4, 8
    size = (documents * longest, heads, d) if packed else (documents, longest, heads, d)
    q = torch.empty(size, device="meta", dtype=torch.bfloat16)
    starts = torch.empty(documents + 1, device="meta", dtype=torch.int32) if packed else None
    aten = torch.ops.aten
    look = tensor(*size, dtype="bfloat16")
    inputs = {"query": look, "key": look, "value": look}
    if packed:
        inputs |= {name: tensor(documents + 1, dtype="int32") for name in ("cum_seq_q", "cum_seq_k")}
    attrs = {"max_q": longest, "max_k": longest, "dropout_p": 0.0, "is_causal": causal}
    flash = flop_registry[aten._flash_attention_forward]
    c = cost_of("aten._flash_attention_forward", inputs, [look], **attrs)
    theirs = flash(q, q, q, starts, starts, longest, longest, 0.0, causal, False, out_val=None)
    assert c.matrix_flops == 2 * documents * heads * longest**2 * (d + d)
    # Without lengths, PyTorch's formula takes [batch, length, heads, d] for [batch, heads, length, d].
    assert theirs == (c.matrix_flops if packed else 2 * documents * longest * heads**2 * (d + d))
    hidden = longest * (longest - 1) // 2 if causal else 0
    assert c.masked == 2 * documents * heads * hidden * (d + d)
    backward = cost_of(
        "aten._flash_attention_backward",
        {"grad_out": look, **inputs, "out": look, "logsumexp": tensor(heads, documents * longest)},
        [look, look, look],
        **attrs,
    )
    grads = flop_registry[aten._flash_attention_backward](
        q, q, q, q, q, q[..., 0], starts, starts, longest, longest, 0.0, causal, q, q, out_val=None
    )
    assert backward.matrix_flops == 2 * documents * heads * longest**2 * (3 * d + 2 * d)
    assert grads == (backward.matrix_flops if packed else 2 * documents * longest * heads**2 * (3 * d + 2 * d))


def test_every_op_that_flop_counter_mode_knows_has_a_rule_and_a_name_in_the_list() -> None:
    from perfmodel.ops import FLOP_COUNTER_OPS, has_rule

    # Flex attention is no op but a function that compiles its own kernel.
    packets = [packet for packet in flop_registry if isinstance(packet, torch._ops.OpOverloadPacket)]
    known = {f"aten.{packet._qualified_op_name.partition('::')[2]}" for packet in packets}
    aten = {name for name in FLOP_COUNTER_OPS if name.startswith("aten.")}
    assert known <= aten
    assert [name for name in sorted(known) if not has_rule(name)] == []


def test_the_levels_of_a_tree_are_a_logarithm() -> None:
    from perfmodel.ops.common import levels

    sizes = list(itertools.chain(range(1, 70), (2**20, 2**20 + 1)))
    assert [levels(size) for size in sizes] == [(size - 1).bit_length() for size in sizes]
