"""Models in plain PyTorch, built from a record of their dimensions, and a catalogue of published ones."""

from perfmodel.models.adapters import AdaLoRA, BottleneckAdapter, LoRA, PrefixTuning, PromptTuning, QLoRA
from perfmodel.models.catalogue import names as model_names
from perfmodel.models.closed_form import closed_form_flops
from perfmodel.models.from_config import dims_from_config
from perfmodel.models.lengths import Lengths
from perfmodel.models.step import capture, from_fx

__all__ = [
    "AdaLoRA",
    "BottleneckAdapter",
    "Lengths",
    "LoRA",
    "PrefixTuning",
    "PromptTuning",
    "QLoRA",
    "capture",
    "closed_form_flops",
    "dims_from_config",
    "from_fx",
    "model_names",
]
