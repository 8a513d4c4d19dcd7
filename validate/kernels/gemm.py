"""Matrix products: fit their constants on measured kernels, score them on weight shapes that weren't fitted.

::

    python -m validate.kernels gemm [--data FILE] [--seed 0] [--only TEXT] [--write] [--figure FILE]

For each device and type the rows are cut in two by weight shape (n, k), drawn by a seed; each half is predicted with
constants fitted on the other. Beside it stand the roofline of the datasheet, the roofline over one efficiency (the
median of the other half) and the nearest row of the other half, scaled by its flops. Then float32 with the tile taken
from the kernel's name, and bfloat16 on each GPU with the constants of the other three.

The constants that are kept come from all rows; ``--write`` puts them into hardware_specs with the quantiles of the
held-out residuals.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from perfmodel.calibrate.matmul import (
    CONSTANTS,
    MatmulRows,
    cross_predicted,
    fit_matmul,
    nearest_rows,
    one_efficiency,
    roofline,
)
from perfmodel.calibrate.robust import fit_constants, folds, mape
from perfmodel.hardware import load_device
from perfmodel.hardware.files import write_text
from perfmodel.timing.matmul import MatmulModel, Products, Tile
from validate.kernels.files import entry_text, put_entry, quantiles
from validate.kernels.gemm_targets import CITATIONS, DATA, POOLED, Table, Target, read_table, targets

__all__ = ["Result", "known_tile", "left_out", "main", "pooled", "study"]

Floats = npt.NDArray[np.float64]

DEVICES = Path(__file__).parents[2] / "hardware_specs" / "devices"
_UNITS = {"start": "us", "gap": "us", "floor": "us"}
_ASSUMED = {
    "launch": "in clocks: the latency of the device's calibration",
    "store": "several blocks are on a unit at once: one writes while another computes",
}
_POOLED_NAMES = ("rate", "bandwidth", "cache", "launch", "throttle")
_POOLED_ROWS = 600  # of each device


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a fit gives.

    Attributes
    ----------
    target : Target
    rows : MatmulRows
    predicted : ndarray
        Seconds, each half from the other.
    constants : mapping of str to float
        Of all rows.
    errors : mapping of str to float
        Percent, held out: of the model and of the baselines.
    """

    target: Target
    rows: MatmulRows
    predicted: Floats
    constants: Mapping[str, float]
    errors: Mapping[str, float]


def study(table: Table, target: Target, seed: int = 0) -> Result:
    """Fit and score one target."""
    model, rows, known = target.formula(), target.rows(table), target.known()
    predicted = cross_predicted(model, rows, target.names, known, seed=seed)
    fold = folds([rows.products.n, rows.products.k], 2, seed)
    scaled, near = np.empty_like(rows.time), np.empty_like(rows.time)
    for one in (0, 1):
        fitted, others = rows.at(fold != one), fold == one
        scaled[others] = one_efficiency(model, fitted, rows.products.at(others))
        near[others] = nearest_rows(fitted, rows.products.at(others))
    return Result(
        target=target,
        rows=rows,
        predicted=predicted,
        constants=fit_matmul(model, rows, target.names, known, seed=seed),
        errors={
            "model": mape(predicted, rows.time),
            "roofline": mape(roofline(model, rows.products), rows.time),
            "one efficiency": mape(scaled, rows.time),
            "nearest row": mape(near, rows.time),
        },
    )


