"""What one run measures, as the command line decided it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...backends import get, registered, require, unavailable
from ...common.container import check_threads, usable_cores
from ...common.schedule import FocusSchedule, ScheduleError, parse_schedule, schedule_of
from ...model import PFTConfig, noted_settings, preset, preset_of, weights_config, weights_file
from ...model.config import ATTENTIONS, OWN_PRESETS, PRESETS
from ..measure.rounds import Plan
from ..problem import MODES, Problem, parse_dtype
from ..record import Case, Level, Mode
from ..record.yardsticks import BASELINE as BASELINE

LEVELS = ("op", "layer", "model", "threads")


def resolve_device(name: str) -> str:
    """`name`, or the device that "auto" means here; ValueError for one that does not exist."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu, cuda or auto, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda' is not available: PyTorch sees no GPU; see `pft-bench doctor`")
    return name


@dataclass(frozen=True)
class Settings:
    """Everything a run needs to know; built by `Settings.make`, which checks it."""

    preset: str
    config: PFTConfig
    schedules: tuple[FocusSchedule, ...]
    backends: tuple[str, ...]
    levels: tuple[str, ...]
    device: str
    dtype: str
    mode: Mode
    threads: int
    seed: int
    lr_hw: tuple[int, int]
    image: Path | None
    weights: Path | None
    plan: Plan = field(default_factory=Plan)
    attentions: tuple[str, ...] = ()
    """Attention variants to hold against each other at level model; none: backends are."""

    @classmethod
    def make(
        cls,
        *,
        schedules: Sequence[str],
        preset_name: str | None = None,
        scale: int | None = None,
        backends: Sequence[str] = (),
        levels: Sequence[str] = ("layer", "model"),
        device: str = "auto",
        dtype: str = "float32",
        mode: str = "infer",
        threads: int = 0,
        seed: int = 0,
        lr_hw: tuple[int, int] | None = None,
        image: Path | None = None,
        weights: Path | None = None,
        num_heads: int | None = None,
        plan: Plan | None = None,
        attentions: Sequence[str] = (),
        default_schedule: str = "1024,256,128",
    ) -> Settings:
        """Settings with defaults filled in: the model of the weights, else PFT light on a CPU, classical on a GPU.

        Without `schedules`, there is one: that which the weights were trained with, where their file notes it, else
        `default_schedule`, or the model's own where that does not fit.

        Raises ValueError (an argument cannot be right) or `pft_bench.BackendUnavailable`.
        """
        device = resolve_device(device)
        if scale not in (None, 2, 3, 4):
            raise ValueError(f"scale must be 2, 3 or 4, got {scale}")
        threads = check_threads(threads)
        torch_dtype = parse_dtype(dtype)
        for level in levels:
            if level not in LEVELS:
                raise ValueError(f"level must be one of {', '.join(LEVELS)}, got {level!r}")
        if "threads" in levels:
            _require_scaling(device, threads)
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        if mode == "backward" and not set(levels) <= {"op", "layer"}:
            raise ValueError(
                f"mode backward is for levels op and layer, got {', '.join(levels)}; mode train has a model's forward "
                f"and backward together"
            )
        if weights is None:
            if num_heads is not None:
                raise ValueError(f"--num-heads is of the model in --weights, got {num_heads} without weights")
            name, config = _preset_model(preset_name, scale, device)
        else:
            weights = weights_file(weights, "--weights")
            name, config = _weights_model(weights, preset_name, scale, schedules, num_heads)
        if image is not None and not image.exists():
            raise ValueError(f"the image must be a picture, got {image}: there is no such file")
        chosen = tuple(dict.fromkeys((BASELINE, *(backends or _default_backends(device, torch_dtype)))))
        for backend in chosen:
            require(backend, torch.device(device), torch_dtype)
            if not get(backend).timed:
                raise ValueError(f"backend {backend!r} is checked, never timed: use `pft-bench check`")
        return cls(
            preset=name,
            config=config,
            schedules=_schedules(schedules, _trained_schedule(weights, config) or default_schedule, config),
            backends=chosen,
            levels=tuple(levels),
            device=device,
            dtype=dtype,
            mode=mode,  # type: ignore[arg-type]
            threads=threads,
            seed=seed,
            lr_hw=lr_hw or ((64, 64) if device == "cpu" else (360, 640)),
            image=image,
            weights=weights,
            plan=plan or Plan(),
            attentions=_checked_attentions(attentions, levels),
        )

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch has it."""
        return parse_dtype(self.dtype)

    @property
    def windows(self) -> int:
        """Windows of the padded input."""
        size = self.config.window_size
        height, width = self.lr_hw
        return -(-height // size) * -(-width // size)

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.config.embed_dim // self.config.num_heads

    @property
    def shapes(self) -> dict[str, int]:
        """Sizes of the attention of this run's input, by their field names."""
        return {
            "windows": self.windows,
            "heads": self.config.num_heads,
            "tokens": self.config.window_size**2,
            "head_dim": self.head_dim,
        }

    @property
    def numbers(self) -> dict[str, Any]:
        """What is computed with them: precision, passes, seed of the inputs."""
        return {"dtype": self.dtype, "mode": self.mode, "seed": self.seed}

    def problem(self, op: str, candidates: int, kept: int) -> Problem:
        """`op` on the windows of this run's input."""
        sizes: dict[str, Any] = {**self.shapes, "candidates": candidates, "kept": kept}
        return Problem(op, **sizes, **self.numbers)

    def cases(self, level: Level, op: str, names: Sequence[str], **given: Any) -> dict[str, Case]:
        """Contender name -> its case; `given` are the fields that only this level has (shapes, k, schedule, ...)."""
        return {
            name: Case(
                level=level,
                op=op,
                backend=name,
                device=self.device,
                threads=self.threads,
                **self.numbers,
                **given,
            )
            for name in names
        }


