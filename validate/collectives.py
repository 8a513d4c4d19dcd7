"""Fit the constants of collectives on measured rows, say how wrong they are on rows that weren't fitted, keep them.

::

    python -m validate.collectives [--data FILE] [--seed 0] [--write]

For each operation on each link: half of the sizes is fitted (of each two neighbouring ones, one drawn by the
seed), the other half is scored; and each number of ranks is predicted from the others. Beside it stand the plain
latency-and-bandwidth model, fitted alike for each number of ranks, and the datasheet's bandwidth. The constants
that are kept come from all rows; ``--write`` puts them into hardware_specs, with the quantiles of the residuals.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from perfmodel.errors import PerfModelError
from perfmodel.hardware import load_fabric, load_node
from perfmodel.hardware.files import file_of, write_text
from perfmodel.validation.collectives import Measurement, read_measurements
from validate.collectives_files import moved, put, quantiles, ranges, section
from validate.collectives_fit import Cases, alpha_beta, cases_of, fit, halves, ideal, names_of, predict
from validate.collectives_targets import Result, Target, targets

__all__ = ["main", "study", "table"]

Floats = npt.NDArray[np.float64]

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data" / "collectives" / "collectives.csv.gz"
KINDS = ROOT / "perfmodel" / "timing" / "collectives" / "kinds.yaml"


def study(every: Sequence[Measurement], seed: int = 0) -> list[Result]:
    """Fit and score everything."""
    results = []
    for target in targets():
        for theirs, op in target.ops.items():
            rows = target.rows(every, theirs)
            profiled = target.source == "vidur"
            cases = cases_of(rows, op, target.node, between=target.kind == "fabric", profiled=profiled)
            results.append(_result(target, op, cases, seed))
    return results


def _result(target: Target, op: str, cases: Cases, seed: int) -> Result:
    names = names_of(cases)
    taken = halves(cases, seed)
    residuals = np.empty_like(cases.time)
    for half in (taken, ~taken):
        known = fit(cases.where(half), names)
        others = cases.where(~half)
        residuals[~half] = np.log(others.time / predict(others, *known))
    scored = cases.where(~taken)
    unseen = np.full_like(cases.time, np.nan)
    if np.unique(cases.ranks).size > 2:
        for ranks in np.unique(cases.ranks):
            left = cases.ranks == ranks
            known = fit(cases.where(~left), names)
            unseen[left] = np.log(cases.time[left] / predict(cases.where(left), *known))
    constants, arrival = fit(cases, names)
    return Result(
        target=target,
        op=op,
        cases=cases,
        constants=constants,
        arrival=arrival,
        held=np.abs(np.exp(-residuals[~taken]) - 1),
        plain=np.abs(alpha_beta(cases.where(taken))(scored) / scored.time - 1),
        bare=np.abs(ideal(scored) / scored.time - 1),
        residuals=residuals,
        unseen=unseen,
    )


def _mean(errors: Floats) -> str:
    return f"{100 * float(np.nanmean(errors)):6.1f}" if np.any(np.isfinite(errors)) else "     -"


def table(results: Sequence[Result]) -> str:
    """Errors in % on what wasn't fitted."""
    head = f"{'link':28}{'operation':16}{'rows':>5}  {'ours':>6} {'plain':>6} {'ideal':>6}  {'unseen ranks':>12}"
    lines = [head, "-" * len(head)]
    for one in results:
        ranks = np.abs(np.exp(-one.unseen) - 1)
        by = "/".join(
            f"{100 * np.mean(ranks[one.cases.ranks == count]):.0f}" for count in np.unique(one.cases.ranks)
        ) if np.isfinite(ranks).any() else ""  # fmt: skip
        lines.append(
            f"{one.target.name:28}{one.op:16}{one.held.size:5}  {_mean(one.held)} {_mean(one.plain)} "
            f"{_mean(one.bare)}  {_mean(ranks)} {by}"
        )
    for title, some in _groups(results).items():
        together = [np.concatenate([getattr(one, name) for one in some]) for name in ("held", "plain", "bare")]
        ranks = np.abs(np.exp(-np.concatenate([one.unseen for one in some])) - 1)
        lines.append(
            f"{title:44}{together[0].size:5}  {' '.join(_mean(errors) for errors in together)}  {_mean(ranks)}"
        )
    return "\n".join(lines)


def _groups(results: Sequence[Result]) -> dict[str, list[Result]]:
    nccl = [one for one in results if one.target.name in ("dgx-a100", "dgx-h100", "dgx-b200")]
    nccl = [one for one in nccl if one.target.source == "aiconfigurator"]
    by_name = {name: [one for one in nccl if one.target.name == name] for name in ("dgx-a100", "dgx-h100", "dgx-b200")}
    return {**by_name, "NCCL, one node, A100 H100 B200": nccl}


