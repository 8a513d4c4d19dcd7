"""Predictions and hardware for people: text and plots."""

from typing import TYPE_CHECKING

from perfmodel._lazy import lazy

if TYPE_CHECKING:
    from perfmodel.report.roofline import plot_roofline
    from perfmodel.report.text import prediction_text

__all__ = ["plot_roofline", "prediction_text"]

__getattr__ = lazy(
    __name__,
    {"plot_roofline": "perfmodel.report.roofline", "prediction_text": "perfmodel.report.text"},
)
