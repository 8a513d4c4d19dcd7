"""How long ops take on a device, and how host and device run beside each other."""

from perfmodel.timing.device import OpTimes, Rates, op_times, rates_of
from perfmodel.timing.host import QueueTimes, two_queues
from perfmodel.timing.work import OpWork, executed_matrix_flops

__all__ = ["OpTimes", "OpWork", "QueueTimes", "Rates", "executed_matrix_flops", "op_times", "rates_of", "two_queues"]
