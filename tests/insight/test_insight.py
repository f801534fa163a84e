"""Insight: counts agree with records, the bisection finds a planted crossover, statistics equal brute force."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made import measure_quickly, tiny_config

from pft_bench.backends import Layer
from pft_bench.backends.reference import ReferenceBackend
from pft_bench.common import stages
from pft_bench.harness.cases import Settings, StepsGroup
from pft_bench.harness.measure.profile import marked, profiled, write_memory
from pft_bench.harness.measure.rounds import Plan
from pft_bench.harness.measure.verdicts import Verdict
from pft_bench.harness.record import Record, Status
from pft_bench.insight.crossover import CrossoverStep, bisect, crossover, found_again
from pft_bench.insight.limits import published_limits
from pft_bench.insight.ranges import model_ranges
from pft_bench.insight.statistics import collect
from pft_bench.model import PFT, PRESETS
from pft_bench.report.amdahl import ceilings

TINY = tiny_config(16, 5, 3)


def planted(crossing: float, blur: float = 1.0) -> tuple[list[int], object]:
    """A comparison whose ratio is k / crossing, its interval `blur` wide on either side."""
    asked: list[int] = []

    def compare(k: int) -> CrossoverStep:
        asked.append(k)
        ratio = k / crossing
        return CrossoverStep(k, ratio, ratio / blur, ratio * blur)

    return asked, compare


@pytest.mark.parametrize("crossing", [7.5, 120.5, 900.5])
def test_bisection_brackets_a_planted_crossover(crossing: float) -> None:
    asked, compare = planted(crossing)
    found = bisect(compare, 4, 1023, 1.05)  # type: ignore[arg-type]
    assert found.faster is not None
    assert found.slower is not None
    assert found.faster < crossing < found.slower
    assert found.slower / found.faster <= 1.05 or found.slower - found.faster == 1
    assert len(asked) == len(set(asked)) < 20


def test_a_blurred_measurement_widens_the_interval_and_never_decides() -> None:
    _, compare = planted(100.0, 1.5)
    found = bisect(compare, 4, 1023, 1.05)  # type: ignore[arg-type]
    assert found.faster is not None
    assert found.slower is not None
    assert found.faster < 100 / 1.5
    assert found.slower > 150


@pytest.mark.parametrize(("unsure", "crossing"), [(1023, 60.0), (4, 60.0)])
def test_an_end_that_could_not_tell_hides_nothing(unsure: int, crossing: float) -> None:
    _, clear = planted(crossing)

    def compare(k: int) -> CrossoverStep:
        return CrossoverStep(k, 1.0, 0.5, 2.0) if k == unsure else clear(k)

    found = bisect(compare, 4, 1023)  # type: ignore[arg-type]
    sides = {c.k: c.side for c in found.comparisons}
    assert found.faster == max((k for k in sides if sides[k] < 0), default=None)
    assert found.slower == min((k for k in sides if sides[k] > 0), default=None)
    assert (found.faster or found.slower) is not None


def test_the_verdict_decides_and_the_interval_alone_where_there_is_none() -> None:
    """An interval beyond 1 but within the margin, or within what identical code showed, is no difference."""
    assert CrossoverStep(9, 0.995, 0.991, 0.999).side == -1
    for verdict, side in zip(Verdict, (-1, 1, 0, 0), strict=True):
        assert CrossoverStep(9, 0.995, 0.991, 0.999, verdict).side == side


def test_no_crossover_is_said_to_be_none() -> None:
    assert bisect(planted(5000.0)[1], 4, 1023).slower is None  # type: ignore[arg-type]
    assert bisect(planted(1.0)[1], 4, 1023).faster is None  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="resolution"):
        bisect(planted(9.0)[1], 4, 1023, 1.0)  # type: ignore[arg-type]


def tiny_settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    measure_quickly(monkeypatch)
    monkeypatch.setitem(PRESETS, "tiny_x2", TINY)
    plan = Plan(rounds=6, max_rounds=6, budget_s=1.0)
    return Settings.make(
        schedules=["dense"],
        preset_name="tiny_x2",
        levels=["layer"],
        device="cpu",
        threads=1,
        lr_hw=(8, 8),
        plan=plan,
    )


def test_a_comparison_times_two_checked_layers(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    dense, sparse = StepsGroup(tiny_settings(monkeypatch), "reference", 4).run("e").records
    assert sparse.timing is not None
    assert sparse.timing.baseline is not None
    assert dense.timing is not None
    assert len(sparse.timing.samples_s) == len(sparse.timing.baseline.control_s) == 6
    assert sparse.timing.baseline.samples_s == dense.timing.samples_s
    assert [(r.case.k, r.case.shapes["candidates"]) for r in (dense, sparse)] == [(16, 16), (4, 4)]
    found = CrossoverStep.of(sparse)
    assert 0 < found.low <= found.ratio <= found.high
    assert dense.checks
    assert sparse.checks


def test_a_dense_step_is_another_case_at_each_k(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is measured anew beside each sparse one; no two records of a folder may be of one case."""
    settings = tiny_settings(monkeypatch)
    cases = [case.case_id for k in (4, 5) for case in StepsGroup(settings, "cpu", k).cases.values()]
    assert len(set(cases)) == 4


