"""Predictions of plans on clusters: what they add up to, which way they move, what they refuse."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import perfmodel as pm
from perfmodel.errors import CoverageError, ShapeError, UnknownNameError, UnsupportedError
from perfmodel.schedule.step import COMPUTE

LAYERS = 4


@pytest.fixture(scope="module")
def llama() -> pm.Graph:
    return pm.capture(
        "llama-3.1-8b", batch=1, seq_len=2048, optimizer="adamw", layers=LAYERS, implementation="reference", cache=False
    )


@pytest.fixture(scope="module")
def deep() -> pm.Graph:
    return pm.capture(
        "llama-3.1-8b", batch=1, seq_len=2048, optimizer="adamw", layers=24, implementation="reference", cache=False
    )


@pytest.fixture(scope="module")
def cluster() -> pm.Cluster:
    return pm.load_cluster("dgx-h100", nodes=2)


PLANS = [
    pm.Plan(),
    pm.Plan(zero=1, global_batch=64),
    pm.Plan(zero=2),
    pm.Plan(zero=3, global_batch=64),
    pm.Plan(zero=3, reshard_after_forward=False, shard_group=8),
    pm.Plan(tp=8, sp=True),
    pm.Plan(tp=2, cp=2, zero=1),
    pm.Plan(tp=4, sp=True, recompute="full", global_batch=16),
    pm.Plan(pp=4, tp=2, global_batch=32),
    pm.Plan(pp=2, tp=8, sp=True, global_batch=8, overlap=frozenset()),
    pm.Plan(pp=2, vpp=2, tp=4, global_batch=32, schedule="Interleaved1F1B", zero=1),
    pm.Plan(pp=2, vpp=2, global_batch=64, schedule="ZBVZeroBubble", zero=3),
    pm.Plan(pp=2, vpp=2, global_batch=64, schedule="DualPipeV"),
]


@pytest.mark.parametrize("plan", PLANS)
def test_every_kind_of_plan(llama: pm.Graph, cluster: pm.Cluster, plan: pm.Plan) -> None:
    p = pm.predict(llama, cluster, plan)
    b = p.breakdown
    assert p.plan is not None
    assert p.plan.devices == p.devices == 16
    assert 0 < p.mfu <= p.hfu < 1
    assert sum(b.time.values()) == pytest.approx(p.step_time, rel=1e-9)
    assert sum(b.phase.values()) == pytest.approx(p.step_time, rel=1e-9)
    for table in (b.module, b.op_class, b.bound):
        assert sum(table.values()) == pytest.approx(b.device_busy, rel=1e-9)
    # Of all that is sent no more can be exposed.
    for name in ("tp", "cp", "ep", "dp"):
        assert b.time.get(name, 0.0) <= b.communication.get(name, 0.0) * (1 + 1e-9)
    assert p.sequences == (plan.global_batch or p.plan.data_parallel)
    assert p.tokens_per_second == pytest.approx(p.sequences * 2048 / p.step_time)
    # Spelled out, every module is a span, and the times are the same.
    assert p.timeline.makespan == pytest.approx(p.step_time, rel=1e-9)
    assert [rank.rank for rank in p.ranks] == list(range(plan.pp))
    assert p.memory.peak == max(rank.peak for rank in p.ranks)
    times, sizes = p.memory_curve
    assert (np.diff(times) >= 0).all()
    assert times[-1] <= p.step_time * (1 + 1e-9)
    assert sizes.max() == pytest.approx(p.memory.peak)
    told = json.loads(json.dumps(p.to_dict()))
    assert told["plan"]["tp"] == plan.tp
    assert pm.Plan.from_dict(told["plan"]) == p.plan


@pytest.mark.parametrize("runtime", ["eager", "compiled", "graph-replay"])
def test_a_plan_of_one_device_is_the_device(llama: pm.Graph, runtime: str) -> None:
    alone = pm.predict(llama, "h100", runtime=runtime)
    planned = pm.predict(llama, "h100", pm.Plan(), runtime=runtime)
    assert planned.step_time == pytest.approx(alone.step_time, rel=1e-9)
    assert alone.timeline.makespan == pytest.approx(alone.step_time, rel=1e-9)
    assert planned.mfu == pytest.approx(alone.mfu, rel=1e-9)
    assert planned.hfu == pytest.approx(alone.hfu, rel=1e-9)
    assert planned.memory.peak == pytest.approx(alone.memory.peak, rel=1e-3)
    assert planned.breakdown.time == pytest.approx(alone.breakdown.time, rel=1e-6)


def test_a_small_model_waits_for_the_host_under_a_plan_too() -> None:
    tiny = pm.capture("gpt2", batch=2, seq_len=16, optimizer="adamw", layers=2, implementation="reference", cache=False)
    alone = pm.predict(tiny, "h100", runtime="eager")
    planned = pm.predict(tiny, "h100", pm.Plan(micro_batch=2, global_batch=8), runtime="eager")
    assert alone.breakdown.time["host"] > 0.2 * alone.step_time
    assert planned.breakdown.time["host"] > 0.2 * planned.step_time
    # The host issues four micro-batches and one optimizer step.
    assert planned.breakdown.host_busy < 4 * alone.breakdown.host_busy < 1.5 * planned.breakdown.host_busy


def test_micro_batches_repeat_all_but_what_is_once_a_step(llama: pm.Graph, cluster: pm.Cluster) -> None:
    once, four = (pm.predict(llama, cluster, pm.Plan(global_batch=batch)) for batch in (16, 64))
    a, b = once.breakdown, four.breakdown
    assert b.time["optimizer"] == pytest.approx(a.time["optimizer"])
    assert b.communication["dp"] == pytest.approx(a.communication["dp"])
    # Three times the gradients are added to those before: two reads and a write of each.
    adding = 3 * 3 * 2 * once.parameters / pm.load_device("h100").main_memory.bandwidth
    assert b.time["compute"] - 4 * a.time["compute"] == pytest.approx(adding, rel=0.3)
    assert four.model_flops == 4 * once.model_flops


def test_overlap_hides_communication(llama: pm.Graph, cluster: pm.Cluster) -> None:
    for zero in (0, 1, 2, 3):
        plan = pm.Plan(zero=zero)
        beside = pm.predict(llama, cluster, plan)
        between = pm.predict(llama, cluster, replace(plan, overlap=frozenset()))
        exposed, whole = beside.breakdown.time["dp"], beside.breakdown.communication["dp"]
        assert exposed < 0.7 * whole
        assert between.breakdown.time["dp"] > 0.9 * between.breakdown.communication["dp"]
        assert beside.step_time < between.step_time


def test_parameters_are_gathered_while_the_layer_before_computes(llama: pm.Graph, cluster: pm.Cluster) -> None:
    timeline = pm.predict(llama, cluster, pm.Plan(zero=3)).timeline
    tasks = timeline.tasks
    stream = np.array([resource.stream for resource in tasks.resources])[tasks.resource]
    assert tasks.path is not None
    layer = np.array(["" if k < 0 else tasks.paths[k] for k in tasks.path])
    forward = tasks.kinds.index("forward")

    def of(kind: str, number: int) -> np.ndarray:
        inside = np.char.startswith(layer.astype(str), f"layers.{number}.")
        return np.flatnonzero(inside & (stream == kind))

    for number in range(LAYERS - 1):
        gather = of("shard", number + 1)[0]
        compute = [task for task in of(COMPUTE, number) if tasks.kind[task] == forward]
        assert tasks.name(int(gather)).startswith("all_gather")
        # The communicator may still be busy with the gather before.
        latest = max(timeline.finish[compute[-1]], timeline.finish[gather - 1])
        assert timeline.start[compute[0]] <= timeline.start[gather] < latest
        needing = next(task for task in of(COMPUTE, number + 1) if tasks.kind[task] == forward)
        assert timeline.start[needing] >= timeline.finish[gather]


def test_a_faster_network_is_never_slower(llama: pm.Graph) -> None:
    for plan in (pm.Plan(zero=3), pm.Plan(tp=8, sp=True), pm.Plan(pp=4, tp=2, global_batch=32)):
        slow, fast = (
            pm.predict(llama, pm.load_cluster("dgx-h100", nodes=2, fabric=name), plan).step_time
            for name in ("infiniband-hdr-rail", "infiniband-ndr-rail")
        )
        assert fast <= slow


def test_tensor_parallel_ranks_share_the_work(llama: pm.Graph) -> None:
    times = {}
    for tp, devices in ((1, 1), (2, 2), (8, 8)):
        node = pm.load_node("dgx-h100")
        cluster = pm.Cluster(name="part", groups=(replace(_group(node), node=replace(node, devices=devices)),))
        times[tp] = pm.predict(llama, cluster, pm.Plan(tp=tp, sp=tp > 1))
    assert times[8].breakdown.time["compute"] < times[2].breakdown.time["compute"] < times[1].breakdown.time["compute"]
    assert times[8].hardware_flops == pytest.approx(times[1].hardware_flops, rel=0.01)
    assert times[8].model_flops == times[1].model_flops


def _group(node: pm.Node) -> pm.hardware.Group:  # type: ignore[name-defined]
    from perfmodel.hardware import Group

    return Group(name=node.name, node=node, nodes=1)


def test_interleaving_shrinks_the_bubble(deep: pm.Graph, cluster: pm.Cluster) -> None:
    plain = pm.predict(deep, cluster, pm.Plan(pp=4, tp=4, global_batch=8))
    looped = pm.predict(deep, cluster, pm.Plan(pp=4, vpp=2, tp=4, global_batch=8, schedule="Interleaved1F1B"))
    assert looped.breakdown.time["bubble"] < plain.breakdown.time["bubble"]
    assert looped.ranks[0].peak > plain.ranks[0].peak


def test_recompute_trades_time_for_memory(llama: pm.Graph, cluster: pm.Cluster) -> None:
    none, selective, full = (
        pm.predict(llama, cluster, pm.Plan(tp=8, recompute=kind)) for kind in ("none", "selective", "full")
    )
    assert none.step_time < selective.step_time < full.step_time
    assert none.memory.peak > full.memory.peak
    assert none.model_flops == full.model_flops
    assert none.hardware_flops < selective.hardware_flops < full.hardware_flops


def test_a_compiler_keeps_to_a_planned_recompute(llama: pm.Graph, cluster: pm.Cluster) -> None:
    for kind in ("none", "full"):
        eager, compiled = (
            pm.predict(llama, cluster, pm.Plan(tp=8, sp=True, recompute=kind), runtime=name)
            for name in ("eager", "compiled")
        )
        assert compiled.step_time < eager.step_time
        assert compiled.memory.peak <= eager.memory.peak


def test_accumulated_steps_have_plans_of_their_own(cluster: pm.Cluster) -> None:
    from tests.graph.modules import TOKENS, Gpt, ids

    often = pm.capture(Gpt(), (ids(), ids()), optimizer="adamw", dynamic_shapes=TOKENS, accumulate=3)
    with pytest.raises(UnsupportedError, match="3 accumulated micro-steps"):
        pm.predict(often, cluster, pm.Plan())
    with pytest.raises(UnsupportedError, match="no timeline"):
        _ = pm.predict(often, "h100", runtime="eager").timeline
    once = pm.capture(Gpt(), (ids(), ids()), optimizer="adamw", dynamic_shapes=TOKENS)
    batch = once.bindings["batch"]
    planned = pm.predict(once, "h100", pm.Plan(micro_batch=batch, global_batch=3 * batch), runtime="graph-replay")
    alone = pm.predict(often, "h100", runtime="graph-replay")
    assert planned.step_time == pytest.approx(alone.step_time, rel=0.02)


def test_engines_agree_where_a_closed_form_exists(llama: pm.Graph) -> None:
    cluster = pm.load_cluster("dgx-h100")
    plan = pm.Plan(tp=8, sp=True, global_batch=8)
    closed, simulated = (pm.predict(llama, cluster, plan, engine=name) for name in ("closed form", "simulation"))
    assert (closed.engine, simulated.engine) == ("closed form", "max-plus")
    assert closed.step_time == pytest.approx(simulated.step_time, rel=0.01)
    assert pm.predict(llama, cluster, plan).engine == "closed form"
    uneven = pm.Plan(pp=2, tp=4, global_batch=8)
    assert pm.predict(llama, cluster, uneven).engine == "max-plus"
    with pytest.raises(UnsupportedError, match="no closed form"):
        pm.predict(llama, cluster, uneven, engine="closed form")


def test_unlike_devices_want_unlike_shares(deep: pm.Graph) -> None:
    mixed = pm.load_cluster("mixed-h100-a100")
    even = pm.Plan(pp=3, tp=8, global_batch=64, stage_layers=(8, 8, 8))
    better = pm.balance(deep, mixed, even)
    assert better.stage_layers is not None
    assert better.stage_layers[0] > 9 > max(better.stage_layers[1:])
    a, b = (pm.predict(deep, mixed, plan) for plan in (even, better))
    assert b.step_time < 0.85 * a.step_time
    # The timeline shows why: with even shares the faster devices wait.
    idle_a, idle_b = (p.timeline.bubble()["rank 0"] for p in (a, b))
    assert idle_a > idle_b + 0.15
    assert a.device == "nvidia-h100-sxm-80gb, nvidia-a100-sxm-80gb"


def test_the_loss_weighs_as_layers_do(llama: pm.Graph) -> None:
    cluster = pm.load_cluster("dgx-h100")
    plan = pm.Plan(pp=2, tp=4, global_batch=32)
    better = pm.balance(llama, cluster, plan)
    assert better.stage_layers == (3, 1)  # the head multiplies by a vocabulary of 128,256
    assert pm.predict(llama, cluster, better).step_time < pm.predict(llama, cluster, plan).step_time
    with pytest.raises(UnsupportedError, match="nothing to balance"):
        pm.balance(llama, cluster, pm.Plan(tp=8))
    with pytest.raises(UnsupportedError, match="give fewer stages"):
        pm.balance(llama, cluster, pm.Plan(pp=8))


def test_does_not_fit_is_a_result(llama: pm.Graph) -> None:
    cluster = pm.load_cluster("dgx-h100", overrides={"device.memory.hbm.capacity": "16 GiB"})
    p = pm.predict(llama, cluster, pm.Plan(global_batch=16))
    assert not p.fits
    assert pm.predict(llama, cluster, pm.Plan(pp=2, tp=4, global_batch=16)).fits
    full = [rank for rank in p.ranks if not rank.fits]
    assert full
    assert all(rank.at_peak[rank.largest] == max(rank.at_peak.values()) for rank in full)


def test_the_timeline_is_a_trace(llama: pm.Graph, cluster: pm.Cluster, tmp_path: Path) -> None:
    p = pm.predict(llama, cluster, pm.Plan(pp=2, tp=4, sp=True, global_batch=8))
    p.timeline.save(tmp_path / "step.json")
    events = json.loads((tmp_path / "step.json").read_text())["traceEvents"]
    processes = {event["args"]["name"] for event in events if event["name"] == "process_name"}
    lanes = {event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert processes == {"rank 0", "rank 1"}
    assert {"compute", "host", "tp", "dp-cp", "activations to rank 1", "gradients to rank 0"} <= lanes
    modules = {event["name"] for event in events if event.get("cat") == "module"}
    assert {f"layers.{k}.mlp.down_proj" for k in range(LAYERS)} <= modules
    steps = p.timeline.critical_path()
    assert steps[-1].finish == pytest.approx(p.step_time)


def test_refused_with_the_cure(llama: pm.Graph, cluster: pm.Cluster) -> None:
    with pytest.raises(UnsupportedError, match="16 devices; give a plan"):
        pm.predict(llama, cluster)
    with pytest.raises(UnsupportedError, match="tp 8 × pp 2 × cp 1 × dp 2 = 32 ranks, the cluster has 16"):
        pm.predict(llama, cluster, pm.Plan(tp=8, pp=2, dp=2))
    with pytest.raises(UnsupportedError, match="4 layers aren't a multiple of pp 8"):
        pm.predict(llama, cluster, pm.Plan(pp=8, global_batch=16))
    with pytest.raises(UnsupportedError, match="isn't modelled"):
        pm.predict(llama, cluster, pm.Plan(tp=8, offload=("optimizer",)))
    with pytest.raises(UnsupportedError, match="asks for compute in float16"):
        pm.predict(llama, cluster, pm.Plan(tp=8, dtypes={"compute": "float16"}))
    with pytest.raises(ShapeError, match="capture it"):
        pm.predict(llama, cluster, pm.Plan(tp=8, micro_batch=4))
    with pytest.raises(UnknownNameError, match="engine"):
        pm.predict(llama, cluster, pm.Plan(tp=8), engine="guess")  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="doesn't run 'eager'"):
        pm.predict(llama, pm.load_cluster("google-tpu-v4-pod", nodes=2), pm.Plan(), runtime="eager")


def test_strict_refuses_ops_without_a_rule(llama: pm.Graph, cluster: pm.Cluster) -> None:
    block, *rest = llama.blocks
    strange = replace(block.ops[0], name="aten.unheard_of", allocates=(), frees=())
    broken = replace(llama, blocks=(replace(block, ops=(*block.ops, strange)), *rest))
    assert pm.predict(broken, cluster, pm.Plan()).coverage.missing == {"aten.unheard_of": 1}
    with pytest.raises(CoverageError, match="unheard_of"):
        pm.predict(broken, cluster, pm.Plan(), strict=True)


def test_a_name_may_be_a_device_a_node_or_a_cluster(llama: pm.Graph, tmp_path: Path) -> None:
    by_name = pm.predict(llama, "dgx-h100", pm.Plan(tp=8))
    assert by_name.step_time == pm.predict(llama, pm.load_node("dgx-h100"), pm.Plan(tp=8)).step_time
    assert (
        by_name.step_time == pm.predict(llama, pm.load_cluster("dgx-h100").groups[0].node.path, pm.Plan(tp=8)).step_time
    )
    assert isinstance(pm.load_machine("h100"), pm.Device)
    with pytest.raises(UnsupportedError, match="is a device"):
        pm.load_machine("h100", nodes=2)
    with pytest.raises(UnknownNameError, match="did you mean 'dgx-h100'"):
        pm.load_machine("dgx-h10")
    fabric = tmp_path / "f.yaml"
    fabric.write_text("schema: fabric/1\nname: f\n")
    with pytest.raises(pm.PerfModelError, match="give a device, node or cluster file"):
        pm.load_machine(fabric)
