"""The state that all contenders share, the process: read before a contender runs, compared and restored after it.

A kernel that leaves torch on one thread slows its rivals down; one that replaces the clock measures itself. Neither
gets a time, and who comes next finds the process as it was.
"""

from .flags import listeners
from .functions import holding_functions
from .snapshot import ProcessChanged, Snapshot, unchanged
from .tasks import running_threads, started

__all__ = [
    "ProcessChanged",
    "Snapshot",
    "holding_functions",
    "listeners",
    "running_threads",
    "started",
    "unchanged",
]