def known_tile(table: Table, target: Target, seed: int = 0) -> float:
    """Percent, held out, with the tile that the kernel's name tells; how k was split it doesn't tell."""
    mask = target.mask(table)
    found = [re.search(r"sgemm_(\d+)x(\d+)", name) for name in table.kernel[mask]]
    # BLAS counts columns first: the first number is along n.
    sizes = np.array([(int(match[2]), int(match[1])) if match else (0, 0) for match in found])
    named = sizes[:, 0] > 0
    rows, sizes = target.rows(table).at(named), sizes[named]
    formula = target.formula()
    assert formula.menu is not None
    models = {
        (m, n): replace(formula, menu=replace(formula.menu, tiles=(Tile(m=m, n=n, k=formula.menu.tiles[0].k),)))
        for m, n in np.unique(sizes, axis=0).tolist()
    }

    def measured(products: Products, its: npt.NDArray[np.int64], values: Mapping[str, float]) -> Floats:
        time = np.empty(products.b.shape)
        for (m, n), model in models.items():
            some = (its[:, 0] == m) & (its[:, 1] == n)
            if np.any(some):
                time[some] = model.measured(products.at(some), {**target.known(), **values})
        return time

    names = [*target.names[:-1], "fill"]
    fold = folds([rows.products.n, rows.products.k], 2, seed)
    predicted = np.empty_like(rows.time)
    for one in (0, 1):
        taken = np.random.default_rng(seed).permutation(np.flatnonzero(fold != one))[:1500]
        fitted, its = rows.at(taken), sizes[taken]
        values = fit_constants(
            lambda values, fitted=fitted, its=its: measured(fitted.products, its, values),  # type: ignore[misc]
            fitted.time,
            [CONSTANTS[name] for name in names],
        )
        others = fold == one
        predicted[others] = measured(rows.products.at(others), sizes[others], values)
    return mape(predicted, rows.time)


def pooled(table: Table, devices: Sequence[str], seed: int = 0) -> dict[str, float]:
    """One set of constants for the bfloat16 rows of several devices, as many of each."""
    some = [target for target in targets() if target.dtype == "bf16" and target.device in devices]
    models: list[tuple[MatmulModel, MatmulRows]] = []
    for target in some:
        rows = target.rows(table)
        models.append(
            (target.formula(), rows.at(np.random.default_rng(seed).permutation(rows.time.size)[:_POOLED_ROWS]))
        )
    return fit_constants(
        lambda values: np.concatenate([model.measured(rows.products, values) for model, rows in models]),
        np.concatenate([rows.time for _, rows in models]),
        [CONSTANTS[name] for name in _POOLED_NAMES],
    )


def left_out(results: Sequence[Result]) -> dict[str, tuple[float, Floats]]:
    """For each GPU with bfloat16 rows the percent and the seconds that the others' constants give: their medians."""
    found = {}
    some = [one for one in results if one.target.dtype == "bf16" and one.target.device in POOLED]
    own = {one.target.device: fit_matmul(one.target.formula(), one.rows, _POOLED_NAMES, {}) for one in some}
    for one in some:
        others = [constants for device, constants in own.items() if device != one.target.device]
        values = {name: float(np.median([constants[name] for constants in others])) for name in _POOLED_NAMES}
        time = one.target.formula().measured(one.rows.products, values)
        found[one.target.device] = (mape(time, one.rows.time), time)
    return found


def moved(result: Result) -> list[str]:
    """What differs from the device's file by more than its digits, in words."""
    target = result.target
    kept = load_device(target.device).kernels.get(target.family, {}).get(target.dtype)
    before = {} if kept is None else kept.values
    return [
        f"{target.name}: {name}: {'new' if name not in before else f'{before[name]:.4g} ->'} {value:.4g}"
        for name, value in result.constants.items()
        if name not in before or abs(value - before[name]) > 2e-3 * max(abs(before[name]), 1e-12)
    ]


