"""Fused graphs: what reaches memory, against figures derived by hand and invariants of every graph."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import perfmodel as pm
from perfmodel.graph import content_hash, fuse, load_graph, save_graph, unfold
from perfmodel.graph.count import Counted, count
from perfmodel.graph.ir import RESIDENT_ROLES, Graph, Op
from perfmodel.ops import cost
from perfmodel.ops.common import is_in_place
from tests.graph.modules import TOKENS, ConvNet, Gpt, Mlp, ids

STEP = ("forward", "backward", "recompute")


@functools.cache
def gpt(depth: int = 9, **settings: object) -> Graph:
    return pm.capture(Gpt(depth=depth, **settings), (ids(4, 64), ids(4, 64)), optimizer="adamw", dynamic_shapes=TOKENS)  # type: ignore[arg-type]


def kernels(graph: Graph, *phases: str) -> int:
    return kernels_of([c for c in count(graph) if c.op.phase in phases])


def bytes_of(graph: Graph, *phases: str) -> int:
    return sum(graph.bytes(phase=phase) for phase in phases)


class Chain(nn.Module):
    """Element-wise arithmetic on a weight, summed."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ((self.weight * x + 1).tanh().exp() * 3).sum()


def test_a_chain_reads_its_inputs_and_writes_its_result() -> None:
    n = 1000
    eager = pm.capture(Chain(n), (torch.randn(n),), optimizer=None)
    fused = fuse(eager)
    # One kernel reads the weight and x and writes a scalar.
    assert fused.bytes(phase="forward") == 4 * (n + n + 1)
    assert kernels(fused, "forward") == 1
    # Backward reads both again, computes the chain anew and writes the weight's gradient.
    assert bytes_of(fused, "backward", "recompute") == 4 * (n + n + n)
    assert kernels(fused, "backward", "recompute") == 1
    assert kernels(eager, "forward") == 6
    # Nothing between the weight and its gradient is ever in memory, but the loss.
    profile = pm.memory_profile(fused)
    assert profile.peak == 4 * (n + n + 1) + 4 * n


class Classifier(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(16, classes, bias=False)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.head(x), labels)


def test_a_cross_entropy_never_stores_probabilities() -> None:
    rows, classes = 64, 5000
    x, labels = torch.randn(rows, 16), torch.randint(0, classes, (rows,))
    eager = pm.capture(Classifier(classes), (x, labels), optimizer=None)
    fused = fuse(eager)
    logits = 4 * rows * classes
    products = 4 * (rows * 16 + 16 * classes) + logits
    # Forward: the product writes the logits, the loss reads them. Backward: logits in, their gradient out, and
    # the weight's product reads it.
    assert fused.bytes(phase="forward") == pytest.approx(products + logits, rel=0.01)
    assert bytes_of(fused, "backward", "recompute") == pytest.approx(2 * logits + products, rel=0.01)
    assert eager.bytes(phase="forward") == pytest.approx(products + 2 * logits, rel=0.01)
    # Logits and their gradient, instead of log-probabilities and two gradients.
    saved = pm.memory_profile(eager).peak - pm.memory_profile(fused).peak
    assert saved == pytest.approx(logits, rel=0.01)


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(width, width), nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.norm(x + self.a(x))).sum()


def test_a_residual_merges_with_the_norm_after_it() -> None:
    tokens, width = 256, 32
    fused = fuse(pm.capture(Residual(width), (torch.randn(tokens, width),), optimizer=None))
    forward = [c for c in count(fused) if c.op.module == "norm" and c.op.phase == "forward"]
    assert [(c.op.name, c.op.launches) for c in forward] == [("aten.add", True), ("aten.native_layer_norm", False)]
    add, norm = (c.cost for c in forward)
    assert add is not None and norm is not None
    size, rows, weights = 4 * tokens * width, 4 * tokens, 4 * width
    # x and the product come in; their sum isn't stored, since backward has both for other reasons.
    assert (add.read, add.written) == (2 * size, 0)
    assert (norm.read, norm.written) == (2 * weights, size + 2 * rows)
    # Backward is two kernels, along rows for x, across them for weight and bias. Both read x, the product, the
    # gradient and the rows' mean and 1 / std, and add anew.
    backward = [c for c in count(fused) if c.op.module == "norm" and c.op.phase != "forward" and family(c.op) != "view"]
    assert [c.op.name for c in backward] == ["aten.add", "aten.native_layer_norm_backward"] * 2
    assert kernels_of(backward) == 2
    moved = sum(c.cost.read + c.cost.written for c in backward if c.cost is not None)
    assert moved == 2 * (3 * size + 2 * rows + 2 * weights) + size + 2 * weights


def kernels_of(counted: list[Counted]) -> int:
    return sum(c.cost.kernels * c.times for c in counted if c.cost is not None)


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_fusing_and_folding_commute(dropout: float, checkpointed: bool) -> None:
    graph = gpt(dropout=dropout, checkpointed=checkpointed)
    folded, flat = fuse(graph), fuse(unfold(graph))
    for phase in (*STEP, "optimizer", "release"):
        assert folded.bytes(phase=phase) == flat.bytes(phase=phase)
        assert folded.flops("vector", phase=phase) == flat.flops("vector", phase=phase)
        assert kernels(folded, phase) == kernels(flat, phase)
    assert folded.flops() == flat.flops()
    for first in (False, True):
        a, b = (pm.memory_profile(g, first_step=first) for g in (folded, flat))
        assert (a.curve == b.curve).all()
        assert a.at_peak == b.at_peak
    assert max(block.count for block in folded.blocks) >= 7
    assert sum(len(block.ops) for block in folded.blocks) < 0.6 * sum(len(block.ops) for block in flat.blocks)


