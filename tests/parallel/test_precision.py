from __future__ import annotations

import pytest

import perfmodel as pm
from perfmodel.errors import UnsupportedError
from perfmodel.graph.fold import unfold
from perfmodel.parallel.plan import Plan
from perfmodel.parallel.shard import shard
from perfmodel.symbols import evaluate
from tests.parallel.steps import BATCH, step


def _resident(graph: pm.Graph, role: str) -> int:
    return sum(int(evaluate(s.nbytes, graph.bindings)) * s.count for s in graph.storages if s.role == role)


@pytest.mark.parametrize(("zero", "ranks"), [(0, 1), (1, 8), (3, 8)])
def test_eighteen_bytes_a_parameter(zero: int, ranks: int) -> None:
    """2 of the parameter, 4 of its gradient, 4 of the master weight and 4 + 4 of Adam's state
    (Rajbhandari et al. 2020, section 3.1, with gradients in float32); all but what zero leaves whole over the ranks.
    """
    graph = step("llama")
    count = _resident(graph, "parameter") // 2
    counters = 4 * sum(s.count for s in graph.storages if s.name.endswith(".step"))
    plan = Plan(dp=8, zero=zero, micro_batch=BATCH, dtypes={"optimizer": "float32", "gradients": "float32"})
    local = shard(graph, plan).graph
    assert _resident(local, "optimizer") - counters == 12 * count // ranks
    assert _resident(local, "gradient") == 4 * count // (ranks if zero >= 2 else 1)
    assert _resident(local, "parameter") == 2 * count // (ranks if zero == 3 else 1)


def test_master_weights_are_stepped_and_written_back() -> None:
    local = unfold(shard(step("llama"), Plan(dp=1, micro_batch=BATCH, dtypes={"optimizer": "float32"})).graph)
    parameters = sum(s.role == "parameter" for s in local.storages)
    back = [op for op, _ in local.ops() if op.name == "aten.copy_"]
    assert len(back) == parameters
    assert all(local.storages[op.inputs["src"].storage].name.endswith(".master") for op in back)
    stepped = [op for op, _ in local.ops() if op.name == "aten.addcdiv_"]
    assert {op.inputs["self"].dtype for op in stepped} == {"float32"}
    made = [
        ref
        for block in local.first_optimizer
        for op in block.ops
        for ref in op.allocates
        if local.storages[ref.storage].name.endswith(".master")
    ]
    assert len(made) == parameters


def test_what_was_not_captured_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="compute in float32, and Decoder was captured in bfloat16"):
        shard(step("llama"), Plan(dp=1, micro_batch=BATCH, dtypes={"compute": "float32"}))
    with pytest.raises(UnsupportedError, match="captured without one"):
        shard(step("llama", optimizer=None), Plan(dp=1, micro_batch=BATCH, dtypes={"optimizer": "float32"}))
