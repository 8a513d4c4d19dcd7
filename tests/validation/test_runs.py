"""Measured training runs: reading, model, machine, plan, comparing, the command."""

import copy
import json
from pathlib import Path

import pytest
import yaml

from perfmodel.cli import main
from perfmodel.errors import FileError, UnknownNameError, UnsupportedError
from perfmodel.models import catalogue
from perfmodel.validation.runs import RunRow, predict_runs, scored
from perfmodel.validation.runs_machine import machine
from perfmodel.validation.runs_model import trained
from perfmodel.validation.runs_plan import plans
from perfmodel.validation.runs_report import grouped, mean_of_groups, runs_report, summaries
from perfmodel.validation.runs_schema import read_runs

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "runs"

RUN = {
    "id": "small-1",
    "group": "ours",
    "family": "ours",
    "quality": "A",
    "source_kind": "verified",
    "task": "pretrain",
    "device": "nvidia-a100-sxm-80gb",
    "devices": 1,
    "devices_per_node": 8,
    "fabric": {"intra": "NVLink3", "inter": "8x HDR 200Gb/s InfiniBand per node", "inter_gbit_per_node": 1600},
    "model": {
        "name": "small", "layers": 2, "hidden": 256, "ffn": 1024, "heads": 4, "kv_heads": 4, "vocab": 1000,
        "seq_len": 128, "gated_mlp": False, "activation": "gelu", "tied_embeddings": True, "attention": "causal",
        "pos_embedding": "learned", "bias": True,
    },
    "precision": "bf16",
    "plan": {"tp": 1, "sp": False, "pp": 1, "vpp": 1, "cp": 1, "ep": 1, "dp": 1, "zero": 0, "fsdp": False,
             "schedule": None},
    "micro_batch": 2,
    "global_batch": 4,
    "recompute": "none",
    "optimizer": "AdamW",
    "flash_attention": True,
    "runtime": {"compile": None},
    "measured": {"step_time_s": 0.01, "peak_memory_gb": 0.1},
    "circular": False,
}  # fmt: skip


def changed(**values):
    """The run with other values; ``plan__tp=2`` is one of a part."""
    run = copy.deepcopy(RUN)
    for path, value in values.items():
        *parts, last = path.split("__")
        inner = run
        for part in parts:
            inner = inner[part]
        inner[last] = value
    return run


def file_of(tmp_path, *runs, name="runs.yaml"):
    path = tmp_path / name
    path.write_text("".join(f"- {json.dumps(run)}\n" for run in runs), encoding="utf-8")
    return path


@pytest.fixture
def record(tmp_path):
    """Makes a record with other values."""

    def make(**values):
        (run,) = read_runs([file_of(tmp_path, changed(**values))])
        assert not run.problem
        return run.record

    return make


# -- reading ------------------------------------------------------------------------


def test_a_run_is_read_with_its_place(tmp_path):
    path = file_of(tmp_path, RUN, changed(id="small-2", circular=True, source_kind="composed"))
    first, second = read_runs([path])
    assert (first.id, first.group, first.quality, first.measured_s) == ("small-1", "ours", "A", 0.01)
    assert first.record.plan.dp == 1 and first.record.model.heads == 4
    assert second.place == f"{path}:2"
    assert second.circular and second.composed and not first.circular


