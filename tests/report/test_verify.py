"""`verify` finds one wrong digit in anything derived, wherever it stands."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from recorded import copy, raw_records

from pft_bench.harness.record import RecordWriter, derive, remember_settings, seal
from pft_bench.insight.counts import formula_counts, recount
from pft_bench.report import read_folder, write_report
from pft_bench.report import verify as verify_module
from pft_bench.report.verify import Verification, verify_folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A committed run with all files of its report."""
    folder = copy("layer", tmp_path_factory.mktemp("verified") / "run")
    write_report(read_folder(folder))
    return folder


def processor(folder: Path) -> dict[str, Any]:
    return next(iter(json.loads((folder / "environment.json").read_text()).values()))["cpu"]


def verify(folder: Path) -> Verification:
    return verify_folder(folder, formula=formula_counts)


def other_digit(digit: str) -> str:
    return str((int(digit) + 1) % 10)


def change(folder: Path, name: str, pattern: str, group: int = 1) -> None:
    """Change the last digit of the pattern's group in a file."""
    path = folder / name
    text = path.read_text()
    found = re.search(pattern, text)
    assert found, f"{pattern} is not in {name}"
    digits = [i for i in range(found.start(group), found.end(group)) if text[i].isdigit()]
    at = digits[-1]
    path.write_text(text[:at] + other_digit(text[at]) + text[at + 1 :])


def rewrite(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Edit the last record of records.jsonl, and make a new seal, so that the numbers have to tell by themselves."""
    path = folder / "records.jsonl"
    lines = path.read_text().splitlines()
    record = json.loads(lines[-1])
    edit(record)
    record["seal"] = seal(record)
    lines[-1] = json.dumps(record, separators=(",", ":"))
    path.write_text("\n".join(lines) + "\n")


def derive_here(folder: Path) -> None:
    """Derive all records anew: another processor's logarithms may end in another digit."""
    records = read_folder(folder).records
    (folder / "records.jsonl").unlink()
    with RecordWriter(folder / "records.jsonl") as writer:
        for record in records:
            assert record.timing is not None
            writer.append(replace(record, derived=derive(record.timing)))


def test_a_true_run_passes(folder: Path) -> None:
    found = verify(folder)
    assert not found.mismatches
    records = raw_records(folder)
    assert found.values > 20 * len(records)
    assert {"records.jsonl", "summary.csv", "report.html", "report.md", "latency_vs_k.svg"} <= set(
        found.files
    )


def test_committed_runs_pass() -> None:
    from recorded import DATA

    runs = sorted(path.parent for path in DATA.glob("*/records.jsonl"))
    assert runs
    for path in runs:
        assert not verify(path).mismatches, path.name


@pytest.mark.parametrize("name", ["median_s", "mad_s", "ratio", "ratio_low", "ratio_high", "floor", "delta"])
@pytest.mark.parametrize("place", ["first", "last"])
def test_one_digit_of_a_derived_value_is_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, place: str
) -> None:
    def edit(record: dict[str, Any]) -> None:
        text = repr(record["derived"][name])
        significant = [i for i, c in enumerate(text) if c.isdigit() and text[:i].strip("0.") + c != "0"]
        at = significant[0] if place == "first" else significant[-1]
        changed = text
        while float(changed) == float(text):  # the last of 17 digits may say nothing
            changed = changed[:at] + other_digit(changed[at]) + text[at + 1 :]
        record["derived"][name] = float(changed)

    for file in ("report.html", "report.md", "summary.csv"):  # the records alone must tell
        (folder / file).unlink()
    derive_here(folder)
    rewrite(folder, edit)
    monkeypatch.setattr(verify_module, "_same_arithmetic", lambda *_: True)
    found = verify_folder(folder)
    assert [m.where.split()[0] for m in found.mismatches if m.file == "records.jsonl"] == [name]


