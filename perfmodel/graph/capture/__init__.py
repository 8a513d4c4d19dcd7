"""Capture a PyTorch training step (the only part of ``graph`` that needs PyTorch)."""

from perfmodel.graph.capture.step import OPTIMIZERS, OptimizerLike, capture_forward, capture_module

__all__ = ["OPTIMIZERS", "OptimizerLike", "capture_forward", "capture_module"]
