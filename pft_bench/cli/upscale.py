"""`pft-bench upscale`: pictures in, larger pictures out."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ..common.container import check_threads
from ..common.drafts import require_writable
from ..common.terminal import Console, counting_bar, line
from ..common.text import in_short, parse_bytes
from . import options
from .exits import FAILURE, INTERRUPTED
from .work import at_work

if at_work(__name__):
    import torch
    from rich.progress import TaskID

    from ..apps.images import (
        READ_SUFFIXES,
        SUFFIXES,
        PictureError,
        enlarge,
        fit_to_file,
        pictures_left_out,
        read_picture,
        walk_pictures,
        write_picture,
    )
    from ..harness.cases.group import thread_count
    from ..model import PFT, Seams, parse_tile, plan_upscale
    from .loading import load_model, restorer

_FORMATS = {".png": "png", ".jpg": "jpg", ".jpeg": "jpg", ".webp": "webp", ".tif": "tif", ".tiff": "tif"}
LOSSY = (".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Enlargement:
    """One picture and where its enlargement goes."""

    source: Path
    target: Path


def upscale(
    source: Annotated[Path, options.argument("IN", help="A picture, or a folder (with its subfolders).")],
    target: Annotated[
        str,
        typer.Argument(metavar="OUT", help="The file to write, or a folder (a name that ends in / is one)."),
    ],
    weights: Annotated[
        Path,
        options.read(
            help="PFT checkpoint (.pth, .pt, .safetensors) or small_x2, the one that comes along; it tells the model "
            "and its scale."
        ),
    ],
    backend: Annotated[str, typer.Option(help="Kernels that compute the attention.")] = "auto",
    sched: Annotated[
        str | None, typer.Option(help="Focus schedule, e.g. 1024,256,128. Default: the model's own.")
    ] = None,
    num_heads: options.NumHeads = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "float32",
    threads: options.Threads = 0,
    tile: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE[:OVERLAP]",
            help="Side of a tile in pixels of the input, a multiple of the window and one window more than OVERLAP "
            "at least; OVERLAP, what neighbours share, is a multiple of half a window, by default one window. Default: "
            "the whole picture where memory suffices, else tiles as large as it allows.",
        ),
    ] = None,
    seams: Annotated[
        bool,
        typer.Option(
            "--seams",
            help="With --tile: also compute each picture whole, and tell how far the tiles are from it.",
        ),
    ] = False,
    memory: Annotated[
        str | None, typer.Option(help=f"Memory to use: {options.SIZES}. Default: 80% of what is free.")
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(help="png, jpg, webp or tif. Default: that of each picture, png where it is BMP."),
    ] = None,
    quality: Annotated[
        int | None, typer.Option(min=1, max=100, help="Quality of JPEG and WebP. Default: 95.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
) -> None:
    """Enlarge pictures with a PFT checkpoint: PNG, JPEG, WebP, TIFF and BMP, 8 and 16 bits, grey, with alpha.

    The profile, EXIF, XMP, IPTC and the density are kept where the format has a place for them; the line of each
    picture says what was not. A picture that cannot be read or written is reported and the others go on; the exit code
    is 1 then. Files that exist are left alone and counted; pictures of other formats in a folder are named.
    Ctrl-C: exit code 130, and what was written stays.
    """
    jobs = plan_jobs(source, target, format)
    if quality is not None and not any(job.target.suffix.lower() in LOSSY for job in jobs):
        raise ValueError("--quality is that of JPEG and WebP, and no picture is written as either")
    if tile is not None and memory is not None:
        raise ValueError(
            "--tile decides how large tiles are, and --memory lets them be chosen: give one of them"
        )
    if all(os.path.realpath(job.target) == os.path.realpath(job.source) for job in jobs):
        raise ValueError(f"OUT must not be IN, whose pictures are never replaced, got {target}")
    if len(jobs) == 1 and jobs[0].target.exists() and not overwrite:
        raise ValueError(f"{jobs[0].target} exists: choose another name, or add --overwrite")
    tiles = None if tile is None else parse_tile(tile)
    if seams and tiles is None:
        raise ValueError("--seams compares tiles with the whole picture: it needs --tile")
    memory_bytes = None if memory is None else parse_bytes(memory, "--memory")
    model = load_model(weights, backend=backend, sched=sched, heads=num_heads, device=device, dtype=dtype)
    if tiles is not None:
        plan_upscale(model, (1, 1), tile=tiles[0], overlap=tiles[1])  # says at once what cannot be
    console = Console()
    for remark in pictures_left_out(source, without=Path(target)) if source.is_dir() else ():
        console.print(remark)
    upscaler = Upscaler(model, console, quality or 95, overwrite, tiles, memory_bytes, seams)
    with thread_count(check_threads(threads)), torch.no_grad():
        done = upscaler.run(jobs)
    parts = [f"{done.written} written"]
    parts += [f"{done.left} left as they are: they exist (--overwrite replaces them)"] if done.left else []
    parts += [f"{done.failed} failed"] if done.failed else []
    parts += [f"interrupted, {done.not_tried} not done"] if done.interrupted else []
    console.print(", ".join(parts))
    if done.interrupted:
        raise typer.Exit(INTERRUPTED)
    if done.failed:
        raise typer.Exit(FAILURE)


def plan_jobs(source: Path, out: str, format: str | None) -> list[Enlargement]:
    """Which pictures there are and what they will be called; `out` is a folder where it ends in / or is one.

    Raises ValueError where there are none, or where the names cannot be right.
    """
    if not out:
        raise ValueError("OUT must name a file or a folder, got an empty text")
    if out == "-":
        raise ValueError(
            "OUT must name a file or a folder, got '-': pictures do not go to standard output (./- is a name)"
        )
    target = Path(out)
    folder = out.endswith("/") or target.is_dir()
    if out.endswith("/") and target.exists() and not target.is_dir():
        raise ValueError(f"OUT must be a folder where it ends in /, got the file {target}")
    suffix = None
    if format is not None:
        suffix = "." + format.lower().lstrip(".")
        if suffix not in SUFFIXES:
            raise ValueError(f"--format must be one of png, jpg, webp, tif, got {format!r}")
    if source.is_dir():
        if target.exists() and not target.is_dir():
            raise ValueError(f"OUT must be a folder when IN is one, got the file {target}")
        if not folder and target.suffix.lower() in SUFFIXES:
            raise ValueError(
                f"OUT must be a folder when IN is one, got a picture's name {str(target)!r} (a folder of that name: "
                f"{target}/)"
            )
        found = walk_pictures(source, without=target)
        if not found:
            told = "".join(f"; {remark}" for remark in pictures_left_out(source, without=target))
            raise ValueError(
                f"IN must hold pictures ({', '.join(READ_SUFFIXES)}), got {source} without any{told}"
            )
        return [Enlargement(path, _renamed(target / path.relative_to(source), suffix)) for path in found]
    if not source.exists():
        raise ValueError(f"IN must be a picture or a folder, got {source}: there is no such file")
    if not source.is_file():
        raise ValueError(f"IN must be a picture or a folder, got {source}: a device or a pipe")
    if not folder and target.name.lower() in SUFFIXES:
        raise ValueError(f"OUT must be a name, got {str(target)!r}, whose name is a suffix alone")
    if not folder and target.suffix.lower() in SUFFIXES:
        if suffix is not None and _FORMATS.get(suffix) != _FORMATS.get(target.suffix.lower()):
            raise ValueError(f"--format {format} does not agree with the name {target.name!r}")
        return [Enlargement(source, target)]
    if not folder and target.suffix:
        raise ValueError(f"OUT must end in {', '.join(SUFFIXES)} or be a folder, got {target.name!r}")
    return [Enlargement(source, _renamed(target / source.name, suffix))]


def _renamed(path: Path, suffix: str | None) -> Path:
    if suffix is None and path.suffix.lower() in READ_SUFFIXES and path.suffix.lower() not in SUFFIXES:
        suffix = ".png"  # what is read and not written
    return path if suffix is None else path.with_suffix(suffix)


@dataclass
class Counts:
    """How the pictures of a run ended."""

    written: int = 0
    left: int = 0
    failed: int = 0
    not_tried: int = 0
    interrupted: bool = False


class Upscaler:
    """Runs jobs one by one, tells what becomes of each, and goes on after a picture that fails."""

    def __init__(
        self,
        model: PFT,
        console: Console,
        quality: int,
        overwrite: bool,
        tile: tuple[int, int | None] | None = None,
        memory_bytes: int | None = None,
        seams: bool = False,
    ) -> None:
        self.model = model
        self.seams = seams
        self.tile = tile
        self.memory_bytes = memory_bytes
        self.console = console
        self.quality = quality
        self.overwrite = overwrite
        self._parameter = next(model.parameters())
        self._seams: list[Seams] = []  # of the picture under way: one, or one for each plane
        self._bar = counting_bar(console, "tiles")

    def run(self, jobs: Sequence[Enlargement]) -> Counts:
        """Do all jobs."""
        done = Counts()
        written: dict[Path, Path] = {}
        sources = {os.path.realpath(job.source) for job in jobs}
        with self._bar:
            for number, job in enumerate(jobs, start=1):
                try:
                    if job.target in written:
                        raise PictureError(f"{job.target} was just written from {written[job.target]}")
                    if os.path.realpath(job.target) in sources:
                        raise PictureError(f"{job.target} is one of the pictures, which are never replaced")
                    if job.target.exists() and not self.overwrite:
                        done.left += 1
                        continue
                    self._one(job, f"{number}/{len(jobs)} {job.source.name}")
                    written[job.target] = job.source
                    done.written += 1
                except KeyboardInterrupt:
                    done.interrupted, done.not_tried = True, len(jobs) - number + 1
                    break
                except (ValueError, RuntimeError, OSError, MemoryError) as error:
                    done.failed += 1
                    self.console.print(line(("failed", "bold red"), f" {_told(job, error)}"))
                    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                        done.failed += len(jobs) - number
                        self.console.print(
                            line(("stopped", "bold red"), f": no space left, {len(jobs) - number} not tried")
                        )
                        break
        return done

    def _one(self, job: Enlargement, title: str) -> None:
        started = time.perf_counter()
        self._seams.clear()
        picture = read_picture(job.source)
        height, width = (side * self.model.config.output_scale for side in picture.size_hw)
        if job.target.exists() and job.target.samefile(job.source):
            raise PictureError(f"{job.target} is the picture itself, which is never replaced")
        picture, lost = fit_to_file(job.target, picture, (height, width))
        require_writable(job.target)
        task = self._bar.add_task(f"{title} to {width}x{height}", total=1)
        result = enlarge(
            picture,
            lambda x: self._restore(x, task),
            self.model.config.output_scale,
            channels=self.model.config.in_chans,
            device=str(self._parameter.device),
            dtype=self._parameter.dtype,
        )
        self._bar.remove_task(task)
        write_picture(job.target, result, quality=self.quality)
        worst = min(self._seams, key=lambda found: found.psnr_db, default=None)
        seams = [] if worst is None else [f"tiles against the whole: {worst}"]
        notes = "".join(f"; {note}" for note in (*picture.notes, *lost, *seams))
        seconds = time.perf_counter() - started
        self.console.print(f"{job.source} -> {job.target}, {width}x{height}, {seconds:.1f} s{notes}")

    def _restore(self, x: torch.Tensor, task: TaskID) -> torch.Tensor:
        def progress(done: int, total: int) -> None:
            self._bar.update(task, completed=done, total=total)

        result = restorer(self.model, tile=self.tile, memory_bytes=self.memory_bytes, progress=progress)(x)
        if self.seams:
            whole = self.model(x.to(result.device, result.dtype))
            self._seams.append(Seams.between(result, whole))
        return result


def _told(job: Enlargement, error: Exception) -> str:
    """One line about an error, which names the picture."""
    text = in_short(error)
    if isinstance(error, OSError) and error.filename is None:
        text = f"{text}: {job.target}"
    return text if str(job.source) in text else f"{job.source}: {text}"
