"""What the software does, as data: kernels, optimizer kind, cost of the host."""

from perfmodel.runtimes.rewrite import rewrite
from perfmodel.runtimes.runtime import HostCost, Runtime, load_runtime, runtime_names

__all__ = ["HostCost", "Runtime", "load_runtime", "rewrite", "runtime_names"]
