"""Options that several commands share, and how their texts are read."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

import typer

from ..common.container import check_threads


def _possible_threads(threads: int) -> int:
    """Far too many end the OpenMP runtime with a crash, in whatever command: refused before any begins."""
    check_threads(threads)
    return threads


def given(context: typer.Context) -> dict[str, str]:
    """Parameter -> how its option is written, for everything that the command line gives itself."""
    options = {param.name: param.opts[0] for param in context.command.params}
    sources = {name: context.get_parameter_source(name) for name in options}
    return {
        name: options[name] for name, source in sources.items() if source and source.name == "COMMANDLINE"
    }


def refuse(context: typer.Context, names: Collection[str], why: str) -> None:
    """ValueError where one of these parameters is given, which would change nothing; `why` says so."""
    found = [option for name, option in given(context).items() if name in names]
    if found:
        raise ValueError(f"{found[0]} {why}")


def refuse_what_is_read(out: Path | None, *inputs: Path | None) -> None:
    """ValueError where --out is a file that the command reads, by whatever name."""
    if (
        out is not None
        and out.exists()
        and any(path and path.exists() and out.samefile(path) for path in inputs)
    ):
        raise ValueError(f"--out must not be what is read, got {out}")


def in_path(text: str | Path) -> Path:
    """What is read: any name but the empty one, which Python takes for the current folder; `a/` is no file."""
    if text == "":
        raise typer.BadParameter("it must name a file or a folder, got an empty text")
    path = Path(text)
    if str(text).endswith("/") and path.exists() and not path.is_dir():
        raise typer.BadParameter(f"it must be a folder where it ends in /, got the file {path}")
    return path


def out_folder(text: str | Path) -> Path:
    """A folder to write to, which need not exist."""
    path = in_path(text)
    if path.exists() and not path.is_dir():
        raise typer.BadParameter(f"it must be a folder, got the file {path}")
    return path


def out_file(text: str | Path) -> Path:
    """A file to write, which need not exist."""
    path = in_path(text)
    if str(text).endswith("/") or path.is_dir():
        raise typer.BadParameter(f"it must be a file, got the folder {text}")
    return path


def _option(parser: Any, metavar: str, names: tuple[str, ...], **about: Any) -> Any:
    return typer.Option(*names, parser=parser, metavar=metavar, **about)


def read(*names: str, **about: Any) -> Any:
    """An option that names what is read."""
    return _option(in_path, about.pop("metavar", "FILE"), names, **about)


def folder(*names: str, **about: Any) -> Any:
    """An option that names a folder to write to."""
    return _option(out_folder, "DIR", names, **about)


def file(*names: str, **about: Any) -> Any:
    """An option that names a file to write."""
    return _option(out_file, "FILE", names, **about)


def argument(metavar: str, parser: Any = in_path, **about: Any) -> Any:
    """A positional argument that names a file or a folder."""
    return typer.Argument(parser=parser, metavar=metavar, **about)


_SCHEDULES = (
    "Kept entries per block, e.g. 1024,256,128 (the last holds for the rest); or paper, light, dense, "
    "alpha:RATIO[:FLOOR], layers:K,K,... Repeat it for a sweep."
)
Schedules = Annotated[list[str], typer.Option("--sched", help=_SCHEDULES)]
WeightsSchedules = Annotated[
    list[str],
    typer.Option(
        "--sched",
        help=f"{_SCHEDULES} Default: what --weights were trained with, where pft-bench train made them; else "
        "1024,256,128, or the model's own where its windows have fewer tokens.",
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(
        help="classical or light, or with its scale: light_x4. Default: that of --weights; else light on a CPU, "
        "classical on a GPU."
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
    Path | None, read(help="Picture to use as input, resized to --lr. Default: a bundled photo.")
]
NumHeads = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Attention heads of a model in --weights whose weights do not tell them and that is no published one.",
    ),
]
Weights = Annotated[Path | None, read(help="Checkpoint (.pth, .safetensors). Default: generated weights.")]
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
    int,
    typer.Option(
        min=0,
        callback=_possible_threads,
        help="CPU threads; 0: as many as torch takes, or a CPU quota covers.",
    ),
]
Plugins = Annotated[
    list[str],
    typer.Option(
        "--plugin",
        metavar="MODULE|FILE.py",
        help="Import this first; it registers backends of yours (pft_bench.backends.register). Repeatable.",
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the folder given by --out.")]
Timeout = Annotated[
    float, typer.Option(help="Seconds that one step of a case (check, warm-up, one sample) may take.")
]
MemoryLimit = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="What a case may allocate beyond its start, e.g. 2G. Default: all."),
]
Isolate = Annotated[
    bool, typer.Option(help="A process for each group of cases. Without it, debuggers see a single process.")
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
