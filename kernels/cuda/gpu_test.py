"""What a machine with a GPU adds to the proof, in one command: `python kernels/cuda/gpu_test.py`.

1. correctness of every op and layer on the device, against masked dense attention in float64;
2. the same, smaller, under compute-sanitizer (memcheck, then racecheck); a failure where it is not installed;
3. determinism: ten runs of every gradient, bit for bit;
4. the ladder, timed: the classical model's shapes, every version of ours beside Triton's kernels and, where `smm_cuda`
   is installed, the published ones (backend `official`).

5. counters: Nsight Compute, where it is installed, is asked for those that the emulator counts (`pft-bench counters`),
   of the same launches; both are printed beside each other, with the predicted and the measured time.

Steps 1 and 3 cover Triton's kernels too. Results go to reports/gpu/. `--rehearse` goes through all steps but the second
on small shapes in the emulator, without a GPU; it calls what it would time, and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pft_bench.backends import Layer, get
from pft_bench.harness.cases.layer import problem_layer
from pft_bench.harness.check.operator import check_layer, check_product
from pft_bench.insight import counters
from pft_bench.insight.counters import ncu

ROOT = Path(__file__).resolve().parents[2]
SANITIZER_LIMIT_S = 100
PROFILER_LIMIT_S = 120
RUNS = 10
Row = dict[str, Any]
Measure = Callable[[Callable[[], Any]], float | None]


def random_layer(
    device: str, dtype: torch.dtype, side: int, dim: int, candidates: int | None, topk: int, windows: int
) -> Layer:
    """A layer on windows of side x side tokens with two heads, as the model calls it; dense without `candidates`."""
    g, n, heads = torch.Generator().manual_seed(topk), side * side, 2
    q, k, v = (torch.randn(windows, n, heads, dim, generator=g).to(dtype).transpose(1, 2) for _ in range(3))
    bias = torch.randn((2 * side - 1) ** 2, heads, generator=g)
    index = logits = None
    if candidates is not None:
        order = torch.rand(windows, heads, n, n, generator=g).argsort(-1)[..., :candidates]
        index = order.sort(-1).values.to(torch.int16).to(device)
        logits = torch.randn(windows, heads, n, candidates, generator=g)
        logits = (logits - logits.amax(-1, keepdim=True)).to(device)
    q, k, v, bias = (t.to(device) for t in (q, k, v, bias))
    return Layer(q, k, v, bias, None, index, logits, dim**-0.5, 100.0, topk)


def random_product(
    device: str, dtype: torch.dtype, batch: int, n: int, dim: int, kept: int
) -> dict[str, torch.Tensor]:
    """Operands of sddmm (q, k, index) and spmm (a, v, index) in one dict."""
    g = torch.Generator().manual_seed(kept)
    index = torch.rand(batch, n, n, generator=g).argsort(-1)[..., :kept].to(torch.int16)
    made = {name: torch.randn(batch, n, dim, generator=g).to(dtype) for name in ("q", "k", "v")}
    made["a"] = torch.randn(batch, n, kept, generator=g).to(dtype)
    return {name: t.to(device) for name, t in (made | {"index": index}).items()}


def layers(device: str, small: bool) -> list[tuple[str, Layer]]:
    """Dense, selecting and sparse layers, all dtypes."""
    side, kept = (5, (9, 4)) if small else (32, (256, 128))
    cases = []
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for candidates, topk in (
            (None, side * side),
            (None, kept[0]),
            (kept[0], kept[1]),
            (kept[0], kept[0]),
        ):
            label = f"{str(dtype)[6:]} {candidates or 'dense'} -> {topk}"
            cases.append((label, random_layer(device, dtype, side, 13 if small else 40, candidates, topk, 2)))
    return cases


def versions(backend: Any) -> tuple[str, ...]:
    """The rungs of the sparse products' ladder."""
    return ("plain", "resident") if hasattr(backend, "version") else ("auto",)


