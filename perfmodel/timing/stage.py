"""What a pipeline stage does in each of its actions, as parts: compute, and communication beside it or between.

The ops of a phase run one after the other on the device. A collective that the next op waits for
stands between them. One that may overlap runs on a stream of its own, one for each kind of group
(a communicator runs one collective at a time):

* a gather of parameters is issued one unit ahead: when the compute of the unit before begins
  (FSDP's prefetch), and holds up the first op that reads them;
* parameters that ZeRO-1 and 2 gather after the optimizer are gathered while the next step's first
  forward runs, in the order of their use, and hold up the layer that reads them;
* a ring that passes keys and values on runs beside the attention that it feeds, and holds up what follows that;
* a reduction of gradients is issued when the compute before it has ended, and holds up the optimizer.

Gradients of all micro-batches but the first are added to those before. What is sent once a step runs
with the last micro-batch's backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from perfmodel.graph.ir import Block, Graph, Op
from perfmodel.graph.paths import numbered
from perfmodel.parallel.program import is_collective
from perfmodel.symbols import evaluate
from perfmodel.timing.parts import NOTHING, LayerTimes, StageWork, accumulation

__all__ = ["ACTIONS", "CollectiveTimer", "OpTimer", "StageActions"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

#: Actions of a stage, by the letters of torch.distributed.pipelining; ``O`` is the optimizer.
ACTIONS = ("F", "B", "I", "W", "O")

_PHASES = {"F": ("forward",), "B": ("backward", "recompute"), "O": ("optimizer", "release")}

#: (op, kind of group, bytes) to seconds.
CollectiveTimer = Callable[[str, str, float], float]

#: An op to seconds on the device and on the host.
OpTimer = Callable[[Op], tuple[float, float]]


@dataclass(slots=True)
class _Row:
    """A stored op as columns see it."""

    op: Op
    duration: float
    host: float
    kind: str
    way: str  # compute, between, gather, ring or reduce
    once: bool = False  # once a step
    weight: bool = False  # makes a gradient of weights
    again: bool = False  # adds to the gradients of the micro-batches before
    bucket: float = 0.0
    nbytes: float = 0.0


@dataclass(frozen=True, slots=True)
class _Beside:
    """A collective on a stream of its own: issued before op ``issue``, needed by op ``needed`` (-1: by none)."""

    issue: int
    needed: int
    row: _Row
    duration: float
    path: str
    ready: bool = False


@dataclass(slots=True)
class _Columns:
    """Ops of an action spelled out: which row each is, in which layer."""

    row: Ints
    layer: Ints
    begins: dict[tuple[str, int], int] = field(default_factory=dict)


class StageActions:
    """The actions of a stage.

    Parameters
    ----------
    graph : Graph
        Of one stage of a rank's program.
    time_op : OpTimer
    time_collective : CollectiveTimer
    spelled : bool
        Whether every module and collective is a part of its own, for a timeline that people read. Otherwise parts
        that follow each other are one, which gives the same times.
    """

    def __init__(
        self, graph: Graph, time_op: OpTimer, time_collective: CollectiveTimer, *, spelled: bool = False
    ) -> None:
        self.graph = graph
        self.spelled = spelled
        self._time_op = time_op
        self._time_collective = time_collective
        self._rows: list[_Row] = []
        self._of_block: dict[int, tuple[Block, list[int]]] = {}
        self._known: dict[tuple[str, bool, bool], StageWork] = {}
        self._late = [
            (block, row)
            for block in graph.blocks
            for row in (self._rows[number] for number in self._block_rows(block))
            if row.way == "gather" and row.op.phase == "optimizer"
        ]

    def work(self, action: str, *, first: bool = False, last: bool = False) -> StageWork:
        """An action's parts.

        Parameters
        ----------
        action : str
            One of :data:`ACTIONS`.
        first, last : bool
            Whether it's the stage's first and last micro-batch of the step.
        """
        first = first and (action in ("B", "W") or (action == "F" and bool(self._late)))
        last = last and action in ("B", "I", "W")
        key = (action, first, last)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._work(action, first, last)
        return known

    def layer_times(self) -> LayerTimes:
        """Seconds of a micro-batch's forward and backward, by layer."""
        layers: dict[tuple[str, int], float] = {}
        outside = {"before": 0.0, "after": 0.0}
        seen = False
        for block in self.graph.blocks:
            if block.ops[0].phase in _PHASES["O"]:
                continue
            rows = [self._rows[number] for number in self._block_rows(block)]
            seconds = sum(row.duration for row in rows if row.way in ("compute", "between") and not row.once)
            if block.stack:
                seen = True
                width, sign = abs(block.step), 1 if block.step > 0 else -1
                for layer in (first + sign * k for first in block.layers for k in range(width)):
                    layers[block.stack, layer] = layers.get((block.stack, layer), 0.0) + seconds / width
                continue
            # Forward comes to the stack from what precedes it, backward from what follows it.
            forward = block.ops[0].phase == "forward"
            if not forward and any(b.stack and b.ops[0].phase != "forward" for b in self._before(block)):
                outside["before"] += seconds
            else:
                outside["before" if forward and not seen else "after"] += seconds
        return LayerTimes(layers=tuple(layers.values()), **outside)

    def _before(self, block: Block) -> Iterator[Block]:
        for other in self.graph.blocks:
            if other is block:
                return
            yield other

    # -- rows -----------------------------------------------------------------------

    def _block_rows(self, block: Block) -> list[int]:
        known = self._of_block.get(id(block))
        if known is None:
            rows = [row for op in block.ops for row in self._op_rows(op)]
            known = (block, list(range(len(self._rows), len(self._rows) + len(rows))))
            self._rows += rows
            self._of_block[id(block)] = known
        return known[1]

    def _op_rows(self, op: Op) -> Iterator[_Row]:
        if is_collective(op):
            yield self._collective_row(op)
        else:
            duration, host = self._time_op(op)
            yield _Row(op, duration, host, op.phase, "compute", weight=self._makes_gradient(op))
        if op.phase in ("backward", "recompute"):
            for extra in accumulation(op, self.graph):
                duration, host = self._time_op(extra)
                yield _Row(extra, duration, host, "backward", "compute", weight=True, again=True)

    def _collective_row(self, op: Op) -> _Row:
        attrs, bindings = op.attrs, self.graph.bindings
        nbytes = float(evaluate(attrs["bytes"], bindings))
        messages = float(evaluate(attrs.get("messages", 1), bindings))
        name = op.name.removeprefix("c10d.")
        beside = attrs["overlap"]
        way = _BESIDE.get(name, "reduce") if beside else "between"
        bucket = float(attrs.get("bucket", 0)) if way == "reduce" else 0.0
        duration = 0.0 if bucket else messages * self._seconds(name, attrs["group"], nbytes)
        _, host = self._time_op(op)
        weight = self._makes_gradient(op)
        return _Row(op, duration, host, attrs["group"], way, attrs["per"] == "step", weight, False, bucket, nbytes)

    def _seconds(self, name: str, group: str, nbytes: float) -> float:
        return self._time_collective(_NCCL_NAMES[name], group, nbytes)

    def _makes_gradient(self, op: Op) -> bool:
        if op.phase != "backward":
            return False
        storages = (self.graph.storages[t.storage] for t in op.outputs if t.storage >= 0)
        return any(s.role == "gradient" or s.name.endswith(".grad:whole") for s in storages)

    # -- columns ----------------------------------------------------------------------

    def _work(self, action: str, first: bool, last: bool) -> StageWork:
        columns = self._spelled_out(action, first, last)
        rows, chosen = self._rows, columns.row
        beside = self._beside(columns)
        if action == "F" and first:
            beside = [*self._from_last_step(columns), *beside]
        compute = np.array([row.duration if row.way in ("compute", "between") else 0.0 for row in rows])
        duration = compute[chosen] if len(chosen) else np.zeros(0)
        host = np.array([row.host for row in rows])[chosen] if len(chosen) else np.zeros(0)
        cuts = self._cuts(columns, beside)
        starts = np.array(cuts[:-1], dtype=np.int64)
        sums = np.add.reduceat(np.append(duration, 0.0), starts) if len(cuts) > 1 else np.zeros(1)
        number = {position: k for k, position in enumerate(cuts[:-1])}
        segments = max(len(cuts) - 1, 1)
        parts = [self._segment(columns, int(at), float(sums[k])) for k, at in enumerate(cuts[:-1] or [0])]
        waits: list[list[int]] = [[] for _ in range(segments)]
        for k, each in enumerate(beside):
            if each.needed >= 0:
                waits[number[each.needed]].append(segments + k)
        for each in beside:
            before = number.get(each.issue, segments) - 1
            parts.append((each.row.kind, each.row.kind, _label(each.row.op), each.path, each.duration, each.issue))
            waits.append([NOTHING if each.ready else before])
        stream, kind, label, path, seconds, issue = zip(*parts, strict=True)
        busy: dict[str, float] = {}
        spent = np.bincount(chosen, minlength=len(rows)) * compute if len(chosen) else np.zeros(len(rows))
        for row, amount in zip(rows, spent.tolist(), strict=True):
            if amount:
                busy[row.kind] = busy.get(row.kind, 0.0) + amount
        issued = np.cumsum(host)
        return StageWork(
            main=np.arange(len(parts)) < segments,
            stream=stream,
            kind=kind,
            label=label,
            path=path,
            duration=np.array(seconds),
            issue=np.array(issue, dtype=np.int64),
            after=tuple(tuple(each) for each in waits),
            busy=busy,
            host=float(host.sum()),
            lead=float((issued - np.cumsum(duration) + duration).max(initial=0.0)),
        )

    def _spelled_out(self, action: str, first: bool, last: bool) -> _Columns:
        phases = _PHASES["B" if action in ("I", "W") else action]
        rows: list[Ints] = []
        layers: list[Ints] = []
        begins: dict[tuple[str, int], int] = {}
        length = 0
        for block in self.graph.blocks:
            if block.ops[0].phase not in phases:
                continue
            numbers = [n for n in self._block_rows(block) if self._takes_part(self._rows[n], action, first, last)]
            if action == "F":
                for repetition, layer in enumerate(block.layers if block.stack else (0,)):
                    for own in range(layer, layer + abs(block.step)) if block.stack else (0,):
                        begins.setdefault((block.stack, own), length + repetition * len(numbers))
            rows.append(np.tile(np.array(numbers, dtype=np.int64), block.count))
            layers.append(np.repeat(np.array(block.layers, dtype=np.int64), len(numbers)))
            length += len(rows[-1])
        if not rows:
            return _Columns(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), begins)
        return _Columns(np.concatenate(rows), np.concatenate(layers), begins)

    def _takes_part(self, row: _Row, action: str, first: bool, last: bool) -> bool:
        if action == "O":
            return row.way != "gather"
        if row.once and not last:
            return False
        if row.again and first:
            return False
        return action not in ("I", "W") or row.weight == (action == "W")

    def _beside(self, columns: _Columns) -> list[_Beside]:
        ways = np.array([row.way in ("gather", "ring", "reduce") for row in self._rows])
        found: list[_Beside] = []
        ahead = 0
        open_bucket: dict[str, float] = {}
        places = np.flatnonzero(ways[columns.row]).tolist() if len(columns.row) else []
        for place in places:
            row = self._rows[columns.row[place]]
            path = self._path(columns, place)
            if row.way == "gather":
                found.append(_Beside(ahead, place, row, row.duration, path))
                ahead = place
            elif row.way == "ring":
                found.append(_Beside(place, min(place + 2, len(columns.row) - 1), row, row.duration, path))
            elif not row.bucket:
                found.append(_Beside(place, -1, row, row.duration, path))
            else:
                size = open_bucket.get(row.kind, 0.0) + row.nbytes
                final = not any(self._rows[columns.row[p]].kind == row.kind for p in places if p > place)
                calls = int(size // row.bucket)
                name = row.op.name.removeprefix("c10d.")
                seconds = calls * self._seconds(name, row.kind, row.bucket) if calls else 0.0
                size -= calls * row.bucket
                if final and size:
                    seconds += self._seconds(name, row.kind, size)
                open_bucket[row.kind] = size
                if seconds:
                    found.append(_Beside(place, -1, row, seconds, path))
        return found

    def _from_last_step(self, columns: _Columns) -> list[_Beside]:
        """Gathers of parameters that the last step's optimizer has updated, in the order of their use."""
        found = []
        for block, row in self._late:
            for layer in block.layers:
                path = numbered(row.op.module, layer)
                own = range(layer, layer + abs(block.step)) if block.stack else (0,)
                needed = min(
                    (columns.begins[block.stack, k] for k in own if (block.stack, k) in columns.begins), default=0
                )
                found.append(_Beside(0, needed, row, row.duration, path, ready=True))
        return sorted(found, key=lambda each: each.needed)

    def _cuts(self, columns: _Columns, beside: Sequence[_Beside]) -> list[int]:
        """Where parts of the main chain begin, and the end."""
        length = len(columns.row)
        cuts = {0, length, *(each.issue for each in beside), *(each.needed for each in beside if each.needed >= 0)}
        if self.spelled and length:
            looks = [(row.op.module, row.way == "between", row.kind) for row in self._rows]
            names = {look: k for k, look in enumerate(dict.fromkeys(looks))}
            look = np.array([names[each] for each in looks])[columns.row]
            between = np.array([row.way == "between" for row in self._rows])[columns.row]
            change = (look[1:] != look[:-1]) | (columns.layer[1:] != columns.layer[:-1]) | between[1:]
            cuts.update((np.flatnonzero(change) + 1).tolist())
        return sorted(cuts)

    def _segment(self, columns: _Columns, at: int, seconds: float) -> tuple[str, str, str, str, float, int]:
        if at >= len(columns.row):
            return "compute", "forward", "nothing", "", 0.0, at
        row = self._rows[columns.row[at]]
        path = self._path(columns, at) if self.spelled else ""
        if self.spelled and row.way == "between":
            return row.kind, row.kind, _label(row.op), path, seconds, at
        phase = row.op.phase
        return "compute", phase, phase, path, seconds, at

    def _path(self, columns: _Columns, place: int) -> str:
        if not self.spelled:
            return ""
        return numbered(self._rows[columns.row[place]].op.module, int(columns.layer[place]))


#: What runs beside compute for the sake of an op that follows.
_BESIDE = {"all_gather_into_tensor": "gather", "send_recv": "ring"}

#: Names of ``torch.distributed`` to those of nccl-tests.
_NCCL_NAMES = {
    "all_reduce_": "all_reduce",
    "all_gather_into_tensor": "all_gather",
    "reduce_scatter_tensor": "reduce_scatter",
    "all_to_all_single": "all_to_all",
    "send_recv": "send_recv",
    "broadcast_": "broadcast",
}


def _label(op: Op) -> str:
    return op.name.removeprefix("c10d.").removesuffix("_").removesuffix("_into_tensor").removesuffix("_tensor")
