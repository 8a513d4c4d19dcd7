"""The host is a device too: a step is two queues.

The host issues ops in order, op i costing it h_i; an asynchronous device executes
them in order, op i taking t_i. With H_i and D_i the times at which issuing and
executing op i end::

    H_i = H_{i-1} + h_i                  D_i = max(H_i, D_{i-1}) + t_i

An op whose answer the host needs holds the host until D_i. Where host and device
are one (a CPU), every op is issued and executed before the next.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["QueueTimes", "two_queues"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueTimes:
    """How a step ran through the queues.

    Attributes
    ----------
    step_time : float
        Seconds until both queues are empty.
    device_busy, host_busy : float
        Seconds of executing and of issuing.
    device_idle : float
        Seconds in which the device waited for the host.
    end : ndarray of float64, shape [ops]
        When each op was complete.
    """

    step_time: float
    device_busy: float
    host_busy: float
    device_idle: float
    end: Floats


def two_queues(
    host: Floats, device: Floats, blocking: npt.NDArray[np.bool_], *, start: float = 0.0, synchronous: bool = False
) -> QueueTimes:
    """Run ops through host and device.

    Parameters
    ----------
    host, device : ndarray of float64, shape [ops]
        Seconds of issuing and executing each op, in order.
    blocking : ndarray of bool, shape [ops]
        Whether the host waits for the op's answer.
    start : float
        Seconds that the host spends before the first op.
    synchronous : bool
        Host and device are one.

    Examples
    --------
    >>> host, device = np.array([1.0, 1.0, 1.0]), np.array([5.0, 0.5, 0.5])
    >>> two_queues(host, device, np.array([False, False, False])).end
    array([6. , 6.5, 7. ])
    """
    busy, issuing = float(device.sum()), float(host.sum()) + start
    if synchronous:
        end = start + np.cumsum(host + device)
        total = float(end[-1]) if len(end) else start
        return QueueTimes(step_time=total, device_busy=busy, host_busy=issuing, device_idle=total - busy, end=end)
    end = np.empty_like(device)
    issued, executed = start, 0.0
    cuts = [*(np.flatnonzero(blocking) + 1).tolist(), len(device)]
    begin = 0
    for cut in cuts:
        part = slice(begin, cut)
        if cut > begin:
            times = issued + np.cumsum(host[part])
            work = np.cumsum(device[part])
            # D_i = work_i + max over j <= i of (H_j - work_{j-1}), and of the queue's own backlog.
            ready = np.maximum.accumulate(np.maximum(times - (work - device[part]), executed))
            end[part] = work + ready
            executed = float(end[cut - 1])
            issued = max(float(times[-1]), executed) if blocking[cut - 1] else float(times[-1])
        begin = cut
    total = max(issued, executed)
    return QueueTimes(step_time=total, device_busy=busy, host_busy=issuing, device_idle=total - busy, end=end)
