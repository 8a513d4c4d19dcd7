"""Sharding conserves work, and one symbolic program stands for every degree."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

from perfmodel.parallel.plan import Plan
from perfmodel.parallel.shard import shard
from tests.parallel.steps import experts, step

_SETTINGS = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
_NAMES = st.sampled_from(["llama", "grouped", "gpt2", "bert", "experts"])


def _step(name: str):
    return experts() if name == "experts" else step(name, optimizer=None)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    tp = draw(st.sampled_from([1, 2, 4, 8]))
    cp = draw(st.sampled_from([1, 2, 4]))
    kind = draw(st.sampled_from(["ring", "all-gather", *(["all-to-all"] if tp * cp <= 8 else [])]))
    return Plan(
        tp=tp,
        sp=tp > 1 and draw(st.booleans()),
        cp=cp,
        cp_kind=kind,
        dp=draw(st.sampled_from([1, 2, 8])),
        zero=draw(st.integers(0, 3)),
        micro_batch=draw(st.sampled_from([2, 3])),
        recompute=draw(st.sampled_from(["none", "full"])),
        sequence_gather=draw(st.sampled_from(["again", "keep"])),
    )


@_SETTINGS
@given(name=_NAMES, plan=plans())
def test_ranks_do_the_step_s_matrix_flops_and_what_is_replicated(name: str, plan: Plan) -> None:
    program = shard(_step(name), plan)
    total = program.graph.flops() * plan.tp * plan.cp
    excess = program.replicated_flops()
    source = program.source.flops()
    assert total == source + sum(excess.values())
    assert all(flops > 0 for flops in excess.values())
    # Replicated are the heads that several ranks hold, and layers that no placement splits.
    allowed = ("k_proj", "v_proj", "dense", "gate")
    assert all(module.rsplit(".", 1)[-1] in allowed for module in excess), excess


@_SETTINGS
@given(name=_NAMES, plan=plans())
def test_phases_conserve_work_each(name: str, plan: Plan) -> None:
    if name in ("grouped", "bert", "experts"):
        return  # these replicate work, see above
    program = shard(_step(name), plan)
    for phase in ("forward", "backward", "recompute"):
        local, whole = program.graph.flops(phase=phase), program.source.flops(phase=phase)
        assert local * plan.tp * plan.cp == whole


@pytest.mark.parametrize("zero", [0, 1, 3])
def test_one_program_evaluates_a_thousand_plans(zero: int) -> None:
    """Evaluated over arrays of degrees, flops, bytes and traffic are those of a program made for each plan."""
    graph = step("grouped")
    points = [(tp, dp, mb) for tp in (2, 4, 8) for dp in range(2, 42) for mb in range(2, 11)]
    assert len(points) > 1000
    tp, dp, batch = (np.array(axis, dtype=float) for axis in zip(*points, strict=True))
    at = {"tp": tp, "dp": dp, "batch": batch}
    # Key-value heads are fewer than ranks at tp 4 and 8: another structure, with sums over their copies.
    program = shard(graph, Plan(tp=4, sp=True, dp=8, zero=zero, micro_batch=2))
    flops, moved, traffic = program.graph.flops(at=at), program.graph.bytes(at=at), program.traffic(at)
    assert flops.shape == moved.shape == (len(points),)
    for position in range(0, len(points), 97):
        tp_, dp_, mb = points[position]
        if tp_ == 2:
            continue
        own = shard(graph, Plan(tp=tp_, sp=True, dp=dp_, zero=zero, micro_batch=mb))
        assert own.graph.flops() == flops[position]
        assert own.graph.bytes() == moved[position]
        expected = own.traffic()
        assert expected.keys() == traffic.keys()
        for key, value in expected.items():
            assert np.broadcast_to(traffic[key], flops.shape)[position] == value, key
