"""The section ``collectives:`` of nodes and fabrics as text, put into their files."""

from __future__ import annotations

import datetime
import itertools
import re
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from perfmodel.hardware.collectives import Collectives
from validate.collectives_targets import DEVICES, Result

__all__ = ["moved", "put", "quantiles", "ranges", "section"]

Floats = npt.NDArray[np.float64]

_BOUNDS = (64 * 2**10, 8 * 2**20)  # bytes: latency, protocols change, bandwidth
_COVER = 0.90
_LEAST = 12  # rows below which a range's quantiles aren't taken
_CONSTANTS = ("startup", "step", "small", "fill", "large", "multicast", "contention")
_UNITS = {"startup": (1e6, "us"), "fill": (1e6, "us")}


def quantiles(residuals: Floats, sizes: Floats) -> list[tuple[float | None, float, float, int]]:
    """For each range of sizes the ends that hold 90 %, each with its finite-sample correction."""
    edges = (0.0, *_BOUNDS, np.inf)
    found: list[tuple[float | None, float, float, int]] = []
    ranges = [
        (low, high, residuals[(sizes >= low) & (sizes < high) & np.isfinite(residuals)])
        for low, high in itertools.pairwise(edges)
    ]
    whole = residuals[np.isfinite(residuals)]
    if whole.size < _LEAST:
        return []
    for _, high, some in ranges:
        used = some if some.size >= _LEAST else whole
        level = min(1.0, np.ceil((used.size + 1) * (1 + _COVER) / 2) / used.size)
        upper = float(np.quantile(used, level, method="higher"))
        lower = -float(np.quantile(-used, level, method="higher"))
        found.append((None if np.isinf(high) else high, lower, upper, int(used.size)))
    return found


def section(name: str, some: Sequence[Result], calls: Mapping[str, tuple[float, Floats, Floats, Floats]]) -> str:
    """The section ``collectives:`` of a file, as text."""
    libraries = "; ".join(dict.fromkeys(_words(one) for one in some))
    ranks = sorted({int(count) for one in some for count in np.unique(one.cases.ranks)})
    lines = ["collectives:", f'  data: "{libraries}"', f'  date: "{datetime.date.today():%Y-%m}"', f"  ranks: {ranks}"]
    lines.append("  ops:")
    for one in some:
        lines.append(f"    {one.op}:")
        for field in _CONSTANTS:
            value = getattr(one.constants, field)
            if value is None:
                continue
            if one.op == "send_recv" and field == "step":
                note = ', note: "one step always: nothing tells it from the startup"'
                lines.append(f"      step: {{value: 1, source: assumed, confidence: B{note}}}")
                continue
            scale, unit = _UNITS.get(field, (1.0, ""))
            shown = f"{value * scale:.4g} {unit}".strip()
            lines.append(
                f"      {field}: {{value: {shown}, source: fitted, cite: measured-collectives, confidence: B}}"
            )
        sizes = one.cases.nbytes
        lines += ranges("residuals", quantiles(one.residuals, sizes))
        lines += ranges("unseen", quantiles(one.unseen, sizes))
        if one.op == "all_reduce" and name in calls:
            lines += ranges("profiled", quantiles(calls[name][1], calls[name][2]))
    arrival = calls[name][0] if name in calls else max((one.arrival for one in some), default=0.0)
    if arrival:
        lines.append(
            f"  arrival: {{value: {arrival * 1e6:.3g} us, source: fitted, cite: measured-profiles, confidence: D, "
            'note: "what profiled kernels wait for the last rank; of that test program"}'
        )
    return "\n".join(lines) + "\n"


def _words(one: Result) -> str:
    device = DEVICES[one.target.device]
    if one.target.source == "vidur":
        return f"{device}, {one.target.topology} of {one.target.nodes} node(s), profiled kernels of {one.op}, fp16"
    return f"{device}, back-to-back calls as nccl-tests makes them, half, one node"


def ranges(key: str, found: Sequence[tuple[float | None, float, float, int]]) -> list[str]:
    """Lines of a file for what :func:`quantiles` found."""
    if not found:
        return []
    lines = [f"      {key}:"]
    for below, low, high, count in found:
        end = "" if below is None else f"below: {_size(below)}, "
        lines.append(f"        - {{{end}low: {low:.3f}, high: {high:.3f}, count: {count}}}")
    return lines


def _size(number: float) -> str:
    return f"{number / 2**20:.0f} MiB" if number >= 2**20 else f"{number / 2**10:.0f} KiB"


_CITES = {
    "measured-collectives": '{title: "NVIDIA ai-dynamo/aiconfigurator and microsoft/vidur, measured tables of '
    'collectives; fitted by validate/collectives.py", url: "https://github.com/ai-dynamo/aiconfigurator"}',
    "measured-profiles": '{title: "microsoft/vidur, profiled kernels of collectives", '
    'url: "https://github.com/microsoft/vidur"}',
}


def put(text: str, block: str) -> str:
    """A file's text with another section ``collectives:``, and the citations that it needs."""
    text = re.sub(r"^collectives:\n(?:[ \t].*\n|\n)*", "", text, flags=re.MULTILINE)
    for key in _CITES:
        text = re.sub(rf"^  {key}: .*\n", "", text, flags=re.MULTILINE)
    if "citations:\n" not in text:
        text += "citations:\n"
    cites = "".join(f"  {key}: {cite}\n" for key, cite in _CITES.items() if f"cite: {key}," in block)
    before, after = text.split("citations:\n", 1)
    return f"{before}{block}citations:\n{after.rstrip(chr(10))}\n{cites}"


def moved(old: Collectives | None, some: Sequence[Result]) -> list[str]:
    """What differs from the file by more than its digits, in words."""
    found = []
    for one in some:
        before = None if old is None else old.ops.get(one.op)
        for field in _CONSTANTS:
            value, was = getattr(one.constants, field), None if before is None else getattr(before, field)
            if value is not None and (was is None or abs(value / was - 1 if was else 1) > 2e-3):
                shown = "new" if was is None else f"{was:.4g} ->"
                found.append(f"{one.target.name}: {one.op}.{field}: {shown} {value:.4g}")
    return found
