"""Predictions against measurements."""

from perfmodel.validation.rows import Row, Summary, report_dict, summarise, summary_table, write_report

__all__ = ["Row", "Summary", "report_dict", "summarise", "summary_table", "write_report"]
