"""perfmodel: how long a transformer takes to train on hardware that you don't have yet.

>>> import perfmodel as pm
>>> step = pm.capture("gpt2", batch=8, seq_len=1024, optimizer="adamw")  # doctest: +SKIP
>>> pm.predict(step, "nvidia-h100-sxm-80gb", runtime="eager").step_time  # doctest: +SKIP
"""

import sys
import types
from typing import TYPE_CHECKING, Any

from perfmodel._lazy import lazy

if TYPE_CHECKING:
    from perfmodel.balance import balance
    from perfmodel.errors import PerfModelError
    from perfmodel.graph import Graph, load_graph, save_graph
    from perfmodel.hardware import (
        Cluster,
        Device,
        Fabric,
        Node,
        device_names,
        load_cluster,
        load_device,
        load_fabric,
        load_node,
    )
    from perfmodel.hardware.machine import load_machine
    from perfmodel.memory import MemoryProfile, largest_batch, memory_profile
    from perfmodel.models import (
        AdaLoRA,
        BottleneckAdapter,
        Lengths,
        LoRA,
        PrefixTuning,
        PromptTuning,
        QLoRA,
        capture,
        closed_form_flops,
        dims_from_config,
        from_fx,
        model_names,
    )
    from perfmodel.parallel.plan import Plan
    from perfmodel.predict import predict
    from perfmodel.prediction import Prediction
    from perfmodel.runtimes import Runtime, load_runtime, runtime_names

__version__ = "0.1.0"

__all__ = [
    "AdaLoRA",
    "BottleneckAdapter",
    "Cluster",
    "Device",
    "Fabric",
    "Graph",
    "Lengths",
    "LoRA",
    "MemoryProfile",
    "Node",
    "PerfModelError",
    "Plan",
    "Prediction",
    "PrefixTuning",
    "PromptTuning",
    "QLoRA",
    "Runtime",
    "balance",
    "capture",
    "closed_form_flops",
    "device_names",
    "dims_from_config",
    "from_fx",
    "largest_batch",
    "load_cluster",
    "load_device",
    "load_fabric",
    "load_graph",
    "load_machine",
    "load_node",
    "load_runtime",
    "memory_profile",
    "model_names",
    "predict",
    "runtime_names",
    "save_graph",
]

#: The names that each room gives.
_ROOMS = {
    "balance": ("balance",),
    "errors": ("PerfModelError",),
    "graph": ("Graph", "load_graph", "save_graph"),
    "hardware": (
        *("Cluster", "Device", "Fabric", "Node"),
        *("device_names", "load_cluster", "load_device", "load_fabric", "load_node"),
    ),
    "memory": ("MemoryProfile", "largest_batch", "memory_profile"),
    "models": (
        *("AdaLoRA", "BottleneckAdapter", "Lengths", "LoRA", "PrefixTuning", "PromptTuning", "QLoRA"),
        *("capture", "closed_form_flops", "dims_from_config", "from_fx", "model_names"),
    ),
    "hardware.machine": ("load_machine",),
    "parallel.plan": ("Plan",),
    "predict": ("predict",),
    "prediction": ("Prediction",),
    "runtimes": ("Runtime", "load_runtime", "runtime_names"),
}
_WHERE = {name: f"{__name__}.{room}" for room, names in _ROOMS.items() for name in names}


class _Package(types.ModuleType):
    """The package: ``pm.predict`` is the function, also once the module of that name has been imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "predict" and isinstance(value, types.ModuleType):
            value = value.predict
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


__getattr__ = lazy(__name__, _WHERE)


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
