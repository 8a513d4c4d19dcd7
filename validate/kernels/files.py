"""Constants of kernels as text, put into the section ``kernels:`` of device files."""

from __future__ import annotations

import datetime
import itertools
import re
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["entry_text", "put_entry", "quantiles"]

Floats = npt.NDArray[np.float64]
Quantile = tuple[float | None, float, float, int]

_BOUNDS = (20e-6, 200e-6)  # s: launches, one wave and a bit, many waves
_LEAST = 24  # rows below which a range's quantiles aren't taken
_KERNELS = re.compile(r"^kernels:\n((?:[ \t]+.*\n|\n)*)", re.MULTILINE)


def quantiles(predicted: Floats, measured: Floats) -> list[Quantile]:
    """For each range of predicted times the ends of log(measured / predicted) that hold 90 % of the rows."""
    residuals = np.log(measured / predicted)
    edges = (0.0, *_BOUNDS, np.inf)
    found: list[Quantile] = []
    for low, high in itertools.pairwise(edges):
        some = residuals[(predicted >= low) & (predicted < high)]
        used = some if some.size >= _LEAST else residuals
        ends = np.quantile(used, [0.05, 0.95])
        found.append((None if np.isinf(high) else high, float(ends[0]), float(ends[1]), int(used.size)))
    return found


def entry_text(
    values: Mapping[str, float],
    *,
    units: Mapping[str, str],
    assumed: Mapping[str, str],
    cite: str,
    data: str,
    model: str,
    residuals: Sequence[Quantile],
    confidence: str = "B",
) -> str:
    """The lines of one family and type: what belongs below ``kernels: family: dtype:``.

    Parameters
    ----------
    values : mapping of str to float
        In SI.
    units : mapping of str to str
        ``"us"`` for constants that are times.
    assumed : mapping of str to str
        Those that weren't fitted, and why they have their value.
    cite : str
        Key of the citation of the fitted ones.
    data, model : str
    residuals : sequence
        As :func:`quantiles` finds them.
    confidence : str
    """
    lines = [f'      data: "{data}"', f'      date: "{datetime.date.today():%Y-%m}"']
    lines += [f'      model: "{model}"'] if model else []
    lines.append("      constants:")
    for name, value in values.items():
        shown = f"{value * 1e6:.4g} us" if units.get(name) == "us" else f"{value:.4g}"
        source = (
            f'source: assumed, confidence: D, note: "{assumed[name]}"'
            if name in assumed
            else f"source: fitted, cite: {cite}, confidence: {confidence}"
        )
        lines.append(f"        {name}: {{value: {shown}, {source}}}")
    lines.append("      residuals:")
    for below, low, high, count in residuals:
        end = "" if below is None else f"below: {below * 1e6:.0f} us, "
        lines.append(f"        - {{{end}low: {low:.3f}, high: {high:.3f}, count: {count}}}")
    return "\n".join(lines) + "\n"


def put_entry(text: str, family: str, dtype: str, entry: str, citations: Mapping[str, str]) -> str:
    """A device file's text with another entry for one family and type, and the citations that it needs.

    Parameters
    ----------
    text : str
        The file.
    family, dtype : str
    entry : str
        As :func:`entry_text` writes it.
    citations : mapping of str to str
        Key -> ``{title: …, url: …}``.
    """
    tree = _tree(text)
    tree.setdefault(family, {})[dtype] = entry
    block = "kernels:\n" + "".join(
        f"  {name}:\n" + "".join(f"    {kind}:\n{lines}" for kind, lines in kinds.items())
        for name, kinds in tree.items()
    )
    text = _KERNELS.sub("", text)
    if "\ncitations:\n" not in text:
        text = text.rstrip("\n") + "\n\ncitations:\n"
    before, after = text.split("\ncitations:\n", 1)
    cited = after.rstrip("\n").split("\n") if after.strip() else []
    for key, citation in citations.items():
        if f"cite: {key}," in block:
            cited = [line for line in cited if not line.startswith(f"  {key}:")] + [f"  {key}: {citation}"]
    return before.rstrip("\n") + f"\n\n{block}\ncitations:\n" + "\n".join(cited) + "\n"


def _tree(text: str) -> dict[str, dict[str, str]]:
    """The section's entries as text, by family and type."""
    found = _KERNELS.search(text)
    tree: dict[str, dict[str, str]] = {}
    family = dtype = ""
    for line in (found.group(1) if found else "").split("\n"):
        if re.fullmatch(r"  [a-z_0-9]+:", line):
            family = line.strip(" :")
            tree[family] = {}
        elif re.fullmatch(r"    [a-z_0-9]+:", line):
            dtype = line.strip(" :")
            tree[family][dtype] = ""
        elif line.strip():
            tree[family][dtype] += line + "\n"
    return tree
