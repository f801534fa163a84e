"""Tables, verdicts and plots: pure functions of records."""

from .plots import write_plots
from .tables import problem_lines, results_table, stage_table, write_summary

__all__ = ["problem_lines", "results_table", "stage_table", "write_plots", "write_summary"]