def test_records_may_span_lines(tmp_path):
    path = tmp_path / "runs.yaml"
    path.write_text(yaml.safe_dump([RUN, changed(id="small-2")]), encoding="utf-8")
    assert [run.record.model.name for run in read_runs([path])] == ["small", "small"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\n", "runs.yaml:1: not a list"),
        ("- 3\n", "runs.yaml:1: a int, not a run"),
        ("- {device: x}\n", "runs.yaml:1: the run has no id"),
        ("- {id: a}\n- {id: a}\n", "runs.yaml:2: run 'a' is in line 1 already"),
        ("- {id: a\n", "not YAML"),
        ("- {id: !!python/object:os.system x}\n", "not YAML"),
    ],
)
def test_what_is_no_list_of_runs_is_refused(tmp_path, text, said):
    path = tmp_path / "runs.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FileError) as caught:
        read_runs([path])
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(FileError, match=r"none\.yaml: can't be read: .*; check the path"):
        read_runs([tmp_path / "none.yaml"])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model__sliding_windw": 4}, "model.sliding_windw isn't known"),
        ({"plan__zerro": 4}, "did you mean 'zero'?"),
        ({"model__layers": "many"}, "model.layers is 'many'"),
        ({"measured__step_time_s": -1}, "measured.step_time_s isn't a positive number"),
        ({"micro_batch": [1]}, "micro_batch is [1]"),
    ],
)
def test_a_record_that_cannot_be_read_stays_with_the_reason(tmp_path, values, said):
    (run,) = read_runs([file_of(tmp_path, changed(**values))])
    assert run.record is None and said in run.problem
    (row,) = predict_runs([run])
    assert (row.id, row.status, row.reason, row.scored) == ("small-1", "unsupported", run.problem, False)


def test_missing_fields_are_named(tmp_path):
    run = copy.deepcopy(RUN)
    del run["plan"]["tp"]
    (found,) = read_runs([file_of(tmp_path, run)])
    assert found.problem == "plan.tp is missing"


# -- model --------------------------------------------------------------------------


def test_a_published_model_has_its_published_parameters(record):
    llama = {
        "layers": 32, "hidden": 4096, "ffn": 14336, "heads": 32, "kv_heads": 8, "vocab": 128256, "seq_len": 8192,
        "gated_mlp": True, "activation": "swiglu", "tied_embeddings": False, "pos_embedding": "rope", "bias": False,
    }  # fmt: skip
    found = trained(record(**{f"model__{key}": value for key, value in llama.items()}))
    assert found.entry.parameters == catalogue.get("llama-3.1-8b").parameters
    assert (found.entry.dtype, found.optimizer, found.notes) == ("bfloat16", "adamw", ())


def test_a_mixture_with_latent_attention_has_deepseeks_parameters(record):
    deepseek = {
        "layers": 61, "hidden": 7168, "ffn": 18432, "heads": 128, "kv_heads": 128, "vocab": 129280, "seq_len": 4096,
        "gated_mlp": True, "activation": "swiglu", "tied_embeddings": False, "pos_embedding": "rope", "bias": False,
        "moe": {"experts": 256, "top_k": 8, "moe_ffn": 2048, "shared_experts": 1, "shared_ffn": 2048,
                "dense_layers": 3},
        "mla": {"q_lora": 1536, "kv_lora": 512, "qk_nope": 128, "qk_rope": 64, "v": 128},
        "mtp_layers": 1, "params": 9e11,
    }  # fmt: skip
    found = trained(record(**{f"model__{key}": value for key, value in deepseek.items()}))
    # Apart from the routers' biases, which balance the load and aren't trained.
    assert found.entry.parameters == pytest.approx(671_026_404_352, rel=1e-6)
    assert "multi-token prediction is left out" in found.notes[0]
    assert "the source says 900e9" in found.notes[1]


def test_berts_head_sees_the_masked_positions(record):
    bert = {"model__attention": "bidirectional", "model__vocab": 30528}
    stated = trained(record(**bert, model__mlm_positions_per_seq=19))
    assert (stated.entry.dims.max_predictions_per_seq, stated.notes) == (19, ())
    chosen = trained(record(**bert))
    assert chosen.entry.dims.max_predictions_per_seq == 20 and "20 of 128" in chosen.notes[0]
    tuned = trained(record(**bert, task="finetune"))
    assert not tuned.entry.dims.next_sentence and "head is counted" in tuned.notes[0]
    plain = trained(record(**bert, task="forward_backward", optimizer="none: forward+backward only"))
    assert plain.entry.dims.family == "encoder" and plain.optimizer is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"precision": "mxfp8"}, "products in mxfp8"),
        ({"task": "lora"}, "LoRA"),
        ({"optimizer": "Shampoo"}, "optimizer 'Shampoo' isn't known"),
        ({"model__activation": "squared-relu"}, "activation 'squared-relu'"),
        ({"model__pos_embedding": "t5"}, "pos_embedding 't5'"),
    ],
)
def test_what_is_not_modelled_is_refused(record, values, said):
    with pytest.raises(UnsupportedError) as caught:
        trained(record(**values))
    assert said in str(caught.value)


