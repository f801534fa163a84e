"""`pft-bench flops`, `check` and `doctor`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from made import register_broken
from PIL import Image

import pft_bench
from pft_bench.backends import empty, get
from pft_bench.harness.record import read_records, seal
from pft_bench.harness.selftest.known_answers import Trial
from pft_bench.insight.crossover import answers_that_differ

Command = Callable[..., Any]

# The published counts: preset -> parameters, GMAC.
PUBLISHED = {
    "classical_x2": ("19,623,527", "5029.525"),
    "classical_x3": ("19,808,167", "2250.697"),
    "classical_x4": ("19,771,239", "1265.875"),
    "light_x2": ("775,532", "278.038"),
    "light_x3": ("782,567", "123.380"),
    "light_x4": ("792,416", "69.510"),
}


def test_flops_prints_the_twelve_published_figures(
    pft_bench_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pft_bench.model import PRESETS

    monkeypatch.delitem(PRESETS, "tiny_x2")
    ended = pft_bench_command("flops")
    assert ended.code == 0
    rows = {
        cells[0]: cells
        for line in ended.out.splitlines()
        if len(cells := line.replace("│", " ").split()) == 5
    }
    assert {name: (rows[name][3], rows[name][4]) for name in PUBLISHED} == PUBLISHED
    assert rows["light_x4"][1:3] == ["320x180", "1280x720"]


NO_LAYERS_AND_ONE_OP_FAILS = """
def sddmm(self, q, k, index):
    return torch.einsum("bnd,bnkd->bnk", q, k[torch.arange(len(k))[:, None, None], index.long()])

def spmm(self, a, v, index):
    raise IndexError("planted")
