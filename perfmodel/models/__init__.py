"""Transformers in plain PyTorch, built from a record of their dimensions, and a catalogue of published ones."""

from perfmodel.models.catalogue import names as model_names
from perfmodel.models.closed_form import closed_form_flops
from perfmodel.models.step import capture, from_fx

__all__ = ["capture", "closed_form_flops", "from_fx", "model_names"]