# -- machine ------------------------------------------------------------------------


def test_one_device_is_a_device_and_part_of_a_node_a_smaller_node(record):
    assert machine(record()).machine.name == "nvidia-a100-sxm-80gb"
    found = machine(record(devices=2)).machine
    assert (found.node.name, found.devices, found.nodes) == ("dgx-a100", 2, 1)


@pytest.mark.parametrize(
    ("inter", "gbit", "fabric", "count", "port"),
    [
        ("8x HDR 200Gb/s InfiniBand per node", 1600, "infiniband-hdr-rail", 8, 200),
        ("4x HDR 200Gb/s InfiniBand per node", 800, "infiniband-hdr-rail", 4, 200),
        ("4x 100Gb/s Omni-Path per node", 400, "omni-path-100-fat-tree", 4, 100),
        ("4x100Gb/s RoCE per node (stated)", 400, "roce-100-fat-tree", 4, 100),
        ("1600 Gb/s per node RoCE", 1600, "roce-200-fat-tree", 8, 200),
    ],
)
def test_the_network_is_the_one_that_is_named(record, inter, gbit, fabric, count, port):
    found = machine(record(devices=16, fabric={"inter": inter, "inter_gbit_per_node": gbit}))
    assert (found.machine.nodes, found.machine.fabric.name, found.notes) == (2, fabric, ())
    (nic,) = found.machine.node.nics
    assert (nic.count, nic.bandwidth) == (count, pytest.approx(port * 1e9 / 8))


def test_a_network_that_is_not_stated_is_noted(record):
    found = machine(record(devices=16, fabric={"inter": "unstated", "inter_gbit_per_node": None}))
    assert found.machine.fabric.name == "infiniband-hdr-rail"
    assert found.notes == ("the network between nodes isn't stated in full: infiniband-hdr-rail is taken",)


def test_a_rack_is_used_evenly(record):
    found = machine(record(device="nvidia-gb200", devices=256, devices_per_node=72, fabric={}))
    assert (found.machine.nodes, found.machine.node.devices, found.machine.node.nics[0].count) == (4, 64, 64)
    assert "64 of the 72" in found.notes[0]


def test_a_node_may_have_another_device_than_the_catalogues(record):
    values = {"device": "nvidia-v100-sxm-32gb", "fabric": {"intra": "DGX-1 NVLink2 hybrid cube mesh"}}
    found = machine(record(**values, devices=8)).machine
    assert (found.node.name, found.device.name, found.node.interconnect.topology) == (
        "dgx-1v",
        "nvidia-v100-sxm-32gb",
        "cube-mesh",
    )


def test_a_slice_of_a_torus_is_made_of_hosts_and_several_are_refused(record):
    values = {"device": "google-tpu-v5e", "devices_per_node": 256}
    found = machine(record(**values, devices=256)).machine
    assert (found.node.name, found.nodes, found.fabric.name) == ("google-tpu-v5e-host", 32, "google-ici-v5e")
    with pytest.raises(UnsupportedError, match="2 slices of 256 google-tpu-v5e"):
        machine(record(**values, devices=512))


def test_tf32_is_a_faster_rate_of_float32(record):
    found = machine(record(precision="tf32")).device
    assert found.peak("matrix", "float32") == machine(record()).device.peak("matrix", "tf32")
    with pytest.raises(UnsupportedError, match="no tf32"):
        machine(record(precision="tf32", device="nvidia-v100-sxm-32gb"))


