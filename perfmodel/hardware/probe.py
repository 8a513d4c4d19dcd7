"""The machine at hand as a device file: what the system states, and what follows from it.

What a system doesn't state is assumed, with the derivation in the number's note: peaks from
the instruction sets and the clock, bandwidths from what one core usually moves. Calibrating
measures instead.
"""

from __future__ import annotations

import datetime
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perfmodel.errors import UnsupportedError
from perfmodel.hardware.files import index, nodes_of
from perfmodel.units import format_quantity, parse_quantity
from perfmodel.yamltext import yaml_text

__all__ = ["Cpu", "Gpu", "find_gpus", "match_gpu", "probe", "read_cpu"]

#: Instruction sets in the order of preference, and float32 operations a clock and core with them.
_FLOPS_A_CLOCK = (
    ("avx512f", 64, "AVX-512: two multiply-add units of 16 lanes; some cores have one"),
    ("fma", 32, "AVX2: two multiply-add units of 8 lanes"),
    ("avx", 16, "AVX: a multiplication and an addition of 8 lanes"),
    ("sse2", 8, "SSE: a multiplication and an addition of 4 lanes"),
    ("sve", 32, "SVE: taken for four multiply-add units of 4 lanes"),
    ("asimd", 16, "NEON: two multiply-add units of 4 lanes"),
)
#: The same for bf16 products, where there are instructions for them.
_BF16_A_CLOCK = (
    ("amx_bf16", 2048, "AMX: 1,024 multiply-adds a clock"),
    ("avx512_bf16", 128, "AVX512_BF16: twice float32"),
    ("bf16", 64, "bf16 products of Armv8.6: taken for twice float32"),
)
_CORE_BANDWIDTH = 12e9  # bytes/s that one core usually moves to and from main memory
_CACHE_BYTES_A_CLOCK = 32
_UNKNOWN_CLOCK = 2.5e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """What a system states of its CPU, all sockets together.

    Attributes
    ----------
    name, vendor, architecture : str
    family : str
        What x86 calls the CPU family; empty elsewhere.
    flags : frozenset of str
        Instruction sets.
    cores : int
        Physical ones.
    sockets : int
    clock : float or None
        Hz, the highest that is stated.
    caches : tuple of (str, int)
        Name and bytes of each level, all cores together, the largest first.
    memory : int
        Bytes.
    """

    name: str
    vendor: str
    architecture: str
    family: str
    flags: frozenset[str]
    cores: int
    sockets: int
    clock: float | None
    caches: tuple[tuple[str, int], ...]
    memory: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """What a driver states of a GPU: its product name, bytes of memory, W of its power limit."""

    name: str
    memory: int
    power: float | None


def probe(which: str = "cpu") -> str:
    """The YAML text of a device file for this machine's CPU, or for a GPU.

    Parameters
    ----------
    which : str
        ``"cpu"``, ``"gpu0"``, ``"gpu1"``, …

    Raises
    ------
    UnsupportedError
        If there is no such device, or the system doesn't state what is needed.
    """
    if which == "cpu":
        return _text(_cpu_file(read_cpu()))
    match = re.fullmatch(r"gpu([0-9]{1,3})", which)
    if match is None:
        raise UnsupportedError(f"{which!r} can't be probed; write cpu, or gpu0, gpu1, …")
    gpus = find_gpus()
    number = int(match[1])
    if number >= len(gpus):
        have = ", ".join(f"gpu{i}: {gpu.name}" for i, gpu in enumerate(gpus)) or "no CUDA or ROCm device"
        raise UnsupportedError(f"there is no {which}; this machine has {have}")
    return _text(_gpu_file(gpus[number]))


def _text(file: dict[str, Any]) -> str:
    year = " `year` is that of the probe." if "year" in file else ""
    return f"# Written by perfmodel hardware probe.{year}\n{yaml_text(file)}"


