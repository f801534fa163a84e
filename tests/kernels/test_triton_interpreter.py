"""Without a GPU: the tests that execute Triton kernels, in a process of their own under Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

import torch

from pft_bench.backends.triton import interpreter_limit

FOLDER = Path(__file__).parent
FILES = ("test_triton_attention.py", "test_triton_sparse.py", "test_triton_model.py", "test_triton_cuda.py")


@pytest.mark.slow(30)
@pytest.mark.skipif(torch.cuda.is_available(), reason="the files run on the GPU themselves")
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the files run interpreted already")
@pytest.mark.skipif(interpreter_limit() is not None, reason=str(interpreter_limit()))
def test_under_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-rs"]
    left = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_XDIST")}
    done = subprocess.run(
        [*command, *(str(FOLDER / file) for file in FILES)],
        env={**left, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    assert " passed" in done.stdout