def coverage(results: Sequence[Result], seed: int) -> float:
    """Share of rows inside intervals that come from the residuals of other rows: those of half of them, drawn."""
    inside = []
    for one in results:
        drawn = np.random.default_rng(seed).random(one.residuals.size) < 0.5
        sizes = one.cases.nbytes
        found = quantiles(one.residuals[drawn], sizes[drawn])
        if found:
            index = np.searchsorted([below for below, *_ in found if below is not None], sizes, side="right")
            ends = np.array([(low, high) for _, low, high, _ in found])[index]
            inside.append(((one.residuals >= ends[:, 0]) & (one.residuals <= ends[:, 1]))[~drawn])
    return float(np.mean(np.concatenate(inside)))


def transfer(results: Sequence[Result]) -> tuple[Floats, Floats]:
    """Residuals of each NVLink switch with the constants of each other one, and their sizes."""
    residuals, sizes = [], []
    nccl = _groups(results)["NCCL, one node, A100 H100 B200"]
    for one in nccl:
        for other in nccl:
            if other.op == one.op and other.target.name != one.target.name:
                residuals.append(np.log(one.cases.time / predict(one.cases, other.constants)))
                sizes.append(one.cases.nbytes)
    return np.concatenate(residuals), np.concatenate(sizes)


def profiled(
    every: Sequence[Measurement], results: Sequence[Result]
) -> dict[str, tuple[float, Floats, Floats, Floats]]:
    """For nodes whose constants are of the operation alone: the arrival in profiled kernels.

    By name: seconds, residuals by the half that a row isn't in, bytes, absolute relative errors.
    """
    found = {}
    for name, device in (("dgx-a100", "nvidia-a100-sxm-80gb"), ("dgx-h100", "nvidia-h100-sxm-80gb")):
        target = next(one for one in targets() if one.name == name and one.source == "vidur")
        cases = cases_of(target.rows(every, "all_reduce"), "all_reduce", name, between=False, profiled=True)
        known = next(one for one in results if one.target.name == name and one.op == "all_reduce").constants
        alone, taken = predict(cases, known), halves(cases, 0)
        residuals = np.empty_like(alone)
        for half in (taken, ~taken, np.ones_like(taken)):
            tried = np.arange(0, 100) * 1e-6
            errors = [np.mean(np.abs(np.log(np.maximum(alone, one) / cases.time))[half]) for one in tried]
            arrival = float(tried[int(np.argmin(errors))])
            residuals[~half] = np.log(cases.time / np.maximum(alone, arrival))[~half]
        assert device == target.device
        found[name] = (arrival, residuals, cases.nbytes, np.abs(np.exp(-residuals) - 1))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; the exit code says whether the data was there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="the table of measured collectives")
    parser.add_argument("--seed", type=int, default=0, help="of the halves")
    parser.add_argument("--write", action="store_true", help="put the constants into hardware_specs")
    options = parser.parse_args(arguments)
    try:
        every = read_measurements(options.data)
    except PerfModelError as error:
        print(error, file=sys.stderr)
        return 2
    results = study(every, options.seed)
    calls = profiled(every, results)
    print(
        "Mean absolute errors in % on the half of the sizes that wasn't fitted, and on numbers of ranks that weren't."
    )
    print(table(results))
    for name, (arrival, _, _, errors) in calls.items():
        print(f"{name}: all_reduce in profiled kernels, arrival {arrival * 1e6:.0f} us: {_mean(errors)} %")
    print(f"rows inside intervals that other rows' residuals give: {100 * coverage(results, options.seed):.1f} %")
    lent, sizes = transfer(results)
    print(f"each NVLink switch with the constants of another: {_mean(np.abs(np.exp(-lent) - 1))} %")
    by_file: dict[tuple[str, str], list[Result]] = {}
    for one in results:
        by_file.setdefault((one.target.kind, one.target.name), []).append(one)
    for (kind, name), some in by_file.items():
        old = load_node(name).collectives if kind == "node" else load_fabric(name).collectives
        print("\n".join(moved(old, some) or [f"{name}: nothing moved"]))
        if options.write:
            path = file_of(kind, name)
            write_text(path, put(path.read_text(encoding="utf-8"), section(name, some, calls)))
    if options.write:
        text = re.sub(r"^transfer:\n(?:  .*\n)*", "", KINDS.read_text(encoding="utf-8"), flags=re.MULTILINE)
        block = textwrap.dedent("\n".join(ranges("transfer", quantiles(lent, sizes))))
        write_text(KINDS, text.replace("citations:\n", f"{block}\n\ncitations:\n", 1).replace("\n\n\n", "\n\n"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