def test_a_step_that_fails_is_a_record_and_no_comparison(
    monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    """Whichever of the two it is."""
    right = ReferenceBackend.attention_forward
    for fails, name in ((4, "sparse"), (16, "dense step")):

        def planted(self: ReferenceBackend, layer: Layer, fails: int = fails) -> Any:
            out, *rest = right(self, layer)
            return (out * 1.01 if layer.candidates == fails else out, *rest)

        monkeypatch.setattr(ReferenceBackend, "attention_forward", planted)
        kept: list[Record] = []

        def measured(group: StepsGroup, kept: list[Record] = kept) -> list[Record]:
            kept += group.run("e").records
            return kept[-2:]

        with pytest.raises(RuntimeError, match=f"reference at K=4: failed: {name}: "):
            crossover("reference", tiny_settings(monkeypatch), measured)
        assert [record.status for record in kept] == [
            Status.FAILED if name == step else Status.OK for step in ("dense step", "sparse")
        ]
        with pytest.raises(RuntimeError, match="reference at K=4: "):
            found_again(kept, "reference", 1.1)


def test_limits_of_the_published_kernels() -> None:
    found = published_limits(PRESETS["classical_x4"])
    assert found[0].window_heads == 8192
    assert found[0].pixels == math.ceil(8192 / 6) * 1024
    assert not published_limits(PRESETS["classical_x4"].with_topk((1024,) * 30))


@pytest.fixture
def tiny(one_thread: None) -> PFT:
    torch.manual_seed(0)
    return PFT.from_config(TINY, backend="reference").eval()


def test_statistics_without_drops_miss_nothing(tiny: PFT) -> None:
    tiny.num_topk = (16,) * 6
    x = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        rows = collect(lambda: tiny(x), TINY.chains)
    assert len(rows) == 6
    for row in rows:
        assert (row.candidates, row.kept, row.came_back, row.missed_mass) == (16, 16, 0.0, 0.0)
        assert row.kept_mass == pytest.approx(1)


def test_statistics_count_what_would_have_come_back(tiny: PFT) -> None:
    """Layer 2 drops 11 of 16 keys. Held against the chain computed by hand from what each layer is given."""
    from pft_bench.backends.dense import dense_logits
    from pft_bench.ops import observe_layers

    x = torch.rand(1, 3, 8, 8)
    seen: list[Layer] = []
    with torch.no_grad(), observe_layers(lambda given: seen.append(given.copied())):
        tiny(x)
    with torch.no_grad():
        rows = collect(lambda: tiny(x), TINY.chains)
    assert [(row.candidates, row.kept) for row in rows] == [
        (16, 16),
        (16, 16),
        (16, 5),
        (16, 5),
        (5, 3),
        (5, 3),
    ]
    first, last = seen[2], seen[4]  # chain 0: its dense layers summed, then the sparse one
    full = dense_logits(first) + dense_logits(last)
    came_back, missed, count = 0.0, 0.0, 0
    for w, h, i in [(w, h, i) for w in range(4) for h in range(3) for i in range(16)]:
        candidates = set(last.index[w, h, i].tolist())  # type: ignore[index]
        row = full[w, h, i]
        wanted = set(row.topk(3).indices.tolist())
        came_back += len(wanted - candidates) / 3
        missed += 1 - float(row.softmax(-1)[sorted(candidates)].sum())
        count += 1
    assert rows[4].came_back == pytest.approx(came_back / count, abs=1e-6)
    assert rows[4].missed_mass == pytest.approx(missed / count, abs=1e-5)
    assert rows[4].missed_mass > 0
    assert rows[2].kept_mass < 1


def test_ceiling_is_amdahls() -> None:
    from pft_bench.report import read_folder

    folder = next((Path(__file__).parents[2] / "reports" / "data").glob("*_light_x4_64x64"))
    for found in ceilings(read_folder(folder).records):
        stages = dict(found.record.stages_s or {})
        rest = sum(seconds for name, seconds in stages.items() if name not in ("logits", "select", "av"))
        assert found.gain == pytest.approx(sum(stages.values()) / rest)


@pytest.mark.parametrize("grad", [False, True])
def test_profile_has_a_range_for_each_block_layer_and_stage(tiny: PFT, tmp_path: Path, grad: bool) -> None:
    x = torch.rand(1, 3, 8, 8)
    with torch.set_grad_enabled(grad), model_ranges(tiny, marked):
        found = profiled(lambda: tiny(x), "cpu", tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    marks = sorted((e["ts"], e["name"]) for e in events if str(e.get("name")).startswith(("block", "layer ")))
    kept = (16, 16, 5, 5, 3, 3)
    expected = [
        name
        for i in range(3)
        for name in (f"block {i}", *(f"layer {j}, {kept[j]} kept" for j in (2 * i, 2 * i + 1)))
    ]
    assert [name for _, name in marks] == expected, "each once, in order"
    assert {"ffn", "projection"} <= {event.get("name") for event in events}
    assert found.peak_bytes > 0
    write_memory(found.memory, tmp_path / "memory.csv")
    rows = (tmp_path / "memory.csv").read_text().splitlines()
    assert len(rows) == len(found.memory) + 1
    assert max(int(row.split(",")[1]) for row in rows[1:]) == found.peak_bytes
    assert stages.part(tiny) is stages.part(tiny.layers[0]), "the marks are gone afterwards"


@pytest.mark.parametrize("left", ["", '{"traceEvents": [{"na'])
def test_a_trace_that_torch_could_not_write_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    """On a full disk it leaves a draft of its own, or a part, and says nothing."""

    def fill(_: object, path: str) -> None:
        Path(f"{path}.tmp").write_text("")
        Path(path).write_text(left)

    monkeypatch.setattr("torch.profiler.profile.export_chrome_trace", fill)
    with pytest.raises(OSError, match="Could not be written") as told:
        profiled(lambda: torch.zeros(1), "cpu", tmp_path / "trace.json")
    assert told.value.filename == str(tmp_path / "trace.json")
    assert not list(tmp_path.iterdir())


def test_a_trace_is_in_the_trace_event_format(tiny: PFT, tmp_path: Path) -> None:
    """What Perfetto's importer asks of each event, and that ranges of a thread nest."""
    x = torch.rand(1, 3, 8, 8)
    with model_ranges(tiny, marked), torch.no_grad():
        profiled(lambda: tiny(x), "cpu", tmp_path / "trace.json")
    problems = trace_problems(json.loads((tmp_path / "trace.json").read_text()))
    assert not problems


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda e: e.pop("dur"), "dur"),
        (lambda e: e.update(ph="?"), "ph"),
        (lambda e: e.update(ts="soon"), "ts"),
        (lambda e: e.pop("pid"), "pid"),
        (lambda e: e.update(dur=15.0), "overlaps"),
    ],
)
def test_a_broken_trace_is_noticed(change: Callable[[dict[str, Any]], object], told: str) -> None:
    def event(name: str, ts: float, dur: float) -> dict[str, Any]:
        return {"ph": "X", "name": name, "ts": ts, "dur": dur, "pid": 1, "tid": 1}

    events = [event("a", 0.0, 10.0), event("b", 12.0, 5.0)]
    assert not trace_problems({"traceEvents": events})
    change(events[0])
    assert any(told in problem for problem in trace_problems({"traceEvents": events}))