def read_cpu(root: Path = Path("/")) -> Cpu:
    """What ``/proc`` and ``/sys`` below ``root`` state of the CPU.

    Raises
    ------
    UnsupportedError
        If they don't exist, as on systems other than Linux, or don't state the memory.
    """
    try:
        blocks = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace").strip().split("\n\n")
        meminfo = (root / "proc/meminfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        raise UnsupportedError(
            "this system has no /proc with cpuinfo and meminfo; describe its CPU in a file as docs/hardware.md says"
        ) from None
    threads = [dict(re.findall(r"^([^\t:]+)\s*:[ \t]*(.*)$", block, re.MULTILINE)) for block in blocks]
    memory = re.search(r"^MemTotal:\s*([0-9]+) kB", meminfo, re.MULTILINE)
    if memory is None or not threads:
        raise UnsupportedError("/proc doesn't state the CPU or the memory; describe the device in a file")
    first = threads[0]
    # A core is known by its socket and its number; where they aren't stated (Arm), each thread is one.
    cores = {(t.get("physical id", "0"), t.get("core id", str(i))) for i, t in enumerate(threads)}
    implementer = {"0x41": "Arm", "0x48": "HiSilicon", "0x61": "Apple", "0xc0": "Ampere"}
    vendors = {"GenuineIntel": "Intel", "AuthenticAMD": "AMD"}
    vendor = first.get("vendor_id", "")
    return Cpu(
        name=" ".join(first.get("model name", "").split()) or platform.machine(),
        vendor=vendors.get(vendor, vendor) or implementer.get(first.get("CPU implementer", ""), "unknown"),
        architecture=platform.machine(),
        family=first.get("cpu family", ""),
        flags=frozenset((first.get("flags") or first.get("Features") or "").split()),
        cores=len(cores),
        sockets=len({socket for socket, _ in cores}),
        clock=_clock(root, threads),
        caches=_caches(root),
        memory=int(memory[1]) * 1024,
    )


def find_gpus() -> list[Gpu]:
    """The CUDA devices that nvidia-ml-py or nvidia-smi see, then the ROCm devices of ``/sys/class/kfd``."""
    return [*(_nvml() or _nvidia_smi()), *_kfd(Path("/sys/class/kfd/kfd/topology/nodes"))]


def match_gpu(gpu: Gpu, names: list[str]) -> list[str]:
    """The names of the catalogue that a product name and a size of memory may mean.

    >>> gpu = Gpu(name="NVIDIA H100 80GB HBM3", memory=85520809984, power=700.0)
    >>> match_gpu(gpu, ["nvidia-h100-sxm-80gb", "nvidia-h100-pcie-80gb", "nvidia-a100-sxm-80gb"])
    ['nvidia-h100-sxm-80gb']
    """
    words = set(re.findall(r"[a-z0-9]+", gpu.name.lower().replace("rtx ", "rtx").replace("gb", "gb ")))
    found = []
    for name in names:
        vendor, _, rest = name.partition("-")
        parts = rest.replace("rtx-", "rtx").split("-")
        if vendor not in ("nvidia", "amd") or parts[0] not in words:
            continue
        if ("pcie" in parts and "pcie" not in words) or ("sxm" in parts and "pcie" in words):
            continue
        sizes = [float(part.removesuffix("gb")) for part in parts if re.fullmatch(r"[0-9]+gb", part)]
        if sizes and not 0.95 * sizes[0] * 1e9 <= gpu.memory <= 1.02 * sizes[0] * 2**30:
            continue
        found.append(name)
    return found


