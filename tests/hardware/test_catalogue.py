"""The shipped devices, and how they are found."""

from pathlib import Path

import pytest
import yaml

from perfmodel.errors import FileError, UnknownNameError, UnsupportedError
from perfmodel.hardware import check_file, device_files, device_names, load_device
from perfmodel.ops.cost import FAMILIES

SHIPPED = (
    "amd-epyc-9654",
    "google-tpu-v5p",
    "intel-agilex-7-m-agm039",
    "nvidia-a100-sxm-80gb",
    "nvidia-h100-sxm-80gb",
    "nvidia-v100-sxm-32gb",
)
FACTS = Path(__file__).parents[3] / "shared" / "data" / "hardware_facts.yaml"
FACT_NAMES = {
    "amd-epyc-9654": "epyc-9654",
    "google-tpu-v5p": "tpu-v5p",
    "nvidia-a100-sxm-80gb": "a100-sxm4-80gb",
    "nvidia-h100-sxm-80gb": "h100-sxm5-80gb",
    "nvidia-v100-sxm-32gb": "v100-sxm2-32gb",
}


@pytest.fixture(autouse=True)
def no_user_folders(monkeypatch):
    monkeypatch.delenv("PERFMODEL_HARDWARE", raising=False)


def user_device(folder, name, *, aliases="[]", text=""):
    """A file of the shipped H100 under another name."""
    content = device_files()["nvidia-h100-sxm-80gb"].read_text(encoding="utf-8")
    content = content.replace("name: nvidia-h100-sxm-80gb", f"name: {name}", 1)
    content = content.replace("aliases: [h100, h100-sxm, nvidia-h100]", f"aliases: {aliases}", 1)
    path = folder / f"{name}.yaml"
    path.write_text(content + text, encoding="utf-8")
    return path


def test_the_shipped_devices_are_listed():
    assert set(SHIPPED) <= set(device_names())


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_devices_have_what_training_needs(name):
    device = load_device(name)
    assert device.name == name == Path(device.path).stem
    assert device.peak("matrix", "float32") > 0
    assert device.peak("matrix", "float16" if name == "nvidia-v100-sxm-32gb" else "bfloat16") > 0
    for dtype in ("float32", "float16" if name == "nvidia-v100-sxm-32gb" else "bfloat16", "int64", "bool"):
        assert device.peak("vector", dtype) > 0
    for family in FAMILIES:
        constants = device.constants(family)
        assert 0 < constants.rate <= 1 and 0 < constants.bandwidth <= 1 and constants.latency > 0
    assert "no measured run" in device.validated.lower()
    assert all(source.title or source.note for source in device.sources.values())
    assert not [line for line in check_file(device.path) if "is not used" in line]


@pytest.mark.parametrize("name", SHIPPED)
def test_stated_peaks_follow_from_units_and_clocks(name):
    """The fastest 16-bit product rate, from units, clock and operations a clock, where the maker states them."""
    per_unit = {  # operations a clock and unit
        "amd-epyc-9654": 64,
        "google-tpu-v5p": 2 * 128 * 128,
        "intel-agilex-7-m-agm039": 4,
        "nvidia-a100-sxm-80gb": 2 * 256,
        "nvidia-h100-sxm-80gb": 2 * 512,
        "nvidia-v100-sxm-32gb": 2 * 64,
    }
    device = load_device(name)
    matrix = device.compute["matrix"]
    assert matrix.count is not None and matrix.clock is not None
    dtype = "float16" if name == "nvidia-v100-sxm-32gb" else "bfloat16"
    assert device.peak("matrix", dtype) == pytest.approx(per_unit[name] * matrix.count * matrix.clock, rel=0.005)


def test_an_fpga_says_that_nothing_checks_it():
    device = load_device("intel-agilex-7-m-agm039")
    assert "NOT VALIDATED" in device.validated
    assert {device.sources[f"compute.matrix.peak.{dtype}"].source for dtype in device.compute["matrix"].peak} == {
        "assumed"
    }


def test_devices_that_run_whole_programs_offer_no_eager():
    eager = {name for name in SHIPPED if any("eager" in runtime for runtime in load_device(name).runtimes)}
    assert eager == set(SHIPPED) - {"google-tpu-v5p", "intel-agilex-7-m-agm039"}


def test_only_a_cpu_waits_for_each_op():
    assert [name for name in SHIPPED if not load_device(name).asynchronous] == ["amd-epyc-9654"]


