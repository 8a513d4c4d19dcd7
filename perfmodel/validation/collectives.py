"""Measured collectives: reading them from a table, predicting them, comparing.

The table is CSV, plain or gzipped, with the columns ``device, dtype, op, ranks, nodes, bytes,
latency_us, library, source, topology``: a device of the catalogue, bytes as nccl-tests counts
them, ``topology`` empty, ``dgx`` (a switch) or ``pairwise_nvlink``.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from perfmodel.errors import FileError, PerfModelError, UnsupportedError, suggestion
from perfmodel.hardware import Cluster, Node, load_cluster, load_device, load_node
from perfmodel.hardware.files import index
from perfmodel.timing.collectives import OPS, collective_times, network_of
from perfmodel.validation.rows import OK, UNSUPPORTED, Row

__all__ = ["COLUMNS", "Measurement", "cluster_of", "nodes_with", "predict_rows", "read_measurements", "timing_of"]

COLUMNS = ("device", "dtype", "op", "ranks", "nodes", "bytes", "latency_us", "library", "source", "topology")

_NAMES = {"alltoall": "all_to_all", "p2p": "send_recv"}
_TOPOLOGIES = {"dgx": ("switch",), "pairwise_nvlink": ("pairs",), "": ()}

#: Systems that the table's words don't name but its source does: the vidur simulator's profiles, made on
#: servers with cards in NVLink pairs, and (A100) on nodes with four ports whose rate each is that of EFA's.
_SYSTEMS = {
    ("nvidia-a100-sxm-80gb", "pairwise_nvlink", False): "azure-nc96ads-a100-v4",
    ("nvidia-h100-sxm-80gb", "pairwise_nvlink", False): "server-h100-pcie-8x",
    ("nvidia-a100-sxm-80gb", "dgx", True): "aws-p4d.24xlarge",
}
_UNNAMED = {
    ("nvidia-a100-sxm-80gb", "pairwise_nvlink"): "the network between the nodes isn't named and its times scatter "
    "by a factor of three at one size"
}
#: Sources whose times are of profiled kernels, which wait for the last rank.
_PROFILED = ("vidur",)

_MOST_BYTES = 2**28


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One line of the table, time in seconds; ``id`` is the line's number."""

    id: str
    device: str
    dtype: str
    op: str
    ranks: int
    nodes: int
    nbytes: float
    time: float
    library: str
    source: str
    topology: str


def read_measurements(path: str | Path) -> list[Measurement]:
    """Read a table of measured collectives.

    Raises
    ------
    FileError
        If it's missing, not a table of these columns, or a number in it isn't one: ``path:line: what; cure``.
    """
    reader = csv.reader(io.StringIO(_text(Path(path))))
    try:
        header = [name.strip() for name in next(reader, [])]
        missing = [name for name in COLUMNS if name not in header]
        if missing:
            near = suggestion(missing[0], [name for name in header if name not in COLUMNS])
            cure = near or f"the columns are {','.join(COLUMNS)}"
            raise FileError(f"{path}:1: column {missing[0]!r} is missing; {cure}")
        at = {name: header.index(name) for name in COLUMNS}
        found = []
        for cells in reader:
            if cells:
                found.append(_measurement(cells, at, len(header), f"{path}:{reader.line_num}", str(reader.line_num)))
    except csv.Error as error:
        raise FileError(f"{path}:{reader.line_num}: not CSV: {error}; write one line for each measurement") from None
    return found


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FileError(f"{path}: can't be read: {error.strerror or error}; check the path") from None
    try:
        if data.startswith(b"\x1f\x8b"):
            with gzip.open(io.BytesIO(data)) as file:
                data = file.read(_MOST_BYTES + 1)
        elif path.suffix == ".gz":
            raise FileError(f"{path}: ends with .gz, but isn't gzipped; remove the ending, or compress it")
        if len(data) > _MOST_BYTES:
            raise FileError(f"{path}: holds more than {_MOST_BYTES >> 20} MiB; split it")
        return data.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error) as error:
        raise FileError(f"{path}: the gzip data is damaged ({error}); copy the file again") from None
    except UnicodeDecodeError as error:
        raise FileError(f"{path}: not UTF-8 text at byte {error.start}; write CSV, plain or gzipped") from None


def _measurement(cells: Sequence[str], at: dict[str, int], width: int, place: str, line: str) -> Measurement:
    if len(cells) != width:
        raise FileError(f"{place}: {len(cells)} values for {width} columns; quote values that hold commas")
    text = {name: cells[index].strip() for name, index in at.items()}
    return Measurement(
        id=line,
        device=text["device"],
        dtype=text["dtype"],
        op=text["op"],
        ranks=int(_number(text, "ranks", place, least=1, whole=True)),
        nodes=int(_number(text, "nodes", place, least=1, whole=True)),
        nbytes=_number(text, "bytes", place, least=0),
        time=_number(text, "latency_us", place, least=1e-6) * 1e-6,
        library=text["library"],
        source=text["source"],
        topology=text["topology"],
    )


