"""perfmodel: how long a transformer takes to train on hardware that you don't have yet.

>>> import perfmodel as pm
>>> step = pm.capture("gpt2", batch=8, seq_len=1024, optimizer="adamw")  # doctest: +SKIP
>>> pm.predict(step, "nvidia-h100-sxm-80gb", runtime="eager").step_time  # doctest: +SKIP
"""

from perfmodel.errors import PerfModelError
from perfmodel.graph import Graph, load_graph, save_graph
from perfmodel.hardware import Device, device_names, load_device
from perfmodel.memory import MemoryProfile, largest_batch, memory_profile
from perfmodel.models import capture, closed_form_flops, from_fx, model_names
from perfmodel.predict import predict
from perfmodel.prediction import Prediction
from perfmodel.runtimes import Runtime, load_runtime, runtime_names

__version__ = "0.1.0"

__all__ = [
    "Device",
    "Graph",
    "MemoryProfile",
    "PerfModelError",
    "Prediction",
    "Runtime",
    "capture",
    "closed_form_flops",
    "device_names",
    "from_fx",
    "largest_batch",
    "load_device",
    "load_graph",
    "load_runtime",
    "memory_profile",
    "model_names",
    "predict",
    "runtime_names",
    "save_graph",
]
