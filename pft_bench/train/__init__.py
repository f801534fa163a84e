"""Training with the published recipe: one process or many, resumable, and the same numbers from the same seed."""

from .loop import Progress, fit
from .parallel import Group, process_group
from .photographs import Photographs
from .recipe import Recipe
from .start import start_as_interpolation, start_from
from .state import CheckpointError, export_weights, read_checkpoint, write_checkpoint
from .trainer import Trainer

__all__ = [
    "CheckpointError",
    "Group",
    "Photographs",
    "Progress",
    "Recipe",
    "Trainer",
    "export_weights",
    "fit",
    "process_group",
    "read_checkpoint",
    "start_as_interpolation",
    "start_from",
    "write_checkpoint",
]
