"""Host and device as two queues."""

from __future__ import annotations

import numpy as np
import pytest

from perfmodel.timing import two_queues


def test_a_slow_host_starves_the_device() -> None:
    r = two_queues(np.full(4, 2.0), np.full(4, 0.5), np.zeros(4, bool))
    assert r.end.tolist() == [2.5, 4.5, 6.5, 8.5]
    assert (r.step_time, r.host_busy, r.device_busy, r.device_idle) == (8.5, 8.0, 2.0, 6.5)


def test_a_fast_host_is_hidden() -> None:
    r = two_queues(np.full(4, 0.5), np.full(4, 2.0), np.zeros(4, bool))
    assert r.step_time == 0.5 + 4 * 2.0


def test_a_read_back_makes_the_host_wait() -> None:
    host, device = np.array([1.0, 1.0, 1.0]), np.array([5.0, 1.0, 1.0])
    free = two_queues(host, device, np.array([False, False, False]))
    waits = two_queues(host, device, np.array([True, False, False]))
    assert free.end.tolist() == [6.0, 7.0, 8.0]
    assert waits.end.tolist() == [6.0, 8.0, 9.0]


def test_the_step_lasts_until_the_host_is_done_too() -> None:
    r = two_queues(np.array([1.0, 4.0]), np.array([1.0, 0.0]), np.zeros(2, bool))
    assert r.step_time == 5.0


def test_where_host_and_device_are_one_everything_adds_up() -> None:
    r = two_queues(np.array([1.0, 2.0]), np.array([3.0, 4.0]), np.zeros(2, bool), start=0.5, synchronous=True)
    assert r.end.tolist() == [4.5, 10.5]
    assert (r.step_time, r.host_busy, r.device_busy) == (10.5, 3.5, 7.0)


@pytest.mark.parametrize("synchronous", [False, True])
def test_a_step_without_ops_is_the_hosts_own(synchronous: bool) -> None:
    empty = np.zeros(0)
    r = two_queues(empty, empty, np.zeros(0, bool), start=3.0, synchronous=synchronous)
    assert (r.step_time, r.device_busy, len(r.end)) == (3.0, 0.0, 0)
