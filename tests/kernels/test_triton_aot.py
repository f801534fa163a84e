"""Every Triton kernel compiled for every target, without a GPU: it compiles, it fits, and it does not spill."""

import os

import pytest

pytest.importorskip("triton")

from pft_bench.insight import triton_table

# Shared memory that a program may have, by compute capability (CUDA C++ Programming Guide, "Technical Specifications").
SHARED_LIMIT_KIB = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}

# Together these launch every kernel once; the other situations differ in tile sizes.
EVERY_KERNEL = (
    "sddmm K=256",
    "dense layer",
    "dense, keep 256",
    "256 listed, keep 128",
    "backward, dense layer",
    "backward, 16 listed, keep all",
)


@pytest.fixture(scope="module")
def compiled():
    """Every kernel in float16 for all targets and in bfloat16 for the oldest; every situation in float32 for one."""
    jobs = triton_table.jobs_of(triton_table.TARGETS, ["float16"], EVERY_KERNEL)
    jobs += triton_table.jobs_of([80], ["bfloat16"], EVERY_KERNEL)
    jobs += triton_table.jobs_of([90], ["float32"])
    return triton_table.compile_jobs(jobs, processes=1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


@pytest.mark.slow(50)
def test_every_kernel_compiles_for_every_target(compiled):
    kernels = {row.kernel for row in compiled}
    assert kernels >= {
        "sddmm_gather", "sddmm_dense", "spmm", "invert_index", "spmm_transpose", "attention_all",
        "attention_select", "attention_listed", "row_delta", "candidate_gradient", "dense_query", "dense_key",
        "bias_listed", "bias_dense", "add_tables",
    }  # fmt: skip
    for kernel in kernels:
        assert {row.target for row in compiled if row.kernel == kernel} >= set(triton_table.TARGETS), kernel
        assert {row.dtype for row in compiled if row.kernel == kernel} >= {"float16", "bfloat16"}, kernel


@pytest.mark.slow(50)
def test_float32_is_never_multiplied_in_tf32(compiled):
    """The interpreter computes in IEEE arithmetic whatever is asked for: only the PTX shows what a GPU would do."""
    found = {(row.dtype, row.kernel) for row in compiled if row.tf32}
    assert ("float16", "attention_all") in found  # weights in three TF32 products, on purpose
    assert not [kernel for dtype, kernel in found if dtype == "float32"]


@pytest.mark.slow(50)
def test_default_configurations_fit_and_do_not_spill(compiled):
    too_large = [row for row in compiled if row.shared_bytes > 1024 * SHARED_LIMIT_KIB[row.target]]
    spilling = [row for row in compiled if row.spilled_bytes]
    assert not too_large
    assert not spilling


def test_table_marks_spills():
    row = triton_table.Resources("a layer", "kernel", "float16", 90, 4, 255, 16, 2048)
    text = triton_table.render([row])
    assert "| a layer | kernel | float16 | 4 | 255 / 2.0 **spills 16** |" in text