"""


def test_check_goes_on_after_an_op_that_is_missing_and_one_that_fails(
    pft_bench_command: Command, bare_plugin: Callable[[str], tuple[Any, ...]]
) -> None:
    code, out, err = pft_bench_command(
        *("check", *bare_plugin(NO_LAYERS_AND_ONE_OP_FAILS)),
        *("--tokens", 4, "--head-dim", 3, "--seeds", 1),
    )
    assert (code, err) == (1, "")
    assert "skipped in 4 cases: backend 'mine' has no attention_forward, which this case needs" in out
    assert re.search(
        r"^  mine\.spmm raised IndexError at \w+\.py:\d+: planted \(4 cases\)$", out, re.MULTILINE
    )
    assert out.count("planted") == 1


def test_check_shows_the_worst_of_each_kind_and_counts_the_others(
    pft_bench_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unwritten(q: torch.Tensor, k: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return empty(index.shape, q.dtype, q.device)

    monkeypatch.setattr(get("cpu"), "sddmm", unwritten)
    arguments = ("check", "--backend", "cpu", "--tokens", 4, "--head-dim", 3, "--dtype", "float32")
    ended = pft_bench_command(*arguments)
    shown = [text for text in ended.out.splitlines() if text.startswith("  sddmm operator")]
    assert len(shown) == 1
    assert shown[0].startswith(
        "  sddmm operator K=4 D=3 seed=0: FAILED: 96 of 96 entries off; 96 were not written"
    )
    assert re.search(r"^  and \d+ more: --verbose$", ended.out, re.MULTILINE)
    assert "of the bound" not in shown[0]
    assert pft_bench_command(*arguments, "--verbose").out.count("sddmm operator") == 4


def test_check_says_that_its_backends_are_checked(pft_bench_command: Command) -> None:
    said = pft_bench_command("check", "--help").out
    assert "Backend to check." in said
    assert "to measure" not in said


def test_check_passes_right_kernels(pft_bench_command: Command) -> None:
    ended = pft_bench_command("check", "--tokens", 9, "--head-dim", 5, "--seeds", 1)
    assert ended.code == 0, ended
    for row in pft_bench.backends():
        if row.available and "cpu" in get(row.name).devices:
            assert f"{row.name} float32: ok" in ended.out


def test_doctor_names_rungs_in_a_line_a_family_and_check_takes_one(pft_bench_command: Command) -> None:
    said = pft_bench_command("doctor").out
    assert (
        "Rungs of cuda, for --backend: cuda-plain, cuda-resident, cuda-sorted, cuda-gather, cuda-tiles, "
        "cuda-ffma, cuda-split\n" in said
    )
    assert said.count("cuda-tiles") == 1
    if get("cuda-emu").available() is None:
        arguments = ("--backend", "cuda-emu-plain", "--tokens", 4, "--head-dim", 3, "--seeds", 1)
        ended = pft_bench_command("check", *arguments, "--dtype", "float32")
        assert (ended.code, "cuda-emu-plain float32: ok" in ended.out) == (0, True), ended


def test_check_shows_every_check_on_request(pft_bench_command: Command) -> None:
    arguments = ("check", "--backend", "cpu", "--tokens", 9, "--head-dim", 3, "--seeds", 1)
    short, long = pft_bench_command(*arguments), pft_bench_command(*arguments, "--verbose")
    assert len(long.out.splitlines()) > 5 * len(short.out.splitlines())
    for name in ("sddmm grad_k operator", "attention selection", "attention grad_bias", "attention ties"):
        assert name in long.out


def test_check_finds_a_wrong_kernel(pft_bench_command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    right = get("cpu").spmm
    monkeypatch.setattr(get("cpu"), "spmm", lambda a, v, index: right(a, v, index) * 1.00001)
    ended = pft_bench_command("check", "--backend", "cpu", "--tokens", 16, "--head-dim", 5, "--seeds", 1)
    assert ended.code == 1
    assert "cpu float32: FAILED" in ended.out
    assert "spmm operator" in ended.out


def test_check_finds_a_kernel_without_region_masks(
    pft_bench_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = get("cpu").attention_forward
    monkeypatch.setattr(
        get("cpu"),
        "attention_forward",
        lambda layer: right(replace(layer, region=None)),
    )
    ended = pft_bench_command("check", "--backend", "cpu", "--tokens", 16, "--head-dim", 5, "--seeds", 1)
    assert ended.code == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--backend", "numpy"), "backend must be"),
        (("--backend", "cpu", "--dtype", "float64"), "--dtype float64"),
        (("--backend", "cpu", "--dtype", "float17"), "--dtype float17"),
    ],
)
def test_check_refuses_what_it_cannot_do(
    pft_bench_command: Command, arguments: tuple[str, ...], message: str
) -> None:
    ended = pft_bench_command("check", *arguments)
    assert ended.code == 2
    assert message in ended.err


def test_doctor_says_why_a_backend_is_missing_and_what_to_do(
    pft_bench_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_broken(monkeypatch, "no compiler was found; install one")
    ended = pft_bench_command("doctor")
    assert ended.code == 0
    assert "no compiler was found; install one" in ended.out
    for row in pft_bench.backends():
        assert row.name in ended.out
    assert f"torch {torch.__version__}" in ended.out


def test_without_a_command_the_help_lists_all_of_them(pft_bench_command: Command) -> None:
    ended = pft_bench_command("--help")
    assert ended.code == 0
    for name in ("run", "check", "flops", "doctor"):
        assert name in ended.out


TAKE_WEIGHTS = {
    "run": ("run", "--weights"),
    "profile": ("profile", "--out", "out", "--weights"),
    "statistics": ("statistics", "--weights"),
    "upscale": ("upscale", "a.png", "b.png", "--weights"),
    "evaluate": ("evaluate", "--data", ".", "--weights"),
    "attention": ("attention", "a.png", "--weights"),
    "train": ("train", "--data", ".", "--out", "out", "--patch", 8, "--batch", 1, "--init"),
}


@pytest.mark.parametrize("command", TAKE_WEIGHTS.values(), ids=TAKE_WEIGHTS.keys())
@pytest.mark.parametrize(
    ("given", "found"),
    [("nope", "got 'nope': there is no such file"), ("a.png", "got 'a.png', which ends in .png")],
)
def test_weights_that_are_none(
    pft_bench_command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[object, ...],
    given: str,
    found: str,
) -> None:
    """The option is named, what it takes and what came, in every command that takes weights."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 40)).save("a.png")
    ended = pft_bench_command(*command, given)
    assert ended.code == 2
    expected = "must be a checkpoint (.pth, .pt, .safetensors) or 'small_x2'"
    assert f"{command[-1]} {expected}, {found}" in ended.err
    assert not Path("b.png").exists()


