"""Options that several commands share, and how their texts are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Schedules = Annotated[
    list[str],
    typer.Option(
        "--sched",
        help="Kept entries per block, e.g. 1024,256,128 (the last holds for the rest); or paper, light, dense, "
        "alpha:RATIO[:FLOOR], layers:K,K,... Repeat it for a sweep.",
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(
        help="classical or light, or with its scale: light_x4. Default: light on a CPU, classical on a GPU."
    ),
]
Scale = Annotated[int | None, typer.Option(help="Enlargement of the preset: 2, 3 or 4. Default: 4.")]
Size = Annotated[
    str | None,
    typer.Option(
        "--lr", metavar="HxW", help="Height x width of the low-resolution input: 360x640 is a wide picture."
    ),
]
Image = Annotated[
    Path | None, typer.Option(help="Picture to use as input, resized to --lr. Default: a bundled photo.")
]
Weights = Annotated[
    Path | None, typer.Option(help="Checkpoint (.pth, .safetensors). Default: generated weights.")
]
Backends = Annotated[
    list[str],
    typer.Option("--backend", help="Backend to measure beside the dense baseline. Repeatable. Default: all."),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto.")]
Dtype = Annotated[str, typer.Option(help="float32, float16 or bfloat16.")]
Mode = Annotated[
    str, typer.Option(help="infer, train (forward and backward), or backward (alone; levels op and layer).")
]
Threads = Annotated[
    int, typer.Option(min=0, help="CPU threads; 0: as many as torch takes, or a CPU quota covers.")
]
Plugins = Annotated[
    list[str],
    typer.Option(
        "--plugin",
        metavar="MODULE|FILE.py",
        help="Import this first; it registers backends of yours (pft_bench.backends.register). Repeatable.",
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of synthetic inputs and of the order of the rounds.")]


def parse_bytes(option: str, text: str | None) -> int | None:
    """`2G`, `500M` or a plain number of bytes."""
    if text is None:
        return None
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
    number, unit = (text[:-1], units[text[-1].upper()]) if text[-1:].upper() in units else (text, 1)
    if not number.isdecimal() or not int(number):
        raise ValueError(f"{option} must be a size such as 500M or 2G, got {text!r}")
    return int(number) * unit


def parse_size(text: str | None) -> tuple[int, int] | None:
    """`HxW` as a pair of positive integers."""
    if text is None:
        return None
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise ValueError(
            f"--lr must be HxW, height first, with positive integers, e.g. 360x640, got {text!r}"
        )
    return int(height), int(width)