def _preset_model(preset_name: str | None, scale: int | None, device: str) -> tuple[str, PFTConfig]:
    name = _preset_at(preset_name or ("classical" if device == "cuda" else "light"), scale)
    if scale is not None and not name.endswith(f"_x{scale}"):
        raise ValueError(f"scale must agree with preset {name!r}, got {scale}")
    return name, preset(name)


def _preset_at(name: str, scale: int | None) -> str:
    """`light_x4` for `light`: at this scale, else at 4, else at the only one there is. What has a scale stays."""
    if "_x" in name:
        return name
    known = PRESETS | OWN_PRESETS
    scales = [config.upscale for preset_name, config in known.items() if preset_name.startswith(f"{name}_x")]
    if not scales:
        families = dict.fromkeys(preset_name.partition("_x")[0] for preset_name in known)
        raise ValueError(
            f"preset must be one of {', '.join(families)}, or one with its scale ({', '.join(known)}), got {name!r}"
        )
    if scale is not None and scale not in scales:
        raise ValueError(f"scale must be {', '.join(map(str, scales))} with preset {name}, got {scale}")
    return f"{name}_x{scale or (4 if 4 in scales else scales[0])}"


def _weights_model(
    weights: Path, preset_name: str | None, scale: int | None, schedules: Sequence[str], num_heads: int | None
) -> tuple[str, PFTConfig]:
    """The model of the weights and its name, that of its preset or of the file; a preset that is given must be it."""
    given = {"num_topk": schedules[0] if schedules else None, "num_heads": num_heads}
    config = weights_config(weights, **{name: value for name, value in given.items() if value is not None})
    known = preset_of(config)
    if preset_name is not None:
        name = _preset_at(preset_name, scale or config.upscale)
        preset(name)
        if name != known:
            told = f"is a {known}" if known else "has the shape of no preset"
            raise ValueError(
                f"--preset must be that of --weights or be left out: {weights.name} {told}, got {preset_name!r}"
            )
    if scale not in (None, config.output_scale):
        raise ValueError(
            f"--scale must be that of --weights or be left out: {weights.name} enlarges {config.output_scale} times, "
            f"got {scale}"
        )
    return known or weights.stem, config


def _schedules(texts: Sequence[str], default: str, config: PFTConfig) -> tuple[FocusSchedule, ...]:
    area = config.window_size**2
    if texts:
        return tuple(parse_schedule(text, config.depths, area) for text in texts)
    try:
        return (parse_schedule(default, config.depths, area),)
    except ScheduleError:
        return (schedule_of(config.num_topk, config.depths),)


def _trained_schedule(weights: Path | None, config: PFTConfig) -> str | None:
    """The schedule that the weights were trained with, where their file notes one for a model of this depth."""
    noted = None if weights is None else noted_settings(weights).get("num_topk")
    if noted is None or len(noted) != sum(config.depths):
        return None
    return schedule_of(noted, config.depths).text


def _require_scaling(device: str, threads: int) -> None:
    """Threads beyond the cores would measure the scheduler."""
    if device != "cpu":
        raise ValueError(f"level threads is about CPU threads: it needs --device cpu, got {device}")
    cores = usable_cores()
    if cores < 2:
        raise ValueError("level threads needs at least 2 cores, got a process that may use 1")
    if not 2 <= threads <= cores:
        raise ValueError(
            f"threads must be 2 to {cores}, the cores there are, at level threads, got {threads}"
        )


def _checked_attentions(names: Sequence[str], levels: Sequence[str]) -> tuple[str, ...]:
    for name in names:
        if name not in ATTENTIONS:
            raise ValueError(f"attention must be of {', '.join(ATTENTIONS)}, got {name!r}")
    if len(names) == 1:
        raise ValueError(f"attention must name at least two variants to compare, got {names[0]!r}")
    if names and "threads" in levels:
        raise ValueError("attention variants and threads are two comparisons: leave out one, got both")
    if names and "model" not in levels:
        raise ValueError(f"attention is used at level model only, got levels {', '.join(levels)}")
    return tuple(dict.fromkeys(names))


def left_out(settings: Settings) -> list[tuple[str, str]]:
    """Kernel backends for this device that the run does not measure because of its dtype, and why."""
    found = []
    for name in ("cpu", "cuda", "triton"):
        backend = get(name)
        fits = settings.device in backend.devices and unavailable(backend) is None and backend.timed
        if fits and name not in settings.backends and settings.torch_dtype not in backend.dtypes:
            found.append((name, f"it has no {settings.dtype} kernels"))
    return found


def _default_backends(device: str, dtype: torch.dtype) -> list[str]:
    """Fast backends that can run here; the reference is for checking, not for timing."""
    found = []
    for name in ("cpu", "cuda", "triton", "official", *registered()):
        try:
            backend = require(name, torch.device(device), dtype)
        except (RuntimeError, ValueError, TypeError):
            continue
        if backend.timed:
            found.append(name)
    return found