def _number(text: dict[str, str], name: str, place: str, *, least: float, whole: bool = False) -> float:
    try:
        value = float(text[name])
    except ValueError:
        raise FileError(f"{place}: {name} is {text[name][:40]!r}, not a number; write one") from None
    if not math.isfinite(value) or value < least or (whole and value != int(value)):
        wanted = "a whole number" if whole else "a number"
        raise FileError(f"{place}: {name} is {text[name][:40]!r}; write {wanted} of at least {least:g}")
    return value


def timing_of(source: str) -> str:
    """What the times of a source include: ``"device"`` or ``"profiled"``."""
    return "profiled" if source in _PROFILED else "device"


@lru_cache(maxsize=256)
def cluster_of(device: str, topology: str, nodes: int, ranks: int) -> Cluster:
    """The machine of the catalogue that a measurement was made on.

    The node that has this device and this topology; one whose collectives were measured, if there are several.

    Raises
    ------
    PerfModelError
        If there is none, or it's too small; the message is the reason.
    """
    if topology not in _TOPOLOGIES:
        cure = suggestion(topology, _TOPOLOGIES) or "known are dgx and pairwise_nvlink, or nothing"
        raise UnsupportedError(f"unknown topology {topology!r}; {cure}")
    name = load_device(device).name
    if nodes > 1 and (name, topology) in _UNNAMED:
        raise UnsupportedError(_UNNAMED[name, topology])
    chosen = _SYSTEMS.get((name, topology, nodes > 1)) or _node_name(name, topology)
    node = load_node(chosen)
    if ranks < 2:
        raise UnsupportedError("one rank has nobody to communicate with")
    local = math.ceil(ranks / nodes)
    if local > node.devices:
        raise UnsupportedError(f"{local} ranks in a node, but {node.name} has {node.devices} devices")
    if ranks % nodes:
        raise UnsupportedError(f"{ranks} ranks don't divide among {nodes} nodes")
    return load_cluster(node.name, nodes=nodes)


def _node_name(device: str, topology: str) -> str:
    wanted = _TOPOLOGIES[topology]
    found = [
        node
        for node in nodes_with(device)
        if node.devices > 1 and node.interconnect is not None and (not wanted or node.interconnect.topology in wanted)
    ]
    if not found:
        what = f" in {topology!r}" if topology else ""
        raise UnsupportedError(f"no node of the catalogue has several {device}{what}; describe one in hardware_specs")
    return min(found, key=lambda node: (node.collectives is None, node.name)).name


@lru_cache(maxsize=64)
def nodes_with(device: str) -> tuple[Node, ...]:
    """Every node of the catalogue with this device; only files that mention it are read."""
    found = []
    for name in index("node", mentioning=device):
        node = load_node(name)
        if node.device.name == device:
            found.append(node)
    return tuple(found)


def predict_rows(measurements: Iterable[Measurement]) -> list[Row]:
    """Predict each measurement; one that can't be is a row that says why."""
    every = list(measurements)
    rows: list[Row | None] = [None] * len(every)
    cells: dict[tuple[str, str, str, int, int, str], list[int]] = {}
    for place, one in enumerate(every):
        key = (one.device, one.topology, one.op, one.ranks, one.nodes, one.source)
        cells.setdefault(key, []).append(place)
    for (device, topology, op, ranks, nodes, source), places in cells.items():
        sizes = [every[place].nbytes for place in places]
        try:
            name = _NAMES.get(op, op)
            if name not in OPS:
                cure = suggestion(op, [*OPS, *_NAMES]) or f"known are {', '.join(OPS)}"
                raise UnsupportedError(f"unknown operation {op!r}; {cure}")
            cluster = cluster_of(device, topology, nodes, ranks)
            times = collective_times(
                name,
                sizes,
                network=network_of(cluster),
                local=ranks // nodes,
                nodes=nodes,
                timing=timing_of(source),
            )
        except PerfModelError as error:
            for place in places:
                one = every[place]
                rows[place] = Row(id=one.id, measured_s=one.time, status=UNSUPPORTED, reason=str(error))
            continue
        for place, time, low, high in zip(places, times.time, times.low, times.high, strict=True):
            one = every[place]
            rows[place] = Row(
                id=one.id,
                measured_s=one.time,
                predicted_s=float(time),
                low_s=None if np.isnan(low) else float(low),
                high_s=None if np.isnan(high) else float(high),
                status=OK,
            )
    return [row for row in rows if row is not None]
