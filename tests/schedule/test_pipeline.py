"""Schedules: what each rank holds, refusals, and schedules given as tables."""

from __future__ import annotations

import numpy as np
import pytest

from perfmodel.errors import UnknownNameError, UnsupportedError
from perfmodel.schedule import SCHEDULES, Action, ActionKind, from_table, pipeline


def held(name: str, pp: int, batches: int, stages: int | None = None) -> list[float]:
    return pipeline(name, pp=pp, micro_batches=batches, stages_per_rank=stages).peak_activations().tolist()


def test_live_activations_are_the_known_counts() -> None:
    for pp, m in [(2, 4), (4, 3), (4, 8), (8, 32)]:
        rank = np.arange(pp)
        assert held("GPipe", pp, m) == [m] * pp
        assert held("1F1B", pp, m) == np.minimum(pp - rank, m).tolist()
        assert held("LoopedBFS", pp, m, 3) == [3 * m] * pp
        for v in (2, 3):
            size = m // max(1, m // pp)
            # Megatron-LM: the warm-up and one more.
            warm = np.minimum((v - 1) * size + 2 * (pp - 1 - rank) + 1, v * m)
            assert held("Interleaved1F1B", pp, m, v) == warm.tolist()
            # Zero bubble: weight gradients are put off so that all ranks hold what the first one does.
            if m % pp == 0:
                assert held("InterleavedZeroBubble", pp, m, v) == [v * pp] * pp
        if m >= 2 * pp:
            # ZB-V: that of 1F1B on its first rank, pp whole stages, which are 2 pp halves. DualPipe: one more half.
            assert held("ZBVZeroBubble", pp, m) == [2 * pp] * pp
            assert held("DualPipeV", pp, m) == [2 * pp + 1] * pp


def test_activations_weigh_by_stage() -> None:
    schedule = pipeline("LoopedBFS", pp=2, micro_batches=3, stages_per_rank=2)
    assert schedule.peak_activations([1.0, 10.0, 100.0, 1000.0]).tolist() == [303.0, 3030.0]
    counts = schedule.activations(0)
    assert counts.max(axis=0).tolist() == [3, 3]
    assert counts[-1].tolist() == [1, 0]


def test_a_pair_holds_both_at_once() -> None:
    schedule = from_table("0F0,(0F1;0B0)OVERLAP_F_B,0B1")
    assert schedule.activations(0).ravel().tolist() == [1, 2, 1]


def test_actions_of_a_rank() -> None:
    schedule = pipeline("InterleavedZeroBubble", pp=2, micro_batches=2)
    first = schedule.actions(1)[0]
    assert first == Action(kind=ActionKind.F, stage=1, micro_batch=0)
    assert schedule.splits_backward
    assert not pipeline("1F1B", pp=2, micro_batches=2).splits_backward


@pytest.mark.parametrize(
    ("name", "arguments", "part"),
    [
        ("Interleaved1F1B", {"pp": 4, "micro_batches": 9}, "take 8 or 10"),
        ("DualPipeV", {"pp": 4, "micro_batches": 7}, "as stages (8), not 7"),
        ("GPipe", {"pp": 2, "micro_batches": 2, "stages_per_rank": 2}, "use LoopedBFS"),
        ("Interleaved1F1B", {"pp": 2, "micro_batches": 2, "stages_per_rank": 1}, "use 1F1B"),
        ("ZBVZeroBubble", {"pp": 2, "micro_batches": 2, "stages_per_rank": 3}, "exactly two"),
        ("1F1B", {"pp": 0, "micro_batches": 2}, "pp of at least 1"),
    ],
)
def test_refusals_say_the_cure(name: str, arguments: dict[str, int], part: str) -> None:
    with pytest.raises(UnsupportedError) as raised:
        pipeline(name, **arguments)
    assert part in str(raised.value)


def test_the_sizes_a_refusal_proposes_exist() -> None:
    for pp, batches in [(4, 9), (4, 11), (5, 13), (8, 31)]:
        with pytest.raises(UnsupportedError) as raised:
            pipeline("Interleaved1F1B", pp=pp, micro_batches=batches)
        low, high = (int(word) for word in str(raised.value).rsplit("take ", 1)[1].split(" or "))
        assert low < batches < high
        pipeline("Interleaved1F1B", pp=pp, micro_batches=low)


def test_an_unknown_name() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'Interleaved1F1B'"):
        pipeline("Interleaved1F1", pp=2, micro_batches=2)


@pytest.mark.parametrize("name", SCHEDULES)
def test_tables_round_trip(name: str) -> None:
    schedule = pipeline(name, pp=3, micro_batches=6)
    assert from_table(schedule.to_table()).to_table() == schedule.to_table()


@pytest.mark.parametrize(
    ("table", "part"),
    [
        ("0F0,0X0", "'0X0' isn't an action"),
        ("0F0,0SEND_F0", "'0SEND_F0' isn't an action"),
        ("", "has no actions"),
        ("0F0,0B0,0F0", "stage 0 has 2 forwards of micro-batch 0"),
        ("0F0", "stage 0 has 0 backwards of micro-batch 0"),
        ("0F0,0I0", "stage 0 has 0 weight gradients of micro-batch 0"),
        ("0F0,0I0,0B0,0W0", "stage 0 has 2 backwards of micro-batch 0"),
        ("0F0,0F2,0B0,0B2", "stage 0 has 0 forwards of micro-batch 1"),
        ("0F0,0F99999999999,0B0", "number them from 0"),
        ("0B0,0F0", "the backward of stage 0 and micro-batch 0 comes before its forward"),
        ("0F0,0W0,0I0", "the weight gradient of stage 0 and micro-batch 0 comes before its input gradient"),
        ("0F0,0B0\n0F1,0B1", "stage 0 is on rank 0 and on rank 1"),
        ("0F0,0B0\n2F0,2B0", "stage 1 has no actions"),
        ("0F0,0B0,0F1,0B1\n1F1,1F0,1B1,1B0", "wait for each other for ever"),
    ],
)
def test_wrong_tables_are_refused(table: str, part: str) -> None:
    with pytest.raises(UnsupportedError) as raised:
        from_table(table, name="mine")
    assert str(raised.value).startswith("mine: ")
    assert part in str(raised.value)


def test_a_deadlock_names_its_circle() -> None:
    with pytest.raises(UnsupportedError) as raised:
        from_table("0F0,0B0,0F1,0B1\n1F1,1F0,1B1,1B0")
    circle = str(raised.value).split("for ever: ")[1].split("; ")[0].split(" waits for ")
    assert circle[0] == circle[-1]
    assert {"F stage 0 #1", "F stage 1 #1"} <= set(circle)
