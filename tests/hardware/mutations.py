"""Two hundred wrong hardware files: each a right one with one mistake that people make."""

from __future__ import annotations

import re
from pathlib import Path

from perfmodel.hardware.inherit import resolve
from perfmodel.yamltext import yaml_text

SPECS = Path(__file__).parents[2] / "hardware_specs"


def standalone(name: str) -> str:
    """The text of a shipped device, merged over its bases."""
    return yaml_text(resolve("device", SPECS / "devices" / f"{name}.yaml").root.plain()) + "\n"


H100 = standalone("nvidia-h100-sxm-80gb")
NODE = (SPECS / "nodes" / "dgx-h100.yaml").read_text(encoding="utf-8")
FABRIC = (SPECS / "fabrics" / "infiniband-ndr-fat-tree.yaml").read_text(encoding="utf-8")
CLUSTER = (SPECS / "clusters" / "dgx-h100-superpod.yaml").read_text(encoding="utf-8")

#: Places of numbers in the file of the H100 as a regular expression up to the value, and the value's text.
NUMBERS = {
    "matrix.fp64": (r"matrix:\n    peak:\n      fp64: \{value: ", "67 TFLOP/s"),
    "matrix.bf16": (r"matrix:\n(?:.*\n)+?      bf16: \{value: ", "989.4 TFLOP/s"),
    "matrix.fp8": (r"matrix:\n(?:.*\n)+?      fp8: \{value: ", "1978.9 TFLOP/s"),
    "matrix.clock": (r"    clock: \{value: ", "1.83 GHz"),
    "vector.fp32": (r"vector:\n(?:.*\n)+?      fp32: \{value: ", "66.9 TFLOP/s"),
    "hbm.capacity": (r"name: hbm\n    capacity: \{value: ", "81559 MiB"),
    "hbm.bandwidth": (r"name: hbm\n.*\n    bandwidth: \{value: ", "3.35 TB/s"),
    "l2.capacity": (r"name: l2\n    capacity: \{value: ", "50 MB"),
    "l2.bandwidth": (r"name: l2\n.*\n    bandwidth: \{value: ", "8.99 TB/s"),
    "link": (r"name: nvlink4\n(?:.*\n)??    bandwidth: \{value: ", "25 GB/s"),
    "host_link": (r"name: pcie5-x16\n  bandwidth: \{value: ", "63 GB/s"),
    "tdp": (r"tdp: \{value: ", "700 W"),
    "price": (r"price:\n  - \{value: ", "2.95 USD/h"),
    "rate": (r"matmul:\n    rate: \{value: ", "80.3%"),
    "latency": (r"matmul:\n(?:.*\n)+?    latency: \{value: ", "2.6 us"),
}


def with_number(name: str, text: str) -> str:
    """The H100's file with another text of one number."""
    before, value = NUMBERS[name]
    match = re.search(f"({before}){re.escape(value)}", H100)
    assert match is not None, name
    return H100[: match.end(1)] + text + H100[match.end() :]


def replaced(text: str, old: str, new: str, count: int = 1) -> str:
    assert old in text, old
    return text.replace(old, new, count)


def without_line(text: str, pattern: str) -> str:
    changed, times = re.subn(rf"^{pattern}.*\n", "", text, count=1, flags=re.MULTILINE)
    assert times == 1, pattern
    return changed


