"""``perfmodel hardware …``."""

import csv
import io
import json
import os
import subprocess
import sys

import pytest

import perfmodel as pm
from perfmodel.cli import main
from perfmodel.hardware import device_names, load_device
from perfmodel.yamlfile import parse_yaml


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("PERFMODEL_CACHE", str(tmp_path / "cache"))

    def call(*arguments):
        with pytest.raises(SystemExit) as stop:
            main(["hardware", *arguments])
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err

    return call


def test_list(run):
    code, out, _ = run("list", "--where", "kind=tpu", "--sort", "-year", "--columns", "name,year,memory.bandwidth")
    lines = out.splitlines()
    assert code == 0 and lines[0].split() == ["device", "year", "memory.bandwidth"]
    years = [int(line.split()[1]) for line in lines[1:]]
    assert years == sorted(years, reverse=True) and len(years) >= 7
    assert all(line.startswith("google-tpu") for line in lines[1:])
    assert "TB/s" in out


def test_list_as_data(run):
    _, out, _ = run("list", "--json", "--where", "name=h100-sxm-80gb")
    assert json.loads(out) == [load_device("nvidia-h100-sxm-80gb").to_dict()]
    _, out, _ = run("list", "--csv", "--columns", "name,runtimes,memory.capacity,power.idle")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["name"] for row in rows] == list(device_names())
    h100 = next(row for row in rows if row["name"] == "nvidia-h100-sxm-80gb")
    assert h100["runtimes"] == "eager compiled graph-replay"
    assert float(h100["memory.capacity"]) == load_device("h100").main_memory.capacity
    assert h100["power.idle"] == ""


@pytest.mark.parametrize("what", ["nodes", "fabrics", "clusters"])
def test_list_of_another_kind(run, what):
    code, out, _ = run("list", "--what", what)
    assert code == 0 and out.startswith(what[:-1]) and len(out.splitlines()) > 10
    code, _, _ = run("list", "--what", what, "--csv")
    assert code == 0


def test_show(run):
    _, out, _ = run("show", "h100")
    assert "memory[0].bandwidth" in out and "3.35 TB/s" in out and "datasheet" in out
    for name, words in {
        "dgx-h100": "interconnect.bandwidth",
        "infiniband-ndr-rail": "efficiency",
        "mixed-h100-a100": "fast: 4 x dgx-h100 (nvidia-h100-sxm-80gb)",
    }.items():
        code, out, _ = run("show", name)
        assert code == 0 and words in out
    _, out, _ = run("show", "dgx-h100", "--json")
    assert json.loads(out)["device"]["name"] == "nvidia-h100-sxm-80gb"
    code, _, err = run("show", "dgx-h10")
    assert code == 2 and "unknown hardware 'dgx-h10'; did you mean" in err


def test_show_resolved(run, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("schema: device/1\nname: mine\nbase: nvidia-a100-sxm-80gb\nvalidated: no\n")
    _, out, _ = run("show", str(path), "--resolved")
    plain = parse_yaml(out, "resolved").plain()
    assert plain["name"] == "mine" and "base" not in plain
    path.write_text(out)
    assert load_device(path).compute == load_device("a100-80g").compute


def test_compare(run):
    _, out, _ = run("compare", "h100", "a100-80g", "google-tpu-v5p")
    lines = out.splitlines()
    assert lines[0].split() == ["field", "nvidia-h100-sxm-80gb", "nvidia-a100-sxm-80gb", "google-tpu-v5p"]
    (row,) = [line for line in lines if line.startswith("compute.matrix.peak.bf16 ")]
    assert row.split() == ["compute.matrix.peak.bf16", "989.4", "TFLOP/s", "312", "TFLOP/s", "459", "TFLOP/s"]
    (row,) = [line for line in lines if line.startswith("memory.vmem.capacity ")]
    assert row.split()[1:3] == ["-", "-"]
    _, out, _ = run("compare", "h100", "a100-80g", "--csv")
    rows = {row["field"]: row for row in csv.DictReader(io.StringIO(out))}
    assert float(rows["power.tdp"]["nvidia-h100-sxm-80gb"]) == 700
    _, out, _ = run("compare", "h100", "a100-80g", "--json")
    assert [entry["name"] for entry in json.loads(out)] == ["nvidia-h100-sxm-80gb", "nvidia-a100-sxm-80gb"]


def test_check_of_every_kind(run, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("schema: cluster/1\nname: c\nnode: dgx-h100\nnodes: 2\n")
    code, out, _ = run("check", str(path))
    assert code == 0 and out.startswith(f"{path}: ok")
    path.write_text("schema: clutser/1\nname: c\n")
    code, _, err = run("check", str(path))
    assert code == 2 and "c.yaml:1:9: schema is 'clutser/1'; did you mean 'cluster/1'" in err
    path.write_text("name: c\n")
    code, _, err = run("check", str(path))
    assert code == 2 and "c.yaml:1:1: key 'schema' is missing" in err


def test_schema(run, tmp_path):
    code, out, _ = run("schema", str(tmp_path / "schema"))
    assert code == 0 and len(out.splitlines()) == 4
    assert json.loads((tmp_path / "schema" / "device.json").read_text())["title"] == "perfmodel device"


def test_set_on_the_command_line(capsys, tmp_path):
    graph = tmp_path / "gpt2.json"
    pm.save_graph(pm.capture("gpt2", batch=2, seq_len=64, layers=1, optimizer=None, implementation="reference"), graph)

    def predict(*more):
        with pytest.raises(SystemExit) as stop:
            main(["predict", str(graph), "--on", "h100", "--json", *more])
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err

    code, out, _ = predict("--runtime", "graph-replay")
    plain = json.loads(out)["step_time_s"]
    code, out, _ = predict("--runtime", "graph-replay", "--set", "device.memory.hbm.bandwidth=6TB/s")
    assert code == 0 and json.loads(out)["step_time_s"] < plain
    assert any("memory.hbm.bandwidth = 6TB/s" in note for note in json.loads(out)["notes"])
    for change, words in {
        "memory.hbm.bandwidth=6TB/s": "write e.g. device.memory.hbm.bandwidth",
        "device.memory.hbm.bandwidth": "is not path=value",
        "device.memory.hbm.bandwidth=6TB": "measures bytes, not bytes/s",
    }.items():
        code, _, err = predict("--set", change)
        assert code == 2 and words in err


def test_a_listing_loads_nothing_that_takes_long(tmp_path):
    """A quick command stays quick: no NumPy, no graph, no report of predictions; and no YAML once it is kept."""
    script = (
        "import sys\nfrom perfmodel.cli import main\n"
        "try:\n    main(['hardware', 'list'])\nexcept SystemExit:\n    pass\n"
        "print(*sorted(m for m in sys.modules if m in ('numpy', 'yaml', 'torch', 'rich', 'perfmodel.graph',"
        " 'perfmodel.hardware.system_schema', 'perfmodel.prediction')))"
    )
    environment = {**os.environ, "PERFMODEL_CACHE": str(tmp_path)}
    told = [
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
        .stdout.splitlines()[-1]
        .split()
        for _ in range(2)
    ]
    assert told == [["yaml"], []]
