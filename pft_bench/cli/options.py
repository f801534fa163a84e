"""Options that several commands share, and how their texts are read."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from ..common.container import require_possible
from ..common.schedule import require_readable


def _at_once(check: Callable[[Any], object]) -> Callable[[Any], Any]:
    """A callback that lets `check` raise for what can be seen to be wrong before anything is loaded."""

    def callback(value: Any) -> Any:
        for item in value if isinstance(value, list | tuple) else [value]:
            if item is not None:
                check(item)
        return value

    return callback


def _check_device(name: str) -> None:
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be cpu, cuda or auto, got {name!r}")


def _check_dtype(name: str) -> None:
    if not name.startswith(("float", "bfloat")) and name not in ("half", "double"):
        raise ValueError(f"dtype must be float32, float16, bfloat16 or float64, got {name!r}")


def _check_mode(name: str) -> None:
    if name not in ("infer", "train", "backward"):
        raise ValueError(f"mode must be one of infer, train, backward, got {name!r}")


def _check_scale(scale: int) -> None:
    if scale not in (2, 3, 4):
        raise ValueError(f"scale must be 2, 3 or 4, got {scale}")


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


SIZES = "a number of bytes such as 500M, 8G (10^9 each) or 8Gi (2^30 each)"
"""How `common.text.parse_bytes` is explained."""

_SCHEDULES = (
    "Kept entries per block, e.g. 1024,256,128 (the last holds for the rest); or paper, light, dense, "
    "alpha:RATIO[:FLOOR], layers:K,K,... Repeat it for a sweep."
)
Schedules = Annotated[
    list[str], typer.Option("--sched", callback=_at_once(require_readable), help=_SCHEDULES)
]
WeightsSchedules = Annotated[
    list[str],
    typer.Option(
        "--sched",
        callback=_at_once(require_readable),
        help=f"{_SCHEDULES} Default: what --weights were trained with, where pft-bench train made them; else "
        "1024,256,128, or the model's own where its windows have fewer tokens.",
    ),
]


def one_schedule(default: str) -> Any:
    """A single --sched; where the weights note none, `default`."""
    return typer.Option(
        "--sched",
        help="Focus schedule; see `pft-bench run --help`. Default: what --weights were trained with, where "
        f"pft-bench train made them, else {default}, or the model's own where that does not fit.",
    )


Preset = Annotated[
    str | None,
    typer.Option(
        help="classical, light or small, or with its scale: light_x4. Default: that of --weights; else light on a CPU, "
        "classical on a GPU."
    ),
]
Scale = Annotated[
    int | None,
    typer.Option(
        callback=_at_once(_check_scale), help="Enlargement of the preset: 2, 3 or 4. Default: 4 (small: 2)."
    ),
]


def size(default: str) -> Any:
    """--lr; `default` says what holds without it."""
    return typer.Option(
        "--lr",
        metavar="HxW",
        callback=_at_once(lambda text: parse_size(text)),
        help=f"Height x width of the low-resolution input: 360x640 is a wide picture. Default: {default}.",
    )


Size = Annotated[str | None, size("64x64 on a CPU, 360x640 on a GPU")]
Image = Annotated[
    Path | None, read(help="Picture to use as input, resized to --lr. Default: a bundled photo.")
]
NumHeads = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Number of attention heads, where neither the weights nor a published model's shape tells it.",
    ),
]
Weights = Annotated[
    Path | None,
    read(
        help="Checkpoint (.pth, .safetensors) or small_x2, the one that comes along. Default: generated weights."
    ),
]
Backends = Annotated[
    list[str],
    typer.Option(
        "--backend",
        help="Backend to measure beside the dense baseline. Repeatable. Default: all that run here.",
    ),
]
Device = Annotated[str, typer.Option(callback=_at_once(_check_device), help="cpu, cuda, or auto.")]
Dtype = Annotated[str, typer.Option(callback=_at_once(_check_dtype), help="float32, float16 or bfloat16.")]
Mode = Annotated[
    str,
    typer.Option(
        callback=_at_once(_check_mode),
        help="infer, train (forward and backward), or backward (alone; levels op and layer).",
    ),
]
Threads = Annotated[
    int,
    typer.Option(
        min=0,
        callback=_at_once(require_possible),
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
Resume = Annotated[bool, typer.Option("--resume", help="Continue the folder given by --out.")]
Timeout = Annotated[
    float, typer.Option(help="Seconds that one step of a case (check, warm-up, one sample) may take.")
]
MemoryLimit = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help=f"What a case may allocate beyond its start: {SIZES}. Default: all."),
]
Isolate = Annotated[
    bool, typer.Option(help="A process for each group of cases. Without it, debuggers see a single process.")
]
Seed = Annotated[int, typer.Option(help="Seed of synthetic inputs and of the order of the rounds.")]


@dataclass(frozen=True)
class Shapes:
    """Which model, on how large an input."""

    preset: Preset = None
    scale: Scale = None
    lr: Size = None

    def settings(self) -> dict[str, Any]:
        """As `Settings.make` takes them."""
        return {"preset_name": self.preset, "scale": self.scale, "lr_hw": parse_size(self.lr)}


@dataclass(frozen=True)
class ModelRun(Shapes):
    """A whole model on a picture."""

    image: Image = None
    weights: Weights = None
    num_heads: NumHeads = None

    def settings(self) -> dict[str, Any]:
        """As `Settings.make` takes them."""
        own = {"image": self.image, "weights": self.weights, "num_heads": self.num_heads}
        return super().settings() | own


@dataclass(frozen=True)
class Machine:
    """Where it runs, and in what precision."""

    device: Device = "auto"
    dtype: Dtype = "float32"
    threads: Threads = 0

    def settings(self) -> dict[str, Any]:
        """As `Settings.make` takes them."""
        return vars(self).copy()


@dataclass(frozen=True)
class Supervision:
    """Whether a folder is continued, and what the processes that measure may take."""

    resume: Resume = False
    timeout: Timeout = 1800.0
    memory_limit: MemoryLimit = None
    isolate: Isolate = True


def spread(
    function: Callable[..., Any],
) -> tuple[inspect.Signature, Callable[[dict[str, Any]], dict[str, Any]]]:
    """The signature of a command with each option of its groups as a parameter, and what puts the groups together.

    A group is a parameter whose type is a dataclass of options, such as `Machine`; it has no default of its own.
    """
    signature = inspect.signature(function, eval_str=True)
    groups: dict[str, type] = {}
    parameters = []
    for name, parameter in signature.parameters.items():
        kind: Any = parameter.annotation
        if not (isinstance(kind, type) and is_dataclass(kind)):
            parameters.append(parameter)
            continue
        groups[name] = kind
        hints = get_type_hints(kind, include_extras=True)
        parameters += [
            parameter.replace(name=item.name, annotation=hints[item.name], default=item.default)
            for item in fields(kind)
        ]

    def together(named: dict[str, Any]) -> dict[str, Any]:
        for name, kind in groups.items():
            named[name] = kind(**{item.name: named.pop(item.name) for item in fields(kind)})
        return named

    return signature.replace(parameters=parameters), together


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