def write(results: Sequence[Result], common: Mapping[str, float], others: Mapping[str, tuple[float, Floats]]) -> None:
    """Put the constants into the files of devices and of what they are based on."""
    for one in results:
        target = one.target
        entry = entry_text(
            one.constants,
            units=_UNITS,
            assumed={name: words for name, words in _ASSUMED.items() if name in target.fixed},
            cite=f"kernels-{target.source}",
            data=f"{target.what}; {target.device}, {one.rows.time.size} rows",
            model=target.model,
            residuals=quantiles(one.predicted, one.rows.time),
        )
        _put(target.file, target.family, target.dtype, entry)
    measured = np.concatenate(
        [one.rows.time for one in results if one.target.device in others and one.target.dtype == "bf16"]
    )
    predicted = np.concatenate(
        [others[one.target.device][1] for one in results if one.target.device in others and one.target.dtype == "bf16"]
    )
    entry = entry_text(
        common,
        units=_UNITS,
        assumed={},
        cite="kernels-aiconfigurator",
        data=f"one fit over {', '.join(POOLED)}; residuals of each with the constants of the others",
        model="tiles/cublas-ampere",
        residuals=quantiles(predicted, measured),
        confidence="D",
    )
    _put("gpu-nvidia", "matmul", "bf16", entry)


def _put(file: str, family: str, dtype: str, entry: str) -> None:
    path = next(path for path in (DEVICES / f"{file}.yaml", DEVICES / "bases" / f"{file}.yaml") if path.is_file())
    write_text(path, put_entry(path.read_text(encoding="utf-8"), family, dtype, entry, CITATIONS))


def figure(results: Sequence[Result], path: Path) -> None:
    """Measured against predicted, a panel for each target."""
    from matplotlib import pyplot

    columns = 5
    lines = -(-len(results) // columns)
    shape, panels = pyplot.subplots(lines, columns, figsize=(3 * columns, 2.8 * lines), squeeze=False)
    for panel, one in zip(panels.flat, results, strict=False):
        panel.loglog(one.rows.time * 1e6, one.predicted / one.rows.time, ",", alpha=0.6)
        panel.set_ylim(0.3, 3)
        panel.axhline(1, color="black", linewidth=0.6)
        panel.set_title(f"{one.target.name}\n{one.errors['model']:.1f} %", fontsize=7)
        panel.tick_params(labelsize=6)
    for panel in list(panels.flat)[len(results) :]:
        panel.axis("off")
    shape.supxlabel("measured, us")
    shape.supylabel("predicted / measured, weight shapes that weren't fitted")
    shape.tight_layout()
    shape.savefig(path, dpi=80)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study and print its tables."""
    parser = argparse.ArgumentParser(prog="python -m validate.kernels gemm", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="targets whose name contains this")
    parser.add_argument("--write", action="store_true", help="put the constants into hardware_specs")
    parser.add_argument("--figure", type=Path, help="measured against predicted, as an image")
    given = parser.parse_args(arguments)
    if not given.data.is_file():
        print(f"{given.data} is absent: the study needs the measured products", file=sys.stderr)
        return 1
    table = read_table(given.data)
    chosen = [target for target in targets() if given.only in target.name]
    results = []
    kinds = ("model", "roofline", "one efficiency", "nearest row")
    print(
        f"{'mean error %, weight shapes that were not fitted':50s} rows   bar  "
        + "  ".join(f"{kind:>14s}" for kind in kinds)
    )
    for target in chosen:
        one = study(table, target, given.seed)
        results.append(one)
        shown = "  ".join(f"{one.errors[kind]:14.1f}" for kind in kinds)
        print(f"{target.name:50s} {one.rows.time.size:5d} {target.bar:5.0f}  {shown}", flush=True)
    for target in chosen:
        if target.dtype == "fp32" and "simt" in target.model and "h100" not in target.device:
            print(f"{target.name + ', tile known':50s} {'':5s} {4:5.0f}  {known_tile(table, target, given.seed):14.1f}")
    others = left_out(results) if len(chosen) == len(targets()) else {}
    for device, (error, _) in others.items():
        print(f"{device + ' bf16, from the others':50s} {'':5s} {15:5.0f}  {error:14.1f}")
    for one in results:
        for line in moved(one):
            print(line)
    if given.write:
        if not others:
            print("--write needs all targets; leave out --only", file=sys.stderr)
            return 2
        write(results, pooled(table, POOLED, given.seed), others)
    if given.figure is not None:
        figure(results, given.figure)
    return 0
