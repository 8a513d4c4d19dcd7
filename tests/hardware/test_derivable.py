"""Figures that follow from others of the same device: peaks from units, rates and clocks; bandwidths from buses."""

import pytest

from perfmodel.hardware import device_files, device_names, load_device
from perfmodel.hardware.schema import load_device_file
from tests.hardware.rates import BUSES, RATES

TOLERANCE = 0.03
UNITS = [
    pytest.param(name, unit, id=f"{name}-{unit}")
    for name, units in sorted(RATES.items())
    for unit, per_clock in units.items()
    if per_clock
]


@pytest.fixture(autouse=True)
def no_user_folders(monkeypatch):
    monkeypatch.delenv("PERFMODEL_HARDWARE", raising=False)


def test_at_least_forty_devices_are_recomputed():
    assert len(RATES) >= 40
    assert set(RATES) <= set(device_names())
    assert set(BUSES) <= set(device_names())


@pytest.mark.parametrize(("name", "unit"), UNITS)
def test_peak_is_units_times_rate_times_clock(name, unit):
    device = load_device(name)
    found = device.compute[unit]
    assert found.count is not None, "number of units is missing"
    assert found.clock is not None, "clock is missing"
    per_clock = RATES[name][unit]
    recomputed = {dtype: rate * found.count * found.clock for dtype, rate in per_clock.items()}
    stated = {dtype: found.peak.get(dtype) for dtype in per_clock}
    assert stated == pytest.approx(recomputed, rel=TOLERANCE)


@pytest.mark.parametrize("name", sorted(BUSES))
def test_bandwidth_is_width_times_data_rate(name):
    bits, gigabits_per_pin = BUSES[name]
    assert load_device(name).main_memory.bandwidth == pytest.approx(bits * gigabits_per_pin * 1e9 / 8, rel=TOLERANCE)


@pytest.mark.parametrize("name", device_names())
def test_peaks_are_dense(name):
    """Where a file keeps a figure with sparsity too, the peak is at most half of it."""
    matrix = load_device_file(device_files()[name]).compute.matrix
    dense = matrix.peak.rates()
    for dtype, sparse in ({} if matrix.sparse is None else matrix.sparse.rates()).items():
        assert dense[dtype] <= sparse / 2 * (1 + TOLERANCE)
