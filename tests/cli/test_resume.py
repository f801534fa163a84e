"""`pft-bench run --resume`: only with what the rows of the folder depend on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pft_bench.harness.record import RunFolder, read_records
from pft_bench.harness.sweep.resume import differences_of_environments, differences_of_settings

Run = Callable[..., Any]
PLUGIN = """
from pft_bench.backends import register
from pft_bench.backends.cpu import CpuBackend

@register
class Mine(CpuBackend):
    name = "resumed"
"""
OP = ("--level", "op", "--sched", "dense")


@pytest.fixture
def run_on_cpu(tiny_run: Run, copy_of_kept: Callable[..., Path]) -> Run:
    """Goes on with this test's copy of a run of one group, at `tmp_path / "out"`."""
    arguments = (*OP, "--backend", "cpu", "--out")
    folder = copy_of_kept(lambda out: tiny_run(*arguments, out))
    return lambda: tiny_run(*arguments, folder, "--resume")


def test_other_settings_and_an_edited_plug_in_are_refused_by_name_and_nothing_is_lost(
    tiny_run: Run, tmp_path: Path
) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(PLUGIN)
    folder = tmp_path / "run"
    arguments = (*OP, "--backend", "cpu", "--plugin", plugin, "--out", folder)
    assert tiny_run(*arguments).code == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    ended = tiny_run(*arguments, "--resume", "--rounds", 8, "--seed", 3, "--lr", "8x16")
    assert ended.code == 2
    for line in ("--rounds: stored 6, now 8", "--seed: stored 0, now 3", "--lr: stored 8x8, now 8x16"):
        assert line in ended.err
    assert "or a new --out" in ended.err
    plugin.write_text(PLUGIN + "# edited\n")
    ended = tiny_run(*arguments, "--resume")
    assert ended.code == 2
    assert "plug-in.mine.py: stored " in ended.err
    assert {name: (folder / name).read_bytes() for name in before} == before

    plugin.write_text(PLUGIN)
    ended = tiny_run(*arguments, "--resume", "--sched", "16,5")
    assert ended.code == 0, "schedules may join"
    assert len(read_records(folder / "records.jsonl").records) > before["records.jsonl"].count(b"\n")


def test_other_code_is_refused_another_commit_alone_is_not(run_on_cpu: Run, tmp_path: Path) -> None:
    path = tmp_path / "out" / "environment.json"
    (known,) = json.loads(path.read_text()).values()
    for part, value, code in (("git", {"commit": "0" * 40, "dirty": False}, 0), ("code", "0" * 12, 2)):
        path.write_text(json.dumps({known["fingerprint"]: {**known, part: value}}))
        ended = run_on_cpu()
        assert ended.code == code, (part, ended)
    assert f"code: stored {'0' * 12}, now {known['code']}" in ended.err


def test_a_run_that_was_killed_is_called_unfinished_until_it_went_on(
    run_on_cpu: Run, pft_bench_command: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    assert RunFolder.read(folder).unfinished is None
    path = folder / "records.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    cases = json.loads((folder / "plan.json").read_text())["cases"]
    assert len(cases) == len(lines)
    group, count = cases[json.loads(lines[-1])["case_id"]], len(set(cases.values()))
    path.write_text("".join(lines[:-1]))

    told = f"unfinished: 1 of {count} groups missing ({group})"
    for command in ("report", "verify"):
        assert pft_bench_command(command, folder).out.startswith(told)
    for name in ("report.html", "report.md"):
        assert "unfinished: 1 of" in (folder / name).read_text()
    (folder / "plan.json").rename(folder / "kept.json")
    assert RunFolder.read(folder).unfinished is None, "older versions wrote no plan"
    (folder / "kept.json").rename(folder / "plan.json")
    assert run_on_cpu().code == 0
    assert RunFolder.read(folder).unfinished is None


def test_rows_of_an_older_version_go_on_with_a_warning(run_on_cpu: Run, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    (folder / "settings.json").unlink()
    ended = run_on_cpu()
    assert ended.code == 0
    assert "do not say with which --rounds" in ended.out
    path = folder / "environment.json"
    (known,) = json.loads(path.read_text()).values()
    path.write_text(json.dumps({known["fingerprint"]: {**known, "code": "0" * 12}}))
    ended = run_on_cpu()
    assert ended.code == 2, "code and machine are known without the settings"
    assert "code: stored" in ended.err


def test_emptied_and_changed_settings_are_refused_by_name(run_on_cpu: Run, tmp_path: Path) -> None:
    path = tmp_path / "out" / "settings.json"
    whole = path.read_text()
    for text, told in (("", "must be the settings of a run"), (whole.replace('"6"', '"7"'), "was changed")):
        path.write_text(text)
        ended = run_on_cpu()
        assert ended.code == 2
        assert f"{path} {told}" in " ".join(ended.err.split()), ended.err
        assert path.read_text() == text


def test_shares_must_agree_even_without_resume(tiny_run: Run, tmp_path: Path) -> None:
    arguments = (*OP, "--backend", "cpu", "--out", tmp_path)
    assert tiny_run(*arguments, "--shard", "1/2").code == 0
    ended = tiny_run(*arguments, "--shard", "2/2", "--rounds", 7)
    assert (ended.code, "--rounds: stored 6, now 7" in ended.err) == (2, True)
    assert tiny_run(*arguments, "--shard", "2/2").code == 0


def test_an_input_is_its_content(tiny_run: Run, tmp_path: Path) -> None:
    import numpy as np
    from skimage import io

    image, folder = tmp_path / "in.png", tmp_path / "run"
    arguments = (
        "--level",
        "model",
        "--sched",
        "dense",
        "--backend",
        "cpu",
        "--image",
        image,
        "--out",
        folder,
    )
    io.imsave(image, np.full((16, 16, 3), 90, np.uint8), check_contrast=False)
    assert tiny_run(*arguments).code == 0
    io.imsave(image, np.full((16, 16, 3), 91, np.uint8), check_contrast=False)
    ended = tiny_run(*arguments, "--resume")
    assert (ended.code, "--image: stored in.png (sha256 " in ended.err) == (2, True)


@pytest.mark.parametrize("more", [(), ("--list",)])
def test_resume_needs_a_folder(tiny_run: Run, more: tuple[str, ...]) -> None:
    ended = tiny_run(*OP, "--resume", *more)
    assert ended.code == 2
    assert "--resume needs --out" in ended.err


def test_what_differs_is_told_by_its_path() -> None:
    stored = {
        "code": "a",
        "libraries": {"torch": "2.13", "pandas": "1"},
        "now": {"load": 1},
        "git": {"commit": "x"},
    }
    now = {
        "code": "a",
        "libraries": {"torch": "2.14", "pandas": "2"},
        "now": {"load": 2},
        "git": {"commit": "y"},
    }
    assert differences_of_environments(stored, now) == ["libraries.torch: stored 2.13, now 2.14"]
    del stored["code"]
    assert "git.commit: stored x, now y" in differences_of_environments(stored, now), (
        "nothing better is known"
    )
    assert differences_of_settings({"timeout": "4 s"}, {"timeout": "5 s"}, []) == []
