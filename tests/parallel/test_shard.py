from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

import perfmodel as pm
from perfmodel.errors import ShapeError, UnknownNameError, UnsupportedError
from perfmodel.graph.fold import unfold
from perfmodel.parallel.plan import Plan
from perfmodel.parallel.program import Program
from perfmodel.parallel.shard import shard
from tests.parallel.steps import BATCH, DIMS, SEQ, experts, step

LAYERS, HIDDEN, TOKENS = 4, 128, BATCH * SEQ
BF16 = 2


def _counted(program: Program) -> Counter[tuple[Any, ...]]:
    found: Counter[tuple[Any, ...]] = Counter()
    for c in program.collectives():
        found[c.op, c.group, c.ranks, c.nbytes, c.phase] += c.count
    return found


def _resident(graph: pm.Graph, role: str) -> int:
    from perfmodel.symbols import evaluate

    return sum(int(evaluate(s.nbytes, graph.bindings)) * s.count for s in graph.storages if s.role == role)


def test_tensor_parallel_layer_has_megatron_s_conjugates() -> None:
    """Two all-reduces forward and two backward a layer (Shoeybi et al. 2019, figure 4), one at each end."""
    found = _counted(shard(step("llama"), Plan(tp=4, dp=1, micro_batch=BATCH)))
    activations = TOKENS * HIDDEN * BF16
    assert found == {
        ("all_reduce", "tp", 4, activations, "forward"): 2 * LAYERS + 1,
        ("all_reduce", "tp", 4, activations, "backward"): 2 * LAYERS + 1,
        # Maximum, target and sum of each row of a vocabulary-parallel loss, in float32.
        ("all_reduce", "tp", 4, TOKENS * 4, "forward"): 3,
    }


def test_sequence_parallel_moves_as_much_in_two_halves() -> None:
    """An all-reduce becomes a reduce-scatter and an all-gather (Korthikanti et al. 2022, section 4.2.2)."""
    found = _counted(shard(step("llama"), Plan(tp=4, sp=True, dp=1, micro_batch=BATCH)))
    activations = TOKENS * HIDDEN * BF16
    edges = 2 * LAYERS + 1
    assert found[("reduce_scatter", "tp", 4, activations, "forward")] == edges
    assert found[("all_gather", "tp", 4, activations, "forward")] == edges
    assert found[("reduce_scatter", "tp", 4, activations, "backward")] == edges
    # Backward every gathered input is gathered again for the gradient of the weights.
    assert found[("all_gather", "tp", 4, activations, "backward")] == 2 * edges
    kept = _counted(shard(step("llama"), Plan(tp=4, sp=True, dp=1, micro_batch=BATCH, sequence_gather="keep")))
    assert kept[("all_gather", "tp", 4, activations, "backward")] == edges


@pytest.mark.parametrize("name", sorted(DIMS))
@pytest.mark.parametrize("sp", [False, True])
def test_local_graph_folds_and_unfolds_to_the_same_work(name: str, sp: bool) -> None:
    program = shard(step(name), Plan(tp=2, sp=sp, cp=2, dp=2, zero=3, micro_batch=BATCH))
    spelled = unfold(program.graph)
    assert spelled.flops() == program.graph.flops()
    assert spelled.bytes() == program.graph.bytes()
    assert spelled.depth == program.graph.depth


def test_tensor_parallel_parameters_and_optimizer_are_split() -> None:
    whole, local = step("llama"), shard(step("llama"), Plan(tp=4, dp=1, micro_batch=BATCH)).graph
    norms = (2 * LAYERS + 1) * HIDDEN * BF16
    for role, states in (("parameter", 1), ("gradient", 1), ("optimizer", 2)):
        steps_of_adam = sum(1 for s in whole.storages for _ in range(s.count) if s.name.endswith(".step")) * 4
        counters = steps_of_adam if role == "optimizer" else 0
        split = _resident(whole, role) - states * norms - counters
        assert _resident(local, role) == split // 4 + states * norms + counters, role


def test_memory_of_a_rank_under_fsdp() -> None:
    """Parameters, gradients and states are an eighth; the peak falls with them."""
    whole = step("llama")
    local = shard(whole, Plan(dp=8, zero=3, micro_batch=BATCH)).graph
    for role in ("parameter", "gradient"):
        assert _resident(local, role) == _resident(whole, role) // 8
    assert pm.memory_profile(local).peak < pm.memory_profile(whole).peak


@pytest.mark.parametrize("plan", [
    Plan(tp=2, dp=1, micro_batch=BATCH),
    Plan(tp=2, sp=True, dp=1, micro_batch=BATCH),
    Plan(tp=2, sp=True, dp=1, micro_batch=BATCH, sequence_gather="keep"),
    Plan(cp=2, dp=1, micro_batch=BATCH, cp_kind="all-gather"),
    Plan(cp=2, dp=1, micro_batch=BATCH, cp_kind="all-to-all"),
    Plan(dp=4, zero=2, micro_batch=BATCH),
    Plan(dp=4, zero=3, micro_batch=BATCH, reshard_after_forward=False),
])  # fmt: skip
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_every_storage_that_is_made_dies_or_stays_resident(name: str, plan: Plan) -> None:
    """What a step allocates and doesn't free is still there in the next one: none of it is."""
    _assert_every_storage_dies(shard(step(name), plan))


