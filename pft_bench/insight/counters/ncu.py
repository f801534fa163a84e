"""Nsight Compute's counters of launches on a GPU, beside those of the emulator and the predicted time."""

from __future__ import annotations

import csv
import io
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .counted import CountedLaunch
from .emulate import Work
from .model import Prediction

# Ours -> theirs, summed. Names of Nsight Compute 2020 and later, for compute capability 8.0 and up.
METRICS: dict[str, tuple[str, ...]] = {
    "seconds": ("gpu__time_duration.sum",),
    "wavefronts": ("l1tex__data_pipe_lsu_wavefronts_mem_shared.sum",),
    "read_requests": ("l1tex__t_requests_pipe_lsu_mem_global_op_ld.sum",),
    "read_sectors": ("l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum",),
    "write_requests": ("l1tex__t_requests_pipe_lsu_mem_global_op_st.sum",),
    "write_sectors": ("l1tex__t_sectors_pipe_lsu_mem_global_op_st.sum",),
    "async_sectors": ("l1tex__t_sectors_pipe_lsu_mem_global_op_ldgsts.sum",),
    "mma": ("smsp__inst_executed_pipe_tensor.sum",),
    "issue": ("smsp__inst_executed.sum",),
    "alu": ("smsp__inst_executed_pipe_alu.sum",),
    "fma": ("smsp__inst_executed_pipe_fma.sum",),
    "mufu": ("smsp__inst_executed_pipe_xu.sum",),
    "l2_bytes": ("lts__t_sectors_op_read.sum", "lts__t_sectors_op_write.sum"),
    "dram_bytes": ("dram__bytes_read.sum", "dram__bytes_write.sum"),
}
_SECTORS_OF = {"l2_bytes": 32}
"""What theirs is multiplied with."""
# With --print-units base times are nanoseconds; older versions say so in other words.
_UNITS = {
    "ns": 1e-9,
    "nsecond": 1e-9,
    "us": 1e-6,
    "usecond": 1e-6,
    "ms": 1e-3,
    "msecond": 1e-3,
    "s": 1.0,
    "second": 1.0,
}
_KILO = {"Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9}


@dataclass(frozen=True)
class Profiled:
    """One launch as Nsight Compute saw it; metrics that it did not give are not there."""

    kernel: str
    counts: dict[str, float]


def find_ncu() -> str | None:
    """Nsight Compute's command line, on PATH or in the toolkit; None where it is not installed."""
    for place in (shutil.which("ncu"), "/usr/local/cuda/bin/ncu", "/opt/nvidia/nsight-compute/ncu"):
        if place and Path(place).is_file():
            return place
    return None


def command(ncu: str, program: Sequence[str]) -> list[str]:
    """What profiles `program`'s launches of this project and prints one metric a line."""
    names = sorted({name for names in METRICS.values() for name in names})
    kernels = "regex:sddmm|spmm|attention_|bias_gradient"
    return [
        # clocks as they are: on a shared machine they are nobody's to set
        ncu, "--clock-control", "none", "--csv", "--page", "raw", "--print-units", "base", "--kernel-name-base",
        "function", "--kernel-name", kernels, "--metrics", ",".join(names), *program,
    ]  # fmt: skip


def parse(text: str) -> list[Profiled]:
    """Launches in the order in which they ran, from what `ncu --csv` prints: a metric a line, or a launch a line.

    Raises:
        ValueError: the text has no table, or one without a kernel's name.
    """
    lines = text.splitlines()
    start = next((n for n, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        said = next(
            (line for line in lines if "ERR" in line or "error" in line.lower()),
            "nothing that looks like one",
        )
        raise ValueError(f"ncu printed no table: {said.strip()}")
    rows = list(
        csv.DictReader(io.StringIO("\n".join(line for line in lines[start:] if line.startswith('"'))))
    )
    if not rows or "Kernel Name" not in rows[0]:
        raise ValueError(
            f"ncu's table has no column Kernel Name, it has {', '.join(rows[0]) if rows else 'no rows'}"
        )
    metrics = _long(rows) if "Metric Name" in rows[0] else _wide(rows)
    return [Profiled(kernel, _ours(values)) for kernel, values in metrics]


def _long(rows: Sequence[dict[str, str]]) -> list[tuple[str, dict[str, float]]]:
    found: dict[str, tuple[str, dict[str, float]]] = {}
    for row in rows:
        _, values = found.setdefault(row["ID"], (_kernel(row["Kernel Name"]), {}))
        value = _number(row["Metric Value"], row.get("Metric Unit", ""))
        if value is not None:
            values[row["Metric Name"]] = value
    return list(found.values())


def _wide(rows: Sequence[dict[str, str]]) -> list[tuple[str, dict[str, float]]]:
    units: dict[str, str] = {}
    if not rows[0]["ID"]:  # the line below the head holds units
        units, rows = dict(rows[0]), rows[1:]
    wanted = {name for names in METRICS.values() for name in names}
    found = []
    for row in rows:
        values = {name: _number(row[name], units.get(name, "")) for name in wanted & row.keys()}
        found.append((_kernel(row["Kernel Name"]), {n: v for n, v in values.items() if v is not None}))
    return found


def _kernel(name: str) -> str:
    """`void pft::cuda::(anonymous namespace)::sddmm_resident<float>(...)` or a bare name, as launches name it."""
    bare = re.sub(r"<.*|\(pft.*|\((?!anonymous).*", "", name.replace("(anonymous namespace)::", ""))
    return bare.split("::")[-1].split()[-1].removesuffix("_kernel")


def _number(text: str, unit: str) -> float | None:
    cleaned = text.replace(",", "")
    if not re.fullmatch(r"[+-]?[0-9.]+(e[+-]?\d+)?", cleaned):
        return None  # n/a: the chip does not have it
    return float(cleaned) * _UNITS.get(unit, _KILO.get(unit, 1.0))


def _ours(values: dict[str, float]) -> dict[str, float]:
    return {
        ours: sum(values[name] for name in theirs) * _SECTORS_OF.get(ours, 1)
        for ours, theirs in METRICS.items()
        if all(name in values for name in theirs)
    }


def counted_of(work: Work, launch: CountedLaunch, prediction: Prediction) -> dict[str, float]:
    """The emulator's side of METRICS for all window-heads of the work; `seconds` is predicted, its low end."""
    factor = launch.blocks / launch.blocks_run * work.batch
    found = {name: count * factor for name, count in launch.totals().items() if name in METRICS}
    if prediction.instructions is not None:
        known = prediction.instructions
        found |= {"issue": known.issue * factor, "alu": known.alu * factor, "mufu": known.mufu * factor}
        found["fma"] = (known.fma + known.imad) * factor
    return found | {"seconds": prediction.low}


def same_kernel(ours: str, theirs: str) -> bool:
    """A kernel that is compiled for queries and for keys has one function name for both."""
    return ours == theirs or ours.removesuffix("_keys").removesuffix("_queries") == theirs


def beside(
    ours: Sequence[tuple[Work, CountedLaunch, Prediction]], theirs: Sequence[Profiled]
) -> list[tuple[str, str, str, str, str, str]]:
    """(step, kernel, what, counted or predicted, Nsight Compute's, their ratio) of launches in the same order.

    Raises:
        ValueError: the launches are not the same.
    """
    names = [launch.kernel for _, launch, _ in ours], [one.kernel for one in theirs]
    if len(ours) != len(theirs) or not all(map(same_kernel, *names)):
        raise ValueError(
            f"launches must be the same, counted {', '.join(names[0])}, profiled {', '.join(names[1])}"
        )
    rows = []
    for (work, launch, prediction), one in zip(ours, theirs, strict=True):
        mine = counted_of(work, launch, prediction)
        for name in METRICS:
            if name not in mine and name not in one.counts:
                continue
            a, b = mine.get(name), one.counts.get(name)
            ratio = f"{b / a:.3f}" if a and b is not None else "-"
            cells = ["-" if x is None else _show(name, x) for x in (a, b)]
            rows.append((f"{work.title} {work.dtype}", launch.kernel, name, *cells, ratio))
    return rows  # type: ignore[return-value]


def _show(name: str, value: float) -> str:
    return f"{value * 1e3:.3f} ms" if name == "seconds" else f"{value:,.0f}"
