"""Gates on what the compiler made of the CUDA kernels, for every architecture; no GPU needed.

Reads the release wheel ($PFT_CUDA_BINARY, as .ci/run sets it), the installed module, or what `make wheel` left in
build/. Without one, but with nvcc, two representative files are compiled for sm_90.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from pft_bench.insight import kernel_table as table

ROOT = Path(__file__).resolve().parents[2]
CUDA_INCLUDE = [Path("/usr/local/cuda/include"), *Path("/usr/local").glob("cuda-*/include")]
WAYS = ("forward", "backward")
DENSE = (
    "attention_forward_dense",
    "attention_forward_online",
    *(name for name in table.SPLIT if name.startswith("attention")),
    "attention_backward_dense_keys",
    "attention_backward_dense_queries",
)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> list[table.Kernel]:
    if table.find_tool("cuobjdump") is None or table.find_tool("nvdisasm") is None:
        pytest.skip("no cuobjdump: neither a CUDA toolkit nor Triton's package")
    pytest.importorskip("pft_bench._cuda_emu")
    binary = table.find_binary()
    if binary is not None:
        return table.kernel_table(binary)
    if shutil.which("nvcc") is None:
        pytest.skip("no compiled CUDA module and no nvcc")
    folder = tmp_path_factory.mktemp("objects")
    found = []
    for name in ("spmm", "attention_forward_online"):
        compiled = folder / f"{name}.fatbin"  # without the host's part, which takes a third of the time
        flags = ["-std=c++17", "-O3", "-gencode=arch=compute_90,code=sm_90", "-fatbin"]
        flags.append(f"-I{ROOT / 'kernels' / 'include'}")
        source = str(ROOT / "kernels" / "cuda" / f"{name}.cu")
        subprocess.run(["nvcc", *flags, source, "-o", str(compiled)], check=True, timeout=300)
        found += table.kernel_table(compiled)
    return found


def labels(kernels: list[table.Kernel]) -> str:
    return ", ".join(f"{k.label} sm_{k.arch}" for k in kernels)


def test_kernels_are_there(kernels: list[table.Kernel]) -> None:
    """All architectures of the release, and the same kernels for each."""
    by_arch = {arch: {k.label for k in kernels if k.arch == arch} for arch in {k.arch for k in kernels}}
    assert len(set(map(frozenset, by_arch.values()))) == 1
    assert set(by_arch) in ({80, 86, 90, 100, 120}, {90})
    assert not [k.label for k in kernels if not k.instructions]


def test_nothing_spills_and_no_sum_is_left_to_atomics(kernels: list[table.Kernel]) -> None:
    """Determinism, bit for bit: no kernel leaves the order of a sum to the hardware. float32 has no TF32 in it."""
    bad = {f"{k.label} sm_{k.arch}": table.unwanted(k) for k in kernels if table.unwanted(k)}
    assert not bad


def test_expected_instructions(kernels: list[table.Kernel]) -> None:
    """16-byte shared loads where rows are gathered, asynchronous staging, tensor cores for 16-bit tiles."""
    bad = {
        f"{k.label} sm_{k.arch}": [name for name in table.expected(k) if not table.count(k, name)]
        for k in kernels
        if any(not table.count(k, name) for name in table.expected(k))
    }
    assert not bad
    half = [k for k in kernels if any(name.startswith("HMMA") for name in table.expected(k))]
    # 16-bit rows, whatever the type of the weights that stand beside them
    whole = [k for k in kernels if k.name in table.SPLIT]
    assert whole
    assert all({"float16", "bfloat16"} & {*k.types} for k in half if k not in whole), labels(half)
    assert {kind for k in half for kind in k.types} >= {"float16", "bfloat16"}
    if len({k.arch for k in kernels}) > 1:
        tiles = {"sddmm_tiles", "spmm_tiles", "spmm_transpose_tiles", *(f"attention_{w}_tiled" for w in WAYS)}
        assert {k.name for k in half} >= {*DENSE, *table.SPLIT, *tiles}


def test_every_launch_fits_its_architecture(kernels: list[table.Kernel]) -> None:
    """At the classical model's shape; launch geometry from a dry run of the launchers."""
    launched = [k for k in kernels if k.threads]
    assert launched
    bad = [k for k in launched if k.blocks_per_sm < 1]
    assert not bad, labels(bad)