@functools.cache
def graph_of(kind: str) -> Graph:
    x = torch.randn(2, 16)
    images, labels = torch.randn(2, 3, 8, 8), torch.zeros(2, dtype=torch.long)
    match kind:
        case "gpt":
            return gpt(4, dropout=0.1)
        case "checkpointed":
            return gpt(4, checkpointed=True)
        case "on a CPU":
            return pm.capture(Gpt(depth=4, dropout=0.1), (ids(), ids()), optimizer="adamw", dispatch="cpu")
        case "mlp":
            return pm.capture(Mlp(), (x, x), optimizer="sgd")
    return pm.capture(ConvNet(), (images, labels), optimizer="adamw")


KINDS = ["gpt", "checkpointed", "on a CPU", "mlp", "convnet"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_fused_graph_moves_fewer_bytes_and_computes_the_same(kind: str) -> None:
    eager = graph_of(kind)
    fused = fuse(eager)
    assert bytes_of(fused, *STEP) < bytes_of(eager, *STEP)
    assert kernels(fused, *STEP) < kernels(eager, *STEP)
    assert fused.flops() == eager.flops()
    assert fused.flops(recompute=False) == eager.flops(recompute=False)
    assert fused.bytes(phase="optimizer") == eager.bytes(phase="optimizer")
    assert fused.coverage.missing == eager.coverage.missing
    # A kernel that makes two results at once holds both; that may exceed what is kept no longer.
    assert pm.memory_profile(fused).peak <= 1.1 * pm.memory_profile(eager).peak
    assert pm.memory_profile(fused).resident == pm.memory_profile(eager).resident


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_from_memory_is_there(kind: str) -> None:
    graph = unfold(fuse(graph_of(kind)))
    alive = {i for i, s in enumerate(graph.storages) if s.role in (*RESIDENT_ROLES, "optimizer")}
    alive -= {ref.storage for op, _ in graph.ops() for ref in op.allocates}
    for op, _ in graph.ops():
        made = {ref.storage for ref in op.allocates}
        assert not made & alive
        alive |= made
        assert used_in_memory(op) <= alive, f"{op.name} in {op.module}"
        freed = {ref.storage for ref in op.frees}
        assert freed <= alive
        alive -= freed
    profile = pm.memory_profile(graph)
    assert profile.curve[-1] == profile.resident


def used_in_memory(op: Op) -> set[int]:
    """Storages that an op reads or writes itself."""
    if family(op) == "view":
        return set()
    results = (op.inputs["self"],) if is_in_place(op) else op.outputs
    read = {t.storage for name, t in op.inputs.items() if f"in:{name}" not in op.on_chip}
    unread = {op.inputs[name].storage for name in ("self",) if name in op.inputs and op.name in UNREAD}
    written = {t.storage for number, t in enumerate(results) if f"out:{number}" not in op.on_chip}
    return (read - unread) | written


#: Ops whose ``self`` gives a shape only.
UNREAD = ("aten.ones_like", "aten.zeros_like", "aten.nll_loss_backward", "aten.fill_", "aten.zero_", "aten.copy_")


def family(op: Op) -> str | None:
    known = cost(op)
    return None if known is None else known.family


def test_other_sizes_need_no_other_fusion() -> None:
    graph = gpt(4, dropout=0.1)
    fused = fuse(graph)
    for sizes in ({"batch": 2, "seq": 128}, {"batch": 16, "seq": 1000}):
        assert fused.at(**sizes).bytes() == fuse(graph.at(**sizes)).bytes()


def test_a_file_keeps_what_is_on_chip(tmp_path: Path) -> None:
    fused = fuse(gpt(4))
    save_graph(fused, tmp_path / "fused.json")
    loaded = load_graph(tmp_path / "fused.json")
    assert content_hash(loaded) == content_hash(fused) != content_hash(gpt(4))
    assert loaded.bytes() == fused.bytes() and loaded.depth == fused.depth
    assert [(op.on_chip, op.launches) for op, _ in loaded.ops()] == [(op.on_chip, op.launches) for op, _ in fused.ops()]


def test_an_op_in_place_can_read_on_chip_and_write_to_memory() -> None:
    graph = pm.capture(InPlace(), (torch.randn(50),), optimizer=None)
    (add,) = (op for op, _ in graph.ops() if op.name == "aten.add_")

    def moved(*on_chip: str) -> tuple[int, int]:
        block = replace(graph.blocks[0], ops=(replace(add, on_chip=on_chip),))
        (counted,) = count(replace(graph, blocks=(block,)))
        assert counted.cost is not None
        return counted.cost.read, counted.cost.written

    assert moved() == (400, 200)
    assert moved("in:self") == (200, 200)
    assert moved("out:0") == (400, 0)
    assert moved("in:self", "in:other", "out:0") == (0, 0)


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(50))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.weight * x).add_(x).sum()


def test_an_op_in_place_is_fused_with_its_neighbours() -> None:
    fused = fuse(pm.capture(InPlace(), (torch.randn(50),), optimizer=None))
    assert fused.bytes(phase="forward") == 200 + 200 + 4
    assert kernels(fused, "forward") == 1
