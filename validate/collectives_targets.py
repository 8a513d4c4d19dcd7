"""What is fitted from the table of measured collectives, and what a fit gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from perfmodel.hardware.collectives import CollectiveConstants
from perfmodel.validation.collectives import Measurement
from validate.collectives_fit import Cases

__all__ = ["DEVICES", "Result", "Target", "targets"]

Floats = npt.NDArray[np.float64]

_OPS = {"all_reduce": "all_reduce", "all_gather": "all_gather", "reduce_scatter": "reduce_scatter"}
_ALL = {**_OPS, "alltoall": "all_to_all"}
#: Devices of the table, and what they're called.
DEVICES = {
    "nvidia-a100-sxm-80gb": "A100",
    "nvidia-h100-sxm-80gb": "H100",
    "nvidia-b200": "B200",
    "nvidia-l40s": "L40S",
    "intel-arc-pro-b60": "Arc Pro B60",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Rows that belong to one link, and the file that keeps its constants.

    Attributes
    ----------
    kind, name : str
        ``"node"`` or ``"fabric"``, and its name.
    node : str
        The node that the rows were measured on.
    device, source, dtype, topology : str
        Of the rows.
    nodes : int
    ops : mapping of str to str
        The table's name of each operation, and ours.
    """

    kind: str
    name: str
    node: str
    device: str
    source: str
    dtype: str
    topology: str
    nodes: int
    ops: Mapping[str, str]

    def rows(self, every: Sequence[Measurement], op: str) -> list[Measurement]:
        """Those of one operation, by the table's name."""
        key = (self.device, self.source, self.dtype, self.topology, self.nodes, op)
        return [one for one in every if (one.device, one.source, one.dtype, one.topology, one.nodes, one.op) == key]


def targets() -> tuple[Target, ...]:
    """What is fitted. The network of the A100 rows isn't named; its rate for each of four ports is that of EFA."""
    a100, h100, b200, l40s, arc = DEVICES
    nc96 = "azure-nc96ads-a100-v4"

    def nccl(name: str, device: str, ops: Mapping[str, str]) -> Target:
        return Target(
            kind="node", name=name, node=name, device=device, source="aiconfigurator", dtype="half", topology="",
            nodes=1, ops=ops,
        )  # fmt: skip

    def vidur(kind: str, name: str, node: str, device: str, topology: str, nodes: int, *ops: str) -> Target:
        return Target(
            kind=kind, name=name, node=node, device=device, source="vidur", dtype="fp16", topology=topology,
            nodes=nodes, ops={op: op for op in ops},
        )  # fmt: skip

    return (
        nccl("dgx-a100", a100, _ALL),
        nccl("dgx-h100", h100, _ALL),
        nccl("dgx-b200", b200, _ALL),
        nccl("server-l40s-8x", l40s, _ALL),
        nccl("workstation-arc-pro-b60-4x", arc, _OPS),
        vidur("node", "dgx-a100", "dgx-a100", a100, "dgx", 1, "send_recv"),
        vidur("node", "dgx-h100", "dgx-h100", h100, "dgx", 1, "send_recv"),
        vidur("node", nc96, nc96, a100, "pairwise_nvlink", 1, "all_reduce", "send_recv"),
        vidur("node", "server-h100-pcie-8x", "server-h100-pcie-8x", h100, "pairwise_nvlink", 1, "all_reduce"),
        vidur("fabric", "efa-v1-fat-tree", "aws-p4d.24xlarge", a100, "dgx", 2, "all_reduce", "send_recv"),
        vidur("fabric", "infiniband-ndr-rail", "dgx-h100", h100, "dgx", 2, "send_recv"),
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One operation on one link.

    Attributes
    ----------
    target, op
    cases : Cases
    constants : CollectiveConstants
        Of all rows.
    arrival : float
    held, plain, bare : ndarray
        Absolute relative errors on the half that wasn't fitted: ours, latency and bandwidth, datasheet.
    residuals, sizes : ndarray
        ``log(measured / predicted)`` of every row by the half that it isn't in, and its bytes.
    unseen : ndarray
        The same by the other numbers of ranks; empty where there is one number.
    """

    target: Target
    op: str
    cases: Cases
    constants: CollectiveConstants
    arrival: float
    held: Floats
    plain: Floats
    bare: Floats
    residuals: Floats
    unseen: Floats
