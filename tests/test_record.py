"""Records: illegal states, round trip, damaged files, killed writers, locks."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pft_bench.harness.measure.contender import Contender
from pft_bench.harness.measure.results import ContenderResult, DroppedRound, Rejection, RoundsResult
from pft_bench.harness.measure.rounds import Plan, measure
from pft_bench.harness.measure.verdicts import Verdict
from pft_bench.harness.record import (
    Baseline,
    Case,
    CheckEntry,
    Flops,
    FolderLocked,
    Memory,
    Record,
    RecordError,
    RecordWriter,
    RunFolder,
    Status,
    Timing,
    begin_run,
    derive,
    known_plan,
    known_settings,
    lock_folder,
    merge_shares,
    read_folder,
    read_records,
    recompute,
    record_file,
    remember_environment,
    remember_plan,
    remember_settings,
    scan_records,
    timing_of,
    to_frame,
)

PASSED = CheckEntry("operator", True, "teacher-forced", error=1e-8, bound=1e-6)
FAILED = CheckEntry("operator", False, "tail", error=3.0, bound=1e-6)
MEMORY = Memory(peak_allocated_bytes=1 << 20, peak_allocated_source="planted", predicted_peak_bytes=1 << 19)


def case(**changes: Any) -> Case:
    values: dict[str, Any] = {
        **{
            "level": "op",
            "op": "sddmm",
            "backend": "cpu",
            "device": "cpu",
            "dtype": "float32",
            "mode": "infer",
        },
        **{"threads": 2, "seed": 0, "shapes": {"n": 1024, "d": 40}, "k": 64},
    }
    return Case(**{**values, **changes})


def timing(samples_s: tuple[float, ...] = (1.1, 1.2, 1.1, 1.3, 1.1, 1.2, 1.15)) -> Timing:
    n = len(samples_s)
    return Timing(
        method="cpu-block",
        repeats=4,
        samples_s=samples_s,
        rounds=tuple(range(n)),
        dropped=(DroppedRound(n, "clock fell"),),
        order_seed=5,
        stop_reason="interval narrow enough",
        baseline=Baseline("dense", (2.0,) * n, (2.02,) * n),
    )


def ok(**more: Any) -> Record:
    return Record.ok(case(), "abc", [PASSED], timing=timing(), **more)


def test_round_trip_keeps_everything() -> None:
    record = Record.ok(
        case(
            level="model",
            op="model",
            schedule=(1024, 256),
            preset="light",
            options={"image": "astronaut", "x": None},
        ),
        "abc",
        [PASSED, CheckEntry("selection", True)],
        timing=timing(),
        stages_s={"logits": 0.5, "ffn": 0.25},
        flops=Flops(paper_macs=1, counted_flops=2, kernel_flops=3, kernel_bytes=4),
        memory=MEMORY,
    )
    line = record.to_json()
    assert "\n" not in line
    assert Record.from_json(line) == record
    assert json.loads(line)["case_id"] == record.case_id
    assert next(iter(json.loads(line))) == "schema"


@pytest.mark.parametrize(
    ("written", "changed"),
    [
        ('"samples_s":[1.1,', '"samples_s":[1.1000001,'),  # a raw sample that moves no median
        ('"rounds":[0,', '"rounds":[9,'),
        ('"created":"2', '"created":"1'),
        ('"detail":"teacher-forced"', '"detail":"by hand"'),
        ('"peak_allocated_bytes":1048576', '"peak_allocated_bytes":1048577'),
    ],
)
def test_a_line_that_was_changed_after_it_was_written_is_no_record(written: str, changed: str) -> None:
    line = ok(memory=MEMORY).to_json()
    assert written in line
    with pytest.raises(RecordError, match="changed after it was written"):
        Record.from_json(line.replace(written, changed))


def test_a_line_of_an_older_version_has_no_seal_and_gets_none_when_it_is_merged(tmp_path: Path) -> None:
    older, now = ok(), Record.ok(case(seed=1), "abc", [PASSED], timing=timing())
    with RecordWriter(record_file(tmp_path, "1of2")) as writer:
        writer.append(older, sealed=False)
        writer.append(now)
    before = record_file(tmp_path, "1of2").read_text()
    assert '"seal"' not in before.splitlines()[0]
    assert read_folder(tmp_path).unsealed == {older.case_id}
    merge_shares(tmp_path)
    assert record_file(tmp_path).read_text() == before
    assert scan_records(record_file(tmp_path)).unsealed == {older.case_id}


def test_changed_settings_and_emptied_files_are_named(tmp_path: Path) -> None:
    assert remember_settings(tmp_path, {"rounds": "6"}, begin=True) == {"rounds": "6"}
    path = tmp_path / "settings.json"
    assert known_settings(tmp_path) == ({"rounds": "6"}, True)
    path.write_text(path.read_text().replace("6", "7", 1))
    with pytest.raises(RecordError, match=r"settings\.json was changed after it was written"):
        known_settings(tmp_path)
    path.write_text('{"rounds": "6"}')
    assert known_settings(tmp_path) == ({"rounds": "6"}, False)
    for text in ("", "[]"):
        path.write_text(text)
        with pytest.raises(RecordError, match=r"settings\.json must be the settings of a run as .*, got"):
            known_settings(tmp_path)
        (tmp_path / "environment.json").write_text(text)
        with pytest.raises(RecordError, match=r"environment\.json must be environments .*, got"):
            remember_environment(tmp_path, {"fingerprint": "a"})


def test_a_plan_grows_begins_anew_and_is_held_to_its_seal(tmp_path: Path) -> None:
    assert known_plan(tmp_path) == {}
    remember_plan(tmp_path, {"a": "layer 16", "b": "layer 16"}, begin=True)
    remember_plan(tmp_path, {"c": "model"}, begin=False)
    assert known_plan(tmp_path) == {"a": "layer 16", "b": "layer 16", "c": "model"}
    path = tmp_path / "plan.json"
    path.write_text(path.read_text().replace("model", "none"))
    with pytest.raises(RecordError, match=r"plan\.json was changed after it was written"):
        known_plan(tmp_path)
    remember_plan(tmp_path, {"d": "model"}, begin=True)
    assert known_plan(tmp_path) == {"d": "model"}
    remember_plan(tmp_path, {}, begin=True)
    assert not path.exists(), "groups that are chosen one after the other have no plan"


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.OK])
def test_round_trip_of_every_other_status(status: Status) -> None:
    record = Record.without_result(case(), "abc", status, "why", checks=[FAILED], predicted_peak_bytes=7)
    assert Record.from_json(record.to_json()) == record


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("ok needs check results", {"checks": ()}),
        ("did not pass", {"checks": (FAILED,)}),
        ("ok carries no reason", {"reason": "but"}),
        ("failed needs a reason", {"status": Status.FAILED, "timing": None, "derived": None}),
        ("failed carries no time", {"status": Status.FAILED, "reason": "why"}),
        (
            "carries no time",
            {"status": Status.OOM, "reason": "why", "timing": None, "derived": None, "stages_s": {}},
        ),
        (
            "carries no measured memory",
            {"status": Status.CRASHED, "reason": "why", "timing": None, "derived": None, "memory": MEMORY},
        ),
        ("go together", {"derived": None}),
        ("go together", {"timing": None}),
        ("fingerprint", {"environment": ""}),
        ("none negative", {"stages_s": {"ffn": -1.0}}),
        ("none negative", {"stages_s": {"ffn": math.nan}}),
    ],
)
def test_illegal_states_cannot_be_built(message: str, changes: dict[str, Any]) -> None:
    with pytest.raises(RecordError, match=message):
        replace(ok(), **changes)


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("method", {"method": ""}),
        ("repeats", {"repeats": 0}),
        ("one value a kept round", {"samples_s": (1.0,)}),
        ("positive seconds", {"samples_s": (0.0,) * 7}),
        ("positive seconds", {"samples_s": (math.inf,) * 7}),
        ("baseline.control_s must have one value", {"baseline": Baseline("dense", (1.0,) * 7, ())}),
        ("at least one round", {"rounds": (), "samples_s": (), "baseline": None}),
    ],
)
def test_illegal_timings_cannot_be_built(message: str, changes: dict[str, Any]) -> None:
    with pytest.raises(RecordError, match=message):
        replace(timing(), **changes)


@pytest.mark.parametrize(
    "changes",
    [{"level": "kernel"}, {"mode": "eval"}, {"backend": ""}, {"dtype": ""}],
    ids=lambda c: next(iter(c)),
)
def test_illegal_cases_cannot_be_built(changes: dict[str, Any]) -> None:
    with pytest.raises(RecordError, match=next(iter(changes))):
        case(**changes)


def test_case_id_is_the_same_everywhere_and_forever() -> None:
    """A literal: `--resume` and the history look cases up by it, so it must not change between versions."""
    assert case().case_id == "sddmm-cpu-k64-d5b6e615e19c"
    assert case(shapes={"d": 40, "n": 1024}).case_id == case().case_id


@pytest.mark.parametrize(
    "changes",
    [
        *[{"level": "layer"}, {"op": "spmm"}, {"backend": "dense"}, {"device": "cuda"}, {"dtype": "float16"}],
        *[
            {"mode": "train"},
            {"threads": 1},
            {"seed": 1},
            {"shapes": {"n": 1024, "d": 20}},
            {"preset": "light"},
        ],
        *[{"schedule": (64,)}, {"k": 65}, {"options": {"image": "cat"}}],
    ],
    ids=lambda c: next(iter(c)),
)
def test_every_parameter_enters_the_case_id(changes: dict[str, Any]) -> None:
    assert case(**changes).case_id != case().case_id


def test_a_case_does_not_change_with_the_dict_it_was_made_of() -> None:
    shapes = {"n": 1}
    made = case(shapes=shapes)
    before = made.case_id
    shapes["n"] = 2
    assert made.case_id == before


def test_infinite_errors_become_text() -> None:
    outcome = SimpleNamespace(name="operator", passed=False, detail="tail", error=math.inf, bound=1.0)
    found = CheckEntry.of(outcome)
    assert (found.error, found.bound, found.detail) == (None, 1.0, "tail (error inf)")
    Record.without_result(case(), "abc", Status.FAILED, "why", checks=[outcome]).to_json()


def test_the_error_of_a_check_in_units_of_its_bound_is_kept() -> None:
    outcome = SimpleNamespace(name="operator", passed=True, detail="", worst=0.25)
    assert CheckEntry.of(outcome) == CheckEntry("operator", True, "", error=0.25, bound=1.0)
    infinite = CheckEntry.of(SimpleNamespace(name="operator", passed=False, detail="", worst=math.inf))
    assert (infinite.error, infinite.detail) == (None, "(error inf)")


def test_derived_values_are_those_of_the_raw_samples() -> None:
    found = derive(timing())
    assert found.median_s == 1.15
    assert found.mad_s == pytest.approx(0.05)
    assert found.ratio == pytest.approx(0.58, abs=0.02)
    assert found.verdict is Verdict.FASTER
    alone = derive(replace(timing(), baseline=None))
    assert (alone.median_s, alone.ratio, alone.verdict) == (1.15, None, None)


def test_recompute_finds_a_changed_digit() -> None:
    record = ok()
    assert recompute(record) == []
    line = record.to_json(sealed=False)  # the numbers have to tell by themselves
    assert '"median_s":1.15,' in line
    changed = Record.from_json(line.replace('"median_s":1.15,', '"median_s":1.16,'))
    assert recompute(changed) == [f"{record.case_id}: median_s is stored as 1.16, raw samples give 1.15"]
    other = Record.from_json(line.replace('"FASTER"', '"SAME"'))
    assert len(recompute(other)) == 1
    moved = Record.from_json(line.replace("[1.1,1.2", "[1.9,1.2"))  # a raw sample
    assert recompute(moved)


def rounds_result(rejection: Rejection | None = None, baseline_rejected: bool = False) -> RoundsResult:
    n = 0 if rejection else 7
    base = (
        ContenderResult("dense", (FAILED,), 0, (), Rejection("failed", "tail"))
        if baseline_rejected
        else ContenderResult("dense", (PASSED,), 1, (2.0,) * 7)
    )
    return RoundsResult(
        method="cpu-block",
        baseline="dense",
        contenders={"dense": base, "cpu": ContenderResult("cpu", (PASSED,), 4, (1.0,) * n, rejection)},
        control_s=() if baseline_rejected else (2.0,) * 7,
        rounds=tuple(range(7)),
        dropped=(),
        order_seed=0,
        stop_reason="planned",
        elapsed_s=1.0,
    )


def test_record_of_a_measurement() -> None:
    record = Record.of_rounds(case(), "abc", rounds_result(), "cpu", memory=MEMORY)
    assert record.status is Status.OK
    assert record.derived is not None
    assert record.derived.ratio == pytest.approx(0.5)
    base = timing_of(rounds_result(), "dense")
    assert base.baseline is None
    assert base.control_s == (2.0,) * 7


def test_record_of_a_rejected_candidate_has_a_reason_and_no_measured_value() -> None:
    result = rounds_result(Rejection("oom", "MemoryError"))
    record = Record.of_rounds(case(), "abc", result, "cpu", memory=MEMORY, stages_s={"ffn": 1.0})
    assert (record.status, record.reason, record.timing) == (Status.OOM, "MemoryError", None)
    assert record.memory == Memory(predicted_peak_bytes=MEMORY.predicted_peak_bytes)


def test_record_without_a_baseline_has_times_and_no_ratio() -> None:
    record = Record.of_rounds(case(), "abc", rounds_result(baseline_rejected=True), "cpu")
    assert record.derived is not None
    assert record.derived.median_s == 1.0
    assert record.derived.verdict is None


def test_a_real_measurement_goes_through_the_file(tmp_path: Path) -> None:
    both = [Contender(name, lambda: sum(range(1000)), lambda _: [PASSED]) for name in ("dense", "cpu")]
    result = measure(both, "dense", Plan(rounds=6, max_rounds=6))
    records = [Record.of_rounds(case(backend=name), "abc", result, name) for name in result.contenders]
    with RecordWriter(tmp_path / "run" / "records.jsonl") as writer:
        for record in records:
            writer.append(record)
    read = read_records(tmp_path / "run" / "records.jsonl").records
    assert list(read) == records
    assert [recompute(record) for record in read] == [[], []]


def test_frame_has_a_row_a_record() -> None:
    skipped = Record.without_result(case(backend="cuda"), "abc", Status.SKIPPED, "no GPU")
    frame = to_frame([ok(stages_s={"ffn": 0.5}, memory=MEMORY), skipped])
    assert list(frame["status"]) == ["ok", "skipped"]
    assert frame["median_s"][0] == 1.15
    assert math.isnan(frame["median_s"][1])
    assert (frame["shape_n"][0], frame["stage_ffn_s"][0], frame["verdict"][0]) == (1024, 0.5, "FASTER")
    assert (frame["baseline"][0], frame["rounds"][0], frame["dropped_rounds"][0]) == ("dense", 7, 1)
    assert to_frame([]).empty


def write(path: Path, *lines: str, end: str = "\n") -> Path:
    path.write_text("\n".join(lines) + end)
    return path


def test_truncated_last_line_is_reported_and_not_fatal(tmp_path: Path) -> None:
    line = ok().to_json()
    for cut in (1, 10, 40, len(line) // 2, len(line) - 1):
        path = write(tmp_path / "records.jsonl", line, line[:cut], end="")
        found = read_records(path)
        assert len(found.records) == 1
        assert [str(problem) for problem in found.truncated] == [
            f"{path}:2: truncated line (its writer was interrupted)"
        ]


def test_a_whole_last_line_without_newline_counts(tmp_path: Path) -> None:
    found = read_records(write(tmp_path / "records.jsonl", ok().to_json(), end=""))
    assert (len(found.records), found.truncated) == (1, ())


def test_writing_after_a_truncated_line_keeps_both_apart(tmp_path: Path) -> None:
    path = write(tmp_path / "records.jsonl", ok().to_json(), ok().to_json()[:50], end="")
    with RecordWriter(path) as writer:
        writer.append(ok())
    found = read_records(path)
    assert len(found.records) == 2
    assert [problem.line for problem in found.truncated] == [2]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"schema":"pft_bench.record/99"}',
            "schema 'pft_bench.record/99', this version reads 'pft_bench.record/1'",
        ),
        ('{"schema":"other"}', "schema 'other'"),
        ('{"latency_ms": 3}', "schema None"),
        ("[1, 2]", "schema None"),
        ("hello", "not JSON"),
        ("\x00\x00\x00", "not JSON"),
        (ok().to_json(sealed=False).replace('"median_s":1.15', '"median_s":NaN'), "NaN is no number"),
        (ok().to_json(sealed=False).replace('"median_s":1.15', '"median_s":1.1.5'), "not JSON"),
        (ok().to_json(sealed=False).replace('"mad_s"', '"mad"'), "lacks or adds"),
        (ok().to_json(sealed=False).replace('"ok"', '"fine"'), "fine"),
        (ok().to_json(sealed=False).replace('"ok"', '"failed"'), "needs a reason"),
        (ok().to_json(sealed=False).replace('"threads":2', '"threads":4'), "does not belong to its case"),
        (ok().to_json(sealed=False).replace("[1.1,", '["x",'), "invalid record"),
    ],
)
def test_foreign_and_damaged_lines_are_errors_that_name_them(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path / "records.jsonl", ok().to_json(), line, ok().to_json())
    with pytest.raises(RecordError) as raised:
        read_records(path)
    assert str(raised.value).startswith(f"{path}:2: ")
    assert message in str(raised.value)
    scan = scan_records(path)
    assert (len(scan.records), len(scan.foreign), scan.truncated) == (2, 1, ())


WRITER = """
import sys
from pathlib import Path
from tests_record_source import record
from pft_bench.harness.record import RecordWriter
with RecordWriter(sys.argv[1]) as writer:
    for i in range(100000):
        writer.append(record(i))
        print(i, flush=True)
