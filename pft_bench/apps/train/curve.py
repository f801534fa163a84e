"""The loss curve: a line for each step, and what of the file a checkpoint has seen."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from ...common.drafts import named

LINE = '{"step": ..., "loss": ..., "rate": ...}'


class CurveError(ValueError):
    """A file that does not hold the loss curve of this run; the message says which line, and what can be done."""


class Curve:
    """A file of lines `{"step": ..., "loss": ..., "rate": ...}`, one for each step, written by one process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._digest = hashlib.sha256()

    def begin(self) -> None:
        """Start a new file; what a run without a checkpoint left there goes."""
        with named(self.path):
            self.path.write_bytes(b"")
        self._digest = hashlib.sha256()

    def append(self, steps: Sequence[tuple[int, float, float]]) -> None:
        """Add (step, rate, loss) of the next steps."""
        text = "".join(
            json.dumps({"step": step, "loss": loss, "rate": rate}) + "\n" for step, rate, loss in steps
        ).encode()
        with named(self.path), self.path.open("ab") as file:
            file.write(text)
        self._digest.update(text)

    def mark(self) -> str:
        """The digest by which a checkpoint remembers the file, all of which is on the disk then."""
        with named(self.path), self.path.open("ab") as file:
            os.fsync(file.fileno())
        return self._digest.hexdigest()

    def resume(self, step: int, mark: object) -> str | None:
        """Leave the lines before `step`: what a killed run wrote after its checkpoint is computed again.

        Returns a sentence where losses are missing that the run once wrote. Raises CurveError where the file holds
        something that training did not write, or something else than it did; `mark` is the checkpoint's, if it has one.
        """
        existed = self.path.exists()
        with named(self.path):
            content = self.path.read_bytes() if existed else b""
        steps, ends = self._parsed(content)
        kept = sum(number < step for number in steps)
        end = ends[kept - 1] if kept else 0
        self._digest = hashlib.sha256(content[:end])
        lost = None
        if mark != self.mark():
            lost = self._lost(steps[:kept], step, existed)
            if isinstance(mark, str) and lost is None:
                raise CurveError(
                    f"{self.path} was changed after it was written: its losses before step {step} are not those of "
                    f"the run; {self._way_out()}"
                )
        with named(self.path):
            os.truncate(self.path, end)
        return lost

    def _parsed(self, content: bytes) -> tuple[list[int], list[int]]:
        """Steps of all lines, and the byte after each. A last line that a kill cut short does not count."""
        steps: list[int] = []
        ends = [0]
        *lines, rest = content.rstrip(b"\0").split(b"\n")  # zeros: a power cut's
        for line in [*lines, *([] if _begins_a_line(rest) else [rest])]:
            found = _step_of(line)
            if found is None or (steps and found <= steps[-1]):
                raise CurveError(
                    f"line {len(steps) + 1} of {self.path} must be the next step's {LINE}, "
                    f"got {line[:60].decode(errors='replace')!r}; {self._way_out()}"
                )
            steps.append(found)
            ends.append(ends[-1] + len(line) + 1)
        return steps, ends[1:]

    def _lost(self, steps: Sequence[int], step: int, existed: bool) -> str | None:
        missing = sorted(set(range(step)) - set(steps))
        if not missing:
            return None
        span = (
            f"step {missing[0]}"
            if len(missing) == 1
            else f"{len(missing)} steps from {missing[0]} to {missing[-1]}"
        )
        what = "lacks" if existed else "is gone, and with it"
        return f"{self.path} {what} the losses of {span}; training is not affected, the file goes on at step {step}"

    def _way_out(self) -> str:
        return f"mend it, or delete it to continue without those losses (the checkpoint does not need {self.path.name})"


def _begins_a_line(text: bytes) -> bool:
    start = LINE.partition(".")[0].encode()
    return text.startswith(start) or start.startswith(text)


def _step_of(line: bytes) -> int | None:
    """The step of a line that `Curve` wrote; None for any other."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or set(found) != {"step", "loss", "rate"}:
        return None
    numbers = all(type(found[name]) in (int, float) for name in ("loss", "rate"))
    return found["step"] if numbers and type(found["step"]) is int and found["step"] >= 0 else None
