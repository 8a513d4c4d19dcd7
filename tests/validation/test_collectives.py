"""Measured collectives: reading, predicting, the command."""

import gzip
import json
from pathlib import Path

import pytest

from perfmodel.cli import main
from perfmodel.errors import FileError
from perfmodel.validation import summarise
from perfmodel.validation.collectives import COLUMNS, cluster_of, predict_rows, read_measurements

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "collectives" / "collectives.csv.gz"
HEADER = ",".join(COLUMNS)
#: Times of back-to-back NCCL calls on eight H100.
GOOD = "nvidia-h100-sxm-80gb,half,all_reduce,8,1,536870912,2111.4,nccl 2.27.3,aiconfigurator,"


def table(tmp_path, *lines, header=HEADER, name="rows.csv"):
    path = tmp_path / name
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def line(**changes):
    cells = dict(zip(COLUMNS, GOOD.split(","), strict=True))
    return ",".join(str({**cells, **changes}[name]) for name in COLUMNS)


def test_a_row_is_predicted_with_its_interval(tmp_path):
    (row,) = predict_rows(read_measurements(table(tmp_path, GOOD)))
    assert (row.id, row.status, row.reason) == ("2", "ok", "")
    assert row.measured_s == pytest.approx(2111.4e-6)
    assert row.low_s < row.predicted_s < row.high_s
    assert abs(row.error) < 0.05


def test_columns_may_come_in_any_order_and_more_of_them(tmp_path):
    cells = dict(zip(COLUMNS, GOOD.split(","), strict=True))
    names = [*reversed(COLUMNS), "comment"]
    text = ",".join([*(cells[name] for name in reversed(COLUMNS)), '"a, b"'])
    first = read_measurements(table(tmp_path, text, header=",".join(names)))
    assert first == read_measurements(table(tmp_path, GOOD))


def test_gzipped_or_not(tmp_path):
    plain = table(tmp_path, GOOD)
    packed = tmp_path / "rows.csv.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_measurements(packed) == read_measurements(plain)


UNSUPPORTED = {
    "did you mean": {"device": "nvidia-h100-sxm-80gbb"},
    "unknown operation 'gather'": {"op": "gather"},
    "dgx-h100 has 8 devices": {"ranks": 16},
    "nobody to communicate with": {"ranks": 1},
    "send_recv among 8 ranks": {"op": "p2p"},
    "don't divide among 3 nodes": {"ranks": 8, "nodes": 3},
    "no node of the catalogue has several": {"device": "nvidia-t4"},
    "unknown topology 'dgxx'; did you mean 'dgx'?": {"topology": "dgxx"},
    "isn't named": {"device": "nvidia-a100-sxm-80gb", "topology": "pairwise_nvlink", "nodes": 2, "ranks": 2},
}


@pytest.mark.parametrize("reason", UNSUPPORTED)
def test_what_cannot_be_predicted_stays_and_says_why(tmp_path, reason):
    good, row = predict_rows(read_measurements(table(tmp_path, GOOD, line(**UNSUPPORTED[reason]))))
    assert good.status == "ok"
    assert (row.status, row.predicted_s, row.low_s) == ("unsupported", None, None)
    assert reason in row.reason and "\n" not in row.reason
    found = summarise([good, row])
    assert (found.count, found.supported) == (2, 1)


def test_what_is_told_apart():
    a100, h100 = "nvidia-a100-sxm-80gb", "nvidia-h100-sxm-80gb"
    assert cluster_of(h100, "", 1, 8).node.name == "dgx-h100"
    assert cluster_of(h100, "pairwise_nvlink", 1, 4).node.interconnect.topology == "pairs"
    assert cluster_of(a100, "dgx", 2, 16).nodes == 2


def test_profiled_kernels_are_another_kind_of_time(tmp_path):
    rows = [
        line(bytes=4096, source=source, topology=kind) for source, kind in (("aiconfigurator", ""), ("vidur", "dgx"))
    ]
    alone, waiting = predict_rows(read_measurements(table(tmp_path, *rows)))
    assert waiting.predicted_s > 2 * alone.predicted_s


MISTAKES = {
    "column 'latency_us' is missing; did you mean 'latency'?": lambda p: table(p, header=HEADER.replace("_us", "")),
    "column 'device' is missing; the columns are": lambda p: table(p, header=""),
    "rows.csv:2: ranks is 'eight', not a number": lambda p: table(p, line(ranks="eight")),
    "rows.csv:2: ranks is '2.5'; write a whole number": lambda p: table(p, line(ranks=2.5)),
    "rows.csv:3: latency_us is 'nan'": lambda p: table(p, GOOD, line(latency_us="nan")),
    "latency_us is '0'": lambda p: table(p, line(latency_us=0)),
    "bytes is '-1'": lambda p: table(p, line(bytes=-1)),
    "9 values for 10 columns": lambda p: table(p, GOOD[:-1]),
    "isn't gzipped": lambda p: table(p, GOOD, name="rows.csv.gz"),
    "can't be read": lambda p: p / "nothing.csv",
    "can't be read: Is a directory": lambda p: p,
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_file_that_is_no_table_is_one_line(tmp_path, words):
    with pytest.raises(FileError) as caught:
        read_measurements(MISTAKES[words](tmp_path))
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data[:20] + b"\0" * 8 + data[28:]])
def test_a_damaged_gzip_file_is_said_to_be_one(tmp_path, damage):
    path = tmp_path / "rows.csv.gz"
    path.write_bytes(damage(gzip.compress((HEADER + "\n" + GOOD + "\n").encode() * 3)))
    with pytest.raises(FileError, match="the gzip data is damaged"):
        read_measurements(path)


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(FileError, match="not UTF-8 text at byte 0"):
        read_measurements(path)


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(["validate", "collectives", *map(str, arguments)])
    told = capsys.readouterr()
    return stop.value.code or 0, told.out, told.err


def test_the_command_prints_a_table_and_writes_json(tmp_path, capsys):
    out = tmp_path / "out.json"
    code, printed, _ = run(capsys, table(tmp_path, GOOD, line(op="gather")), "--json", out)
    assert code == 0
    assert printed.splitlines()[0].split()[:3] == ["group", "rows", "supported"]
    assert "unsupported: 1 row: unknown operation 'gather'" in printed
    report = json.loads(out.read_text(encoding="utf-8"))
    assert [row["status"] for row in report["rows"]] == ["ok", "unsupported"]
    assert (report["summary"]["count"], report["summary"]["supported"]) == (2, 1)


def test_the_command_says_what_is_wrong_in_one_line(tmp_path, capsys):
    code, printed, told = run(capsys, tmp_path / "nothing.csv")
    assert (code, printed) == (2, "")
    assert told.startswith("perfmodel: ") and told.count("\n") == 1


def test_the_shared_table():
    if not DATA.is_file():
        pytest.skip("../shared/data/collectives isn't here: no measured collectives")
    measurements = read_measurements(DATA)
    rows = predict_rows(measurements)
    assert len(rows) == len(measurements) == 11392
    assert {row.reason for row in rows if row.status != "ok"} == {
        "the network between the nodes isn't named and its times scatter by a factor of three at one size"
    }
    nccl = [
        row
        for one, row in zip(measurements, rows, strict=True)
        if one.source == "aiconfigurator"
        and one.device in ("nvidia-a100-sxm-80gb", "nvidia-h100-sxm-80gb", "nvidia-b200")
    ]
    found = summarise(nccl)
    assert found.mape < 0.08
    assert 0.85 < found.interval_coverage < 1
    assert abs(found.bias) < 0.03