def test_fit_says_its_answer_as_lr_takes_it(pft_bench_command: Command) -> None:
    """Pictures are described as width x height, --lr is height x width."""
    arguments = ("fit", "--preset", "light", "--scale", 2, "--memory", "4GB", "--threads", 1)
    ended = pft_bench_command(*arguments)
    found = re.search(r"within 4\.00 GB: (\d+)x(\d+) \(--lr (\d+x\d+)\)", ended.out)
    assert found, ended
    assert found[3] == f"{found[2]}x{found[1]}"
    ended = pft_bench_command(*arguments, "--lr", found[3])
    assert f"{found[1]}x{found[2]} fits 4.00 GB" in ended.out
    assert "Height x width" in pft_bench_command("fit", "--help").out


CROSSOVER = ("crossover", "--preset", "tiny_x2", "--lr", "8x8", "--backend", "cpu", "--threads", 1, "--rounds", 6,
             "--no-isolate")  # fmt: skip


def test_crossover_leaves_records_that_verify_finds_its_answer_in(
    pft_bench_command: Command, copy_of_kept: Command
) -> None:
    folder = copy_of_kept(lambda out: pft_bench_command(*CROSSOVER, "--out", out))
    assert {path.name for path in folder.iterdir()} >= {"records.jsonl", "environment.json", "crossover.json"}
    records = read_records(folder / "records.jsonl").records
    dense, sparse = records[::2], records[1::2]
    asked = [record.case.k for record in sparse]  # where it goes from the lowest K is a matter of times
    assert 4 in asked
    assert set(asked) <= set(range(4, 16))
    assert all(record.case.options == {"against": "cpu, dense step"} for record in sparse)
    assert [(r.case.k, r.case.options["against"]) for r in dense] == [(16, f"cpu, K={k}") for k in asked]
    for one, other in zip(dense, sparse, strict=True):
        assert one.timing.control_s == other.timing.baseline.control_s
        assert other.derived.verdict is not None
        assert one.memory.peak_allocated_bytes
    ended = pft_bench_command("verify", folder)
    assert (ended.code, "crossover.json read" in ended.out) == (0, True)
    assert pft_bench_command("report", folder).code == 0
    ended = pft_bench_command(*CROSSOVER, "--out", folder)
    assert (ended.code, "--out must be a new folder" in ended.err) == (2, True)

    path = folder / "crossover.json"
    stored = json.loads(path.read_text())
    stored["backends"]["cpu"]["faster"] = 12345
    path.write_text(json.dumps({**stored, "seal": seal(stored)}))
    ended = pft_bench_command("verify", folder)
    assert (ended.code, "cpu is stored as {'faster': 12345" in ended.out) == (1, True)
    path.write_text("")
    assert pft_bench_command("verify", folder).code == 1
    path.write_text(json.dumps(stored))  # its seal is of the first answer
    assert "crossover.json: an answer is the file was changed" in pft_bench_command("verify", folder).out


