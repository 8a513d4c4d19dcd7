"""Bytes of fused graphs against those that TorchInductor counts when it compiles the same step."""

from __future__ import annotations

import functools

import pytest

import perfmodel as pm
from perfmodel.dtypes import item_size
from perfmodel.graph import fuse
from perfmodel.graph.count import Counted, count
from perfmodel.graph.ir import Graph
from tests.oracles.compiled_modules import example
from tests.oracles.inductor import inductor_bytes


@functools.cache
def captured(name: str) -> Graph:
    module, inputs = example(name)
    return pm.capture(module, kwargs=inputs, optimizer=None)


def by_inductors_rule(counted: Counted) -> int:
    """Bytes of an op; a gather reads its whole table, which is the worst case that Inductor counts."""
    cost = counted.cost
    assert cost is not None, counted.op.name
    moved = cost.read + cost.written
    if cost.family == "gather":
        table = next(iter(counted.call.inputs.values()))
        moved += max(table.nbytes - cost.rows * cost.cols * item_size(table.dtype), 0)
    return moved * counted.times


def ours(graph: Graph) -> tuple[int, int]:
    """Bytes of forward and of backward."""
    steps = {"forward": 0, "backward": 0}
    for counted in count(graph):
        steps["forward" if counted.op.phase == "forward" else "backward"] += (
            0 if counted.op.phase == "release" else by_inductors_rule(counted)
        )
    return steps["forward"], steps["backward"]


# The mixer, the T5 and nn.Transformer were first compared when the rules were complete.
@pytest.mark.parametrize("name", ["block", "llama-bfloat16", "gpt2", "bert", "vit", "mixer", "t5", "nn.Transformer"])
def test_bytes_of_an_accelerators_kernels(name: str) -> None:
    module, inputs = example(name)
    oracle = inductor_bytes(module, scheduling="triton", **inputs)
    assert ours(fuse(captured(name))) == pytest.approx(oracle, rel=0.15)


# A CPU's kernels fuse less: norms of values with a broadcast or transposed operand fall apart there, and
# concatenations are written out. The models below have little of it.
@pytest.mark.parametrize("name", ["block", "bert"])
def test_bytes_of_a_cpus_kernels(name: str) -> None:
    module, inputs = example(name)
    oracle = inductor_bytes(module, scheduling="cpp", **inputs)
    assert ours(fuse(captured(name))) == pytest.approx(oracle, rel=0.15)


@pytest.mark.parametrize("name", ["gpt2", "llama-bfloat16"])
def test_eager_bytes_are_twice_as_many(name: str) -> None:
    eager, fused = ours(captured(name)), ours(fuse(captured(name)))
    assert all(a > 1.8 * b for a, b in zip(eager, fused, strict=True))
