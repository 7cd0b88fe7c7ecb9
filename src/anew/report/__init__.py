"""The report of a run, or of several side by side: one HTML file that needs no network."""

from anew.report.page import REPORT, write_report
from anew.report.run import Run, read_run

__all__ = ["REPORT", "Run", "read_run", "write_report"]
