from __future__ import annotations

import pytest

from perfmodel.errors import UnsupportedError
from perfmodel.parallel.balance import balanced
from perfmodel.parallel.plan import Plan
from perfmodel.parallel.shard import shard
from perfmodel.parallel.stages import stages
from perfmodel.symbols import evaluate
from tests.parallel.steps import BATCH, SEQ, step


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("zero", [0, 1, 3])
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_stages_share_the_work_and_pass_activations_on(name: str, zero: int, recompute: str) -> None:
    plan = Plan(tp=2, sp=True, pp=4, dp=2, zero=zero, recompute=recompute, micro_batch=BATCH)
    program = shard(step(name), plan)
    parts = stages(program)
    assert [part.rank for part in parts] == [0, 1, 2, 3]
    assert [len(part.layers) for part in parts] == [1, 1, 1, 1]
    assert sum(part.graph(program).flops() for part in parts) == program.graph.flops()
    hidden = BATCH * SEQ * 128 * 2 // plan.tp
    for part in parts:
        assert evaluate(part.receives, program.graph.bindings) == (hidden if part.index else 0)
        assert evaluate(part.returns, program.graph.bindings) == (hidden if part.index else 0)
    tied = ("embed_tokens.weight",) if name == "gpt2" else ("embeddings.tokens.weight",) if name == "bert" else ()
    assert (parts[0].shared, parts[-1].shared, parts[1].shared) == (tied, tied, ())


@pytest.mark.parametrize("zero", [0, 1, 3])
def test_collectives_of_parameters_go_with_their_stage(zero: int) -> None:
    program = shard(step("llama"), Plan(pp=4, dp=2, zero=zero, micro_batch=BATCH))
    moved = {"dp-cp": 0, "shard": 0}
    for part in stages(program):
        for op, times in part.graph(program).ops():
            if op.name.startswith("c10d."):
                moved[op.attrs["group"]] += int(evaluate(op.attrs["bytes"], program.graph.bindings)) * times
    assert sum(moved.values()) == sum(program.traffic().values())


def test_layers_are_cut_by_cost_or_as_given() -> None:
    program = shard(step("llama"), Plan(pp=2, dp=1, micro_batch=BATCH))
    assert [len(part.layers) for part in stages(program, weights=[1, 1, 1, 5])] == [3, 1]
    given = shard(step("llama"), Plan(pp=2, dp=1, micro_batch=BATCH, stage_layers=(1, 3)))
    assert [len(part.layers) for part in stages(given)] == [1, 3]
    with pytest.raises(UnsupportedError, match="3 weights for 4 layers"):
        stages(program, weights=[1, 1, 1])


def test_stages_at_the_ends_may_have_no_layers() -> None:
    """The embedding and the head as stages of their own, as Llama 3 balances its pipeline (section 3.3.2)."""
    program = shard(step("llama"), Plan(pp=3, vpp=2, schedule="Interleaved1F1B", dp=1, micro_batch=BATCH,
                                        stage_layers=(0, 1, 1, 1, 1, 0)))  # fmt: skip
    parts = stages(program)
    assert [len(part.layers) for part in parts] == [0, 1, 1, 1, 1, 0]
    assert sum(part.graph(program).flops() for part in parts) == program.graph.flops()
    assert parts[0].graph(program).flops() == 0
    assert parts[5].graph(program).flops() == 6 * BATCH * SEQ * 128 * 512
    assert len({evaluate(part.receives, program.graph.bindings) for part in parts[1:]}) == 1


def test_a_v_shaped_schedule_turns_round() -> None:
    plan = Plan(pp=2, vpp=2, dp=1, micro_batch=BATCH, schedule="DualPipeV")
    assert [part.rank for part in stages(shard(step("llama"), plan))] == [0, 1, 1, 0]
    loop = Plan(pp=2, vpp=2, dp=1, micro_batch=BATCH, schedule="Interleaved1F1B")
    assert [part.rank for part in stages(shard(step("llama"), loop))] == [0, 1, 0, 1]


def test_balanced_beats_every_other_cut() -> None:
    import itertools
    import random

    random.seed(1)
    for _ in range(200):
        weights = [random.randint(1, 9) for _ in range(random.randint(3, 9))]
        parts = random.randint(1, min(4, len(weights)))
        best = min(
            max(sum(weights[a:b]) for a, b in itertools.pairwise((0, *cuts, len(weights))))
            for cuts in itertools.combinations(range(1, len(weights)), parts - 1)
        )
        sizes = balanced(weights, parts)
        ends = list(itertools.accumulate((0, *sizes)))
        assert len(sizes) == parts
        assert min(sizes) >= 1
        assert ends[-1] == len(weights)
        assert max(sum(weights[a:b]) for a, b in itertools.pairwise(ends)) == best