def test_a_raw_sample_that_moves_no_derived_number_is_found_where_there_is_a_seal(folder: Path) -> None:
    """Samples of a record whose order between them stays, so that median, interval and verdict do, too."""
    assert any("records carry no digest" in note for note in verify(folder).notes)
    path = folder / "records.jsonl"
    records = read_folder(folder).records
    with RecordWriter(folder / "sealed.jsonl") as writer:
        for record in records:
            writer.append(record)
    path.write_text((folder / "sealed.jsonl").read_text())
    found = verify(folder)
    assert not found.mismatches
    assert not any("digest" in note and "record" in note for note in found.notes)
    text = path.read_text()
    for name in ("report.html", "report.md", "summary.csv"):  # the records alone must tell
        (folder / name).unlink()

    largest = max(records[-1].timing.samples_s)  # type: ignore[union-attr]
    text = text[: text.rindex("\n", 0, -1) + 1] + text.splitlines()[-1].replace(
        repr(largest), repr(math.nextafter(largest, 1.0))
    )
    path.write_text(text + "\n")
    (only,) = verify(folder).mismatches
    assert f"records.jsonl:{len(records)}: the line was changed after it was written" in str(only)
    unsealed = re.sub(r',"seal":"[0-9a-f]*"\}', "}", text)
    path.write_text(unsealed + "\n")
    assert not verify(folder).mismatches, "no derived number moved"


@pytest.mark.parametrize("edit", [lambda text: "", lambda text: text.replace("6", "8", 1)])
def test_settings_are_held_to_their_seal(folder: Path, edit: Callable[[str], str]) -> None:
    remember_settings(folder, {"rounds": "6", "budget": "0.5 s"}, begin=True)
    found = verify(folder)
    assert not found.mismatches
    assert "settings.json" in found.files
    path = folder / "settings.json"
    whole = path.read_text()
    path.write_text(edit(whole))
    assert [m.file for m in verify(folder).mismatches] == ["settings.json"]
    path.write_text(json.dumps({"rounds": "6"}))
    found = verify(folder)
    assert not found.mismatches
    assert "settings.json carries no digest (older versions wrote none)" in found.notes


def test_verdict_and_check_are_recomputed(folder: Path) -> None:
    rewrite(folder, lambda record: record["derived"].update(verdict="SAME"))
    assert any(m.where.startswith("verdict") for m in verify(folder).mismatches)


def test_a_check_that_says_passed_above_its_bound_is_found(folder: Path) -> None:
    rewrite(folder, lambda record: record["checks"][0].update(error=1.5))
    assert any("passed" in m.where or m.found == "True" for m in verify(folder).mismatches)


@pytest.mark.parametrize("name", ["paper_macs", "kernel_flops", "kernel_bytes"])
def test_one_operation_too_many_is_found(folder: Path, name: str) -> None:
    rewrite(folder, lambda record: record["flops"].update({name: record["flops"][name] + 1}))
    assert any(m.where.startswith(name) for m in verify(folder).mismatches)


def test_counted_flops_are_counted_again(tmp_path: Path) -> None:
    folder = copy("layer", tmp_path / "run")
    path = folder / "records.jsonl"
    lines = [line for line in path.read_text().splitlines() if '"level":"layer"' in line][:4]
    path.write_text("\n".join(lines) + "\n")
    assert not verify_folder(folder, recount=recount).mismatches
    assert not verify_folder(folder, recount=recount).left_out
    rewrite(folder, lambda record: record["flops"].update(counted_flops=record["flops"]["counted_flops"] + 2))
    found = verify_folder(folder, recount=recount)
    assert [m.where.split()[0] for m in found.mismatches] == ["counted_flops"]


def test_the_shipped_model_is_known_and_a_reason_is_told_once(tmp_path: Path) -> None:
    """Every count of its evaluation is made again; of records that cannot be, one line says why and how many."""
    from recorded import DATA

    source = DATA / "2026-11-23_small_x2_held_out"
    found = verify_folder(source, formula=formula_counts, recount=recount)
    assert (found.mismatches, found.left_out) == ([], {})
    changes = [*[{"preset": "other_x2"}] * 4, {"backend": "elsewhere"}]
    with RecordWriter(tmp_path / "records.jsonl") as writer:
        for record, change in zip(read_folder(source).records, changes, strict=True):
            writer.append(replace(record, case=replace(record.case, **change)))
    found = verify_folder(tmp_path, formula=formula_counts, recount=recount)
    unknown = "other_x2 is no model whose shape is known here"
    last = read_folder(tmp_path).records[-1].case_id
    assert [note for note in found.notes if "not computed again" in note] == [
        f"not computed again, 4 records: operations and bytes: {unknown}",
        f"not computed again, 4 records: counted_flops: {unknown}",
        f"not computed again, {last}: counted_flops: elsewhere is no backend that is registered here",
    ]


