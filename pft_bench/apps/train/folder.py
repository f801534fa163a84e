"""The folder of a training run: checkpoint.pt, loss.jsonl and weights.safetensors, and what they say together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .curve import Curve
from .state import CheckpointError, export_weights, read_checkpoint, write_checkpoint
from .trainer import Trainer

CHECKPOINT, CURVE, WEIGHTS = "checkpoint.pt", "loss.jsonl", "weights.safetensors"


class TrainingFolder:
    """Where one run keeps its files. Only the first process writes; the folder must be locked."""

    def __init__(self, path: Path, run: dict[str, Any], notes: dict[str, str]) -> None:
        self.path, self._run, self._notes = path, run, notes
        self.saved: int | None = None
        """Steps that the checkpoint has behind it; None without one."""
        self.weights = path / WEIGHTS
        self._curve = Curve(path / CURVE)

    def begin(self) -> None:
        """Start a run here. Raises ValueError where another run has left something that nobody may overwrite."""
        require_new(self.path)
        self._curve.begin()

    def read(self, trainer: Trainer) -> dict[str, Any]:
        """Bring `trainer` to the checkpoint's state, which is returned. CheckpointError where that cannot be."""
        path = self.path / CHECKPOINT
        state = read_checkpoint(path, self._run, trainer.device)
        try:
            trainer.load_state_dict(state)
            why = trainer.trouble()
        except ValueError as error:
            raise CheckpointError(f"{path} is damaged or of another model: {error}") from error
        if why is not None:
            raise CheckpointError(f"{path} cannot be resumed: {why}")
        self.saved = trainer.step
        return state

    def resume(self, trainer: Trainer, state: dict[str, Any]) -> str | None:
        """Make the other files fit the checkpoint; a sentence about losses that are gone, or None.

        A kill between a checkpoint and its weights leaves older ones or none: they are written again.
        """
        lost = self._curve.resume(trainer.step, state.get("curve"))
        self._export(trainer)
        return lost

    def append(self, steps: Sequence[tuple[int, float, float]]) -> None:
        """Add (step, rate, loss) of the next steps to the curve."""
        self._curve.append(steps)

    def save(self, trainer: Trainer) -> None:
        """Write the checkpoint, then the weights of its moving average."""
        state = trainer.state_dict() | {"curve": self._curve.mark()}
        write_checkpoint(self.path / CHECKPOINT, state, self._run)
        self.saved = trainer.step
        self._export(trainer)

    def _export(self, trainer: Trainer) -> None:
        notes = self._notes | {"steps": str(trainer.step)}
        export_weights(self.weights, trainer.ema, notes)

    def told(self) -> str:
        """What is on the disk, for somebody whose run has stopped."""
        if self.saved is None:
            return f"no checkpoint has been written to {self.path} yet"
        return f"{self.path / CHECKPOINT} holds the run after {self.saved} steps"


def require_new(path: Path) -> None:
    """Raise ValueError where a run has left a checkpoint or weights in `path`."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"--out must be a folder, got the file {path}")
    for name in (CHECKPOINT, WEIGHTS):
        if (path / name).exists():
            more = " (or add --resume)" if name == CHECKPOINT else ""
            raise ValueError(f"--out must be a new folder{more}, got {path} with {name}")
