"""The shape that every comparison puts out."""

import json
import math

import pytest

from perfmodel.errors import FileError
from perfmodel.validation import Row, report_dict, summarise, summary_table, write_report

ROWS = [
    Row(id="2", measured_s=1.0, predicted_s=1.2, low_s=0.9, high_s=1.3),
    Row(id="3", measured_s=2.0, predicted_s=1.0, low_s=0.9, high_s=1.3),
    Row(id="4", measured_s=4.0, predicted_s=4.4),
    Row(id="5", measured_s=4.0, status="unsupported", reason="no such device"),
]


def test_the_summary_is_over_what_is_supported():
    found = summarise(ROWS)
    assert (found.count, found.supported) == (4, 3)
    assert found.mape == pytest.approx((0.2 + 0.5 + 0.1) / 3)
    assert found.median_ape == pytest.approx(0.2)
    assert found.p90_ape == pytest.approx(0.44)
    assert found.bias == pytest.approx(math.exp((math.log(1.2) + math.log(0.5) + math.log(1.1)) / 3) - 1)
    assert found.interval_coverage == 0.5


def test_without_rows_there_is_no_error_but_none():
    for rows in ([], ROWS[3:]):
        found = summarise(rows)
        assert found.supported == 0 and found.mape is found.bias is found.interval_coverage is None
    assert summary_table({}).splitlines()[1].split()[:3] == ["all", "0", "0"]


def test_the_shape_of_the_report(tmp_path):
    path = tmp_path / "deep" / "out.json"
    write_report(path, ROWS)
    read = json.loads(path.read_text(encoding="utf-8"))
    assert read == report_dict(ROWS)
    assert list(read) == ["rows", "summary"]
    row = ["id", "measured_s", "predicted_s", "low_s", "high_s", "status", "reason"]
    assert all(list(one) == row for one in read["rows"])
    summary = ["count", "supported", "mape", "median_ape", "p90_ape", "bias", "interval_coverage"]
    assert list(read["summary"]) == summary
    assert list(tmp_path.rglob("*")) == [path.parent, path]  # nothing is left beside it


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "out.json"
    path.mkdir()
    with pytest.raises(FileError, match="can't be written"):
        write_report(path, ROWS)
    assert list(tmp_path.iterdir()) == [path]


def test_the_table_has_a_line_for_each_group_and_one_for_all():
    lines = summary_table({"a100": ROWS[:2], "h100": ROWS[2:]}).splitlines()
    assert [line.split()[0] for line in lines] == ["group", "a100", "h100", "all"]
    assert lines[3].split()[1:3] == ["4", "3"]