def test_a_crossover_goes_on_after_a_kill_and_is_shown_again(
    pft_bench_command: Command, copy_of_kept: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_of_kept(lambda out: pft_bench_command(*CROSSOVER, "--out", out))
    arguments = (*CROSSOVER, "--out", folder)
    records, answers = folder / "records.jsonl", folder / "crossover.json"
    lines = records.read_bytes().splitlines(keepends=True)
    records.write_bytes(
        b"".join(lines[:-1]) + lines[-1][:200]
    )  # killed within the line of the last sparse step
    answers.unlink()
    ended = pft_bench_command(*arguments, "--resume")
    assert ended.code == 0, ended
    assert "truncated line" in ended.out
    assert records.read_bytes().startswith(b"".join(lines[:-1]))
    assert len({record.case_id for record in read_records(records).records}) % 2 == 0
    assert pft_bench_command("verify", folder).code == 0

    from pft_bench.harness.cases import StepsGroup

    monkeypatch.setattr(StepsGroup, "contenders", lambda self: pytest.fail("measured again"))
    again = pft_bench_command(*arguments, "--resume")
    assert again.code == 0, again
    table = ended.out[ended.out.index("┏") : ended.out.index("┘")]
    assert "sparse / dense" in table
    assert table in again.out
    other = pft_bench_command(*CROSSOVER[:-2], 7, *CROSSOVER[-1:], "--out", folder, "--resume")
    assert (other.code, "--rounds: stored 6, now 7" in other.err) == (2, True)


def test_a_backend_without_a_crossover_leaves_the_others_theirs(
    pft_bench_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = get("dense").attention_forward
    monkeypatch.setattr(
        get("dense"), "attention_forward", lambda layer: (right(layer)[0] * 1.01, *right(layer)[1:])
    )
    ended = pft_bench_command(
        *("crossover", "--preset", "tiny_x2", "--lr", "8x8", "--backend", "dense", "--backend", "cpu"),
        *("--threads", 1, "--rounds", 6, "--no-isolate", "--out", tmp_path),
    )
    assert ended.code == 1
    assert "dense at K=4: failed: dense step: " in ended.err
    assert set(json.loads((tmp_path / "crossover.json").read_text())["backends"]) == {"cpu"}
    assert pft_bench_command("verify", tmp_path).code == 0


def test_the_committed_crossover_is_judged_by_the_rule_of_its_time() -> None:
    folder = Path(__file__).parents[2] / "reports" / "data" / "2026-11-23_classical_crossover"
    records = read_records(folder / "records.jsonl").records
    assert answers_that_differ(folder / "crossover.json", records) == (2, [])


def test_verify_names_the_folders_inside_that_it_can_read(pft_bench_command: Command, tmp_path: Path) -> None:
    for name in ("first", "second", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "first" / "records.jsonl").touch()
    (tmp_path / "second" / "trials.jsonl").touch()
    ended = pft_bench_command("verify", tmp_path)
    assert ended.code == 2
    assert ended.err.rstrip().endswith(f"got {tmp_path} (there is one in first, second)")
    assert pft_bench_command("verify", tmp_path / "other").err.rstrip().endswith(f"got {tmp_path / 'other'}")


def test_verify_judges_comparisons_of_selftest_again(pft_bench_command: Command, tmp_path: Path) -> None:
    source = Path(__file__).parents[2] / "reports" / "data" / "2026-11-23_verdicts"
    ended = pft_bench_command("verify", source)
    assert (ended.code, "400 of 400 comparisons carry no digest" in ended.out) == (0, True)

    for name in ("trials.jsonl", "environment.json"):
        (tmp_path / name).write_text((source / name).read_text())
    path = tmp_path / "trials.jsonl"
    first, second, third, *_ = path.read_text().splitlines(keepends=True)
    values = json.loads(second)
    sealed = Trial.from_json(third).to_json() + "\n"
    edits = {
        "line 2: the verdict": first + json.dumps({**values, "verdict": "FASTER"}),
        "line 2: the environment": first + json.dumps({**values, "environment": "0" * 12}),
        "line 2 is A/A 0 again": first + first,
        "line 1 is the line was changed": re.sub(r'"b_s":\[0\.000(\d)', r'"b_s":[0.001\1', sealed),
        "line 2 is ": first + "[]",
    }
    assert values["verdict"] != "FASTER"
    for told, text in edits.items():
        path.write_text(text)
        ended = pft_bench_command("verify", tmp_path)
        assert (ended.code, told in ended.out) == (1, True), (told, ended)
    path.write_text(sealed)
    ended = pft_bench_command("verify", tmp_path)
    assert (ended.code, "comparisons carry no digest" in ended.out) == (0, False)
    path.unlink()
    ended = pft_bench_command("verify", tmp_path)
    assert (
        ended.code,
        "(an evaluation) or trials.jsonl" in " ".join(ended.err.split()),
    ) == (2, True)
