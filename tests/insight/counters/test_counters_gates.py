"""No kernel's wavefronts, sectors or matrix products rise unnoticed: small shapes against reports/counters.json."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pft_bench._cuda_count")

from pft_bench.insight.counters.counted import CountedLaunch
from pft_bench.insight.counters.gates import (
    GATED,
    HEAD_DIM,
    HEADS,
    RENEW,
    TOKENS,
    gate_counts,
    gated_works,
    key_of,
    risen,
)

COMMITTED = Path(__file__).resolve().parents[3] / "reports" / "counters.json"


@pytest.fixture(scope="module")
def committed() -> dict[str, Any]:
    gates: dict[str, Any] = json.loads(COMMITTED.read_text())["gates"]
    return gates


@pytest.fixture(scope="module")
def now() -> dict[str, Any]:
    return gate_counts()


def test_no_count_has_risen(committed: dict[str, Any], now: dict[str, Any]) -> None:
    found = risen(committed, now)
    assert not found, "\n".join([*found, RENEW])


def test_every_kernel_is_gated(now: dict[str, Any]) -> None:
    """What the launchers choose by themselves, forward and backward; the plain versions are there to be read."""
    names = {launch["kernel"] for launches in now.values() for launch in launches}
    text = "".join(p.read_text() for p in (COMMITTED.parents[1] / "kernels" / "cuda").glob("*.cu"))
    kernels = set(re.findall(r'launch\(\s*"(\w+)"', text))
    assert len(kernels) > 10
    assert {k for k in kernels if not k.endswith("_plain")} <= names
    assert {key_of(work) for work in gated_works()} == set(now)


def test_nothing_of_them_is_doubtful(now: dict[str, Any]) -> None:
    assert not [launch for launches in now.values() for launch in launches if launch["doubtful"]]


@pytest.mark.parametrize("name", GATED)
def test_one_more_is_seen_and_one_less_is_welcome(committed: dict[str, Any], name: str) -> None:
    key = next(k for k, launches in committed.items() if any(launch.get(name) for launch in launches))
    for change, expected in ((1, 1), (-1, 0)):
        changed = copy.deepcopy(committed)
        launch = next(launch for launch in changed[key] if launch.get(name))
        launch[name] += change
        found = risen(committed, changed)
        assert len(found) == expected
        assert all(f"{launch[name]} {name}, committed are" in line for line in found)


def test_other_launches_and_unknown_works_are_seen(committed: dict[str, Any]) -> None:
    key = next(iter(committed))
    renamed = {key: [{**committed[key][0], "kernel": "another"}]}
    assert "launches another are not those" in risen(committed, renamed)[0]
    assert risen(committed, {"new": []}) == ["new: has no committed counts"]


def planted(name: str, broken: int) -> dict[str, Any]:
    """A kernel of kernels/emulator/known.cu as the gate sees it, sound or with the mistake in it."""
    from pft_bench import _cuda_count

    _cuda_count.configure()
    _cuda_count.take_counts()
    _cuda_count.run_known(name, broken)
    (counted,) = _cuda_count.take_counts()
    launch = CountedLaunch.of(counted, "float32")
    return {name: [{"kernel": launch.kernel} | launch.totals()]}


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("gather", "wavefronts"),  # rows staged and read with a pitch that has no odd unit of 16 bytes
        ("column_sums", "read_sectors"),  # lanes that read down a row each instead of along it
    ],
)
def test_a_planted_conflict_and_a_planted_uncoalesced_read_fail(name: str, what: str) -> None:
    sound = planted(name, 0)
    assert risen(sound, planted(name, 0)) == []
    found = risen(sound, planted(name, 1))
    assert len(found) == 1
    assert what in found[0]


# What is broken in a copy of kernels/cuda/device.cuh, and which count it must raise in spmm.
MISTAKES = {
    "the pitch without its odd unit": (
        "return (units_of<T>(cols) | 1) * kPerUnit<T>;",
        "return units_of<T>(cols) * kPerUnit<T>;",
        "wavefronts",
    ),
    "lanes that stage a row each": (
        "for (int row = int(threadIdx.x) >> bits; row < padded_rows; row += at_once) {\n"
        "    const View<T> line = to + row * pitch;\n"
        "    const View<const T> source = from + (row * stride_row + col0);\n"
        "    for (int unit = int(threadIdx.x) & ((1 << bits) - 1); unit < units; unit += 1 << bits) {",
        "for (int row = int(threadIdx.x) % at_once; row < padded_rows; row += at_once) {\n"
        "    const View<T> line = to + row * pitch;\n"
        "    const View<const T> source = from + (row * stride_row + col0);\n"
        "    for (int unit = int(threadIdx.x) / at_once; unit < units; unit += 1 << bits) {",
        "async_sectors",
    ),
}
MAIN = """
#include <cstdio>
#include <vector>
#include "counters.h"
#include "pft/cuda.h"
using namespace pft;
int main() {
  const int64_t b = HEADS, n = TOKENS, d = HEAD_DIM, k = KEPT;
  std::vector<float> v(b * n * d), out(b * n * d), a(b * n * k);
  std::vector<int16_t> index(b * n * k);
  for (int64_t i = 0; i < b * n; ++i)
    for (int64_t t = 0; t < k; ++t) index[i * k + t] = int16_t((6 * i + t * 7) % n);
  emu::Buffers buffers;
  buffers.add(v.data(), v.size() * 4, 4, false);
  buffers.add(a.data(), a.size() * 4, 4, false);
  buffers.add(index.data(), index.size() * 2, 2, false);
  buffers.add(out.data(), out.size() * 4, 4, true);
  emu::config().shared_limit = 227 << 10;
  emu::observer = emu::counting_observer();
  const cuda::Input x{{v.data(), n * d, 0, d}, cuda::DType::kFloat32};
  const cuda::Input weights{{a.data(), n * k, 0, k}, cuda::DType::kFloat32};
  const cuda::Output to{{out.data(), n * d, 0, d}, cuda::DType::kFloat32};
  cuda::spmm({b, n, n, d, k}, 1, weights, x, {index.data(), false}, nullptr, to, 1.f, cuda::Version::kAuto,
             nullptr);
  uint64_t wavefronts = 0, sectors = 0;
  for (const auto& launch : emu::take_counts())
    for (const auto& [key, c] : launch.sites) {
      wavefronts += c.wavefronts;
      if (key.kind == emu::Kind::async) sectors += c.sectors;
    }
  std::printf("%llu %llu\\n", (unsigned long long)wavefronts, (unsigned long long)sectors);
}
"""


FLAGS = ("-std=c++17", "-O1", "-g1", "-DPFT_EMU_COUNTED")
SOURCES = COMMITTED.parents[1] / "kernels"


def compile_all(folder: Path, includes: Path, names: list[str], *flags: str) -> list[str]:
    """Objects of the named files, as the counting module's are made."""
    made = []
    for name in names:
        made.append(str(folder / f"{Path(name).stem}.o"))
        paths = [
            f"-I{SOURCES / 'emulator'}",
            f"-I{SOURCES / 'include'}",
            "-x",
            "c++",
            "-c",
            str(includes / name),
        ]
        subprocess.run(["g++", *FLAGS, *flags, *paths, "-o", made[-1]], check=True, timeout=300)
    return made


