"""Describing the machine at hand, from what Linux states."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from perfmodel.errors import UnsupportedError
from perfmodel.hardware import check_file, device_names, load_device
from perfmodel.hardware.probe import Gpu, _cpu_file, _gpu_file, _kfd, match_gpu, probe, read_cpu
from perfmodel.yamltext import yaml_text

THREAD = """processor\t: {n}
vendor_id\t: {vendor}
cpu family\t: {family}
model name\t: {name}
cpu MHz\t\t: 2000.000
physical id\t: {socket}
core id\t\t: {core}
flags\t\t: fpu {flags}
"""


def system(root: Path, *, vendor="GenuineIntel", family=6, name="Intel(R) Xeon(R) Platinum 8480+", flags="avx2 fma"):
    """Two sockets of two cores with two threads each, 1 MB of L2 a core, 8 MB of L3 a socket."""
    (root / "proc").mkdir(parents=True)
    blocks = []
    for n in range(8):
        socket, core = n // 4, n // 2 % 2
        blocks.append(
            THREAD.format(n=n, vendor=vendor, family=family, name=name, socket=socket, core=core, flags=flags)
        )
        for index, (level, kind, size, shared) in enumerate(
            [
                (1, "Data", 32, n // 2),
                (1, "Instruction", 32, n // 2),
                (2, "Unified", 1024, n // 2),
                (3, "Unified", 8192, socket),
            ]
        ):
            folder = root / f"sys/devices/system/cpu/cpu{n}/cache/index{index}"
            folder.mkdir(parents=True)
            for key, value in {"level": level, "type": kind, "size": f"{size}K", "shared_cpu_list": shared}.items():
                (folder / key).write_text(f"{value}\n")
    (root / "proc/cpuinfo").write_text("\n".join(blocks))
    (root / "proc/meminfo").write_text("MemTotal:       67108864 kB\nMemFree: 1 kB\n")
    return root


def test_what_linux_states(tmp_path):
    cpu = read_cpu(system(tmp_path))
    assert (cpu.name, cpu.vendor) == ("Intel(R) Xeon(R) Platinum 8480+", "Intel")
    assert (cpu.cores, cpu.sockets, cpu.clock, cpu.memory) == (4, 2, 2e9, 64 * 2**30)
    assert cpu.caches == (("l3", 16 * 2**20), ("l2", 4 * 2**20), ("l1", 128 * 2**10))
    folder = tmp_path / "sys/devices/system/cpu/cpu0/cpufreq"
    folder.mkdir()
    (folder / "cpuinfo_max_freq").write_text("3800000\n")
    assert read_cpu(tmp_path).clock == 3.8e9


@pytest.mark.parametrize(
    ("flags", "changes", "fp32", "bf16"),
    [
        ("sse2 avx avx2 fma", {}, 32, 32),
        ("sse2", {}, 8, 8),
        ("avx2 fma avx512f", {}, 64, 64),
        ("avx2 fma avx512f avx512_bf16 amx_bf16", {}, 64, 2048),
        ("avx2 fma avx512f avx512_bf16", {"vendor": "AuthenticAMD", "family": 25}, 32, 64),
        ("avx2 fma avx512f avx512_bf16", {"vendor": "AuthenticAMD", "family": 26}, 64, 128),
    ],
)
def test_peaks_follow_from_flags_and_clock(tmp_path, flags, changes, fp32, bf16):
    path = tmp_path / "cpu.yaml"
    path.write_text(yaml_text(_cpu_file(read_cpu(system(tmp_path / "root", flags=flags, **changes)))))
    device = load_device(path)
    assert device.peak("matrix", "float32") == pytest.approx(4 * 2e9 * fp32, rel=1e-3)
    assert device.peak("matrix", "bfloat16") == pytest.approx(4 * 2e9 * bf16, rel=1e-3)
    assert device.name == "intel-xeon-platinum-8480"
    assert [level.name for level in device.memory] == ["dram", "l3"]
    source = device.sources["compute.matrix.peak.fp32"]
    assert source.source == "assumed" and "derived: 4 cores x 2 GHz" in source.note
    assert device.sources["compute.matrix.count"].source == "measured"
    assert check_file(path)


def test_a_system_that_says_nothing_is_refused(tmp_path):
    with pytest.raises(UnsupportedError, match="no /proc"):
        read_cpu(tmp_path)
    cpu = read_cpu(system(tmp_path, flags=""))
    with pytest.raises(UnsupportedError, match="no instruction set that is known"):
        _cpu_file(cpu)


@pytest.mark.parametrize(
    ("product", "gib", "name"),
    [
        ("NVIDIA H100 80GB HBM3", 79.6, "nvidia-h100-sxm-80gb"),
        ("NVIDIA H100 PCIe", 79.6, "nvidia-h100-pcie-80gb"),
        ("NVIDIA A100-SXM4-80GB", 79.3, "nvidia-a100-sxm-80gb"),
        ("NVIDIA A100-SXM4-40GB", 39.4, "nvidia-a100-sxm-40gb"),
        ("NVIDIA A100-PCIE-40GB", 39.4, "nvidia-a100-pcie-40gb"),
        ("Tesla V100-SXM2-16GB", 15.8, "nvidia-v100-sxm-16gb"),
        ("Tesla T4", 15.0, "nvidia-t4"),
        ("NVIDIA L40S", 45.0, "nvidia-l40s"),
        ("NVIDIA GeForce RTX 4090", 24.0, "nvidia-rtx-4090"),
        ("NVIDIA H200", 140.4, "nvidia-h200"),
        ("AMD MI300X", 192.0, "amd-mi300x"),
    ],
)
def test_a_gpu_is_found_in_the_catalogue(tmp_path, product, gib, name):
    gpu = Gpu(name=product, memory=int(gib * 2**30), power=450.0)
    assert match_gpu(gpu, list(device_names())) == [name]
    path = tmp_path / "gpu.yaml"
    path.write_text(yaml_text(_gpu_file(gpu)))
    device, listed = load_device(path), load_device(name)
    assert device.main_memory.capacity == pytest.approx(gpu.memory, rel=1e-3)
    assert device.power is not None and device.power.tdp == 450
    assert device.compute == listed.compute and device.memory[1:] == listed.memory[1:]


def test_an_unknown_gpu_is_refused():
    with pytest.raises(
        UnsupportedError, match="'NVIDIA Z900' with 9.0 GiB isn't one device of the catalogue; describe"
    ):
        _gpu_file(Gpu(name="NVIDIA Z900", memory=9 * 2**30, power=None))


def test_amd_devices_of_the_kernel(tmp_path):
    for number, (name, simds, size) in enumerate([("", 0, 0), ("aqua_vanjaram", 1216, 192 * 2**30)]):
        bank = tmp_path / str(number) / "mem_banks" / "0"
        bank.mkdir(parents=True)
        (bank / "properties").write_text(f"heap_type 1\nsize_in_bytes {size}\n")
        (tmp_path / str(number) / "properties").write_text(f"cpu_cores_count 0\nsimd_count {simds}\n")
        (tmp_path / str(number) / "name").write_text(f"{name}\n")
    assert _kfd(tmp_path) == [Gpu(name="AMD MI300X", memory=192 * 2**30, power=None)]


@pytest.mark.skipif(sys.platform != "linux", reason="probing reads /proc and /sys")
def test_the_command_writes_a_device_that_passes_its_check(tmp_path):
    path = tmp_path / "new" / "here.yaml"
    command = [sys.executable, "-m", "perfmodel", "hardware", "probe", "-o", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"{path}: written" in done.stdout
    assert check_file(path)
    assert load_device(path).kind == "cpu"
    assert [file.name for file in path.parent.iterdir()] == ["here.yaml"]
    assert json.dumps(load_device(path).to_dict())
    assert re.search(r"^# Written by perfmodel hardware probe", path.read_text())


def test_what_cannot_be_probed_is_refused():
    with pytest.raises(UnsupportedError, match="'tpu' can't be probed; write cpu, or gpu0"):
        probe("tpu")
    with pytest.raises(UnsupportedError, match="there is no gpu99; this machine has"):
        probe("gpu99")
