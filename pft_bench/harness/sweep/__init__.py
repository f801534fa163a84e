"""Sweeps that survive: every group in a process of its own, shares of a sweep for several machines, and plug-ins."""

from .foreign import held_folder
from .held import HeldFolder, RunFiles
from .isolation import Death, Workers, WorkersFailed, run_isolated
from .plugins import load_plugins
from .ranks import Ranks, find_ranks
from .shard import Shard
from .sweep import Sweep, SweepPlan, plan_sweep

__all__ = [
    "Death",
    "HeldFolder",
    "Ranks",
    "RunFiles",
    "Shard",
    "Sweep",
    "SweepPlan",
    "Workers",
    "WorkersFailed",
    "find_ranks",
    "held_folder",
    "load_plugins",
    "plan_sweep",
    "run_isolated",
]
