"""`pft-bench evaluate`: PSNR and SSIM on test sets, beside latency and memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ..common.container import check_threads
from ..common.drafts import named
from ..common.schedule import FocusSchedule, parse_schedule, schedule_of
from ..common.terminal import Console, counting_bar
from ..common.text import counted
from . import options
from .exits import FAILURE
from .work import at_work

if at_work(__name__):
    import torch
    from torch import Tensor

    from ..apps.quality import (
        QUALITY,
        Dataset,
        QualityRow,
        Variant,
        find_datasets,
        image_rows,
        rows_to_go_on_with,
    )
    from ..backends import get, require
    from ..harness.cases import SchedulesGroup
    from ..harness.cases.group import thread_count
    from ..harness.cases.settings import Settings, resolve_device
    from ..harness.measure.environment import environment
    from ..harness.measure.rounds import Plan
    from ..harness.record import (
        ENVIRONMENTS,
        PLAN,
        RECORDS,
        SETTINGS,
        Record,
        Status,
        remember_environment,
        remember_files,
    )
    from ..harness.sweep import Sweep, SweepPlan
    from ..harness.sweep.resume import content
    from ..model import PFT, preset_of, weights_file
    from ..report.quality import (
        QUALITY_TABLE,
        images_table,
        means_table,
        write_quality_csv,
        write_quality_plots,
    )
    from .loading import load_model, restorer
    from .progress import Display, StepLines
    from .sweeping import Limits, going_on_later, opened, run_folder


def evaluate(
    context: typer.Context,
    *,
    weights: Annotated[
        Path,
        options.read(
            help="PFT checkpoint or small_x2, the one that comes along; it tells the model and its scale."
        ),
    ],
    data: Annotated[
        Path,
        options.read(
            metavar="DIR",
            help="A test set, or a folder of them (Set5, Urban100, ...): images in HR, GT or directly; low-resolution "
            "ones in LR_bicubic/X4, or made by bicubic reduction.",
        ),
    ],
    sched: Annotated[
        list[str], typer.Option(help="Focus schedule to evaluate. Repeatable. Default: the model's own.")
    ] = [],  # noqa: B006 - typer reads it, nobody writes it
    backend: Annotated[
        list[str], typer.Option(help="Backend to evaluate. Repeatable. Default: the fastest.")
    ] = [],  # noqa: B006
    num_heads: options.NumHeads = None,
    machine: options.Machine,
    lr: options.Size = None,
    rounds: Annotated[int, typer.Option(min=0, help="Rounds in which latency is measured; 0: none is.")] = 20,
    budget: Annotated[
        float, typer.Option(help="Seconds that measuring latency may take; checks are not counted.")
    ] = 60.0,
    images: Annotated[bool, typer.Option("--images", help="Print each image, too.")] = False,
    out: Annotated[
        Path | None, options.folder(help="Result folder. Default: runs/quality-<date-time>.")
    ] = None,
    supervision: options.Supervision,
) -> None:
    """Restore test sets with each schedule on each backend: PSNR and SSIM on Y, latency, memory.

    Borders of as many pixels as the scale are cropped. Latency and memory are those of one photograph of --lr pixels,
    checked, in interleaved rounds, in a process of their own. Writes quality.jsonl (each image), quality.csv,
    records.jsonl and figures. Exit code 1 if an image or a variant has no result.

    --resume continues a folder, provided that nothing its rows depend on has changed: settings, weights, images, code,
    machine. Other schedules and backends may join it.
    """
    if not rounds:
        left_out = ("lr", "budget", "timeout", "memory_limit", "isolate")
        options.refuse(context, left_out, "is of measuring latency, which --rounds 0 leaves out")
    folder = run_folder(out, supervision.resume, "quality-{}")
    limits = Limits.of(context, supervision) if rounds else Limits(isolate=False)
    model = load_model(
        weights,
        sched=sched[0] if sched else None,
        heads=num_heads,
        device=machine.device,
        dtype=machine.dtype,
    )
    datasets = find_datasets(data, model.config.output_scale)
    settings = make_settings(model, weights, sched, backend, machine, options.parse_size(lr), rounds, budget)
    console, groups = Console.wide(120), [SchedulesGroup(settings)] if rounds else []
    what = f"the images that were done are in {folder / QUALITY}"
    with limits.workers(settings.device) as workers, going_on_later(folder, console, what):
        inputs = {"weights": content(weights_file(weights), ""), "data": _content_of(datasets)}
        sweep = Sweep(settings, folder, workers=workers, inputs=inputs, beside=QUALITY)
        with opened(sweep, groups, console, resume=supervision.resume) as plan:
            done = rows_to_go_on_with(folder / QUALITY)
            if not plan.done and not done:  # what the first rows depend on, as records do
                remember_environment(folder, sweep.describe_machine() if rounds else environment())
            with thread_count(settings.threads):
                rows = restore_all(model, datasets, settings, folder, console, done)
            records = measure_latency(sweep, plan, console)
    report(rows, records, folder, console, images=images)
    if any(row.reason for row in rows) or any(record.status is not Status.OK for record in records):
        raise typer.Exit(FAILURE)


def make_settings(
    model: PFT,
    weights: Path,
    sched: Sequence[str],
    backends: Sequence[str],
    machine: options.Machine,
    lr_hw: tuple[int, int] | None,
    rounds: int,
    budget: float,
) -> Settings:
    """What `pft-bench run` would measure, for the model of the weights instead of a preset's.

    Raises ValueError or `pft_bench.BackendUnavailable` where an option cannot be right.
    """
    if not budget > 0:
        raise ValueError(f"--budget must be positive seconds, got {budget}")
    if 0 < rounds < 6:
        raise ValueError(f"--rounds must be 0 or at least 6, got {rounds}")
    config, device = model.config, resolve_device(machine.device)
    torch_dtype = next(model.parameters()).dtype
    chosen = [require(name, torch.device(device), torch_dtype).name for name in (backends or ["auto"])]
    for name in chosen:
        if rounds and not get(name).timed:
            raise ValueError(
                f"backend {name!r} is checked, never timed: add --rounds 0 for its quality alone"
            )
    area = config.window_size**2
    schedules = [parse_schedule(text, config.depths, area) for text in sched]
    name = preset_of(config) or weights.stem
    plan = Plan(rounds=max(rounds, 6), max_rounds=max(60, rounds), budget_s=budget)
    return Settings(
        preset=name,
        config=config,
        schedules=tuple(dict.fromkeys(schedules)) or (schedule_of(config.num_topk, config.depths),),
        backends=tuple(dict.fromkeys(chosen)),
        levels=("model",),
        device=device,
        dtype=machine.dtype,
        mode="infer",
        threads=check_threads(machine.threads),
        seed=0,
        lr_hw=lr_hw or ((64, 64) if device == "cpu" else (360, 640)),
        image=None,
        weights=weights,
        plan=plan,
    )


def restore_all(
    model: PFT,
    datasets: Sequence[Dataset],
    settings: Settings,
    folder: Path,
    console: Console,
    done: Sequence[QualityRow],
) -> list[QualityRow]:
    """A row for each image and variant, appended to quality.jsonl as it comes; those that are `done` first."""
    assert settings.weights is not None
    about = {"weights": settings.weights.name, "device": settings.device, "dtype": settings.dtype}
    rows, known = list(done), {(row.dataset, row.image, row.variant) for row in done}
    total = sum(len(dataset.pairs) for dataset in datasets)
    console.print(
        f"{counted(total, 'image')} of {', '.join(dataset.name for dataset in datasets)}, "
        f"x{model.config.output_scale}; "
        f"{counted(len(settings.schedules), 'schedule')} on {settings.device}, backend {', '.join(settings.backends)} "
        f"-> {folder}",
    )
    for dataset in datasets:
        for remark in dataset.remarks:
            console.print(f"{dataset.name}: {remark}", style="yellow")
    scale, channels = model.config.output_scale, model.config.in_chans
    variants = _variants(model, settings)
    note = partial(console.print, style="yellow", markup=False, highlight=False, soft_wrap=True)
    bar, steps = counting_bar(console), StepLines(console)
    path = folder / QUALITY
    with named(path), path.open("a") as file, bar, torch.no_grad():
        task = bar.add_task("", total=total)
        for dataset in datasets:
            for number in range(len(dataset.pairs)):
                name = f"{dataset.name} {dataset.pairs[number].name}"
                bar.update(task, description=name)
                steps.tell(f"{name}, image {number + 1} of {len(dataset.pairs)}")
                for row in image_rows(dataset, number, scale, channels, variants, known, about, note):
                    file.write(row.to_json() + "\n")
                    file.flush()
                    rows.append(row)
                    if row.reason:
                        told = f"no result: {row.dataset} {row.image}, {row.variant.name}: {row.reason}"
                        console.print(told, style="red")
                bar.advance(task)
    return rows


def _variants(model: PFT, settings: Settings) -> dict[Variant, Callable[[], Callable[[Tensor], Tensor]]]:
    """Every schedule on every backend, and what sets the model to it."""

    def prepare(schedule: FocusSchedule, backend: str) -> Callable[[Tensor], Tensor]:
        model.backend, model.num_topk = backend, schedule.num_topk
        return restorer(model)

    return {
        Variant(schedule.text, backend): partial(prepare, schedule, backend)
        for schedule in settings.schedules
        for backend in settings.backends
    }


def _content_of(datasets: Sequence[Dataset]) -> str:
    """All images, by their names and contents."""
    digest, count = hashlib.sha256(), 0
    for dataset in datasets:
        for pair in dataset.pairs:
            for path in filter(None, (pair.high, pair.low)):
                digest.update(f"{dataset.name}/{pair.name}\n".encode(errors="surrogateescape"))
                with suppress(OSError):  # one that cannot be read is a row with the reason
                    digest.update(path.read_bytes())
            count += 1
    return f"{count} images (sha256 {digest.hexdigest()[:12]})"


def measure_latency(sweep: Sweep, plan: SweepPlan, console: Console) -> list[Record]:
    """Records of all variants on one photograph, those that the folder holds already too."""
    if not plan.left:
        return list(plan.done.values())
    height, width = sweep.settings.lr_hw
    console.print(
        f"measuring latency and memory on {height}x{width} pixels: checks, then at most "
        f"{sweep.settings.plan.budget_s:g} s of timing ...",
    )
    with Display(console, plan.left) as display:
        return [*plan.done.values(), *sweep.run(plan, display)]


def report(
    rows: Sequence[QualityRow], records: Sequence[Record], folder: Path, console: Console, *, images: bool
) -> None:
    """Print the tables; write quality.csv and the figure."""
    if images:
        console.print(images_table(rows))
    console.print(means_table(rows, records))
    for record in records:
        if record.reason:
            console.print(f"not measured: {record.case_id}: {record.reason}", style="red")
    made = len({(row.dataset, row.image) for row in rows if row.low_made})
    if made:
        console.print(f"{made} low-resolution images were made here by bicubic reduction")
    write_quality_csv(rows, folder)
    plots = write_quality_plots(rows, records, folder)
    files = [
        QUALITY,
        QUALITY_TABLE,
        *([RECORDS] if records else []),
        *(plot.name for plot in plots),
    ]
    remember_files(folder, [*files, ENVIRONMENTS, SETTINGS, *([PLAN] if records else [])])
    console.print(f"written to {folder}: {', '.join(files)}")