def test_a_device_without_such_a_node_is_refused(record):
    with pytest.raises(UnsupportedError, match="no node of the catalogue has 32 aws-trainium1"):
        machine(record(device="aws-trainium1", devices=32, devices_per_node=32))


# -- plan ---------------------------------------------------------------------------


def test_a_stated_plan_is_one_plan(record):
    layout = {"tp": 4, "sp": True, "pp": 2, "vpp": 1, "cp": 1, "ep": 1, "dp": 2, "zero": 1, "schedule": "1f1b"}
    found = plans(record(plan=layout, devices=16, global_batch=32), optimizer=True)
    (plan,) = found.plans
    assert (plan.devices, plan.micro_batches, plan.zero, plan.sp, plan.schedule) == (16, 8, 1, True, "1F1B")
    assert plan.dtypes == {"optimizer": "float32"}
    assert (found.unknown, found.notes) == ((), ())


def test_an_interleaved_schedule_and_uneven_layers(record):
    layout = {**RUN["plan"], "pp": 4, "vpp": 2, "schedule": "interleaved_1f1b"}
    (plan,) = plans(record(plan=layout, model__layers=94), optimizer=True).plans
    assert (plan.schedule, plan.stage_layers) == ("Interleaved1F1B", (11, 12, 12, 12, 12, 12, 12, 11))
    found = plans(record(plan=layout, model__layers=61), optimizer=True)
    assert sum(found.plans[0].stage_layers) == 61
    assert found.notes == ("61 layers over 8 stages: 2 x 7 + 5 x 8 + 7, not stated",)


def test_what_is_unknown_gives_several_plans(record):
    found = plans(record(recompute="unknown", micro_batch=None, global_batch=8, plan__dp=4), optimizer=True)
    assert found.unknown == ("recompute", "micro_batch")
    assert {(plan.micro_batch, plan.recompute) for plan in found.plans} == {
        (size, kind) for size in (1, 2) for kind in ("none", "selective", "full")
    }


def test_sharding_and_types_are_those_of_the_source(record):
    def plan(**values):
        return plans(record(**values), optimizer=True).plans[0]

    assert plan(plan__fsdp=True, plan__dp=2).zero == 3
    hybrid = {**RUN["plan"], "fsdp": True, "dp": 8, "extra": {"fsdp_size": 4, "dp_outer": 2}}
    assert plan(plan=hybrid, global_batch=16).shard_group == 4
    assert plan(precision_note="bf16 (fp32 grad accumulation)").dtypes["gradients"] == "float32"
    assert plan(precision_note="bf16 pure").dtypes == {}
    assert plan(precision="fp32").dtypes == {}
    assert plan(plan={**RUN["plan"], "extra": {"overlap": "all comm overlap disabled"}}).overlap == frozenset()
    assert "tp" in plan(runtime__async_tp=True).overlap and "tp" not in plan().overlap


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"plan__tp": None, "plan__zero": None}, "the source doesn't say tp, zero"),
        ({"micro_batch": 0.25}, "micro_batch 0.25"),
        ({"recompute": "some"}, "recompute 'some' isn't known"),
        ({"plan__pp": 2, "plan__schedule": "zigzag"}, "schedule 'zigzag' isn't known"),
        ({"global_batch": 5}, "global_batch 5 isn't a multiple"),
        ({"global_batch": 5, "plan__dp": 2, "micro_batch": None}, "global_batch 5 isn't a multiple of dp 2"),
    ],
)
def test_plans_that_cannot_be_are_refused(record, values, said):
    with pytest.raises(UnsupportedError) as caught:
        plans(record(**values), optimizer=True)
    assert said in str(caught.value)


def test_what_changes_nothing_is_noted(record):
    found = plans(record(plan={**RUN["plan"], "extra": {"sharp": "on"}}), optimizer=True)
    assert found.notes == ("plan.extra.sharp 'on' has no effect here",)