def hand_made() -> dict[str, str | bytes]:
    """Wrong files by what is wrong with them."""
    found: dict[str, str | bytes] = {}
    # The magnitude: a factor of a thousand, either way.
    for name, up, down in (
        ("matrix.bf16", "989.4 PFLOP/s", "989.4 GFLOP/s"),
        ("vector.fp32", "66.9 PFLOP/s", "66.9 GFLOP/s"),
        ("matrix.clock", "1.83 THz", "1.83 kHz"),
        ("hbm.capacity", "81559 GiB", "81559 KiB"),
        ("hbm.bandwidth", "3.35 PB/s", "3.35 GB/s"),
        ("l2.capacity", "50 GB", "50 B"),
        ("l2.bandwidth", "8.99 EB/s", "8.99 GB/s"),
        ("link", "25 TB/s", "25 MB/s"),
        ("host_link", "63 TB/s", "63 MB/s"),
        ("tdp", "700 kW", "700 mW"),
        ("price", "29500 USD/h", "0.00002 USD/h"),
        ("rate", "803%", "0.0000803%"),
        ("latency", "26 ms", "2.6e-6 us"),
    ):
        found[f"{name} too large"] = with_number(name, up)
        found[f"{name} too small"] = with_number(name, down)
    # The unit: of another kind, missing, misspelt, bits for bytes.
    for name, (_, value) in NUMBERS.items():
        number, _, unit = value.partition(" ")
        found[f"{name} zero"] = with_number(name, f"0 {unit}" if unit else "0%")
        found[f"{name} negative"] = with_number(name, f"-{value}")
        found[f"{name} not a number"] = with_number(name, f"nan {unit}" if unit else "nan")
        found[f"{name} without digits"] = with_number(name, unit or "%")
        found[f"{name} infinite"] = with_number(name, f"inf {unit}" if unit else "inf")
        if unit:
            found[f"{name} without a unit"] = with_number(name, number)
            found[f"{name} in {unit.swapcase()}"] = with_number(name, f"{number} {unit.swapcase()}")
            found[f"{name} in seconds"] = with_number(name, f"{number} {'m' if unit == 'us' else 's'}")
            found[f"{name} with a comma"] = with_number(name, f'"{number.replace(".", ",")},0 {unit}"')
            found[f"{name} empty"] = with_number(name, '""')
    found["link in Gbit/s"] = with_number("link", "25 Gbit/s")
    found["link of both directions"] = with_number("link", "50 GB/s")
    found["link of all links"] = with_number("link", "450 GB/s")
    found["host link in Gbit/s"] = with_number("host_link", "63 Gbit/s")
    found["host link of both directions"] = with_number("host_link", "126 GB/s")
    found["memory bandwidth in Gbit"] = with_number("hbm.bandwidth", "3350 Gbit")
    found["capacity as a rate"] = with_number("hbm.capacity", "80 GB/s")
    # Sparse for dense, and peaks that are missing.
    found["sparse bf16"] = with_number("matrix.bf16", "1978.9 TFLOP/s")
    found["sparse fp8"] = with_number("matrix.fp8", "3957.8 TFLOP/s")
    for unit, dtype in (("vector", "fp32"), ("vector", "int32"), ("vector", "bf16"), ("vector", "fp16")):
        start = H100.index(f"  {unit}:\n")
        found[f"no {unit} {dtype}"] = H100[:start] + without_line(H100[start:], f"      {dtype}: ")
    lines = re.search(r"  matrix:\n    peak:\n((?:      .*\n)+)", H100)
    assert lines is not None
    only = [line for line in lines[1].splitlines(keepends=True) if line.strip().startswith(("fp64", "int8"))]
    found["no matrix peak to train with"] = replaced(H100, lines[1], "".join(only))
    found["no matrix peak"] = replaced(H100, "    peak:\n" + lines[1], "    peak: {}\n")
    # Keys: misspelt, twice, missing, of another type.
    for key in ("bandwidth", "capacity", "calibration", "memory", "vendor", "matmul", "clock", "citations", "runtimes"):
        found[f"{key} misspelt"] = replaced(H100, f"{key}:", f"{key[:-1]}:")
    for key in ("schema", "name", "kind", "vendor", "year", "validated", "execution", "runtimes"):
        found[f"{key} missing"] = without_line(H100, f"{key}: ")
        found[f"{key} twice"] = H100 + f"{key}: x\n"
        found[f"{key} a mapping"] = re.sub(rf"^{key}: .*$", f"{key}: {{a: b}}", H100, count=1, flags=re.MULTILINE)
    for key in ("confidence: A", "source: datasheet", "cite: lockwood"):
        found[f"{key} removed"] = replaced(H100, f", {key}", "")
    found["another schema"] = replaced(H100, "device/1", "device/2")
    found["a source that is none"] = replaced(H100, "source: datasheet", "source: rumour")
    found["a grade that is none"] = replaced(H100, "confidence: A", "confidence: E")
    found["a citation that is none"] = replaced(H100, "cite: lockwood", "cite: lokwood")
    found["no citations"] = H100[: H100.index("citations:")]
    found["a year of text"] = re.sub(r"year: .*", "year: soon", H100)
    found["a year to come"] = re.sub(r"year: .*", "year: 20222", H100)
    found["levels the other way round"] = replaced(
        replaced(replaced(H100, "81559 MiB", "50 XX"), "50 MB", "81559 MiB"), "50 XX", "50 MB"
    )
    found["a name with capitals"] = re.sub(r"name: nvidia.*", "name: NVIDIA_H100", H100, count=1)
    # YAML itself.
    found["a tab"] = replaced(H100, "  matrix:", "\tmatrix:")
    found["an open quote"] = replaced(H100, "kind: gpu", 'kind: "gpu')
    found["an open bracket"] = replaced(H100, "runtimes: [", "runtimes: [[")
    found["indentation"] = replaced(H100, "  vector:\n", " vector:\n")
    found["two documents"] = H100 + "---\n" + H100
    found["an alias"] = "a: &a [x]\nb: *a\n" + H100
    bomb = "\n".join(f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]" for i in range(24))
    found["a bomb of aliases"] = f"a: &a [lol]\n{bomb}\n"
    found["a tag"] = replaced(H100, "kind: gpu", "kind: !!python/object:os.system gpu")
    found["a list"] = "- schema: device/1\n"
    found["a word"] = "device"
    found["empty"] = ""
    found["only a comment"] = "# a device\n"
    found["10,000 levels of brackets"] = "a: " + "[" * 10_000 + "]" * 10_000
    found["10,000 levels of braces"] = "{a: " * 10_000
    found["10,000 levels of blocks"] = "".join(" " * i + "a:\n" for i in range(700))
    found["a list of lists"] = "- " * 10_000
    found["huge"] = H100 + "# " + "x" * 2**22
    found["as long as is read"] = H100 + "".join(f"key{i}: {i}\n" for i in range(12_000))
    found["a huge list"] = replaced(H100, "runtimes: [", "runtimes: [" + "eager, " * 30_000)
    found["a huge word"] = replaced(H100, "kind: gpu", "kind: " + "gpu" * 60_000 + ": x")
    found["a number of 100,000 digits"] = with_number("tdp", "7" * 100_000 + " W")
    found["binary"] = bytes(range(256)) * 100
    found["an executable"] = b"\x7fELF\x02\x01\x01" + bytes(2000)
    found["a zip"] = b"PK\x03\x04" + bytes(range(256)) * 40
    found["UTF-16"] = H100.encode("utf-16")
    found["latin 1"] = replaced(H100, "kind: gpu", "kind: gpü").encode("latin-1")
    found["a NUL"] = replaced(H100, "kind: gpu", "kind: g\0pu")
    # Nodes, fabrics and clusters.
    found["a node without devices"] = without_line(NODE, "devices: ")
    found["a node with no device"] = re.sub(r"devices: \{value: 8", "devices: {value: 0", NODE)
    found["a node with half a device"] = re.sub(r"devices: \{value: 8", "devices: {value: 7.5", NODE)
    found["NICs in bytes"] = replaced(NODE, "value: 50 GB/s", "value: 400 GB/s")
    found["NICs a thousand times slower"] = replaced(NODE, "value: 50 GB/s", "value: 50 MB/s")
    found["a topology that is none"] = replaced(NODE, "topology: switch", "topology: swich")
    found["a node without its links"] = re.sub(r"interconnect:\n(?:  .*\n)+", "", NODE)
    found["a fabric in bytes"] = replaced(FABRIC, "value: 50 GB/s", "value: 400 GB/s")
    found["a fabric without tiers"] = re.sub(r"tiers:\n(?:  .*\n)+", "", FABRIC)
    found["a fabric that gains bandwidth"] = replaced(
        FABRIC, "oversubscription: {value: 1,", "oversubscription: {value: 0.5,"
    )
    found["a torus without dims"] = replaced(FABRIC, "topology: fat-tree", "topology: torus")
    found["a latency in ms"] = replaced(FABRIC, "value: 2.7 us", "value: 2700 ms")
    found["a cluster of nothing"] = replaced(CLUSTER, "nodes: 128", "nodes: 0")
    found["a cluster without nodes"] = without_line(CLUSTER, "nodes: ")
    found["a PUE below one"] = re.sub(r"pue: \{value: [0-9.]+", "pue: {value: 0.9", CLUSTER)
    found["carbon in kg"] = replaced(CLUSTER, "g/kWh", "kg/kWh")
    return found
