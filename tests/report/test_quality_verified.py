"""`verify` and the report of a folder that holds an evaluation: its rows, its table, and what is said of both."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from recorded import DATA, copy

from pft_bench.apps.quality.evaluate import read_rows
from pft_bench.harness.record import RecordError, seal
from pft_bench.report import read_folder, write_report
from pft_bench.report.page import render
from pft_bench.report.quality import means, means_table, write_quality_csv
from pft_bench.report.verify import Verification, verify_folder

SOURCE = DATA / "2026-11-23_small_x2_held_out"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed evaluation as it would be written now, each row with its seal, and its report."""
    folder = tmp_path_factory.mktemp("evaluation")
    for name in ("records.jsonl", "environment.json"):
        shutil.copy(SOURCE / name, folder)
    rows = read_rows(SOURCE / "quality.jsonl")
    (folder / "quality.jsonl").write_text("".join(row.to_json() + "\n" for row in rows))
    write_quality_csv(rows, folder)
    write_report(read_folder(folder))
    return folder


def wrong(found: Verification) -> set[str]:
    return {mismatch.file for mismatch in found.mismatches}


def edit(path: Path, old: str, new: str) -> None:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))


def test_a_true_evaluation_passes_and_what_is_not_verified_is_said(folder: Path) -> None:
    found = verify_folder(folder)
    assert not found.mismatches
    assert {"quality.jsonl", "quality.csv", "report.html"} <= set(found.files)
    assert any("PSNR and SSIM of quality.jsonl are not computed again" in note for note in found.notes)
    assert not any("rows of quality.jsonl carry no digest" in note for note in found.notes)


def test_a_falsified_row_is_wrong_and_the_honest_report_is_not_blamed(folder: Path) -> None:
    edit(folder / "quality.jsonl", "31.68185712635633", "41.68185712635633")
    edit(folder / "quality.csv", "31.68185712635633", "41.68185712635633")
    found = verify_folder(folder)
    (only,) = found.mismatches
    assert "quality.jsonl:2: the line was changed after it was written: its seal" in str(only)
    assert "report.html not compared: it shows numbers of quality.jsonl" in found.notes
    with pytest.raises(RecordError, match=r"quality\.jsonl:2: the line was changed"):
        read_folder(folder)


def test_a_row_with_a_new_seal_does_not_agree_with_table_and_report(folder: Path) -> None:
    lines = (folder / "quality.jsonl").read_text().splitlines()
    row = {**json.loads(lines[1]), "psnr_db": 41.7}
    lines[1] = json.dumps({**row, "seal": seal(row)})
    (folder / "quality.jsonl").write_text("\n".join(lines) + "\n")
    found = verify_folder(folder)
    assert {"quality.csv", "report.html"} <= wrong(found)
    assert any("psnr_db of held_out camera, 256,256,256 cpu" in str(one) for one in found.mismatches)


def test_a_changed_table_is_wrong(folder: Path) -> None:
    edit(folder / "quality.csv", "31.68185712635633", "41.68185712635633")
    assert wrong(verify_folder(folder)) == {"quality.csv"}


def test_rows_of_older_versions_pass_with_a_note() -> None:
    found = verify_folder(SOURCE)
    assert not found.mismatches
    assert any("rows of quality.jsonl carry no digest (older versions" in note for note in found.notes)


def test_an_evaluation_without_times_is_verified(folder: Path) -> None:
    for name in ("records.jsonl", "report.html", "report.md"):
        (folder / name).unlink()
    assert not verify_folder(folder).mismatches
    edit(folder / "quality.jsonl", "31.68185712635633", "41.68185712635633")
    assert wrong(verify_folder(folder)) == {"quality.jsonl"}


def test_the_report_shows_psnr_and_ssim_of_each_image_and_their_means(folder: Path) -> None:
    """First of all tables, in page and text: every number of the rows, and the means that `evaluate` prints."""
    page, text = ((folder / name).read_text() for name in ("report.html", "report.md"))
    assert page.index('<section id="quality">') < page.index('<section id="verdicts">')
    assert text.index("## Quality on Y") < text.index("## Whole model")
    rows = read_rows(folder / "quality.jsonl")
    for row in rows:
        assert f"{row.psnr_db:.2f} / {row.ssim:.4f}" in text
        assert f'<data value="{row.psnr_db!r}">{row.psnr_db:.2f}</data>' in page
        assert f'<data value="{row.ssim!r}">{row.ssim:.4f}</data>' in page
    for variant, sets in means(rows).items():
        mean = sets["held_out"]
        assert f"**{mean.psnr_db:.2f} / {mean.ssim:.4f}**" in text
        assert f'<th scope="col" class="n">{variant.name}</th>' in page
    assert "held\\_out, mean of 5" in text
    assert 'id="quality"' not in render(read_folder(copy("layer", folder / "layer")))


def test_the_table_of_an_evaluation_writes_times_as_that_of_a_run_does_and_names_its_baseline() -> None:
    records = list(read_folder(SOURCE).records)
    derived = records[0].derived
    assert derived is not None
    records[0] = SimpleNamespace(  # type: ignore[call-overload]
        **{name: getattr(records[0], name) for name in ("case", "timing", "memory", "status")},
        derived=replace(derived, median_s=1.88),
    )
    table = means_table(read_rows(SOURCE / "quality.jsonl"), records)
    cells = {str(column.header): [str(cell) for cell in column.cells] for column in table.columns}
    assert "1.88 s" in cells["latency"]
    assert cells["speed-up [95%]"].count("baseline") == 1
    (base,) = {r.timing.baseline.name for r in records if r.timing and r.timing.baseline}
    assert str(table.caption) == f"speed-up over {base}, in the same rounds"