# -- which runs are scored ------------------------------------------------------------


def test_composed_runs_are_scored_once_for_each_layout(tmp_path):
    runs = [
        changed(id=f"{mb}-{dp}-{count}", source_kind="composed", micro_batch=mb, plan__dp=dp, devices=dp,
                global_batch=mb * dp * count)
        for mb in (1, 2)
        for dp in (1, 2)
        for count in (4, 8)
    ]  # fmt: skip
    others = [
        changed(id="whole"),
        changed(id="circle", circular=True),
        changed(id="poor", quality="C"),
        changed(id="broken", precision=None),
    ]
    assert scored(read_runs([file_of(tmp_path, *runs, *others)])) == {"1-1-8", "2-1-8", "whole"}


# -- predicting -----------------------------------------------------------------------


def test_runs_are_predicted_on_one_device_and_on_several(tmp_path):
    runs = [
        RUN,
        changed(id="twice", global_batch=8),
        changed(id="again"),
        changed(id="two", devices=2, plan__dp=2),
        changed(id="lost", device="nvidia-z100"),
    ]
    one, twice, again, two, lost = predict_runs(read_runs([file_of(tmp_path, *runs)]))
    assert (one.status, one.reason, one.measured_s, one.measured_memory_gb) == ("ok", "", 0.01, 0.1)
    assert (one.low_s, one.high_s) == (None, None)
    assert 1.5 < twice.predicted_s / one.predicted_s < 2.1
    assert again.predicted_s == one.predicted_s
    # Two devices do half of the micro-batches each, and add up their gradients.
    assert one.predicted_s / 2 < two.predicted_s < one.predicted_s
    # At least weights in 16 bits, their copy in 32 bits and two moments.
    parameters = trained(read_runs([file_of(tmp_path, RUN)])[0].record).entry.parameters
    assert one.predicted_memory_gb > 14 * parameters / 1e9
    assert lost.status == "unsupported" and "unknown device 'nvidia-z100'" in lost.reason
    assert lost.predicted_s is None and lost.error is None


def test_the_software_is_what_the_words_say(tmp_path):
    runs = [
        changed(id="plain"),
        changed(id="megatron", runtime_note="Megatron-DeepSpeed fused CUDA kernels"),
        changed(id="unfused", flash_attention=False),
        changed(id="xla", runtime_note="XLA jit", flash_attention=None),
        changed(id="compiled", runtime__compile=True),
        changed(id="lamb", runtime__compile=True, optimizer="LAMB"),
    ]
    rows = {each.id: each for each in predict_runs(read_runs([file_of(tmp_path, *runs)]))}
    assert {each.status for each in rows.values()} == {"ok"}, rows
    # One kernel instead of several.
    assert rows["megatron"].predicted_s < rows["plain"].predicted_s
    # Scores of 2 sequences, 4 heads and 128 x 128 keys in each of two layers.
    assert rows["unfused"].predicted_memory_gb > rows["plain"].predicted_memory_gb
    assert rows["xla"].predicted_s == rows["compiled"].predicted_s != rows["plain"].predicted_s
    assert rows["xla"].notes == "kind of attention not stated: fused is taken"


def test_of_several_plans_the_fastest_that_fits_is_taken(tmp_path):
    runs = [
        changed(id="none"),
        changed(id="full", recompute="full"),
        changed(id="unknown", recompute="unknown"),
    ]
    none, full, unknown = predict_runs(read_runs([file_of(tmp_path, *runs)]))
    assert none.predicted_s < full.predicted_s
    assert unknown.predicted_s == none.predicted_s
    assert unknown.notes == (
        "left open by the source: recompute none is taken, the fastest of 3 plans that fits in memory"
    )


