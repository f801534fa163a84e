"""The state that all contenders share, the process: read before a contender runs, compared and restored after it.

A kernel that leaves torch on one thread slows its rivals down; one that replaces the clock measures itself. Neither
gets a time, and who comes next finds the process as it was.
"""

from .files import Find, Marks, marks, watching_files
from .flags import listeners, signal_handlers
from .functions import holding_functions
from .snapshot import ProcessChanged, Snapshot, importing, unchanged
from .tasks import adopt, children, end_children, end_if_forked, running_threads, started
from .watched import own_backends

__all__ = [
    "Find",
    "Marks",
    "ProcessChanged",
    "Snapshot",
    "adopt",
    "children",
    "end_children",
    "end_if_forked",
    "holding_functions",
    "importing",
    "listeners",
    "marks",
    "own_backends",
    "running_threads",
    "signal_handlers",
    "started",
    "unchanged",
    "watching_files",
]