def test_v100_has_no_bfloat16():
    with pytest.raises(UnsupportedError, match="use float16 or float32"):
        load_device("v100-32gb").peak("matrix", "bfloat16")


@pytest.mark.skipif(not FACTS.exists(), reason="the collected hardware facts aren't beside this checkout")
@pytest.mark.parametrize("name", FACT_NAMES)
def test_shipped_numbers_agree_with_the_collected_facts(name):
    facts = yaml.safe_load(FACTS.read_text(encoding="utf-8"))["devices"][FACT_NAMES[name]]
    device = load_device(name)
    for dtype in ("bf16", "fp16", "tf32", "int8"):
        if dtype in facts["peak_dense_tflops"]:
            assert device.peak("matrix", dtype) == pytest.approx(
                facts["peak_dense_tflops"][dtype]["v"] * 1e12, rel=0.002
            )
    if "fp32" in facts["peak_dense_tflops"]:
        assert device.peak("vector", "fp32") == pytest.approx(facts["peak_dense_tflops"]["fp32"]["v"] * 1e12, rel=0.005)
    assert device.main_memory.bandwidth == pytest.approx(facts["mem_bw_gbs"]["v"] * 1e9, rel=0.001)
    if "mem_gb" in facts:
        assert facts["mem_gb"]["v"] * 1e9 <= device.main_memory.capacity <= facts["mem_gb"]["v"] * 2**30


@pytest.mark.parametrize("alias", ["h100", "h100-sxm"])
def test_an_alias_finds_its_device(alias):
    assert load_device(alias) == load_device("nvidia-h100-sxm-80gb")


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(UnknownNameError, match="unknown device 'h10'; did you mean 'h100'"):
        load_device("h10")


def test_a_path_is_a_path():
    with pytest.raises(FileError, match="no such file"):
        load_device("h100.yaml")
    with pytest.raises(FileError, match="no such file"):
        load_device("folder/h100")
    assert load_device(device_files()["google-tpu-v5p"]).name == "google-tpu-v5p"


def test_user_folders_come_first(tmp_path, monkeypatch):
    path = user_device(tmp_path, "nvidia-h100-sxm-80gb")
    user_device(tmp_path, "my-device", aliases="[mine]")
    (tmp_path / "cluster.yaml").write_text("schema: cluster/1\nname: other\n", encoding="utf-8")
    monkeypatch.setenv("PERFMODEL_HARDWARE", str(tmp_path))
    assert load_device("nvidia-h100-sxm-80gb").path == str(path)
    assert load_device("mine").name == "my-device"
    assert "my-device" in device_names() and "other" not in device_names()


def test_a_devices_folder_inside_a_user_folder_is_read(tmp_path, monkeypatch):
    (tmp_path / "devices").mkdir()
    user_device(tmp_path / "devices", "my-device")
    monkeypatch.setenv("PERFMODEL_HARDWARE", str(tmp_path))
    assert "my-device" in device_names()


def test_an_alias_of_two_devices_is_refused(tmp_path, monkeypatch):
    user_device(tmp_path, "my-device", aliases="[a100-80g]")
    monkeypatch.setenv("PERFMODEL_HARDWARE", str(tmp_path))
    with pytest.raises(UnsupportedError, match="'a100-80g' may be my-device or nvidia-a100-sxm-80gb; write the full"):
        load_device("a100-80g")


@pytest.mark.parametrize("name", ["a100", "v100"])
def test_a_name_that_means_several_of_the_catalogue_is_refused(name):
    with pytest.raises(UnsupportedError, match=f"'{name}' may be nvidia-{name}-sxm-.* or nvidia-{name}-sxm-"):
        load_device(name)


def test_a_name_twice_in_a_folder_is_refused(tmp_path, monkeypatch):
    path = user_device(tmp_path, "my-device")
    path.rename(tmp_path / "copy.yaml")
    user_device(tmp_path, "my-device")
    monkeypatch.setenv("PERFMODEL_HARDWARE", str(tmp_path))
    with pytest.raises(FileError, match=r"device 'my-device' is described in .*copy.yaml too"):
        device_names()


def test_a_search_folder_that_is_none_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PERFMODEL_HARDWARE", str(tmp_path / "nowhere"))
    with pytest.raises(FileError, match="is not a folder; correct the environment variable PERFMODEL_HARDWARE"):
        device_names()
