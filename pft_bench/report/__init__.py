"""Tables, verdicts and plots: pure functions of records."""

from .folder import read_folder
from .tables import problem_lines, results_table, stage_table, write_summary
from .write import SUMMARY, write_plots, write_report

__all__ = [
    "SUMMARY",
    "problem_lines",
    "read_folder",
    "results_table",
    "stage_table",
    "write_plots",
    "write_report",
    "write_summary",
]
