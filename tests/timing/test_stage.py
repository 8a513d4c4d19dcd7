"""Actions of a stage as parts, on a made-up model whose times are round numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from perfmodel.graph.ir import Block, Graph, Op, Ref, Storage
from perfmodel.ops import Tensor
from perfmodel.timing.parts import BEFORE
from perfmodel.timing.stage import StageActions

PARAMETER, GRADIENT, ACTIVATION = range(3)
LAYERS = 3


def op(name: str, phase: str, output: int = ACTIVATION, **attrs: Any) -> Op:
    tensor = Tensor(shape=(4,), dtype="float32", storage=output)
    makes = (Ref(output),) if output == GRADIENT else ()
    return Op(
        name=name, phase=phase, module="layers.*.mlp", inputs={"self": tensor}, outputs=(tensor,), attrs=attrs,
        allocates=makes,
    )  # fmt: skip


def collective(name: str, phase: str, *, per: str = "micro_batch", overlap: bool = True, **more: Any) -> Op:
    attrs = {"group": "dp", "ranks": 2, "bytes": 100, "dtype": "float32", "per": per, "overlap": overlap, **more}
    return op(f"c10d.{name}", phase, **attrs)


def graph(forward: list[Op], backward: list[Op], optimizer: list[Op] | None = None) -> Graph:
    blocks = [
        Block(ops=tuple(forward), count=LAYERS, stack="layers", first=0, step=1),
        Block(ops=tuple(backward), count=LAYERS, stack="layers", first=LAYERS - 1, step=-1),
    ]
    if optimizer:
        blocks.append(Block(ops=tuple(optimizer), count=LAYERS, stack="layers"))
    roles = ("parameter", "gradient", "activation")
    storages = tuple(
        Storage(name=role, nbytes=16, role=role, module="layers.*", stack="layers", layers=tuple(range(LAYERS)),
                dtype="float32")
        for role in roles
    )  # fmt: skip
    kept = tuple(block for block in blocks if block.ops)
    return Graph(name="made-up", blocks=kept, storages=storages, stacks={"layers": LAYERS})


def seconds(op: Op) -> tuple[float, float]:
    """Of an op on the device and on the host."""
    times = {"aten.mm": 2.0, "aten.add_": 0.5, "aten._fused_adamw_": 1.0}
    return times.get(op.name, 0.0), 0.25


def actions(made: Graph, *, spelled: bool = False) -> StageActions:
    return StageActions(made, seconds, lambda _op, _group, nbytes: nbytes / 100, spelled=spelled)


def test_collectives_between_ops_are_time_of_the_chain() -> None:
    made = graph([op("aten.mm", "forward"), collective("all_reduce_", "forward", overlap=False)], [])
    work = actions(made).work("F")
    assert work.time == LAYERS * (2.0 + 1.0)
    assert work.busy == {"forward": LAYERS * 2.0, "dp": LAYERS * 1.0}
    assert len(work.duration) == 1
    assert work.host == pytest.approx(LAYERS * 2 * 0.25)
    assert work.lead == 0.25
    spelled = actions(made, spelled=True).work("F")
    assert spelled.stream == ("compute", "dp") * LAYERS
    assert spelled.path == tuple(f"layers.{k}.mlp" for k in range(LAYERS) for _ in range(2))
    assert spelled.time == work.time


def test_gathers_are_issued_one_unit_ahead() -> None:
    made = graph([collective("all_gather_into_tensor", "forward"), op("aten.mm", "forward")], [])
    work = actions(made).work("F")
    main = np.flatnonzero(work.main).tolist()
    gathers = np.flatnonzero(~work.main).tolist()
    assert work.duration[main].tolist() == [2.0] * LAYERS
    # The first two when the action begins, the third when the second layer does.
    assert [work.after[gather] for gather in gathers] == [(BEFORE,), (BEFORE,), (main[0],)]
    for layer in range(LAYERS):
        assert gathers[layer] in work.after[main[layer]]


def test_reductions_are_issued_by_what_they_reduce_and_hold_up_nothing() -> None:
    made = graph([], [op("aten.mm", "backward", GRADIENT), collective("all_reduce_", "backward", per="step")])
    stage = actions(made)
    assert np.all(stage.work("B").main)
    work = stage.work("B", last=True)
    main = np.flatnonzero(work.main).tolist()
    sent = np.flatnonzero(~work.main).tolist()
    assert [work.after[each] for each in sent] == [(part,) for part in main[:LAYERS]]
    assert not any(each in work.after[part] for part in main for each in sent)


@pytest.mark.parametrize(
    ("bucket", "calls"),
    [(100, [1.0, 1.0, 1.0]), (50, [1.0, 1.0, 1.0]), (150, [1.5, 1.5]), (1000, [3.0]), (60, [0.6, 1.2, 1.2])],
)
def test_reductions_are_called_in_buckets(bucket: int, calls: list[float]) -> None:
    reduce = collective("all_reduce_", "backward", per="step", bucket=bucket)
    work = actions(graph([], [op("aten.mm", "backward", GRADIENT), reduce])).work("B", last=True)
    assert work.duration[~work.main].tolist() == pytest.approx(calls)


def test_later_micro_batches_add_to_the_gradients() -> None:
    stage = actions(graph([], [op("aten.mm", "backward", GRADIENT)]))
    assert stage.work("B", first=True).time == LAYERS * 2.0
    assert stage.work("B").time == LAYERS * 2.5


def test_a_split_backward_is_the_whole_one() -> None:
    made = graph([], [op("aten.mm", "backward"), op("aten.mm", "backward", GRADIENT)])
    stage = actions(made)
    for first in (True, False):
        whole = stage.work("B", first=first).time
        assert stage.work("I", first=first).time + stage.work("W", first=first).time == whole
    assert stage.work("I").time == LAYERS * 2.0


def test_what_the_optimizer_gathers_comes_with_the_next_forward() -> None:
    gather = collective("all_gather_into_tensor", "optimizer", per="step")
    made = graph([op("aten.mm", "forward")], [], [op("aten._fused_adamw_", "optimizer"), gather])
    stage = actions(made)
    assert np.all(stage.work("F").main)
    work = stage.work("F", first=True)
    main, gathers = np.flatnonzero(work.main).tolist(), np.flatnonzero(~work.main).tolist()
    assert len(main) == len(gathers) == LAYERS
    for layer in range(LAYERS):
        assert work.after[main[layer]] == (gathers[layer],)
        assert work.issue[gathers[layer]] == 0
    assert stage.work("O").time == LAYERS * 1.0
    beside = collective("all_gather_into_tensor", "optimizer", per="step", overlap=False)
    blocking = actions(graph([op("aten.mm", "forward")], [], [op("aten._fused_adamw_", "optimizer"), beside]))
    assert blocking.work("O").time == LAYERS * 2.0
    assert np.all(blocking.work("F", first=True).main)


def test_a_ring_runs_beside_its_attention() -> None:
    ring = collective("send_recv", "forward", messages=3)
    made = graph([ring, op("aten.mm", "forward"), op("aten.mm", "forward")], [])
    work = actions(made).work("F")
    sent = np.flatnonzero(~work.main).tolist()
    assert work.duration[sent].tolist() == [3.0] * LAYERS
    main = np.flatnonzero(work.main).tolist()
    # Attention, then what waits for the ring and is one with the next layer's begin.
    assert work.duration[main[0]] == 2.0
    assert work.after[main[1]] == (sent[0],)


def test_layer_times_add_up() -> None:
    made = graph([op("aten.mm", "forward")], [op("aten.mm", "backward"), op("aten.mm", "backward", GRADIENT)])
    times = actions(made).layer_times()
    assert sum(times.layers) + times.before + times.after == pytest.approx(
        actions(made).work("F").time + actions(made).work("B").time
    )