def trace_problems(trace: dict[str, Any]) -> list[str]:
    """What the Trace Event Format (Google, "Trace Event Format", section "Event Descriptions") does not allow."""
    problems: list[str] = []
    ranges: dict[Any, list[dict[str, Any]]] = {}
    for event in trace["traceEvents"]:
        phase = event.get("ph")
        if phase not in tuple("XBEibnesftMCPN") or not phase:
            problems.append(f"ph is {phase!r}: {event}")
            continue
        needed = {"name": str, "pid": (int, str), "tid": (int, str)}
        needed |= {} if phase == "M" else {"ts": (int, float)}
        needed |= {"dur": (int, float)} if phase == "X" else {}
        wrong = [key for key, kind in needed.items() if not isinstance(event.get(key), kind)]
        problems += [f"{key} is {event.get(key)!r}: {event}" for key in wrong]
        if phase == "X" and not wrong:
            if event["dur"] < 0:
                problems.append(f"dur is negative: {event}")
            ranges.setdefault((event["pid"], event["tid"]), []).append(event)
    for own in ranges.values():
        open_ends: list[float] = []
        for event in sorted(own, key=lambda e: (e["ts"], -e["dur"])):
            end = event["ts"] + event["dur"]
            while open_ends and open_ends[-1] <= event["ts"] + 1e-3:  # nanoseconds, written as microseconds
                open_ends.pop()
            if open_ends and end > open_ends[-1] + 1e-3:
                problems.append(f"overlaps the range it begins in: {event}")
            open_ends.append(end)
    return problems