def counted_with(folder: Path, mistake: str | None, rest: list[str]) -> dict[str, Any]:
    """spmm of a copy of the sources with a mistake in it, linked with the emulator's objects."""
    shutil.copytree(SOURCES, folder, ignore=shutil.ignore_patterns("cpu", "triton", "*.py"))
    if mistake is not None:
        header = folder / "cuda" / "device.cuh"
        right, wrong, _ = MISTAKES[mistake]
        assert right in header.read_text()
        header.write_text(header.read_text().replace(right, wrong))
    (kernel,) = compile_all(folder, folder / "cuda", ["spmm.cu"], "-fsanitize-coverage=trace-pc")
    subprocess.run(["g++", kernel, *rest, "-o", str(folder / "count")], check=True, timeout=300)
    said = subprocess.run(
        [str(folder / "count")], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    wavefronts, sectors = map(int, said.split())
    return {"spmm": [{"kernel": "spmm_resident", "wavefronts": wavefronts, "async_sectors": sectors}]}


@pytest.mark.slow(25)
def test_mistakes_in_the_real_kernels_fail_the_gate(tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    sizes = {"HEADS": HEADS, "TOKENS": TOKENS, "HEAD_DIM": HEAD_DIM, "KEPT": 24}
    (tmp_path / "main.cpp").write_text("\n".join(f"#define {n} {v}" for n, v in sizes.items()) + MAIN)
    emulator = [f"{name}.cpp" for name in ("emulator", "fiber", "shadow", "ways", "counters")]
    rest = compile_all(tmp_path, SOURCES / "emulator", emulator) + compile_all(
        tmp_path, tmp_path, ["main.cpp"]
    )
    sound = counted_with(tmp_path / "sound", None, rest)
    for mistake, (_, _, name) in MISTAKES.items():
        found = risen(sound, counted_with(tmp_path / name, mistake, rest))
        assert any(name in line for line in found), (mistake, found)