def test_two_blocks_share_an_sm_of_compute_capability_90(kernels: list[table.Kernel]) -> None:
    """float16 gathers are planned so that one block loads while the other works."""
    planned = ("sddmm_resident", "spmm_resident", "attention_forward_sparse", "spmm_transpose_owner")
    chosen = [
        k for k in kernels if k.arch == 90 and k.name in planned and k.types[0] == "float16" and k.threads
    ]
    assert not [k for k in chosen if k.blocks_per_sm < 2], labels(chosen)


def test_names_are_parsed() -> None:
    space = "_GLOBAL__N__00000000_8_sddmm_cu_0123456_0"
    prefix = f"_ZN3pft4cuda{len(space)}{space}"
    assert table.parse_name(f"{prefix}14sddmm_residentIffEEvNS1_9SddmmArgsIT_T0_EE") == (
        "sddmm_resident",
        ("float32", "float32"),
    )
    assert table.parse_name(f"{prefix}10spmm_plainI6__halfS2_EEvv") == ("spmm_plain", ("float16", "float16"))
    assert table.parse_name(f"{prefix}10spmm_plainIf13__nv_bfloat16EEvv") == (
        "spmm_plain",
        ("float32", "bfloat16"),
    )
    name = f"{prefix}31attention_backward_dense_kernelI6__halfLb1EEEvv"
    assert table.parse_name(name) == ("attention_backward_dense_keys", ("float16",))
    assert table.parse_name("_ZN3foo3barEv") is None


