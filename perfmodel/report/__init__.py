"""Predictions for people: text and plots."""

from perfmodel.report.roofline import plot_roofline
from perfmodel.report.text import prediction_text

__all__ = ["plot_roofline", "prediction_text"]
