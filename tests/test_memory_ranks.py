"""Memory of pipeline ranks: against the memory of the whole graph, and against what schedules are known to hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import perfmodel as pm
from perfmodel.memory_ranks import BLOCK, COMPONENTS, RankMemory, rank_memories
from perfmodel.parallel.shard import shard
from perfmodel.parallel.stages import Stage, stages
from perfmodel.schedule import pipeline

LAYERS = 8


@pytest.fixture(scope="module")
def llama() -> pm.Graph:
    return pm.capture(
        "llama-3.1-8b", batch=1, seq_len=1024, optimizer="adamw", layers=LAYERS, implementation="reference", cache=False
    )


@pytest.fixture(scope="module")
def bert() -> pm.Graph:
    return pm.capture(
        "bert-base-uncased", batch=2, seq_len=128, optimizer="adamw", layers=4, implementation="reference", cache=False
    )


def ranks_of(graph: pm.Graph, plan: pm.Plan, devices: int) -> tuple[RankMemory, ...]:
    plan = plan.on(devices)
    program = shard(graph, plan)
    schedule = pipeline(plan.schedule, pp=plan.pp, micro_batches=plan.micro_batches, stages_per_rank=plan.vpp)
    return rank_memories(program, stages(program), schedule, [80e9] * plan.pp)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_one_rank_holds_what_the_graph_does(name: str, request: pytest.FixtureRequest) -> None:
    graph: pm.Graph = request.getfixturevalue(name)
    (rank,) = ranks_of(graph, pm.Plan(micro_batch=graph.bindings["batch"]), 1)
    whole = pm.memory_profile(graph)
    rounding = BLOCK * sum(storage.count for storage in graph.storages)
    assert whole.peak <= rank.peak <= whole.peak + rounding
    assert rank.phase == whole.peak_phase
    assert rank.op == whole.peak_op
    for component, role in (("parameters", "parameter"), ("optimizer", "optimizer"), ("activations", "activation")):
        assert rank.at_peak[component] == pytest.approx(whole.at_peak[role], abs=rounding)


@pytest.mark.parametrize(
    ("schedule", "vpp", "held"),
    [
        ("1F1B", 1, [4, 3, 2, 1]),
        ("GPipe", 1, [8, 8, 8, 8]),
        ("Interleaved1F1B", 2, [11, 9, 7, 5]),  # Megatron-LM: (vpp - 1) pp + 2 (pp - rank - 1) + 1 of chunks
        ("LoopedBFS", 2, [16, 16, 16, 16]),
    ],
)
def test_live_micro_batches(llama: pm.Graph, schedule: str, vpp: int, held: list[int]) -> None:
    plan = pm.Plan(pp=4, vpp=vpp, global_batch=8, schedule=schedule)
    # So long a sequence that activations weigh more than gradients.
    for rank, most in zip(ranks_of(llama.at(seq=8192), plan, 4), held, strict=True):
        assert sum(rank.live.values()) == most
        alive = sum(rank.activations[stage] * count for stage, count in rank.live.items())
        assert rank.at_peak["activations"] == pytest.approx(alive, rel=0.15)


def test_stages_hold_the_model_between_them(llama: pm.Graph) -> None:
    (whole,) = ranks_of(llama, pm.Plan(), 1)
    for pp in (2, 4, 8):
        ranks = ranks_of(llama, pm.Plan(pp=pp), pp)
        for component in ("parameters", "optimizer"):
            total = sum(rank.at_peak[component] for rank in ranks)
            assert total == pytest.approx(whole.at_peak[component], rel=1e-9)
        saved = sum(sum(rank.activations.values()) for rank in ranks)
        # A stage's input is held by it and, where its maker needs it too, by the stage before; masks and the
        # like are made by each stage.
        hidden = 1024 * 4096 * 4
        base = sum(whole.activations.values())
        assert base * 0.99 <= saved <= base + (pp - 1) * 3 * hidden


def test_a_tied_embedding_is_on_both_of_its_stages(bert: pm.Graph) -> None:
    (whole,) = ranks_of(bert, pm.Plan(micro_batch=2), 1)
    first, last = ranks_of(bert, pm.Plan(pp=2, micro_batch=2), 2)
    table = 30522 * 768 * 4
    total = first.at_peak["parameters"] + last.at_peak["parameters"]
    assert total == pytest.approx(whole.at_peak["parameters"] + table, rel=1e-3)


def test_zero_shards_state_gradients_and_parameters(llama: pm.Graph) -> None:
    plans = [pm.Plan(zero=stage, global_batch=16) for stage in range(4)]
    none, one, two, three = (ranks_of(llama, plan, 8)[0].at_peak for plan in plans)
    for component, sharded, whole in (
        ("optimizer", (one, two, three), (none,)),
        ("gradients", (two, three), (none, one)),
        ("parameters", (three,), (none, one, two)),
    ):
        for at_peak in whole:
            assert at_peak[component] == pytest.approx(none[component], rel=1e-6)
        for at_peak in sharded:
            # Beside its part a rank holds the gradients of the unit that is being reduced, at most the two tables.
            part = none["parameters" if component == "gradients" else component] / 8
            unit = 2 * 128256 * 4096 * 2 if component == "gradients" else 0
            assert part <= at_peak[component] * 1.001 <= part * 1.01 + unit
    assert none["gathered parameters"] == 0 < three["gathered parameters"]


def test_gathered_parameters_are_those_of_two_layers_and_the_root(llama: pm.Graph) -> None:
    plan = pm.Plan(zero=3).on(8)
    program = shard(llama, plan)
    layer = sum(
        float(storage.nbytes) for storage in llama.storages if storage.role == "parameter" and storage.stack == "layers"
    )
    root = sum(float(storage.nbytes) for storage in llama.storages if storage.role == "parameter" and not storage.stack)
    capacity = [80e9]
    schedule = pipeline("1F1B", pp=1, micro_batches=1)
    together = rank_memories(program, stages(program), schedule, capacity)[0]
    assert together.at_peak["gathered parameters"] <= root + 2 * layer + 1e6
    apart = rank_memories(
        shard(llama, replace(plan, overlap=frozenset())), stages(shard(llama, replace(plan, overlap=frozenset()))),
        schedule, capacity,
    )[0]  # fmt: skip
    assert apart.peak <= together.peak


def test_gradients_stay_from_the_first_micro_batch_on(llama: pm.Graph) -> None:
    (once,) = ranks_of(llama, pm.Plan(global_batch=1), 1)
    (often,) = ranks_of(llama, pm.Plan(global_batch=4), 1)
    assert often.at_peak["gradients"] >= once.at_peak["parameters"] * 0.99
    # Of forward and backward three times and the optimizer.
    assert len(often.curve) == 9
    assert often.curve[2] > often.curve[0]
    assert often.curve[2] == often.curve[4]


def test_tensor_parallelism_splits_parameters_and_activations(llama: pm.Graph) -> None:
    (alone,), (split,) = ranks_of(llama, pm.Plan(), 1), ranks_of(llama, pm.Plan(tp=8, sp=True), 8)
    for component in ("parameters", "optimizer", "activations"):
        assert split.at_peak[component] == pytest.approx(alone.at_peak[component] / 8, rel=0.05)


@pytest.mark.parametrize(
    "plan",
    [
        pm.Plan(pp=2, global_batch=8, zero=1),
        pm.Plan(pp=2, vpp=2, global_batch=16, schedule="ZBVZeroBubble"),
        pm.Plan(pp=2, vpp=2, global_batch=16, schedule="DualPipeV"),
        pm.Plan(pp=2, vpp=4, global_batch=16, schedule="Interleaved1F1B", recompute="full"),
    ],
)
def test_what_a_peak_is_made_of(llama: pm.Graph, plan: pm.Plan) -> None:
    for rank in ranks_of(llama, plan, 4):
        assert set(rank.at_peak) == set(COMPONENTS)
        assert sum(rank.at_peak.values()) == pytest.approx(rank.peak)
        assert min(rank.at_peak.values()) >= -1
        assert rank.curve.max() == pytest.approx(rank.peak)
        assert np.all(rank.curve >= rank.resident * 0.999)
        assert rank.fits
        assert rank.to_dict()["peak"] == rank.peak


def test_stages_without_layers_of_their_own_are_possible(llama: pm.Graph) -> None:
    plan = pm.Plan(pp=2, global_batch=4, stage_layers=(0, LAYERS)).on(2)
    program = shard(llama, plan)
    cut: tuple[Stage, ...] = stages(program)
    ranks = rank_memories(program, cut, pipeline("1F1B", pp=2, micro_batches=4), [80e9] * 2)
    assert ranks[0].at_peak["parameters"] == pytest.approx(128256 * 4096 * 2, rel=1e-3)
