"""The compiled module: instruction sets, the index check, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pft_bench import _cpu

HERE = Path(__file__).parent


def run_python(*arguments: str, isa: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PFT_CPU_ISA": isa}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, cwd=HERE, check=False
    )


@pytest.mark.slow(25)
@pytest.mark.parametrize("isa", [name for name in ("scalar", "avx2", "avx512") if name != _cpu.isa()])
def test_every_other_instruction_set_passes_the_same_tests(isa):
    if isa not in _cpu.isas():
        pytest.skip(f"this processor has no {isa}")
    names = ("test_cpu_sparse.py", "test_cpu_attention.py", "test_cpu_depthwise.py", "test_cpu_elements.py")
    tests = [str(HERE / name) for name in names]
    # PyTorch's ops around the kernels are the same whatever those are compiled for
    done = run_python(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not test_the_op", *tests, isa=isa
    )
    assert done.returncode == 0, done.stdout[-4000:]


AUTO = (
    "import torch, pft_bench\n"
    "x, i = torch.ones(1, 2, 3), torch.zeros(1, 2, 1, dtype=torch.int32)\n"
    "for _ in range(2): pft_bench.sddmm(x, x, i)\n"
)


def test_an_unknown_instruction_set_makes_the_backend_unavailable_and_says_why():
    """A misspelt one must not end as slow attention without a word; `auto` says once what it passed over."""
    code = "print([b.reason for b in pft_bench.backends() if b.name == 'cpu' and not b.available])"
    done = run_python("-c", AUTO + code, isa="AVX2")
    assert done.returncode == 0, done.stderr
    assert "PFT_CPU_ISA=AVX2" in done.stdout
    assert "scalar" in done.stdout
    assert done.stderr.count("backend 'auto' takes 'dense': 'cpu' is not available: PFT_CPU_ISA=AVX2") == 1


def test_the_widest_instruction_set_on_the_one_openmp_library_is_the_default():
    """The kernels add no threads to those that PyTorch has started."""
    code = (
        "import torch, os; torch.set_num_threads(2); torch.ones(1 << 20).sum().item()\n"
        "tasks = lambda: len(os.listdir('/proc/self/task')) if os.path.isdir('/proc') else 0\n"
        "n = tasks()\n"
        "from pft_bench import _cpu; from pft_bench.backends import get\n"
        "i = torch.zeros(64, 64, 1, dtype=torch.int16)\n"
        "get('cpu').sddmm(torch.ones(64, 64, 8), torch.ones(64, 64, 8), i)\n"
        "print(tasks() - n, _cpu.isa())\n"
    )
    done = run_python("-c", code + AUTO, isa="")
    assert done.stdout.split() == ["0", _cpu.isas()[-1]], done.stdout + done.stderr
    assert not done.stderr


def test_build_info_names_the_compiler_and_the_flags_of_every_instruction_set():
    info = _cpu.build_info()
    assert info["compiler"].split()[0] in ("gcc", "clang")
    assert "-ffp-contract=fast" in info["flags_all"]
    assert {f"flags_{isa}" for isa in _cpu.isas()} <= set(info)
    assert "avx2" not in _cpu.isas() or "-mavx2" in info["flags_avx2"]


@pytest.mark.parametrize("what", ["fma_flops", "load_bytes", "gather_bytes"])
def test_peaks_are_rates_of_a_real_machine(what):
    assert 1e8 < _cpu.peak_per_second(what, 16384, 1) < 1e13


def test_peaks_refuse_what_they_do_not_know():
    with pytest.raises(ValueError, match="what must be"):
        _cpu.peak_per_second("disk", 16384, 1)
    with pytest.raises(ValueError, match="threads"):
        _cpu.peak_per_second("load_bytes", 16384, 0)


ASCENDING = [[0, 3, 7], [1, 2, 6]]
BAD_INDEX = {  # rows, expected
    "too large in an ascending row": ([[0, 3, 7], [1, 2, 8]], (1, 2, 8, "range")),
    "negative": ([[0, 3, 7], [-1, 2, 6]], (1, 0, -1, "range")),
    "negative, not ascending": ([[5, -2, 7]], (0, 1, -2, "range")),
    "neighbours equal": ([[0, 3, 3]], (0, 2, 3, "duplicate")),
    "equal but apart": ([[4, 3, 4]], (0, 2, 4, "duplicate")),
    "the first of two faults": ([[0, 1, 2], [5, 5, 9], [9, 1, 2]], (1, 1, 5, "duplicate")),
}


def index_error(rows, keys, dtype=torch.int16, **options):
    index = torch.tensor(rows, dtype=dtype)
    return _cpu.index_error(index.data_ptr(), index.element_size(), len(rows), len(rows[0]), keys, **options)


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize(("rows", "expected"), BAD_INDEX.values(), ids=BAD_INDEX.keys())
def test_index_faults(rows, expected, dtype):
    assert index_error(rows, 8, dtype) == expected


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize(
    "rows", [ASCENDING, [[7, 3, 0], [6, 1, 2]], [[0], [7]]], ids=["ascending", "not", "one"]
)
def test_good_index(rows, dtype):
    assert index_error(rows, 8, dtype) is None


def test_values_beyond_int32_are_not_wrapped():
    assert index_error([[2**32 + 1]], 8, torch.int64) == (0, 0, 2**32 + 1, "range")


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_the_first_fault_of_many_rows_for_any_number_of_threads(threads):
    rows = torch.rand(5000, 70).topk(9).indices  # not ascending: every row is marked and unmarked
    assert _cpu.index_error(rows.data_ptr(), 8, 5000, 9, 70, threads) is None
    rows[4321, 5] = rows[4321, 2]
    rows[4700, 1] = 70
    expected = (4321, 5, int(rows[4321, 2]), "duplicate")
    assert _cpu.index_error(rows.data_ptr(), 8, 5000, 9, 70, threads) == expected


def test_a_product_says_whether_an_unchecked_index_is_good():
    x, sizes = torch.ones(1, 2, 4), (1, 2, 2, 4, 1)
    out, workspace = torch.empty(2), torch.empty(1 << 16, dtype=torch.uint8)
    rows = (x.data_ptr(), x.stride())

    def sddmm(index, sizes=sizes, **options):
        return _cpu.sddmm(
            rows, rows, index.data_ptr(), index.element_size(), out.data_ptr(), sizes, workspace.data_ptr(), 1 << 16, 1,
            **options,
        )  # fmt: skip

    good, bad = torch.tensor([[[1], [0]]]), torch.tensor([[[1], [2]]])
    assert sddmm(good, checked=False) is True
    assert out.tolist() == [4, 4]
    assert sddmm(bad, checked=False) is False
    assert sddmm(good, (1, 2, 0, 4, 1), checked=False) is False  # there is no key to name
    assert sddmm(good.short()) is True
    with pytest.raises(RuntimeError, match="shape, index type or workspace is not acceptable"):
        sddmm(good)


def test_refuses_null_pointers_strided_columns_and_small_workspaces():
    sizes = (1, 2, 2, 4, 1)
    x = torch.zeros(64)
    index = torch.zeros(2, dtype=torch.int16)
    p = x.data_ptr()
    rows, columns = (p, (8, 4, 1)), (p, (8, 1, 2))
    with pytest.raises(ValueError, match="q is a null pointer"):
        _cpu.sddmm((0, (8, 4, 1)), rows, index.data_ptr(), 2, p, sizes, p, 1 << 20, 1)
    with pytest.raises(ValueError, match="sddmm: the last stride of k must be 1, got 2"):
        _cpu.sddmm(rows, columns, index.data_ptr(), 2, p, sizes, p, 1 << 20, 1)
    with pytest.raises(RuntimeError, match=r"sddmm \[1, 2, 2, 4, 1\]"):
        _cpu.sddmm(rows, rows, index.data_ptr(), 2, p, sizes, p, 64, 1)
    with pytest.raises(ValueError, match="negative"):
        _cpu.sparse_workspace_bytes((1, 2, -2, 4, 1), 1)


def test_refuses_window_heads_too_large_for_its_offsets():
    anywhere = (64, (0, 0, 1))
    with pytest.raises(RuntimeError, match="too large"):
        _cpu.sddmm(anywhere, anywhere, 64, 4, 64, (1, 1, 2**27, 40, 1), 64, 2**62, 1)


def test_workspace_grows_with_threads_but_not_beyond_the_window_heads():
    sizes = (4, 64, 64, 40, 16)
    assert _cpu.sparse_workspace_bytes(sizes, 4) > _cpu.sparse_workspace_bytes(sizes, 1)
    assert _cpu.sparse_workspace_bytes(sizes, 400) == _cpu.sparse_workspace_bytes(sizes, 4)
