"""PyTorch's own action tables, and makespans computed from them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from perfmodel.schedule import SCHEDULES, StageTimes, from_table, pipeline, pipeline_tasks
from perfmodel.simulate import simulate

MAKESPANS = Path(__file__).parents[3] / "shared/data/oracles/pipeline_makespans.json"
ONE_STAGE = [(1, 3), (2, 2), (2, 5), (3, 3), (3, 7), (4, 4), (4, 8), (5, 12), (8, 8), (8, 32)]
LOOPED = [
    (1, 2, 2), (2, 4, 2), (2, 1, 3), (3, 9, 4), (4, 3, 2), (4, 8, 2), (4, 10, 3), (5, 12, 2), (8, 8, 4), (8, 32, 2),
]  # fmt: skip
V_SHAPED = [(1, 1), (2, 3), (2, 4), (3, 6), (4, 2), (4, 9), (4, 16), (5, 10), (8, 16), (8, 33)]
DUAL = [(1, 2), (1, 5), (2, 4), (2, 7), (3, 6), (4, 8), (4, 16), (5, 11), (8, 16), (8, 33)]


def shapes(name: str) -> list[tuple[int, int, int]]:
    if name in ("GPipe", "1F1B"):
        return [(pp, batches, 1) for pp, batches in ONE_STAGE]
    if name in ("ZBVZeroBubble", "DualPipeV"):
        return [(pp, batches, 2) for pp, batches in (DUAL if name == "DualPipeV" else V_SHAPED)]
    return LOOPED


def pytorch_table(name: str, pp: int, micro_batches: int, stages_per_rank: int) -> list[str]:
    visualizer = pytest.importorskip("torch.distributed.pipelining._schedule_visualizer")
    ranks = []
    for rank, row in enumerate(visualizer.get_schedule_ops(name, pp, micro_batches, stages_per_rank)):
        cells = [str(action) for action in row if action is not None and "REDUCE_GRAD" not in str(action)]
        if name == "1F1B" and rank == pp - 1:  # PyTorch labels these forwards 1 to m
            cells = [re.sub(r"F(\d+)", lambda match: f"F{int(match[1]) - 1}", cell) for cell in cells]
        ranks.append(",".join(cells))
    return ranks


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_rank_works_in_pytorchs_order(name: str) -> None:
    assert len(shapes(name)) == 10
    for pp, batches, stages in shapes(name):
        ours = pipeline(name, pp=pp, micro_batches=batches, stages_per_rank=stages)
        assert ours.to_table().splitlines() == pytorch_table(name, pp, batches, stages), (pp, batches, stages)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_table_of_pytorch_reads_as_the_schedule(name: str) -> None:
    pp, batches, stages = shapes(name)[5]
    ours = pipeline(name, pp=pp, micro_batches=batches, stages_per_rank=stages)
    read = from_table("\n".join(pytorch_table(name, pp, batches, stages)))
    for column in ("kind", "stage", "micro_batch", "backward_stage", "backward_micro_batch", "stage_rank", "offsets"):
        assert np.array_equal(getattr(read, column), getattr(ours, column)), column


@pytest.mark.skipif(not MAKESPANS.exists(), reason=f"{MAKESPANS.name} isn't beside this checkout")
@pytest.mark.parametrize("engine", ["max-plus", "event"])
def test_makespans_and_bubbles(engine: str) -> None:
    rows = json.loads(MAKESPANS.read_text())["rows"]
    assert len(rows) == 112
    for row in rows:
        cost = row["cost"]
        schedule = pipeline(
            row["schedule"],
            pp=row["pp"],
            micro_batches=row["micro_batches"],
            stages_per_rank=row["stages_per_rank"],
        )
        times = StageTimes(
            forward=cost["forward"],
            backward_input=cost["backward_input"],
            backward_weight=cost["backward_weight"],
            transfer_forward=cost["p2p"],
            transfer_backward=cost["p2p"],
        )
        timeline = simulate(pipeline_tasks(schedule, times), engine=engine)
        assert timeline.makespan == pytest.approx(row["makespan"], abs=1e-6), row
        bubbles = list(timeline.bubble().values())
        assert sum(bubbles) / len(bubbles) == pytest.approx(row["bubble_fraction"], abs=6e-5), row