@pytest.mark.parametrize(
    ("file", "pattern"),
    [
        ("summary.csv", r"FASTER.*?,(\d+),"),
        ("report.md", r"FASTER|▲ faster \| ([\d.]+)×"),
        ("report.html", r'<data value="([\d.e-]+)"'),
        ("report.html", r"<data [^>]*>([\d.]+)×</data>"),
        ("report.html", r'data-y="([\d.e-]+)"'),
        ("report.html", r"\n\d+,([\d.e-]+),"),
        ("report.html", r"at most\s+<b><data [^>]*>([\d.]+)×"),
        ("latency_vs_k.svg", r'<use [^>]*y="([\d.]+)"'),
    ],
)
def test_one_digit_of_any_text_is_found(folder: Path, file: str, pattern: str) -> None:
    change(folder, file, pattern)
    found = verify(folder)
    assert {m.file for m in found.mismatches} == {file}


def test_a_missing_row_of_the_summary_is_found(folder: Path) -> None:
    path = folder / "summary.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    assert any(m.where == "number of rows" for m in verify(folder).mismatches)


@pytest.mark.parametrize(
    ("name", "change"),
    [("ratio", lambda ratio: math.nextafter(ratio, 1)), ("floor", lambda floor: floor + math.ulp(1.0))],
)
def test_the_last_place_may_differ_with_another_processor_or_numpy_only(
    name: str, change: Callable[[float], float], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The floor is a logarithm: its last place is that of the ratio near one that it is taken of."""

    def edit(record: dict[str, Any]) -> None:
        record["derived"][name] = change(record["derived"][name])

    for path in folder.iterdir():
        if path.suffix not in (".jsonl", ".json"):
            path.unlink()
    rewrite(folder, edit)
    here = processor(folder)
    environment = next(iter(json.loads((folder / "environment.json").read_text()).values()))
    monkeypatch.setattr(verify_module, "version", lambda _: environment["libraries"]["numpy"])
    assert verify_folder(folder, processor=here).mismatches
    elsewhere = verify_folder(folder, processor={**here, "isa": ["other"]})
    monkeypatch.setattr(verify_module, "version", lambda _: "1.26.0")
    for found in (elsewhere, verify_folder(folder, processor=here)):
        assert not found.mismatches
        assert found.rounded >= 1


def test_a_foreign_line_and_an_unknown_environment_are_found(folder: Path) -> None:
    path = folder / "records.jsonl"
    good = path.read_text()
    path.write_text(good + '{"schema":"something else"}\n')
    assert "something else" in str(verify(folder).mismatches[0])
    path.write_text(good)
    (folder / "environment.json").write_text('{"000000000000": {}}')
    assert any("environment" in m.where for m in verify(folder).mismatches)


def test_a_page_of_another_version_is_said_to_be_one(folder: Path) -> None:
    path = folder / "report.html"
    path.write_text(
        re.sub(r"pft-bench report [0-9a-f]{12}", "pft-bench report 000000000000", path.read_text())
    )
    assert [m.found for m in verify(folder).mismatches] == ["made by another version"]


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        (r'"memory_bytes": (\d+)', "machine of environment"),
        (r'"torch": "(2\.\d+\.\d+)', "fingerprint of environment"),
        (r'"commit": "[a-f0-9]*(\d)[a-f]*"', "fingerprint of environment"),
        (r'"flops_per_s": (\d+)', "seal of environment"),
    ],
)
def test_a_changed_digit_of_an_environment_is_found(folder: Path, pattern: str, told: str) -> None:
    """The roof varies from run to run, so the fingerprint leaves it out; the seal does not."""
    path = folder / "environment.json"
    known = json.loads(path.read_text())
    path.write_text(
        json.dumps({name: {**found, "seal": seal(found)} for name, found in known.items()}, indent=1)
    )
    assert not [found for found in verify(folder).mismatches if found.file == "environment.json"]
    change(folder, "environment.json", pattern)
    found = [str(item) for item in verify(folder).mismatches if item.file == "environment.json"]
    assert any(told in text for text in found), found
