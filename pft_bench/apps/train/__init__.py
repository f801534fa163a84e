"""Training with the published recipe: one process or many, resumable, and the same numbers from the same seed."""

from .curve import CurveError
from .folder import require_new
from .loop import Diverged, TrainingProgress, TrainingStopped, fit
from .parallel import FirstStopped, Processes, process_group
from .photographs import Photographs
from .recipe import Recipe
from .start import start_as_interpolation, start_from
from .state import CheckpointError, export_weights, read_checkpoint, write_checkpoint
from .trainer import Trainer

__all__ = [
    "CheckpointError",
    "CurveError",
    "Diverged",
    "FirstStopped",
    "Photographs",
    "Processes",
    "Recipe",
    "Trainer",
    "TrainingProgress",
    "TrainingStopped",
    "export_weights",
    "fit",
    "process_group",
    "read_checkpoint",
    "require_new",
    "start_as_interpolation",
    "start_from",
    "write_checkpoint",
]
