"""Tables, verdicts and plots: pure functions of records."""

from .folder import RunFolder, read_folder
from .tables import problem_lines, results_table, stage_table, write_summary
from .write import write_plots, write_report

__all__ = [
    "RunFolder",
    "problem_lines",
    "read_folder",
    "results_table",
    "stage_table",
    "write_plots",
    "write_report",
    "write_summary",
]
