"""`pft-bench run`: the run folder, wrong kernels, wrong arguments, going on after a kill."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pft_bench.backends import get
from pft_bench.harness.record import Status, lock_folder, read_records, recompute

Run = Callable[..., Any]


def statuses(folder: Path) -> dict[tuple[str, str], str]:
    """(op and K or step, backend) -> status of every record."""
    return {
        (f"{r.case.op} {r.case.shapes.get('candidates', '')}>{r.case.k}", r.case.backend): r.status.value
        for r in read_records(folder / "records.jsonl").records
    }


def test_a_run_writes_its_folder_and_prints_its_tables(
    tiny_run: Run, drawn: None, pft_bench_command: Run, tmp_path: Path
) -> None:
    from skimage import io

    folder = tmp_path / "made" / "here"
    levels = ("--level", "op", "--level", "layer", "--level", "model")
    ended = tiny_run(*levels, "--sched", "16,5", "--sched", "dense", "--out", folder)
    assert ended.code == 0, ended
    assert {path.name for path in folder.iterdir()} >= {
        "records.jsonl", "summary.csv", "environment.json", "latency_vs_k_spmm.png", "memory_vs_k_spmm.png",
        "stages.png", "speedup.png",
    }  # fmt: skip
    for title in ("Sparse products", "One attention layer", "Whole model", "Where the model's time goes"):
        assert title in ended.out
    # each row as soon as its group ends, before the tables
    for row in ("op spmm K=5 on cpu: check ok, ", "layer 16 -> 5 on dense: check ok, "):
        assert row in ended.out[: ended.out.index("Sparse products")]
    assert str(folder) in ended.out.replace("\n", "")

    assert pft_bench_command("verify", folder).code == 0
    scan = read_records(folder / "records.jsonl")
    assert not scan.truncated
    for record in scan.records:
        assert record.status is Status.OK
        assert record.checks
        assert all(check.passed for check in record.checks)
        assert not recompute(record)
        assert record.case.threads == 1
        assert record.timing is not None
        assert len(record.timing.samples_s) >= 6
        assert (record.timing.baseline is None) == (record.case.backend == "dense")
        # PyTorch does not count these two: that is unknown, not zero
        assert (record.flops.counted_flops is None) == (
            record.case.backend in ("sampled_addmm", "embedding_bag", "row_reads")
        )
        assert record.flops.counted_flops != 0
        assert record.flops.kernel_flops
        assert record.flops.kernel_bytes
        assert record.memory.peak_allocated_bytes
        assert record.memory.peak_process_bytes
    by_level = {
        level: [r for r in scan.records if r.case.level == level] for level in ("op", "layer", "model")
    }
    assert {r.case.backend for r in by_level["op"]} == {
        "dense",
        "cpu",
        "sampled_addmm",
        "embedding_bag",
        "row_reads",
    }
    assert {(r.case.shapes["candidates"], r.case.k) for r in by_level["layer"]} == {(16, 16), (16, 5)}
    assert {r.case.schedule for r in by_level["model"]} == {(16, 16, 5, 5), (16, 16, 16, 16)}
    for record in by_level["model"]:
        assert record.stages_s
        assert record.flops.paper_macs
        assert {"projection", "ffn", "conv", "norm"} <= set(record.stages_s)

    with (folder / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["case_id"] for row in rows] == [record.case_id for record in scan.records]
    known = json.loads((folder / "environment.json").read_text())
    assert {record.environment for record in scan.records} <= set(known)
    for plot in folder.glob("*.png"):
        pixels = io.imread(plot)
        assert min(pixels.shape[:2]) > 200
        assert float(np.std(pixels)) > 5, f"{plot.name} is blank"


def off_by_one_in_the_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant a kernel that, where K is not a multiple of 16, leaves the last entry of each row unwritten."""
    backend = get("cpu")
    right = backend.sddmm

    def wrong(q: torch.Tensor, k: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        out = right(q, k, index)
        if index.shape[-1] % 16:
            out[..., -1] = 0
        return out

    monkeypatch.setattr(backend, "sddmm", wrong)


def test_a_wrong_kernel_is_a_failed_row_without_a_time_and_the_rest_is_measured(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    off_by_one_in_the_tail(monkeypatch)
    ended = tiny_run("--level", "op", "--sched", "16,5", "--out", tmp_path)
    assert ended.code == 1
    records = read_records(tmp_path / "records.jsonl").records
    failed = [record for record in records if record.status is not Status.OK]
    assert [(r.case.op, r.case.k, r.case.backend, r.status.value) for r in failed] == [
        ("sddmm", 5, "cpu", "failed")
    ]
    assert failed[0].timing is None
    assert failed[0].derived is None
    assert "sddmm operator" in str(failed[0].reason)
    assert {(r.case.op, r.case.k, r.case.backend) for r in records if r.timing is not None} >= {
        ("sddmm", 5, "dense"),
        ("sddmm", 16, "cpu"),
        ("spmm", 5, "cpu"),
        ("sddmm", 5, "sampled_addmm"),
    }
    assert "FAILED" in ended.out
    assert "not measured: op sddmm K=5 on cpu: failed" in ended.out


def test_a_kernel_that_raises_is_a_row_with_its_reason(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("launch failed")

    monkeypatch.setattr(get("cpu"), "attention_forward", broken)
    ended = tiny_run("--level", "layer", "--level", "model", "--sched", "16,5", "--out", tmp_path)
    assert ended.code == 1
    records = read_records(tmp_path / "records.jsonl").records
    for record in records:
        if record.case.backend == "cpu":
            assert record.status is Status.ERROR
            assert "launch failed" in str(record.reason)
            assert record.timing is None
        else:
            assert record.status is Status.OK


def test_a_wrong_attention_kernel_fails_the_model_row_too(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = get("cpu")
    right = backend.attention_forward

    def wrong(*arguments: Any) -> Any:
        out, *rest = right(*arguments)
        out[:, :, -1] = 0  # the tail of the rows
        return out, *rest

    monkeypatch.setattr(backend, "attention_forward", wrong)
    ended = tiny_run("--level", "model", "--sched", "16,5", "--out", tmp_path)
    assert ended.code == 1
    found = {r.case.backend: r for r in read_records(tmp_path / "records.jsonl").records}
    assert found["dense"].status is Status.OK
    assert found["cpu"].status is Status.FAILED
    assert "attention out" in str(found["cpu"].reason)


def test_training_is_checked_and_measured_with_its_gradients(tiny_run: Run, tmp_path: Path) -> None:
    levels = ("--level", "op", "--level", "layer", "--level", "model")
    ended = tiny_run(*levels, "--mode", "train", "--sched", "16,5", "--out", tmp_path)
    assert ended.code == 0, ended
    names = {check.name for r in read_records(tmp_path / "records.jsonl").records for check in r.checks}
    assert {"sddmm grad_k operator", "attention grad_bias", "model loss", "model gradients"} <= names


def test_resume_runs_only_what_is_missing(tiny_run: Run, tmp_path: Path) -> None:
    arguments = ("--level", "op", "--sched", "5", "--backend", "cpu", "--out", tmp_path)
    assert tiny_run(*arguments).code == 0
    path = tmp_path / "records.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-2]) + lines[-2][:40])  # killed while it wrote
    ended = tiny_run(*arguments, "--resume")
    assert ended.code == 0, ended
    assert "1 group to run" in ended.out.replace("\n", " ")
    scan = read_records(path)
    assert len(scan.records) == len(lines)
    assert len(scan.truncated) == 1
    assert [r.to_json() + "\n" for r in scan.records][: len(lines) - 2] == lines[:-2]
    assert len({r.case_id for r in scan.records}) == len(lines)
    again = tiny_run(*arguments, "--resume")
    assert "0 groups to run" in again.out.replace("\n", " ")
    assert again.code == 0


OP = ("--level", "op", "--sched", "dense", "--out")


def test_a_folder_with_records_is_not_written_into_without_resume(
    tiny_run: Run, copy_of_kept: Callable[..., Path]
) -> None:
    folder = copy_of_kept(lambda out: tiny_run(*OP, out))
    before = (folder / "records.jsonl").read_bytes()
    ended = tiny_run(*OP, folder)
    assert ended.code == 2
    assert "--out must be a new folder (or add --resume)" in ended.err
    assert (folder / "records.jsonl").read_bytes() == before


def test_a_folder_that_another_run_writes_is_refused(tiny_run: Run, tmp_path: Path) -> None:
    with lock_folder(tmp_path):
        ended = tiny_run("--level", "op", "--sched", "dense", "--out", tmp_path)
    assert ended.code == 2
    assert "is being written by process" in ended.err
    assert not (tmp_path / "records.jsonl").exists()


WRONG = {
    "not an integer": (("--sched", "16,many"), "'many'"),
    "increasing": (("--sched", "5,9"), "must not increase"),
    "zero": (("--sched", "16,0"), "at least 1 entry, got 0"),
    "beyond the window": (("--sched", "1024"), "at most the 16 tokens of a window, got 1024"),
    "too many blocks": (("--sched", "16,9,5"), "at most one value per block, got 3 values for 2 blocks"),
    "unknown form": (("--sched", "beta:0.5"), "unknown form 'beta'"),
    "one of several wrong": (("--sched", "dense", "--sched", "17"), "got 17"),
    "size": (("--lr", "8"), "--lr must be HxW"),
    "empty size": (("--lr", "0x8"), "--lr must be HxW"),
    "preset": (
        ("--preset", "huge"),
        "preset must be one of classical, light, tiny, small, or one with its scale",
    ),
    "preset of one scale": (
        ("--preset", "small", "--scale", "4"),
        "scale must be 2 with preset small, got 4",
    ),
    "scale": (("--preset", "light", "--scale", "5"), "scale must be 2, 3 or 4, got 5"),
    "scale against preset": (
        ("--preset", "light_x2", "--scale", "3"),
        "scale must agree with preset 'light_x2'",
    ),
    "threads": (("--threads", "100000"), "threads must be at most"),
    "budget nan": (("--budget", "nan"), "--budget must be positive seconds"),
    "digits": (("--sched", "1_0"), "must be integers"),
    "unreadable image": (
        ("--level", "model", "--image", __file__),
        "must be a picture: its content is not in a known format",
    ),
    "backend": (("--backend", "numpy"), "backend must be"),
    "level": (("--level", "kernel"), "level must be one of op, layer, model, threads, got 'kernel'"),
    "mode": (("--mode", "test"), "mode must be one of infer, train, backward"),
    "dtype": (("--dtype", "int8"), "dtype must be"),
    "dtype without a kernel": (
        ("--dtype", "float64", "--backend", "cpu"),
        "takes torch.bfloat16 or torch.float16 or torch.float32, got torch.float64",
    ),
    "device": (("--device", "tpu"), "device must be cpu, cuda or auto, got 'tpu'"),
    "device by number": (("--device", "cuda:77"), "device must be cpu, cuda or auto, got 'cuda:77'"),
    "budget": (("--budget", "0"), "budget"),
    "timeout": (("--timeout", "0"), "--timeout must be positive seconds"),
    "shard": (("--shard", "half"), "--shard must be i/n"),
    "shard beyond": (("--shard", "3/2"), "1 <= i <= n, got 3/2"),
    "memory limit": (("--isolate", "--memory-limit", "much"), "--memory-limit must be a size"),
    "memory limit without a process": (("--memory-limit", "1G"), "needs a process for each case"),
    "plug-in": (("--plugin", "no_such_module"), "--plugin must be a module or a .py file"),
    "plug-in file": (("--plugin", "/nowhere/mine.py"), "got '/nowhere/mine.py'"),
    "image": (
        ("--image", "/nowhere/at/all.png"),
        "the image must be a picture, got /nowhere/at/all.png: there is no such file",
    ),
    "weights": (
        ("--weights", "/nowhere/at/all.pth"),
        "--weights must be a checkpoint (.pth, .pt, .safetensors) or",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_argument_ends_with_one_clear_line_and_code_2(
    tiny_run: Run, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    good = () if {"--sched", "--preset"} & set(arguments) else ("--sched", "dense")
    ended = tiny_run("--level", "model", *good, "--out", tmp_path / "new", *arguments)
    assert ended.code == 2, ended
    assert message in ended.err.replace("\n", "")
    lines = [line for line in ended.err.splitlines() if line.strip()]
    assert len(lines) == 1, ended.err
    assert "Traceback" not in ended.err
    assert not (tmp_path / "new" / "records.jsonl").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("command", ["run", "check"])
def test_a_gpu_that_is_not_there_is_one_clear_line(pft_bench_command: Run, command: str) -> None:
    ended = pft_bench_command(command, "--device", "cuda")
    assert ended.code == 2
    assert "device 'cuda' is not available" in ended.err


@pytest.mark.parametrize(
    "arguments", [("--rounds", "5"), ("--rounds", "x"), ("--threads", "-1"), ("--shed", "16")]
)
def test_options_that_typer_refuses_end_with_code_2_as_well(
    tiny_run: Run, arguments: tuple[str, ...]
) -> None:
    ended = tiny_run(*arguments)
    assert ended.code == 2
    assert "Traceback" not in ended.err


def test_the_roof_is_measured_on_the_threads_of_the_run(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pft_bench.harness.measure import roof

    seen = []
    right = roof.measure_roof

    def spy(*arguments: Any) -> Any:
        seen.append(torch.get_num_threads())
        return right(*arguments)

    monkeypatch.setattr(roof, "measure_roof", spy)
    assert tiny_run("--level", "op", "--sched", "dense", "--out", tmp_path, "--threads", 3).code == 0
    assert seen == [3]


def test_shares_of_a_sweep_together_are_the_sweep(tiny_run: Run, tmp_path: Path) -> None:
    arguments = ("--level", "op", "--sched", "16,5", "--out", tmp_path)
    first = tiny_run(*arguments, "--shard", "1/2")
    assert first.code == 0, first
    assert "8 cases of other shares are not in" in first.out
    assert len(read_records(tmp_path / "records.jsonl").records) == 8
    second = tiny_run(*arguments, "--shard", "2/2")
    assert second.code == 0, second
    records = read_records(tmp_path / "records.jsonl").records
    assert len({record.case_id for record in records}) == len(records) == 16
    assert not list(tmp_path.glob("records-*"))
    assert "0 groups to run" in tiny_run(*arguments, "--resume").out


def test_a_whole_run_takes_over_what_killed_shares_have_left(tiny_run: Run, tmp_path: Path) -> None:
    arguments = ("--level", "op", "--sched", "dense", "--out", tmp_path)
    with lock_folder(tmp_path, "2of2"):  # the other share is under way: nothing is merged yet
        ended = tiny_run(*arguments, "--shard", "1/2")
        assert ended.code == 0, ended
        assert "other shares of this sweep are under way" in ended.out
        assert not (tmp_path / "records.jsonl").exists()
        refused = tiny_run(*arguments)
        assert (refused.code, "is being written by process" in refused.err) == (2, True)
    assert tiny_run(*arguments).code == 2, "records are there: --resume is needed"
    ended = tiny_run(*arguments, "--resume")
    assert ended.code == 0, ended
    assert "1 group to run" in ended.out
    assert len(read_records(tmp_path / "records.jsonl").records) == 8
    assert not list(tmp_path.glob("records-*"))


def test_list_runs_nothing_and_names_every_case(tiny_run: Run, tmp_path: Path) -> None:
    arguments = ("--level", "op", "--level", "layer", "--sched", "16,5", "--out", tmp_path)
    ended = tiny_run(*arguments, "--list", "--shard", "1/3")
    assert ended.code == 0, ended
    assert not list(tmp_path.iterdir())
    lines = ended.out.splitlines()[1:]
    assert len(lines) == 4 * 4 + 2 * 2
    shares = [tiny_run(*arguments, "--list", "--shard", f"{i}/3").out.splitlines()[1:] for i in (1, 2, 3)]
    for of_one_case in zip(*shares, strict=True):
        states = sorted(" ".join(line.split()[:2]) for line in of_one_case)
        assert states == ["other share", "other share", "to run"]


def test_a_truncated_line_is_told_by_number_and_a_foreign_one_stops_the_run(
    tiny_run: Run, copy_of_kept: Callable[..., Path]
) -> None:
    folder = copy_of_kept(lambda out: tiny_run(*OP, out))
    path = folder / "records.jsonl"
    whole = path.read_text()
    path.write_text(whole + whole.splitlines()[-1][:100])
    ended = tiny_run(*OP, folder, "--resume")
    assert f"{path}:9: truncated line" in ended.out.replace("\n", "")
    path.write_text(whole + "latency 3 ms\n" + whole)
    ended = tiny_run(*OP, folder, "--resume")
    assert ended.code == 2
    assert f"{path}:9: not JSON" in ended.err.replace("\n", "")
    assert path.read_text() == whole + "latency 3 ms\n" + whole


def test_an_interrupted_run_keeps_its_records_and_says_how_to_go_on(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = get("cpu").spmm

    def interrupted(*arguments: torch.Tensor) -> torch.Tensor:
        if (tmp_path / "records.jsonl").stat().st_size:  # the first group is done
            raise KeyboardInterrupt
        return right(*arguments)

    monkeypatch.setattr(get("cpu"), "spmm", interrupted)
    ended = tiny_run("--level", "op", "--sched", "dense", "--out", tmp_path)
    assert ended.code == 130
    assert f"continuewith--out{tmp_path}--resume" in "".join(ended.out.split())  # lines break anywhere
    assert len(read_records(tmp_path / "records.jsonl").records) == 4


def test_an_interruption_while_results_are_written_says_how_to_go_on_too(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pft_bench.cli.run.write_plots", interrupted)
    ended = tiny_run("--level", "op", "--sched", "dense", "--out", tmp_path)
    assert ended.code == 130
    assert f"continuewith--out{tmp_path}--resume" in "".join(ended.out.split())


def test_what_fails_after_the_timing_costs_that_row_alone(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pft_bench.harness.cases import group

    right, measured = group.peak_allocated, iter(["dense", "cpu"])

    def room_for_one(call: Callable[[], object], device: torch.device) -> int:
        if next(measured) == "cpu":
            raise MemoryError("no room for the profiler")
        return right(call, device)

    monkeypatch.setattr(group, "peak_allocated", room_for_one)

    ended = tiny_run("--level", "layer", "--sched", "dense", "--out", tmp_path)
    assert ended.code == 1
    found = {r.case.backend: r for r in read_records(tmp_path / "records.jsonl").records}
    assert found["dense"].status is Status.OK
    assert found["cpu"].status is Status.OOM
    assert found["cpu"].reason == "after its timing: MemoryError: no room for the profiler"


def test_what_a_backend_does_without_is_a_skipped_row(
    tiny_run: Run, bare_plugin: Callable[[str], tuple[Any, ...]], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    plugin = bare_plugin('spmm = type(get("cpu")).spmm\n')
    ended = tiny_run("--level", "op", "--sched", "16", *plugin, "--out", out)
    found = {r.case.op: r for r in read_records(out / "records.jsonl").records if r.case.backend == "mine"}
    assert found["sddmm"].status is Status.SKIPPED, found["sddmm"].reason
    assert "backend 'mine' has no sddmm" in str(found["sddmm"].reason)
    assert found["spmm"].status is Status.OK, found["spmm"].reason
    assert ended.code == 1, "a row without a result"


def test_a_timer_that_forgets_half_of_the_work_ends_the_run(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pft_bench.harness.measure.timer import CpuTimer

    arguments = ("--level", "op", "--sched", "dense", "--backend", "cpu", "--out")
    assert tiny_run(*arguments, tmp_path / "sound").code == 0
    (known,) = json.loads((tmp_path / "sound" / "environment.json").read_text()).values()
    assert [item["passed"] for item in known["now"]["timer"]] == [True, True]
    right = CpuTimer.sample_s
    monkeypatch.setattr(CpuTimer, "sample_s", lambda self, *given: right(self, *given) / 2)
    ended = tiny_run(*arguments, tmp_path / "unsound")
    assert ended.code != 0
    assert "the timer fails its audit, nothing was timed: timer: whole call" in ended.err
    assert not (tmp_path / "unsound" / "records.jsonl").exists()
