"""The emulator's own test: it must find every deliberate bug, and miss it when the part that finds it is off."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

emu = pytest.importorskip("pft_bench._cuda_emu")

# bug -> what the error says, and the switch without which it goes unseen (None: inherent to the emulation)
BUGS = {
    "missing_syncthreads": ("race: .*conflicts with thread", "races"),
    "missing_syncwarp": ("race: .*conflicts with thread", "races"),
    "missing_wait": ("cp.async has not delivered", "races"),
    "wrong_wait_group": ("cp.async has not delivered", "races"),
    "divergent_shuffle": ("divergent collective", None),
    "divergent_barrier": ("divergent collective: __syncthreads at", None),
    "overflow_shared": ("out of bounds: write of 4 bytes at byte 256 of an array of 256", "bounds"),
    "overflow_array": ("out of bounds: write of 4 bytes at byte 256 of an array of 256", "bounds"),
    "overflow_global": ("in no buffer of the launch", "bounds"),
    "write_input": ("write to read-only", "bounds"),
    "misaligned": ("misaligned 16-byte access", None),
    "published_grad_b": ("race: .*conflicts with thread", "races"),
}


@pytest.fixture(autouse=True)
def _defaults() -> Iterator[None]:
    emu.configure()
    yield
    emu.configure()


def test_every_bug_is_listed() -> None:
    assert sorted(emu.planted_bugs()) == sorted(BUGS)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", BUGS)
def test_bug_is_found(name: str, seed: int) -> None:
    emu.configure(seed=seed)
    with pytest.raises(emu.EmulatorError, match=BUGS[name][0]) as caught:
        emu.run_planted(name, sound=False)
    assert name in str(caught.value)
    assert "[block (" in str(caught.value)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", BUGS)
def test_sound_twin_passes(name: str, seed: int) -> None:
    emu.configure(seed=seed)
    emu.run_planted(name, sound=True)


@pytest.mark.parametrize("name", [n for n, (_, switch) in BUGS.items() if switch == "races"])
def test_without_the_race_detector_it_is_missed(name: str) -> None:
    emu.configure(races=False, poison=False)
    emu.run_planted(name, sound=False)


@pytest.mark.parametrize("name", ["overflow_shared", "overflow_array", "write_input"])
def test_without_bounds_it_is_missed(name: str) -> None:
    emu.configure(bounds=False)
    emu.run_planted(name, sound=False)


@pytest.mark.parametrize("name", ["missing_wait", "wrong_wait_group"])
def test_poison_alone_shows_a_missing_wait(name: str) -> None:
    """Detector off: undelivered data are NaN, so the result is wrong; poison off too: it looks right."""
    emu.configure(races=False, poison=True)
    poisoned = emu.run_planted(name, sound=False)
    emu.configure(races=False, poison=False)
    lucky = emu.run_planted(name, sound=False)
    sound = emu.run_planted(name, sound=True)
    assert any(x != x for x in poisoned)
    assert lucky == sound


@pytest.mark.parametrize("kept", [2, 32, 64])
def test_published_grad_b_pattern(kept: int) -> None:
    """`grad_B[key] += ...` from one thread per (row, entry): races as soon as two entries of a launch share a key."""
    with pytest.raises(emu.EmulatorError, match="race"):
        emu.run_planted("published_grad_b", sound=False, kept=kept)
    assert sum(emu.run_planted("published_grad_b", sound=True, kept=kept)) == 64 * kept


def test_orders_differ_between_seeds() -> None:
    """Without the detector a missing barrier shows as a result that depends on the order of warps."""
    results = set()
    for seed in range(16):
        emu.configure(seed=seed, races=False)
        results.add(str(emu.run_planted("missing_syncthreads", sound=False)))
    assert len(results) > 1


SOURCES = Path(__file__).resolve().parents[2] / "kernels" / "emulator"
MAIN = """
#include <cstdio>
#include "emulator.h"
#include "planted.h"
int main(int, char** argv) {
  pft::emu::config().races = pft::emu::config().bounds = false;
  try {
    pft::planted::run(argv[1], argv[2][0] == '1');
  } catch (const std::exception& e) {
    std::puts(e.what());
    return 3;
  }
  return 0;
}
"""


def compile_planted(folder: Path, *flags: str) -> Path:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    main = folder / "main.cpp"
    main.write_text(MAIN)
    program = folder / "planted"
    sources = [str(SOURCES / f) for f in ("emulator.cpp", "fiber.cpp", "shadow.cpp", "planted.cu")]
    includes = [f"-I{SOURCES}", f"-I{SOURCES.parent / 'include'}"]
    command = [compiler, "-std=c++17", "-O0", *flags, *includes, "-x", "c++", *sources, str(main)]
    subprocess.run([*command, "-o", str(program)], check=True, timeout=200)
    return program


def run_planted(program: Path, name: str, sound: bool) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0"}
    command = [str(program), name, str(int(sound))]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)


@pytest.mark.slow
def test_address_sanitizer_finds_overflows_by_itself(tmp_path: Path) -> None:
    """With the emulator's own checks off: it knows the fibers, and the slack behind shared memory is poisoned."""
    program = compile_planted(tmp_path, "-fsanitize=address")
    for name in ("overflow_shared", "overflow_global"):
        found = run_planted(program, name, sound=False)
        assert found.returncode != 0
        assert "AddressSanitizer" in found.stderr
    for name in BUGS:
        assert run_planted(program, name, sound=True).returncode == 0, name


@pytest.mark.slow
def test_ucontext_fallback(tmp_path: Path) -> None:
    """What other processors than x86-64 use to switch fibers."""
    program = compile_planted(tmp_path, "-DPFT_EMU_UCONTEXT")
    for name in BUGS:
        assert run_planted(program, name, sound=True).returncode == 0, name
    assert "divergent collective" in run_planted(program, "divergent_shuffle", sound=False).stdout