def test_a_fault_of_ours_in_one_run_is_told_and_takes_no_other_along(tmp_path, monkeypatch):
    def broken(record):
        if record.global_batch == 8:
            raise KeyError("heads")
        return trained(record)

    monkeypatch.setattr("perfmodel.validation.runs.trained", broken)
    first, second = predict_runs(read_runs([file_of(tmp_path, changed(global_batch=8), changed(id="b"))]))
    assert (first.status, second.status) == ("unsupported", "ok")
    assert first.reason == "fault in perfmodel, please report it: KeyError: 'heads'"


# -- tables and the command -----------------------------------------------------------


def row(name, family, measured, predicted, **values):
    return RunRow(
        id=name, family=family, group="g", device="d", measured_s=measured, predicted_s=predicted, scored=True, **values
    )


ROWS = [
    row("1", "a", 1.0, 1.1, measured_memory_gb=10.0, predicted_memory_gb=8.0),
    row("2", "a", 1.0, 1.3),
    row("3", "b", 2.0, 1.0),
    RunRow(id="4", family="b", measured_s=1.0, predicted_s=9.0),
    RunRow(id="5", family="b", measured_s=1.0, status="unsupported", reason="no such thing", scored=True),
]


def test_the_table_counts_scored_rows_and_shows_the_others_apart():
    lines = runs_report(ROWS).splitlines()
    assert lines[0].split() == ["family", "runs", "unsupported", "scored", "median", "P90", "bias", "memory", "median"]
    assert lines[1].split() == ["a", "2", "0", "2", "20.0%", "28.0%", "+19.6%", "1", "20.0%"]
    assert lines[2].split() == ["b", "3", "1", "1", "50.0%", "50.0%", "-50.0%", "0", "-"]
    assert lines[3] == "mean over 2 groups: median 35.0%, P90 39.0%"
    assert lines[7].split() == ["b", "1", "0", "1", "800.0%", "800.0%", "+800.0%", "0", "-"]
    assert lines[-1] == "    1  no such thing"


def test_rows_are_grouped_by_several_fields():
    assert list(grouped(ROWS, ("family", "device"))) == ["a d", "b d", "b (none)"]
    assert mean_of_groups(summaries(grouped(ROWS[3:]))) == (None, None)
    with pytest.raises(UnknownNameError, match="did you mean 'family'"):
        grouped(ROWS, ("famly",))


def test_the_command_writes_every_row(tmp_path, capsys):
    path = file_of(tmp_path, RUN, changed(id="lost", precision="nvfp4"))
    out = tmp_path / "out.json"
    with pytest.raises(SystemExit, match="0"):
        main(["validate", "runs", str(path), "--json", str(out), "--group-by", "family,device"])
    text = capsys.readouterr().out
    assert "ours nvidia-a100-sxm-80gb" in text and "products in nvfp4" in text
    report = json.loads(out.read_text(encoding="utf-8"))
    first, second = report["rows"]
    wanted = {
        "id", "group", "family", "device", "measured_s", "predicted_s", "low_s", "high_s", "measured_memory_gb",
        "predicted_memory_gb", "status", "reason",
    }  # fmt: skip
    assert wanted <= set(first)
    assert (first["status"], second["status"]) == ("ok", "unsupported")
    assert report["summary"]["count"] == 2 and report["summary"]["supported"] == 1
    assert report["groups"]["ours nvidia-a100-sxm-80gb"]["supported"] == 1


def test_a_wrong_grouping_is_told_before_anything_is_predicted(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["validate", "runs", str(tmp_path / "none.yaml"), "--group-by", "vendor"])
    assert "unknown grouping 'vendor'" in capsys.readouterr().err


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared table of measured runs isn't here")
def test_every_shared_run_can_be_read():
    runs = read_runs(sorted(DATA.glob("*.yaml")))
    assert len(runs) == 1543
    assert [run.id for run in runs if run.problem] == []
    assert sum(run.composed for run in runs) == 720
    counted = scored(runs)
    assert sum(run.composed for run in runs if run.id in counted) == 144
    assert not any(run.circular or run.quality == "C" for run in runs if run.id in counted)
