"""What examples/ shows works: each file is run, on small inputs, as its first lines say."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"
PROGRAM = Callable[..., tuple[int, str, str]]


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def photographs(folder: Path, count: int, side: int) -> Path:
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(count):
        pixels = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_every_file_is_tested() -> None:
    assert {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh")} == {
        "enlarge.py",
        "my_kernel.py",
        "own_module.py",
        "sweep.py",
        "train.sh",
    }


def test_a_kernel_of_ones_own(pft_bench_command: PROGRAM) -> None:
    code, out, err = pft_bench_command(
        *("check", "--plugin", EXAMPLES / "my_kernel.py", "--backend", "batched"),
        *("--tokens", 16, "--head-dim", 5, "--seeds", 1),
    )
    assert (code, err) == (0, "")
    assert "batched" in out


def test_a_sweep_and_its_records(
    pft_bench_command: PROGRAM, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, _, err = pft_bench_command(
        *(
            "run",
            "--preset",
            "tiny_x2",
            "--lr",
            "8x8",
            "--sched",
            "16",
            "--sched",
            "16,8",
            "--level",
            "model",
        ),
        *("--rounds", 6, "--budget", 0.01, "--threads", 1, "--no-isolate", "--out", tmp_path / "run"),
    )
    assert code == 0, err
    sweep = example("sweep")
    sweep.main(tmp_path / "run")
    table = capfd.readouterr().out
    assert table.count(" ok ") == 4
    sweep.measure(tmp_path / "other", "--list")


def test_a_picture(tmp_path: Path) -> None:
    source = photographs(tmp_path / "in", 1, 20) / "0.png"
    example("enlarge").main(str(source), str(tmp_path / "large.png"))
    assert Image.open(tmp_path / "large.png").size == (40, 40)


def test_a_module_of_ones_own_learns(one_thread: None) -> None:
    losses = example("own_module").main(120)
    assert sum(losses[-10:]) < sum(losses[:10]) / 2
    assert torch.isfinite(torch.tensor(losses)).all()


@pytest.mark.slow
def test_a_training_on_two_processes(tmp_path: Path) -> None:
    """Which `--resume` continues: tests/train."""
    data = photographs(tmp_path / "photographs", 2, 72)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        [EXAMPLES / "train.sh", data, tmp_path / "out", "--batch", "2", "--patch", "16", "--iterations", "1"],
        check=True,
        env={**os.environ, "PATH": path},
        timeout=300,
    )
    assert (tmp_path / "out" / "weights.safetensors").is_file()
    assert len((tmp_path / "out" / "loss.jsonl").read_text().splitlines()) == 1
