"""reports/counters.md and its counts, reports/counters.json: by `make counters`.

The file of counts is written after every step; one whose kernels have not changed since is not counted again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...common.schedule import parse_schedule
from ...common.terminal import Console
from ...model import PRESETS
from .chips import CHIPS, Chip
from .compiled import Instructions
from .counted import CountedLaunch
from .emulate import Work
from .gates import gate_counts
from .instructions import sources_digest, why_no_instructions
from .study import PREDICTED, Counts, Study, count_work, layer_works, product_works, study
from .table import COUNT_HEAD, TIME_HEAD, TOTAL_HEAD, count_cells, markdown, time_cells, total_cells

FOLDER = Path(__file__).resolve().parents[3] / "reports"
PRESET, SIZE_HW, SCHEDULE, CHIP = "classical_x2", (360, 640), "paper", "h100"
DTYPES = ("float32", "float16")


class CountFile:
    """The committed counts: of the gates, and of every step of the table, kept while the kernels stay the same."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        self.sources = sources_digest()
        if self.data.get("sources") != self.sources:
            self.data = {"gates": self.data.get("gates", {}), "sources": self.sources, "works": []}

    def write(self) -> None:
        """One launch a line."""
        works = ",\n".join(
            json.dumps({"work": entry["work"]})[:-1]
            + ', "launches": [\n '
            + ",\n ".join(json.dumps(launch) for launch in entry["launches"])
            + "]}"
            for entry in self.data["works"]
        )
        gates = ",\n".join(
            f"{json.dumps(key)}: {json.dumps(value)}" for key, value in self.data["gates"].items()
        )
        head = json.dumps(self.data["sources"])
        self.path.write_text(f'{{"sources": {head},\n"gates": {{\n{gates}\n}},\n"works": [\n{works}\n]}}\n')

    def counts(self, work: Work, chip: Chip) -> Counts:
        """As committed, or counted now and written."""
        for entry in self.data["works"]:
            if entry["work"] == asdict(work):
                return [_from_file(launch) for launch in entry["launches"]]
        found = count_work(work, chip)
        launches = [
            launch.summary() | {"instructions": None if known is None else asdict(known)}
            for launch, known in found
        ]
        self.data["works"].append({"work": asdict(work), "launches": launches})
        self.write()
        return found


def _from_file(entry: dict[str, Any]) -> tuple[CountedLaunch, Instructions | None]:
    rest = {name: value for name, value in entry.items() if name != "instructions"}
    known = entry["instructions"]
    return CountedLaunch(**rest), None if known is None else Instructions(**known)


def works_of_table() -> dict[str, Counter[Work]]:
    """Title of a section of the table -> its works."""
    config = PRESETS[PRESET]
    schedule = parse_schedule(SCHEDULE, config.depths, config.window_size**2)
    found = {}
    for mode, name in (("infer", "forward"), ("backward", "backward")):
        for dtype in DTYPES:
            found[f"{name} {dtype}"] = layer_works(config, schedule, SIZE_HW, dtype, mode)
    for dtype in DTYPES:
        found[f"products {dtype}"] = Counter(product_works(found[f"forward {dtype}"]))
    return found


def render(found: Study, sections: dict[str, Counter[Work]]) -> str:
    """The report as Markdown."""
    chip = found.chip
    layers = {name: works for name, works in sections.items() if not name.startswith("products")}
    core = []
    for name, works in layers.items():
        total = found.core(name, works)
        core.append(total_cells(f"{name.split()[0]}, {sum(works.values())} layers", name.split()[1], total))
    totals = [total_cells(work.title, work.dtype, total) for work, total in found.totals]
    explained = [r.prediction.instructions.explained for r in found.rows if r.prediction.instructions]
    doubtful = max((row.launch.doubtful_share for row in found.rows), default=0.0)
    return "\n".join(
        [
            "# What the CUDA kernels ask of a GPU",
            "",
            f"**{PREDICTED}** Made by `make counters` from counts in the emulator and the SASS of sm_90.",
            f"{PRESET}, {SIZE_HW[1]}x{SIZE_HW[0]}, schedule `{SCHEDULE}`: 240 windows of 1024 tokens, 6 heads.",
            "",
            TEXT.format(
                clock=f"{chip.clock.value / 1e9:.3f}",
                explained=f"{min(explained, default=0.0):.0%}",
                doubtful=f"{doubtful:.1%}",
            ),
            f"## The attention core on {chip.title}",
            "",
            markdown(TOTAL_HEAD, core),
            "",
            "## Step by step",
            "",
            markdown(TOTAL_HEAD, totals),
            "",
            "## Busy time of each unit, ms for all 1440 window-heads",
            "",
            markdown(TIME_HEAD, [time_cells(row) for row in found.rows]),
            "",
            "## Counts of one window-head",
            "",
            markdown(COUNT_HEAD, [count_cells(row) for row in found.rows]),
            "",
            f"## Rates of {chip.title}",
            "",
            markdown(
                ("rate", "value", "source", "doubted"),
                [(n, f"{r.value:g}", r.source, "yes" if r.doubted else "") for n, r in chip.rates().items()],
            ),
            "",
        ]
    )


TEXT = """\
*predicted ms* runs from the busiest unit alone (all units overlap perfectly) to all of them one after another (nothing
overlaps); launches follow each other. The floor is the larger of the bytes and the FLOPs that must be, at the rate that
the instructions in use can reach: `mma.sync` on Hopper 62.9% of the published peak.

- *shared*: wavefronts of shared memory, L1's data cycles of global accesses, shuffles; one a clock and
  multiprocessor at {clock} GHz. Two quarter-warps (16 bytes a lane) or half-warps (8 bytes) of a load share wavefronts
  where all lanes agree with a neighbour: a rule that measurements suggest and no document states.
- *issue, ALU, FMA, MUFU*: instructions of the SASS times how often its blocks ran. That number comes from a linear
  program over the counts; it agrees with at least {explained} of what was counted. The emulator counts what the source
  says: loads that ptxas hoists or joins are fewer on a GPU.
- *L2*: sectors that a block asks for, each once for plain loads (L1 keeps them) and every time for asynchronous copies.
- *DRAM*: distinct bytes of the launch, as if L2 kept everything.
- Requests are put together lane by lane at the meeting points of the launch's control flow; at most {doubtful} of a
  launch's requests are doubtful. Latency that too few warps hide is in none of the figures.
"""


def main() -> None:
    """Counts what has changed, and writes both files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gates", action="store_true", help="only the counts that tests hold the kernels to")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of both files")
    options = parser.parse_args()
    file = CountFile(options.out / "counters.json")
    file.data["gates"] = gate_counts()
    file.write()
    if options.gates:
        return
    missing = why_no_instructions()
    if missing is not None:
        parser.error(f"the table needs the instructions of the SASS: {missing}")
    sections = works_of_table()
    works = list(dict.fromkeys(work for part in sections.values() for work in part))
    started, console = time.monotonic(), Console(stderr=True)

    def progress(what: str) -> None:
        console.print(f"{time.monotonic() - started:6.0f} s  {what}")

    found = study(works, CHIPS[CHIP], file.counts, progress)
    (options.out / "counters.md").write_text(render(found, sections))


if __name__ == "__main__":
    main()