def check(backend: Any, device: str, small: bool) -> int:
    """Step 1; returns the number of failures."""
    failures = 0
    for label, case in layers(device, small):
        for how in forms(backend, case):
            backend.candidates = how
            bad = [str(r) for r in check_layer(backend, case, train=True) if not r.passed]
            failures += len(bad)
            print(f"{backend.name} layer {label} {how}: {bad or 'ok'}", flush=True)
        backend.candidates = "auto"
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        n, dims = (37, (13, 40)) if small else (1024, (13, 20, 40))
        for dim in dims:
            for kept in (1, 16, n // 4):
                made = random_product(device, dtype, 3, n, dim, kept)
                bad = []
                for version in versions(backend):
                    backend.version = version
                    for op, names in (("sddmm", "qk"), ("spmm", "av")):
                        inputs = {name: made[name] for name in (*names, "index")}
                        results = check_product(backend, op, inputs, train=True)
                        bad += [str(r) for r in results if not r.passed]
                backend.version = "auto"
                failures += len(bad)
                print(f"{backend.name} products {str(dtype)[6:]} D {dim} K {kept}: {bad or 'ok'}", flush=True)
    return failures


def forms(backend: Any, case: Layer) -> tuple[str, ...]:
    """How the forward pass of a sparse layer can meet its candidates: all ways that this backend has."""
    if backend.name not in ("cuda", "cuda-emu") or case.index is None:
        return ("auto",)
    return ("gather",) if case.q.dtype == torch.float32 else ("gather", "tiles")


def gradients(backend: Any, case: Layer) -> list[torch.Tensor]:
    """Output and all gradients of a layer."""
    out, new_index, new_logits, lse = backend.attention_forward(case)
    handed = torch.ones_like(new_logits) if new_logits.shape[-1] else None
    grads = backend.attention_backward(case, torch.ones_like(out), handed, new_index, out, lse)
    return [out, *(g for g in grads if g is not None)]


def determinism(backend: Any, device: str, small: bool) -> int:
    """Step 3; returns the number of cases that gave different bits in ten runs."""
    different = 0
    for label, case in layers(device, small):
        first = gradients(backend, case)
        runs = (gradients(backend, case) for _ in range(RUNS - 1))
        same = all(torch.equal(x, y) for run in runs for x, y in zip(first, run, strict=True))
        different += not same
        print(f"{backend.name} determinism {label}: {'ok' if same else 'DIFFERENT BITS'}", flush=True)
    return different


def sanitize() -> int:
    """Step 2; returns the number of tools that found something, or did not run: nobody has then looked."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(tool).is_file():
        print(
            "compute-sanitizer: NOT RUN, it is not installed (CUDA toolkit; --without-sanitizer leaves it out)"
        )
        return 1
    found = 0
    for name in ("memcheck", "racecheck"):
        command = [
            tool,
            "--tool",
            name,
            "--error-exitcode",
            "9",
            sys.executable,
            __file__,
            "--only-small-check",
        ]
        try:
            code = subprocess.run(command, timeout=SANITIZER_LIMIT_S).returncode
        except subprocess.TimeoutExpired:
            print(f"compute-sanitizer {name}: not finished in {SANITIZER_LIMIT_S} s")
            code = 1
        found += code != 0
        print(f"compute-sanitizer {name}: {'ok' if code == 0 else f'exit {code}'}", flush=True)
    return found


def flush_buffer() -> torch.Tensor:
    """Twice the L2 cache: writing it evicts everything else."""
    size = 2 * torch.cuda.get_device_properties(0).L2_cache_size
    return torch.empty(size, dtype=torch.uint8, device="cuda")


def median_ms(call: Any, flush: torch.Tensor) -> float:
    """Median of 20 calls by events, L2 flushed and the device idle before each."""
    for _ in range(3):
        call()
    samples = []
    for _ in range(20):
        flush.zero_()
        torch.cuda.synchronize()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        samples.append(start.elapsed_time(end))
    return statistics.median(samples)


def product_rows(backends: list[Any], device: str, small: bool, measure: Measure) -> list[Row]:
    """The sparse products of a sixth of a 640x360 image: 240 window-heads, every K of the classical schedule."""
    batch, n, dim = (2, 36, 8) if small else (240, 1024, 40)
    rows: list[Row] = []
    for dtype in (torch.float32, torch.float16):
        for kept in (8,) if small else (256, 128, 64, 32, 16):
            made = random_product(device, dtype, batch, n, dim, kept)
            q, k, v, a, index = (made[name] for name in ("q", "k", "v", "a", "index"))
            for backend in backends:
                if dtype not in backend.dtypes:
                    continue
                calls = {
                    "sddmm": lambda b=backend, q=q, k=k, i=index: b.sddmm(q, k, i),
                    "spmm": lambda b=backend, a=a, v=v, i=index: b.spmm(a, v, i),
                    "spmm_transpose": lambda b=backend, a=a, x=q, i=index: b.spmm_transpose(a, x, i, n),
                }
                for op, call in calls.items():
                    for version in versions(backend):
                        if (op, version) == ("spmm_transpose", "plain"):
                            continue  # a teaching version: seconds a call
                        backend.version = version
                        row = {"op": op, "backend": backend.name, "version": version}
                        rows.append(row | {"dtype": str(dtype)[6:], "kept": kept, "median_ms": measure(call)})
                backend.version = "auto"
    return rows


def layer_rows(backends: list[Any], device: str, small: bool, measure: Measure) -> list[Row]:
    """One layer's forward pass at each step of the classical schedule, by every way of meeting candidates."""
    side, dim, windows = (6, 8, 1) if small else (32, 40, 120)
    steps: tuple[tuple[int | None, int], ...] = ((None, 36), (None, 9), (9, 9), (9, 4))
    if not small:
        steps = ((None, 1024), (None, 256), (256, 256), (256, 128), (128, 128), (128, 64), (64, 64), (64, 32),
                 (32, 32), (32, 16), (16, 16))  # fmt: skip
    rows: list[Row] = []
    for dtype in (torch.float32, torch.float16):
        for candidates, topk in steps:
            case = random_layer(device, dtype, side, dim, candidates, topk, windows)
            for backend in backends:
                if dtype not in backend.dtypes:
                    continue
                for how in forms(backend, case):
                    backend.candidates = how
                    row = {
                        "op": "attention",
                        "backend": backend.name,
                        "version": how,
                        "dtype": str(dtype)[6:],
                    }
                    row |= {"candidates": candidates or side * side, "kept": topk}
                    call = partial(backend.attention_forward, case)
                    rows.append(row | {"median_ms": measure(call)})
                backend.candidates = "auto"
    return rows


def counter_works(small: bool) -> list[counters.Work]:
    """Launches of step 5: each kind of kernel once, on enough window-heads to fill a device."""
    sizes, k = ((1, 2, 64, 40), (24, 32, 16)) if small else ((40, 6, 1024, 40), (256, 256, 128))
    products = [counters.Work(op, *sizes, k[0], k[0], "float32") for op in counters.PRODUCTS]
    layers = [("float16", sizes[2], k[2], "auto"), ("float16", k[1], k[1], "tiles")]
    layers += [("float32", sizes[2], sizes[2], "auto"), ("float32", k[1], k[2], "gather")]
    return products + [
        counters.Work("attention", *sizes, c, n, dtype, how=how) for dtype, c, n, how in layers
    ]


def launch_works(backend: Any, device: str, works: list[counters.Work]) -> None:
    """Every work's forward launch once, in order: what Nsight Compute watches."""
    for work in works:
        if work.op == "attention":
            backend.candidates = work.how
            backend.attention_forward(problem_layer(work.problem, device))
            backend.candidates = "auto"
            continue
        made = work.problem.inputs(device)
        operands = [made[name] for name in ("q", "k", "a", "v") if name in made]
        more = (work.tokens,) if work.op == "spmm_transpose" else ()
        getattr(backend, work.op)(*operands, made["index"], *more)
    if device == "cuda":
        torch.cuda.synchronize()


def chip_of(device_name: str) -> counters.Chip | None:
    """The chip whose rates are known for a device of this name."""
    names = {"H100": "h100", "H200": "h200", "A100": "a100", "RTX 4090": "rtx4090"}
    return next((counters.CHIPS[ours] for theirs, ours in names.items() if theirs in device_name), None)


def counter_rows(name: str, small: bool, profiled: Callable[[], str] | None) -> tuple[list[Row], str]:
    """Step 5: counts beside Nsight Compute's, and why there are none."""
    reason = counters.why_not()
    if reason is not None:
        return [], f"no counters: the counting emulator is not there, {reason}"
    if profiled is None:
        return [], "no counters: Nsight Compute (ncu) is not installed"
    chip, works = chip_of(name) or counters.CHIPS["h100"], counter_works(small)
    ours = []
    for work in works:
        for launch in counters.count_launches(work, chip):
            known = counters.instructions_of(launch)
            ours.append((work, launch, counters.predict(work, launch, chip, known)))
    try:
        rows = ncu.beside(ours, ncu.parse(profiled()))
    except (ValueError, subprocess.SubprocessError) as error:
        return [], f"no counters: {error}"
    head = ("step", "kernel", "what", "counted", "profiled", "ratio")
    return [dict(zip(head, row, strict=True)) for row in rows], f"counters, predicted for {chip.title}"


def profile() -> str:
    """What Nsight Compute prints of `--only-launches` of this script."""
    tool = ncu.find_ncu()
    assert tool is not None
    done = subprocess.run(
        ncu.command(tool, [sys.executable, __file__, "--only-launches"]),
        capture_output=True,
        text=True,
        timeout=PROFILER_LIMIT_S,
    )
    return done.stdout + done.stderr


def write_record(folder: Path, name: str, rows: list[Row], seconds: float, counted: list[Row]) -> Path:
    """The ladder and the counters as one JSON file."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda, "ladder": rows}
    record["counters"] = counted
    path = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{name.replace(' ', '-')}.json"
    path.write_text(json.dumps(record | {"seconds": round(seconds)}, indent=1) + "\n")
    return path


def main() -> int:
    """All steps; the exit status counts failures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rehearse", action="store_true", help="in the emulator: no GPU, no timing")
    parser.add_argument("--without-sanitizer", action="store_true", help="leave out step 2, and say so")
    parser.add_argument("--only-small-check", action="store_true", help="what compute-sanitizer runs")
    parser.add_argument("--only-launches", action="store_true", help="what Nsight Compute watches")
    options = parser.parse_args()
    backend: Any = get("cuda-emu" if options.rehearse else "cuda")
    reason = backend.available()
    if reason is not None:
        print(f"{backend.name} is not available: {reason}")
        return 2
    device = "cpu" if options.rehearse else "cuda"
    if options.only_small_check:
        return check(backend, device, small=True)
    if options.only_launches:
        launch_works(backend, device, counter_works(options.rehearse))
        return 0
    others: list[Any] = []
    for name in () if options.rehearse else ("triton", "official"):
        reason = get(name).available()
        print(f"beside ours: {name}" if reason is None else f"without {name}: {reason}")
        others += [get(name)] if reason is None else []
    start, small = time.monotonic(), options.rehearse
    failures = 0
    for ours in [backend, *(b for b in others if b.name == "triton")]:
        failures += check(ours, device, small) + determinism(ours, device, small)
    if options.rehearse or options.without_sanitizer:
        print("compute-sanitizer: not run, as asked")
    else:
        failures += sanitize()
    if failures:
        print(f"{failures} failures; nothing is timed")
        return 1

    def rehearsed(call: Any) -> None:
        call()

    measure = rehearsed if options.rehearse else partial(median_ms, flush=flush_buffer())
    rows = product_rows([backend, *others], device, small, measure)
    rows += layer_rows([backend, *others], device, small, measure)
    for row in rows:
        print(row, flush=True)
    name = "emulator" if options.rehearse else torch.cuda.get_device_name()
    found = None if options.rehearse or ncu.find_ncu() is None else profile
    counted, said = counter_rows(name, small, found)
    print(said, *counted, sep="\n", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if options.rehearse else ROOT / "reports" / "gpu"
        path = write_record(folder, name, rows, time.monotonic() - start, counted)
        print("rehearsed: nothing was measured" if options.rehearse else f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
