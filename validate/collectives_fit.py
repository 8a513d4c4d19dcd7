"""Fits of the constants of collectives: robust least squares on logarithms, halves of the sizes, baselines."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from perfmodel.hardware import load_cluster
from perfmodel.hardware.collectives import CollectiveConstants, Collectives
from perfmodel.timing.collectives import Network, Route, network_of
from perfmodel.timing.collectives.model import candidates
from perfmodel.validation.collectives import Measurement

__all__ = ["Cases", "alpha_beta", "cases_of", "fit", "halves", "ideal", "least_squares", "names_of", "predict"]

Floats = npt.NDArray[np.float64]

#: Where each constant begins, twice: a fast and a slow link.
_STARTS = {
    "startup": (5e-6, 12e-6),
    "step": (1.5, 3.0),
    "small": (0.5, 0.2),
    "fill": (15e-6, 8e-6),
    "large": (0.75, 0.5),
    "multicast": (0.6, 0.5),
    "contention": (1.0, 2.0),
    "arrival": (30e-6, 50e-6),
}
#: What a constant is near unless the rows say otherwise: the middle of its starts, within a factor of e or so.
_SPREAD = 1.0
_FRACTIONS = ("small", "large", "multicast")
#: Between pairs, small messages go over one channel each.
_PAIRWISE = {"small": (0.05, 0.01)}
_TRIED = 8  # of the starts, those that are nearest already
_ROBUST = 0.05  # relative error beyond which a row counts linearly, not squared


@dataclass(frozen=True, slots=True, kw_only=True)
class Cases:
    """Measurements of one operation on one link; arrays of shape [cases]."""

    op: str
    network: Network
    between: bool
    profiled: bool
    nbytes: Floats
    local: Floats
    nodes: Floats
    time: Floats

    @property
    def ranks(self) -> Floats:
        """Ranks of each case."""
        return self.local * self.nodes

    @property
    def route(self) -> Route:
        """The link whose constants are fitted."""
        route = self.network.between if self.between else self.network.inside
        assert route is not None
        return route

    def where(self, mask: npt.NDArray[np.bool_]) -> Cases:
        """Some of them."""
        return replace(
            self, nbytes=self.nbytes[mask], local=self.local[mask], nodes=self.nodes[mask], time=self.time[mask]
        )


def cases_of(rows: Sequence[Measurement], op: str, node: str, *, between: bool, profiled: bool) -> Cases:
    """Rows of one operation as arrays; on the named node, or between two of them."""
    nodes = max(row.nodes for row in rows)
    return Cases(
        op=op,
        network=network_of(load_cluster(node, nodes=nodes)),
        between=between,
        profiled=profiled,
        nbytes=np.array([row.nbytes for row in rows], float),
        local=np.array([row.ranks / row.nodes for row in rows], float),
        nodes=np.array([row.nodes for row in rows], float),
        time=np.array([row.time for row in rows], float),
    )


def names_of(cases: Cases) -> tuple[str, ...]:
    """The constants that this operation has on this link: six at most."""
    names = ["startup", "step", "small", "fill", "large"]
    if cases.op == "send_recv":
        names.remove("step")  # one step always: nothing tells it from the startup
    if cases.op == "all_reduce" and not cases.between and cases.route.multicast:
        names.append("multicast")
    if not cases.between and cases.route.topology == "host" and cases.network.devices > 2:
        names.append("contention")
    if cases.profiled and cases.op != "send_recv":
        names.append("arrival")
    assert len(names) <= 6
    return tuple(names)


def predict(cases: Cases, constants: CollectiveConstants, arrival: float = 0.0) -> Floats:
    """Seconds of each case with given constants."""
    route = replace(
        cases.route, collectives=Collectives(data="", date="", ranks=(), ops={cases.op: constants}), source="fitted"
    )
    network = replace(cases.network, between=route) if cases.between else replace(cases.network, inside=route)
    found = candidates(
        cases.op,
        cases.nbytes,
        cases.local,
        cases.nodes,
        network,
        tier=np.zeros(cases.nbytes.shape, np.int64),
        concurrent=np.ones_like(cases.nbytes),
    )
    fastest = np.min(np.stack([candidate.time for candidate in found]), axis=0)
    return np.maximum(fastest, arrival)


def fit(cases: Cases, names: Sequence[str] | None = None) -> tuple[CollectiveConstants, float]:
    """Constants, and the arrival of profiled rows, that make the mean robust logarithmic error least."""
    chosen = tuple(names or names_of(cases))

    starts = {**_STARTS, **(_PAIRWISE if cases.op in ("all_to_all", "send_recv") and not cases.between else {})}
    middle = np.array([np.mean(np.log(starts[name])) for name in chosen])

    def residuals(logs: Floats) -> Floats:
        errors = np.log(predict(cases, *_constants(chosen, logs)) / cases.time)
        return np.concatenate([errors, _ROBUST * (logs - middle) / _SPREAD])

    # Startup and step start together, and so do those that few links have.
    several = []
    for which in itertools.product((0, 1), repeat=4):
        order = dict(zip(("startup", "small", "fill", "large"), which, strict=True))
        several.append(np.log([starts[name][order.get(name, which[0])] for name in chosen]))
    several.sort(key=lambda logs: _loss(residuals(logs)))
    best = min((least_squares(residuals, logs) for logs in several[:_TRIED]), key=lambda found: found[0])
    return _constants(chosen, best[1])


def _constants(names: Sequence[str], logs: Floats) -> tuple[CollectiveConstants, float]:
    values = dict(zip(names, np.exp(logs), strict=True))
    for name in _FRACTIONS:
        if name in values:
            values[name] = min(values[name], 1.0)
    arrival = values.pop("arrival", 0.0)
    return CollectiveConstants(**{"step": 1.0, **values}), float(arrival)


def least_squares(residuals: Callable[[Floats], Floats], start: Floats, steps: int = 60) -> tuple[float, Floats]:
    """Levenberg-Marquardt with the pseudo-Huber loss; returns the loss and where it is least."""
    at = start.astype(float)
    error = residuals(at)
    loss, damping = _loss(error), 1e-2
    for _ in range(steps):
        jacobian = np.empty((error.size, at.size))
        for index in range(at.size):
            nearby = at.copy()
            nearby[index] += 1e-5
            jacobian[:, index] = (residuals(nearby) - error) / 1e-5
        weight = 1 / np.sqrt(1 + (error / _ROBUST) ** 2)
        hessian = (jacobian * weight[:, None]).T @ jacobian
        slope = (jacobian * weight[:, None]).T @ error
        for _ in range(12):
            step = np.linalg.solve(hessian + damping * np.diag(np.diag(hessian) + 1e-9), -slope)
            tried = at + np.clip(step, -1.0, 1.0)
            tried_error = residuals(tried)
            tried_loss = _loss(tried_error)
            if tried_loss < loss:
                break
            damping *= 4
        else:
            break
        gained = loss - tried_loss
        at, error, loss, damping = tried, tried_error, tried_loss, damping / 8
        if gained < 1e-7 * max(loss, 1e-12):
            break
    return loss, at


def _loss(error: Floats) -> float:
    return float(np.sum(_ROBUST**2 * (np.sqrt(1 + (error / _ROBUST) ** 2) - 1)))


def halves(cases: Cases, seed: int) -> npt.NDArray[np.bool_]:
    """Which cases are fitted on: of each two neighbouring sizes one, drawn by a seed; the others are scored."""
    draw = np.random.default_rng(seed)
    sizes = np.unique(cases.nbytes)
    first = np.repeat(draw.integers(0, 2, (sizes.size + 1) // 2), 2)[: sizes.size]
    taken = sizes[(np.arange(sizes.size) + first) % 2 == 0]
    return np.isin(cases.nbytes, taken)


def _sent(cases: Cases) -> Floats:
    if cases.op in ("send_recv", "broadcast"):
        return cases.nbytes
    rounds = 2 if cases.op == "all_reduce" else 1
    return rounds * cases.nbytes * (cases.ranks - 1) / cases.ranks


def alpha_beta(cases: Cases) -> Callable[[Cases], Floats]:
    """The plain model: a latency and a bandwidth for each number of ranks, fitted alike."""
    constants = {}
    for ranks in np.unique(cases.ranks):
        some = cases.where(cases.ranks == ranks)

        def residuals(logs: Floats, some: Cases = some) -> Floats:
            return np.asarray(np.log((np.exp(logs[0]) + _sent(some) / np.exp(logs[1])) / some.time), float)

        found = [least_squares(residuals, np.log([1e-5, rate])) for rate in (1e9, 2e10, 3e11)]
        constants[float(ranks)] = np.exp(min(found, key=lambda one: one[0])[1])

    def times(those: Cases) -> Floats:
        alpha, beta = np.array([constants[float(ranks)] for ranks in those.ranks]).T
        return np.asarray(alpha + _sent(those) / beta, float)

    return times


def ideal(cases: Cases) -> Floats:
    """Bytes over the datasheet's bandwidth, and nothing else."""
    route = cases.route
    ports = cases.network.ports_per_device * cases.local if cases.between else 1.0
    return np.asarray(_sent(cases) / (route.bandwidth * np.minimum(ports, cases.network.ports or 1.0)), float)