LOAD = (
    "import importlib.util as u, sys; s = u.spec_from_file_location('_cuda', sys.argv[1]);"
    "m = u.module_from_spec(s); s.loader.exec_module(m)"
)
LAUNCH = """
why = m.why_unavailable()
x = (64, 0, (4, 4, 4))
try:
    m.spmm((1, 1, 1, 1, 4, 1), x, x, (64, 2), 0, x, 1.0, -1, (0, 0))
except RuntimeError as error:
    print(str(error).startswith("spmm [1, 1, 1, 4, 1]: "), why in str(error), "/", why, "/", error)
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="the launch would run")
def test_a_launch_without_a_driver_says_what_cuda_says() -> None:
    binary = table.find_binary()
    if binary is None:
        pytest.skip("no compiled CUDA module")
    with table.module_of(binary) as module:
        if sys.implementation.cache_tag.removeprefix("cpython-") not in module.name:
            pytest.skip(f"{module.name} is for another Python")
        command = [sys.executable, "-c", f"{LOAD}{LAUNCH}", str(module)]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.startswith("True True"), done.stdout + done.stderr


def test_the_module_imports_without_a_driver() -> None:
    """The runtime is linked statically: where there is no GPU the module says so instead of failing to load."""
    binary = table.find_binary()
    if binary is None:
        pytest.skip("no compiled CUDA module")
    code = f"{LOAD}; print('reason:', m.why_unavailable())"
    with table.module_of(binary) as module:
        if sys.implementation.cache_tag.removeprefix("cpython-") not in module.name:
            pytest.skip(f"{module.name} is for another Python")
        done = subprocess.run([sys.executable, "-c", code, str(module)], capture_output=True, text=True)
        linked = subprocess.run(["ldd", str(module)], capture_output=True, text=True).stdout
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("reason:")
    assert "libcudart" not in linked


def test_a_wheel_without_cuda_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pft_bench-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("pft_bench/__init__.py", "")
    with pytest.raises(FileNotFoundError, match="holds no CUDA module"), table.module_of(path):
        pass


def test_bits_may_join_in_any_order_but_sums_may_not() -> None:
    kernel = table.Kernel("attention_forward_tiled", ("float32",), 90, 32, 0, 0, 0)
    kernel.instructions.update(["ATOMS.OR", "ATOMS.OR"])
    assert table.unwanted(kernel) == {}
    kernel.instructions.update(["ATOMS.ADD", "HMMA.1684.F32.TF32"])
    kernel.stack_bytes = 8
    assert table.unwanted(kernel) == {"ATOM": 1, "HMMA": 1, "TF32": 1, "stack": 8}
    text = table.render([kernel])
    assert "no LDGSTS, ATOM 1, stack 8, TF32 1, HMMA 1" in text


def test_float32_weights_of_16_bit_rows_may_take_tensor_cores() -> None:
    mixed = table.Kernel("spmm_transpose_tiles", ("float32", "float16"), 90, 32, 0, 0, 0)
    plain = table.Kernel("spmm_transpose_tiles", ("float32", "float32"), 90, 32, 0, 0, 0)
    for kernel in (mixed, plain):
        kernel.instructions.update(["HMMA.16816.F32", "LDSM.16.MT88.4"])
    assert table.expected(mixed) == ("LDSM", "HMMA")
    assert table.expected(plain) == ()
    assert table.unwanted(mixed) == {}
    assert table.unwanted(plain) == {"HMMA": 1}


def test_float32_takes_tensor_cores_as_bfloat16_in_named_kernels_only() -> None:
    split = table.Kernel("attention_forward_online_split", (), 90, 32, 0, 0, 0)
    other = table.Kernel("attention_forward_online", ("float32",), 90, 32, 0, 0, 0)
    for kernel in (split, other):
        kernel.instructions.update(["LDG.E.128", "LDSM.16.M88.4", "HMMA.16816.F32.BF16"])
    assert not [name for name in table.expected(split) if not table.count(split, name)]
    assert table.unwanted(split) == {}
    assert table.unwanted(other) == {"HMMA": 1}
    split.instructions.update(["HMMA.1688.F32.TF32", "HMMA.16816.F32"])
    assert table.unwanted(split) == {"HMMA": 2, "TF32": 1}
    del split.instructions["HMMA.16816.F32.BF16"]
    assert "no HMMA.16816.F32.BF16" in table.render([split])


def test_a_spill_or_an_atomic_would_be_counted() -> None:
    kernel = table.Kernel("k", (), 90, 32, 0, 0, 0)
    kernel.instructions.update(
        ["ATOMG.E.ADD.F32", "ATOMS.ADD", "RED.E.ADD", "LDL.LU", "STL.64", "LDS.U.128", "LDS"]
    )
    counted = {name: table.count(kernel, name) for name in ("ATOM", "RED", "LDL", "STL", "LDS.128", "HMMA")}
    assert counted == {"ATOM": 2, "RED": 1, "LDL": 1, "STL": 1, "LDS.128": 1, "HMMA": 0}


OCCUPANCY = """
#include <cstdio>
#include <initializer_list>
#include <cuda_occupancy.h>
int main() {
  const int caps[6][7] = {{8, 0, 164, 2048, 32, 163, 80}, {8, 6, 100, 1536, 16, 99, 86}, {8, 9, 100, 1536, 24, 99, 89},
                          {9, 0, 228, 2048, 32, 227, 90}, {10, 0, 228, 2048, 32, 227, 100},
                          {12, 0, 100, 1536, 24, 99, 120}};
  for (auto& c : caps) {
    cudaOccDeviceProp p;
    p.computeMajor = c[0]; p.computeMinor = c[1]; p.maxThreadsPerBlock = 1024; p.maxThreadsPerMultiprocessor = c[3];
    p.regsPerBlock = 65536; p.regsPerMultiprocessor = 65536; p.warpSize = 32; p.sharedMemPerBlock = 48 << 10;
    p.sharedMemPerMultiprocessor = c[2] << 10; p.numSms = 100; p.sharedMemPerBlockOptin = c[5] << 10;
    p.reservedSharedMemPerBlock = 1024;
    for (int threads : {32, 256, 320, 512, 1024})
      for (int regs : {16, 40, 64, 96, 128, 255})
        for (int shared : {0, 1000, 20000, 48000, 80000, 101376, 113000, 200000}) {
          if (shared > (c[5] << 10)) continue;
          cudaOccFuncAttributes f;
          f.maxThreadsPerBlock = 1024; f.numRegs = regs; f.sharedSizeBytes = 0;
          f.maxDynamicSharedSizeBytes = c[5] << 10;
          f.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN; f.numBlockBarriers = 1;
          cudaOccDeviceState s; cudaOccResult r;
          if (cudaOccMaxActiveBlocksPerMultiprocessor(&r, &p, &f, &s, threads, shared) != CUDA_OCC_SUCCESS) continue;
          std::printf("%d %d %d %d %d\\n", c[6], threads, regs, shared, r.activeBlocksPerMultiprocessor);
        }
  }
}
"""


def test_blocks_per_sm_agree_with_cuda_occupancy(tmp_path: Path) -> None:
    include = next((p for p in CUDA_INCLUDE if (p / "cuda_occupancy.h").is_file()), None)
    if include is None or shutil.which("g++") is None:
        pytest.skip("no cuda_occupancy.h")
    source = tmp_path / "occupancy.cpp"
    source.write_text(OCCUPANCY)
    program = tmp_path / "occupancy"
    subprocess.run(["g++", "-w", f"-I{include}", str(source), "-o", str(program)], check=True)
    lines = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout.split("\n")
    cases = [tuple(map(int, line.split())) for line in lines if line]
    assert len(cases) > 500
    wrong = [c for c in cases if table.blocks_per_sm(*c[:4]) != c[4]]
    assert not wrong, wrong[:10]