"""

SOURCE = """
from pft_bench.harness.record import Case, CheckEntry, Record
def record(i):
    long = {"pad": "x" * 20000}
    case = Case("op", "sddmm", "cpu", "cpu", "float32", "infer", 2, i, {"n": 1024}, options=long)
    return Record.ok(case, "abc", [CheckEntry("operator", True)])
"""


def test_killed_writer_loses_at_most_the_line_under_way(tmp_path: Path) -> None:
    (tmp_path / "tests_record_source.py").write_text(SOURCE)
    path = tmp_path / "records.jsonl"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    acknowledged = 0
    for attempt in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, env=environment, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.05 + 0.02 * attempt)
        process.send_signal(signal.SIGKILL)
        acknowledged += 1 + len(process.stdout.read().split())
        process.wait()
        found = read_records(path)
        assert len(found.truncated) <= attempt + 1
        assert acknowledged <= len(found.records) <= acknowledged + attempt + 1


def test_second_writer_of_a_folder_is_refused_and_told_by_whom(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    owner = f"process {os.getpid()};"
    with lock_folder(folder), pytest.raises(FolderLocked, match=owner), lock_folder(folder):
        pass
    with lock_folder(folder):
        pass


def test_a_full_disk_names_the_folder_that_cannot_be_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left") as told, lock_folder(tmp_path):
        pass
    assert told.value.filename == str(tmp_path)


def test_lock_of_a_killed_run_is_free(tmp_path: Path) -> None:
    code = f"from pft_bench.harness.record import lock_folder\nimport time\nwith lock_folder({str(tmp_path)!r}):\n"
    code += "    print('held', flush=True)\n    time.sleep(60)\n"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    process.stdout.readline()
    with pytest.raises(FolderLocked, match=f"process {process.pid};"), lock_folder(tmp_path):
        pass
    process.kill()
    process.wait()
    with lock_folder(tmp_path):
        pass


def test_environments_of_a_resumed_run_are_all_kept(tmp_path: Path) -> None:
    assert remember_environment(tmp_path, {"fingerprint": "a", "now": {"at": 1}}) == "a"
    remember_environment(tmp_path, {"fingerprint": "b"})
    remember_environment(tmp_path, {"fingerprint": "a", "now": {"at": 2}})
    kept = json.loads((tmp_path / "environment.json").read_text())
    assert all(environment.pop("seal") for environment in kept.values())
    assert kept == {"a": {"fingerprint": "a", "now": {"at": 1}}, "b": {"fingerprint": "b"}}


def share(folder: Path, name: str | None, *seeds: int) -> None:
    with RecordWriter(record_file(folder, name)) as writer:
        for seed in seeds:
            writer.append(Record.ok(case(seed=seed), "abc", [PASSED], timing=timing()))


def seeds_of(folder: Path) -> list[int]:
    return [record.case.seed for record in read_records(record_file(folder)).records]


def test_shares_are_merged_in_the_order_of_the_plan(tmp_path: Path) -> None:
    share(tmp_path, "1of2", 3, 1)
    share(tmp_path, "2of2", 2, 0)
    assert {record.case.seed for record in read_folder(tmp_path).records} == {0, 1, 2, 3}
    merge_shares(tmp_path, [case(seed=seed).case_id for seed in range(4)])
    assert seeds_of(tmp_path) == [0, 1, 2, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["records.jsonl"]


def test_a_merge_that_was_killed_is_finished_by_the_next(tmp_path: Path) -> None:
    share(tmp_path, None, 0, 1)
    share(tmp_path, "1of2", 1, 2)
    share(tmp_path, "2of2", 3)
    with record_file(tmp_path, "2of2").open("a") as file:
        file.write(ok().to_json()[:60])
    scan = read_folder(tmp_path)
    assert [record.case.seed for record in scan.records] == [0, 1, 2, 3]
    assert [(problem.path.name, problem.line) for problem in scan.truncated] == [("records-2of2.jsonl", 2)]
    merge_shares(tmp_path)
    assert seeds_of(tmp_path) == [0, 1, 2, 3]


def test_a_share_with_a_foreign_line_is_not_merged(tmp_path: Path) -> None:
    share(tmp_path, "1of2", 1)
    share(tmp_path, "2of2", 2)
    with record_file(tmp_path, "2of2").open("a") as file:
        file.write("hello\n")
    with pytest.raises(RecordError, match=r"records-2of2\.jsonl:2: not JSON"):
        merge_shares(tmp_path)
    assert record_file(tmp_path, "1of2").exists()
    assert record_file(tmp_path, "2of2").exists()


def test_shares_of_one_division_write_side_by_side_and_nobody_else_does(tmp_path: Path) -> None:
    me = f"process {os.getpid()} \\(share 1of2\\)"
    with lock_folder(tmp_path, "1of2"):
        with lock_folder(tmp_path, "2of2"):
            pass
        for other in (None, "1of3"):
            with pytest.raises(FolderLocked, match=me), lock_folder(tmp_path, other):
                pass
        with pytest.raises(FolderLocked, match=me), lock_folder(tmp_path, "1of2"):
            pass
    with lock_folder(tmp_path), pytest.raises(FolderLocked, match=f"process {os.getpid()};"):  # noqa: SIM117
        with lock_folder(tmp_path, "1of2"):
            pass


def test_a_case_that_occurs_twice_counts_once_and_the_other_is_named(tmp_path: Path) -> None:
    first, again = ok(), ok(memory=MEMORY)
    with RecordWriter(record_file(tmp_path)) as writer:
        for record in (first, Record.ok(case(seed=1), "abc", [PASSED], timing=timing()), again):
            writer.append(record)
    found = RunFolder.read(tmp_path)
    assert found.by_case[first.case_id] == first
    assert len(found.records) == 2
    (note,) = found.notes
    assert (
        note == f"{record_file(tmp_path)}:3: case {first.case_id} is there already, the first record counts"
    )
    found = RunFolder.read(tmp_path)
    with RecordWriter(record_file(tmp_path, "1of2")) as writer:  # a merge that was killed says nothing new
        writer.append(first)
    assert RunFolder.read(tmp_path) == found


def test_each_record_has_the_roof_of_the_machine_that_made_it(tmp_path: Path) -> None:
    with begin_run(tmp_path) as run:
        for number, name in enumerate(("slow", "fast")):
            roof = {"bytes_per_s": 1e9 * (1 + number), "flops_per_s": 1e10}
            assert run.remember({"fingerprint": name, "now": {"roof": roof}}) == name
            run.append(Record.ok(case(seed=number), name, [PASSED], timing=timing()))
        with pytest.raises(FolderLocked), begin_run(tmp_path):
            pass
    found = RunFolder.read(tmp_path)
    roofs = [found.roof(record) for record in found.records]
    assert [roof and roof.bytes_per_s for roof in roofs] == [1e9, 2e9]


def test_a_run_without_a_record_leaves_no_file_of_records(tmp_path: Path) -> None:
    with begin_run(tmp_path):
        pass
    with pytest.raises(RecordError, match=r"expected a run folder with records\.jsonl"):
        RunFolder.read(tmp_path)