def _cpu_file(cpu: Cpu) -> dict[str, Any]:
    clock = cpu.clock or _UNKNOWN_CLOCK
    here = {"source": "measured", "cite": "probe", "confidence": "B"}
    each, words = _rate(cpu.flags, _FLOPS_A_CLOCK)
    if not each:
        raise UnsupportedError(f"{cpu.name} states no instruction set that is known; describe it in a file")
    bf16, bf16_words = _rate(cpu.flags, _BF16_A_CLOCK)
    if not bf16:
        bf16, bf16_words = each, "no bf16 instructions: converted to float32"
    if cpu.vendor == "AMD" and cpu.family == "25" and "avx512f" in cpu.flags:  # Zen 4: 512 bits take two passes
        each, bf16, words = each // 2, bf16 // 2, "AVX-512 in units of 256 bits: two multiply-add units of 8 lanes"

    def peak(a_clock: float, note: str, unit: str = "FLOP/s") -> dict[str, str]:
        rate = format_quantity(cpu.cores * clock * a_clock, "FLOP/s", digits=4).replace("FLOP/s", unit)
        derived = f"derived: {cpu.cores} cores x {clock / 1e9:.4g} GHz x {a_clock:g} a clock; {note}"
        return {"value": rate, "source": "assumed", "confidence": "D", "note": derived}

    fp32, fp64 = peak(each, words), peak(each / 2, "half of float32")
    count = {"value": cpu.cores, **here, "note": f"cores, {cpu.sockets} socket{'s' * (cpu.sockets > 1)}"}
    stated = {"value": format_quantity(clock, "Hz", digits=4)}
    stated |= here if cpu.clock else {"source": "assumed", "confidence": "D", "note": "the system doesn't state it"}
    matrix = {"fp64": fp64, "fp32": fp32, "bf16": peak(bf16, bf16_words)}
    matrix["fp16"] = peak(each, "converted to float32")
    vector = {"fp64": fp64, "fp32": fp32, "bf16": peak(each, "done in float32"), "fp16": peak(each, "done in float32")}
    vector["int32"] = peak(each / 2, "half of float32, whose peak counts a multiply-add as two", "OP/s")
    bandwidth = min(_CORE_BANDWIDTH * cpu.cores, 400e9 * cpu.sockets)
    return {
        "schema": "device/1",
        "name": _slug(cpu.name),
        "base": "cpu",
        "vendor": cpu.vendor,
        "architecture": f"{cpu.architecture}, {words.partition(':')[0]}",
        "year": datetime.date.today().year,
        "validated": "no measured run checks this device yet; probed, not calibrated",
        "compute": {
            "matrix": {"peak": matrix, "count": count, "clock": stated},
            "vector": {"peak": vector, "count": count, "clock": stated},
        },
        "memory": [_main_memory(cpu, bandwidth, here), *_cache_levels(cpu, clock, bandwidth, here)],
        "host_link": None,  # that of the base is a guess, and the CPU is its own host
        "citations": _probe_citation(),
    }


def _main_memory(cpu: Cpu, bandwidth: float, here: dict[str, str]) -> dict[str, Any]:
    note = f"derived: {_CORE_BANDWIDTH / 1e9:g} GB/s a core, at most 400 GB/s a socket; calibrate to measure it"
    return {
        "name": "dram",
        "capacity": {"value": f"{cpu.memory / 2**20:.0f} MiB", **here, "note": "what the system can use"},
        "bandwidth": {
            "value": format_quantity(bandwidth, "bytes/s", digits=3),
            "source": "assumed",
            "confidence": "D",
            "note": note,
        },
    }


def _cache_levels(cpu: Cpu, clock: float, main: float, here: dict[str, str]) -> list[dict[str, Any]]:
    """The last level of cache: the nearest that operands of a model stay in."""
    levels = []
    for name, size in cpu.caches[:1]:
        bandwidth = max(cpu.cores * clock * _CACHE_BYTES_A_CLOCK, main)
        note = f"derived: {_CACHE_BYTES_A_CLOCK} bytes a clock and core"
        levels.append(
            {
                "name": name,
                "capacity": {"value": f"{size / 2**10:.0f} KiB", **here},
                "bandwidth": {
                    "value": format_quantity(bandwidth, "bytes/s", digits=3),
                    "source": "assumed",
                    "confidence": "D",
                    "note": note,
                },
            }
        )
    return levels


def _gpu_file(gpu: Gpu) -> dict[str, Any]:
    """A GPU of the catalogue, with what its driver states instead of the datasheet."""
    found = match_gpu(gpu, sorted(index("device")))
    if len(found) != 1:
        cure = f"it may be {' or '.join(found)}: use that one" if found else "describe it as docs/hardware.md says"
        raise UnsupportedError(
            f"{gpu.name!r} with {gpu.memory / 2**30:.1f} GiB isn't one device of the catalogue; {cure}"
        )
    here = {"source": "measured", "cite": "probe", "confidence": "B", "note": "what the driver states"}
    memory = [member.plain() for member in nodes_of(index("device")[found[0]].path).value["memory"].value]
    memory[0] = {**memory[0], "capacity": {"value": f"{gpu.memory / 2**20:.0f} MiB", **here}}
    file: dict[str, Any] = {
        "schema": "device/1",
        "name": f"{found[0]}-probed",
        "base": found[0],
        "validated": "no measured run checks this device yet; probed, not calibrated",
        "memory": memory,
    }
    if gpu.power is not None:
        file["power"] = {"tdp": {"value": f"{gpu.power:g} W", **here}}
    return {**file, "citations": _probe_citation()}


