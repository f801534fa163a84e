"""Without a GPU: the tests that execute Triton kernels, in processes of their own under Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

import torch

from pft_bench.backends.triton import interpreter_limit

FOLDER = Path(__file__).parent
FILES = {
    "layers": ("test_triton_attention.py",),
    "products, models, CUDA": ("test_triton_sparse.py", "test_triton_model.py", "test_triton_cuda.py"),
}
"""What one process runs: two of about the same length, for each spends seconds on PyTorch and Triton alone."""


def start(name):
    """A process that runs the files of one entry."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-rs"]
    left = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_XDIST")}
    return subprocess.Popen(
        [*command, *(str(FOLDER / file) for file in FILES[name])],
        env={**left, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def interpreted():
    """Both processes, side by side, by their names. Workers of pytest share them, one at a time each."""
    shared = "PYTEST_XDIST_WORKER" in os.environ
    processes = {name: start(name) for name in FILES if not shared}
    yield processes
    for process in processes.values():
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.mark.slow(60)
@pytest.mark.skipif(torch.cuda.is_available(), reason="the files run on the GPU themselves")
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the files run interpreted already")
@pytest.mark.skipif(interpreter_limit() is not None, reason=str(interpreter_limit()))
@pytest.mark.parametrize("name", FILES)
def test_under_the_interpreter(interpreted, name):
    if name not in interpreted:
        interpreted[name] = start(name)
    output, _ = interpreted[name].communicate()
    assert interpreted[name].returncode == 0, output[-8000:]
    assert " passed" in output