@pytest.mark.parametrize(
    "plan",
    [
        Plan(ep=4, dp=4, zero=3, micro_batch=BATCH),
        Plan(tp=2, sp=True, ep=2, dp=2, micro_batch=BATCH),
        Plan(tp=2, sp=True, ep=4, etp=1, cp=2, dp=2, zero=1, micro_batch=BATCH, recompute="full"),
        Plan(tp=4, sp=True, dp=1, micro_batch=BATCH, recompute=2),
    ],
)
def test_every_storage_of_experts_dies(plan: Plan) -> None:
    _assert_every_storage_dies(shard(experts(), plan))


def _assert_every_storage_dies(program: Program) -> None:
    graph = unfold(program.graph)
    alive: set[int] = set()
    for block in graph.blocks:
        for op in block.ops:
            for ref in op.allocates:
                assert ref.storage not in alive, f"{graph.storages[ref.storage].name} is made twice"
                alive.add(ref.storage)
            for tensor in (*op.inputs.values(), *op.outputs):
                storage = graph.storages[tensor.storage]
                made_here = storage.role not in ("parameter", "buffer", "input", "optimizer")
                assert tensor.storage in alive or not made_here, f"{op.name} uses {storage.name} after it died"
            for ref in op.frees:
                assert ref.storage in alive, f"{graph.storages[ref.storage].name} is freed twice"
                alive.remove(ref.storage)
    assert not alive, [graph.storages[number].name for number in sorted(alive)][:5]


def test_zero_1_reduces_and_gathers_what_ddp_reduces() -> None:
    parameters = _resident(step("llama"), "parameter")
    ddp = shard(step("llama"), Plan(dp=8, micro_batch=BATCH)).traffic()
    zero = shard(step("llama"), Plan(dp=8, zero=1, micro_batch=BATCH)).traffic()
    assert ddp == {("all_reduce_", "dp-cp", "step"): parameters}
    assert zero == {
        ("reduce_scatter_tensor", "dp-cp", "step"): parameters,
        ("all_gather_into_tensor", "dp-cp", "step"): parameters,
    }


def test_fsdp_gathers_twice_unless_kept_and_hybrid_shards_are_reduced_between() -> None:
    graph = step("llama")
    parameters = _resident(graph, "parameter")
    root = sum(int(s.nbytes) for s in graph.storages if s.role == "parameter" and not s.stack)
    again = shard(graph, Plan(dp=8, zero=3, micro_batch=BATCH)).traffic()
    kept = shard(graph, Plan(dp=8, zero=3, micro_batch=BATCH, reshard_after_forward=False)).traffic()
    gather = ("all_gather_into_tensor", "shard", "micro_batch")
    assert again[gather] == 2 * parameters - root
    assert kept[gather] == parameters
    hybrid = shard(graph, Plan(dp=8, zero=3, shard_group=4, micro_batch=BATCH)).traffic()
    assert hybrid["all_reduce_", "replicate", "micro_batch"] == parameters // 4


def test_gradients_are_reduced_in_the_type_of_the_plan() -> None:
    plan = Plan(dp=8, micro_batch=BATCH, dtypes={"gradients": "float32"})
    program = shard(step("llama"), plan)
    assert program.traffic() == {("all_reduce_", "dp-cp", "step"): 2 * _resident(step("llama"), "parameter")}
    assert _resident(program.graph, "gradient") == 2 * _resident(step("llama"), "gradient")