def _probe_citation() -> dict[str, Any]:
    today = datetime.date.today().isoformat()
    return {"probe": {"title": f"perfmodel hardware probe on {platform.node() or 'this machine'}, {today}"}}


def _rate(flags: frozenset[str], table: tuple[tuple[str, int, str], ...]) -> tuple[int, str]:
    return next(((rate, words) for flag, rate, words in table if flag in flags), (0, ""))


def _slug(text: str) -> str:
    plain = re.sub(r"\((?:r|tm)\)|@.*|\bcpu\b|[0-9]+-core processor", " ", text.lower())
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-") or "this-cpu"


def _clock(root: Path, threads: list[dict[str, str]]) -> float | None:
    try:
        return float((root / "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq").read_text()) * 1e3
    except (OSError, ValueError):
        stated = [float(t["cpu MHz"]) for t in threads if re.fullmatch(r"[0-9.]+", t.get("cpu MHz", ""))]
        return max(stated) * 1e6 if stated else None


def _caches(root: Path) -> tuple[tuple[str, int], ...]:
    """Bytes of each level over all cores: caches that several share are counted once."""
    seen: dict[tuple[int, str], int] = {}
    for place in sorted(root.glob("sys/devices/system/cpu/cpu[0-9]*/cache/index*")):
        try:
            level, kind, size, shared = (
                (place / name).read_text().strip() for name in ("level", "type", "size", "shared_cpu_list")
            )
        except OSError:
            continue
        if kind != "Instruction" and re.fullmatch(r"[0-9]+K", size):
            seen[int(level), shared] = int(size[:-1]) * 1024
    levels = sorted({level for level, _ in seen}, reverse=True)
    return tuple((f"l{level}", sum(size for (at, _), size in seen.items() if at == level)) for level in levels)


def _nvml() -> list[Gpu]:
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []  # the library, but no driver
    found = []
    for number in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(number)
        name = pynvml.nvmlDeviceGetName(handle)
        try:
            power = pynvml.nvmlDeviceGetPowerManagementLimit(handle) / 1e3
        except pynvml.NVMLError:
            power = None
        memory = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
        found.append(Gpu(name=name if isinstance(name, str) else name.decode(), memory=memory, power=power))
    pynvml.nvmlShutdown()
    return found


def _nvidia_smi() -> list[Gpu]:
    command = ["nvidia-smi", "--query-gpu=name,memory.total,power.limit", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    if done.returncode:
        return []
    found = []
    for line in done.stdout.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 3 and re.fullmatch(r"[0-9]+ MiB", parts[1]):
            power = parse_quantity(parts[2], "W") if re.fullmatch(r"[0-9.]+ W", parts[2]) else None
            found.append(Gpu(name=parts[0], memory=int(parse_quantity(parts[1], "bytes")), power=power))
    return found


def _kfd(nodes: Path) -> list[Gpu]:
    """AMD's devices: those nodes of the kernel driver that have SIMD units."""
    found = []
    for node in sorted(nodes.glob("*"), key=lambda path: (len(path.name), path.name)):
        try:
            properties = dict(re.findall(r"^(\w+) ([0-9]+)$", (node / "properties").read_text(), re.MULTILINE))
            banks = [(bank / "properties").read_text() for bank in node.glob("mem_banks/*")]
            name = (node / "name").read_text().strip()
        except OSError:
            continue
        if int(properties.get("simd_count", "0")):
            sizes = [
                int(size) for bank in banks for size in re.findall(r"^size_in_bytes ([0-9]+)$", bank, re.MULTILINE)
            ]
            found.append(Gpu(name=_AMD_CHIPS.get(name, name), memory=max(sizes, default=0), power=None))
    return found


#: The kernel names chips, not products; those that one product has.
_AMD_CHIPS = {"arcturus": "AMD MI100", "aldebaran": "AMD MI250X", "aqua_vanjaram": "AMD MI300X"}
