"""Focus schedules: how many attention entries each block of the model keeps.

Written as text, so that a command line, a record and a plot can name one:

- ``1024,256,128``: kept entries per block; the last value holds for the remaining blocks;
- ``paper``: 1024,256,128,64,32,16 (the published classical model; cut to the model's number of blocks);
- ``light``: 1024,256,128,64,32 (the published light model, likewise);
- ``dense``: nothing is ever dropped;
- ``alpha:0.5`` or ``alpha:0.5:16``: ``K^l = alpha * K^(l-1)`` from the window area on (arXiv 2503.20337, section
  3.3), rounded, never below the floor (default 1);
- ``layers:1024,1024,256,...``: one value for every layer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

PRESETS = {"paper": (1024, 256, 128, 64, 32, 16), "light": (1024, 256, 128, 64, 32)}


class ScheduleError(ValueError):
    """A schedule that cannot be read or does not fit the model."""


@dataclass(frozen=True)
class FocusSchedule:
    """Kept entries per layer of one model, with the text it was written as."""

    text: str
    num_topk: tuple[int, ...]
    """One value per layer, never increasing."""

    def per_block(self, depths: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """`num_topk` divided into blocks of the given depths."""
        blocks, start = [], 0
        for depth in depths:
            blocks.append(self.num_topk[start : start + depth])
            start += depth
        return tuple(blocks)


def parse_schedule(text: str, depths: Sequence[int], window_area: int) -> FocusSchedule:
    """The schedule `text` for a model with `depths` layers per block and `window_area` tokens in a window.

    Raises:
        ScheduleError: the text cannot be read, a value is not an integer in 1..window_area, values increase, or
            there are more values than blocks (layers, for the per-layer form).
    """
    text = text.strip()
    name, _, rest = text.partition(":")
    if name == "layers":
        num_topk = _integers(text, rest)
        if len(num_topk) != sum(depths):
            raise ScheduleError(
                f"schedule {text!r} must name one value for each of the model's {sum(depths)} layers, "
                f"got {len(num_topk)}"
            )
    else:
        num_topk = _expand(text, _block_values(text, name, rest, len(depths), window_area), depths)
    _validate(text, num_topk, window_area)
    return FocusSchedule(text, tuple(num_topk))


def require_readable(text: str) -> None:
    """ScheduleError for a text that is no schedule of any model."""
    text = text.strip()
    name, _, rest = text.partition(":")
    if name == "layers":
        _integers(text, rest)
    else:
        _block_values(text, name, rest, blocks=1, window_area=1 << 62)


def schedule_of(num_topk: Sequence[int], depths: Sequence[int]) -> FocusSchedule:
    """The schedule of these kept entries for each layer, written by blocks where it can be."""
    kept = tuple(num_topk)
    blocks = FocusSchedule("", kept).per_block(depths)
    if all(len(set(block)) == 1 for block in blocks):
        return FocusSchedule(",".join(str(block[0]) for block in blocks), kept)
    return FocusSchedule("layers:" + ",".join(map(str, kept)), kept)


def _block_values(text: str, name: str, rest: str, blocks: int, window_area: int) -> list[int]:
    if name == "alpha":
        return _geometric(text, rest, blocks, window_area)
    if rest:
        raise ScheduleError(
            f"schedule {text!r} must be comma-separated integers, alpha:RATIO[:FLOOR], layers:K,K,... "
            f"or one of {', '.join(PRESETS)}, dense; got the unknown form {name!r}"
        )
    if text == "dense":
        return [window_area]
    if text in PRESETS:
        return list(PRESETS[text])[:blocks]
    return _integers(text, text)


def _integers(text: str, listed: str) -> list[int]:
    values = []
    for item in listed.split(","):
        try:
            if not re.fullmatch(r"[+-]?[0-9]+", item.strip()):  # int() also takes 1_0 and other alphabets
                raise ValueError
            values.append(int(item))
        except ValueError:
            which = "" if item == text else f" {text!r}"
            raise ScheduleError(
                f"schedule{which} must be integers separated by commas, e.g. 1024,256,128 "
                f"(or {', '.join(PRESETS)}, dense, alpha:RATIO[:FLOOR], layers:K,K,...), got {item.strip()!r}"
            ) from None
    return values


def _geometric(text: str, rest: str, blocks: int, window_area: int) -> list[int]:
    ratio_text, _, floor_text = rest.partition(":")
    try:
        ratio, floor = float(ratio_text), int(floor_text or 1)
    except ValueError:
        raise ScheduleError(f"schedule {text!r} must be alpha:RATIO[:FLOOR], e.g. alpha:0.5:16") from None
    if not 0 < ratio <= 1:
        raise ScheduleError(f"schedule {text!r} must have a ratio above 0 and at most 1, got {ratio_text}")
    if not 1 <= floor <= window_area:
        raise ScheduleError(f"schedule {text!r} must have a floor in 1..{window_area}, got {floor}")
    return [max(floor, round(window_area * ratio**block)) for block in range(blocks)]


def _expand(text: str, values: list[int], depths: Sequence[int]) -> list[int]:
    if len(values) > len(depths):
        raise ScheduleError(
            f"schedule {text!r} must have at most one value per block, got {len(values)} values "
            f"for {len(depths)} blocks"
        )
    values = values + [values[-1]] * (len(depths) - len(values))
    return [value for value, depth in zip(values, depths, strict=True) for _ in range(depth)]


def _validate(text: str, num_topk: Sequence[int], window_area: int) -> None:
    for value in num_topk:
        if value < 1:
            raise ScheduleError(f"schedule {text!r} must keep at least 1 entry, got {value}")
        if value > window_area:
            raise ScheduleError(
                f"schedule {text!r} must keep at most the {window_area} tokens of a window, got {value}"
            )
    for earlier, later in pairwise(num_topk):
        if later > earlier:
            raise ScheduleError(
                f"schedule {text!r} must not increase (a dropped entry cannot come back), "
                f"got {later} after {earlier}"
            )