@pytest.mark.parametrize("name", ["llama", "grouped"])
def test_heads_that_several_ranks_hold_are_counted_as_replicated(name: str) -> None:
    graph = step(name, optimizer=None)
    program = shard(graph, Plan(tp=8, dp=1, micro_batch=BATCH))
    excess = program.replicated_flops()
    assert program.graph.flops() * 8 == graph.flops() + sum(excess.values())
    if name == "llama":
        assert not excess
        return
    # Two key-value heads on eight ranks: each projection is done four times.
    projection = 6 * TOKENS * HIDDEN * 2 * DIMS["grouped"].head_dim * LAYERS
    assert excess == {f"layers.*.attention.{n}_proj": 3 * projection for n in "kv"}
    sums = [c for c in program.collectives() if c.per == "step"]
    assert sum(c.count for c in sums) == 2 * LAYERS
    assert {(c.group, c.ranks, c.nbytes) for c in sums} == {("tp", 4, HIDDEN * DIMS["grouped"].head_dim * BF16)}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # Keys and values go round in cp - 1 steps, and back with their gradients.
        ("ring", {("send_recv", "forward"): 3, ("send_recv", "backward"): 3}),
        ("all-gather", {("all_gather", "forward"): 2, ("reduce_scatter", "backward"): 2}),
        # Query, key and value one way, the output back; backward the same.
        ("all-to-all", {("all_to_all", "forward"): 4, ("all_to_all", "backward"): 4}),
    ],
)
def test_context_parallelism(kind: str, expected: dict[tuple[str, str], int]) -> None:
    graph = step("llama")
    program = shard(graph, Plan(cp=4, cp_kind=kind, dp=1, micro_batch=BATCH))
    found: Counter[tuple[str, str]] = Counter()
    for c in program.collectives():
        if c.group == "cp" and c.nbytes > 4:
            found[c.op, c.phase] += c.count
    for key, count in expected.items():
        assert found[key] == count * LAYERS
    assert program.graph.flops() * 4 == graph.flops()
    assert not program.replicated_flops()
    # Causal pairs are shared evenly: half of the square, but for the diagonal.
    half = program.graph.flops(causal="half") * 4
    assert half == pytest.approx(graph.flops(causal="half"), rel=1 / SEQ)


def test_experts_are_dispatched_and_combined_forward_and_backward() -> None:
    graph = experts()
    program = shard(graph, Plan(ep=4, dp=4, micro_batch=BATCH))
    rows = TOKENS * 2 * HIDDEN * BF16
    found = _counted(program)
    assert found[("all_to_all", "ep", 4, rows, "forward")] == 2 * LAYERS
    assert found[("all_to_all", "ep", 4, rows, "backward")] == 2 * LAYERS
    assert program.graph.flops() == graph.flops()
    # A quarter of the experts a rank, and nobody to reduce their gradients with.
    of_experts = sum(int(s.nbytes) * s.count for s in graph.storages if ".experts." in s.name and s.role == "parameter")
    local = sum(
        int(program.graph.bindings["ep"] and _bytes(s, program)) * s.count
        for s in program.graph.storages
        if ".experts." in s.name and s.role == "parameter"
    )
    assert local == of_experts // 4
    assert not [c for c in program.collectives() if c.group == "edp"]


def _bytes(storage: Any, program: Program) -> int:
    from perfmodel.symbols import evaluate

    return int(evaluate(storage.nbytes, program.graph.bindings))


def test_placements_may_be_given_by_name() -> None:
    pair = {"layers.*.mlp.gate_proj": "colwise", "layers.*.mlp.up_proj": "colwise", "layers.*.mlp.down_proj": "rowwise"}
    program = shard(step("llama"), Plan(tp=2, dp=1, micro_batch=BATCH), pair)
    assert set(program.layouts) == {f"layers.*.mlp.{n}_proj.weight" for n in ("gate", "up", "down")}
    assert {module.split(".")[-1] for module in program.replicated_flops()} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "attention", "lm_head",
    }  # fmt: skip
    with pytest.raises(UnknownNameError, match="did you mean 'colwise'"):
        shard(step("llama"), Plan(tp=2, dp=1, micro_batch=BATCH), {"lm_head": "colwis"})
    with pytest.raises(UnsupportedError, match="'layers.*.mlp.gat' matches no module"):
        shard(step("llama"), Plan(tp=2, dp=1, micro_batch=BATCH), {"layers.*.mlp.gat": "colwise"})


def test_a_fixed_size_graph_shards_as_a_symbolic_one() -> None:
    for plan in (Plan(tp=2, sp=True, dp=2, zero=3, micro_batch=BATCH), Plan(cp=2, dp=2, micro_batch=BATCH)):
        fixed, named = shard(step("llama", symbols=False), plan), shard(step("llama"), plan)
        assert _counted(fixed) == _counted(named)
        assert fixed.graph.flops() == named.graph.flops()
    with pytest.raises(ShapeError, match="captured with a batch of 2"):
        shard(step("llama", symbols=False), Plan(dp=1, micro_batch=4))


def test_an_op_without_a_rule_is_an_error_that_names_it() -> None:
    from dataclasses import replace

    graph = step("llama")
    strange = tuple(
        replace(block, ops=tuple(replace(op, name="mine.op") if op.name == "aten.silu" else op for op in block.ops))
        for block in graph.blocks
    )
    styles = {"layers.*.mlp.gate_proj": "colwise"}
    with pytest.raises(UnsupportedError, match=r"mine\.op in layers\.\*\.mlp has no sharding rule"):
        shard(replace(graph, blocks=strange), Plan(tp=2, dp=1, micro_batch=BATCH), styles)


def test_a_degree_that_is_no_symbol_of_the_structure_is_refused() -> None:
    program = shard(step("llama"), Plan(tp=2, dp=1, micro_batch=BATCH))
    assert program.at(tp=4).graph.flops() * 2 == program.graph.flops()
    with pytest.raises(UnsupportedError, match="shard with dp > 1"):
        program.at(dp=2)
