"""Collectives against what others measured, and against the closed forms of others."""

import importlib
from pathlib import Path

import numpy as np
import pytest

import perfmodel as pm
from perfmodel.timing.collectives import collective_time, group_of, torus_time

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "collectives" / "collectives.csv.gz"
NVLINK = ("dgx-a100", "dgx-h100", "dgx-b200")


# "How to Scale Your Model", part 3: TPU v5e has 4.5e10 bytes/s of a link in one direction, 9e10 in both.
W = 9e10
LINK = {"bandwidth": W / 2, "hop": 1e-6}


def test_the_books_closed_forms_in_the_bandwidth_bound_regime():
    size = 34e9
    for shape in ((16,), (16, 16), (16, 16, 16)):
        rings = (True,) * len(shape)
        ranks = np.prod(shape)
        gather = size / (W * len(shape))  # bytes / (bidirectional bandwidth x number of axes)
        left_out = (ranks - 1) / ranks  # "x (axis - 1) / axis" in its summary
        assert torus_time("all_gather", size, shape, rings, **LINK) == pytest.approx(gather * left_out)
        assert torus_time("reduce_scatter", size, shape, rings, **LINK) == pytest.approx(gather * left_out)
        assert torus_time("all_reduce", size, shape, rings, **LINK) == pytest.approx(2 * gather * left_out)
    # All-to-all over one ring: a quarter of an all-gather of the same array; each rank sends a sixteenth of it.
    gather = size / W
    assert torus_time("all_to_all", size / 16, (16,), (True,), **LINK) == pytest.approx(gather / 4)


def test_the_books_worked_answers():
    # Quiz 2: 4 of v5e's 16 chips of an axis, no ring: 3 hops of 8.4 MB at 4.5e10 are 560 us; small, 3 us.
    assert torus_time("all_gather", 2 * 2048 * 8192, (4,), (False,), **LINK) == pytest.approx(560e-6, rel=0.01)
    assert torus_time("all_gather", 2 * 256 * 256, (4,), (False,), **LINK) == pytest.approx(3e-6)
    # Question 2, v4p, axes of 4 that close: one axis 23 us (the other shards the array by 4), two axes 46 us.
    book = 4 / 3 * torus_time("all_gather", 2 * 1024 * 4096 / 4, (4,), (True,), **LINK)
    assert book == pytest.approx(23e-6, rel=0.02)
    book = 16 / 15 * torus_time("all_gather", 2 * 1024 * 4096, (4, 4), (True, True), **LINK)
    assert book == pytest.approx(46e-6, rel=0.02)
    # Question 3: 256 bytes over a ring of 4: two hops.
    assert torus_time("all_gather", 256, (4,), (True,), **LINK) == pytest.approx(2e-6)


def test_a_tpu_pod_is_timed_by_them():
    pod = pm.load_cluster("google-tpu-v4-pod")
    shape = pod.fabric.torus.shape(pod.devices)
    axis = group_of(pod, range(shape[-1]))
    assert axis.shape == (1, 1, shape[-1]) and axis.wraps[-1]
    rate = pod.fabric.bandwidth * pod.fabric.efficiency
    expected = 1e9 * (shape[-1] - 1) / shape[-1] / (2 * rate)
    found = collective_time("all_gather", 1e9, axis)
    assert (found.algorithm, found.low) == ("torus", None)
    assert found.time == pytest.approx(expected)


def test_published_bus_bandwidths_of_eight_h100():
    # 8 x H100, 512 MiB, NCCL: GB/s of bus bandwidth.
    node = group_of(pm.load_cluster("dgx-h100"), range(8))
    for op, measured in {"all_reduce": 445, "all_gather": 335, "reduce_scatter": 335, "all_to_all": 317}.items():
        assert collective_time(op, 512 * 2**20, node).busbw == pytest.approx(measured * 1e9, rel=0.06), op


@pytest.fixture(scope="module")
def study():
    if not DATA.is_file():
        pytest.skip("../shared/data/collectives isn't here: no measured collectives to fit on")
    fits = importlib.import_module("validate.collectives_fit")
    found = importlib.import_module("validate.collectives_targets")
    rows = importlib.import_module("perfmodel.validation.collectives").read_measurements(DATA)
    cells = [
        fits.cases_of(target.rows(rows, theirs), op, target.node, between=False, profiled=False)
        for target in found.targets()
        if target.name in NVLINK and target.source == "aiconfigurator"
        for theirs, op in target.ops.items()
    ]
    assert len(cells) == 12
    return fits, cells


def test_half_of_the_sizes_predicts_the_other_half(study):
    fits, cells = study
    ours, plain, bare = [], [], []
    for cases in cells:
        taken = fits.halves(cases, 0)
        assert not set(cases.nbytes[taken]) & set(cases.nbytes[~taken])
        scored = cases.where(~taken)
        for errors, times in (
            (ours, fits.predict(scored, *fits.fit(cases.where(taken)))),
            (plain, fits.alpha_beta(cases.where(taken))(scored)),
            (bare, fits.ideal(scored)),
        ):
            errors.append(np.abs(times / scored.time - 1))
    mape, plain_mape, bare_mape = (float(np.mean(np.concatenate(errors))) for errors in (ours, plain, bare))
    assert mape <= 0.08
    assert mape < plain_mape / 2 < bare_mape


def test_two_numbers_of_ranks_predict_the_third(study):
    fits, cells = study
    errors = []
    for cases in cells:
        for ranks in (2, 4, 8):
            left = cases.ranks == ranks
            scored = cases.where(left)
            errors.append(np.abs(fits.predict(scored, *fits.fit(cases.where(~left))) / scored.time - 1))
    assert float(np.mean(np.concatenate(errors))) <= 0.15


def test_the_shipped_constants_are_those_of_the_fit(study):
    fits, cells = study
    for cases in cells:
        shipped = cases.route.constants(cases.op)
        again, _ = fits.fit(cases)
        errors = [np.mean(np.abs(np.log(fits.predict(cases, known) / cases.time))) for known in (shipped, again)]
        assert errors[0] == pytest.approx(errors[1], rel=0.02), (cases.op, cases.route.name)
