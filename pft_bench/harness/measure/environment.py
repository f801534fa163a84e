"""Where a number was measured: all that could explain a difference, as JSON, and a short fingerprint of it.

Nothing here raises: what cannot be read is None.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from ...common.container import cpu_quota, memory_limit
from ...common.native import flushes_denormals

LIBRARIES = ("pft-bench", "torch", "numpy", "triton", "scikit-image", "pandas")
COMPILED_MODULES = ("pft_bench._cpu", "pft_bench._cuda")
READERS = (
    *("report", "cli", "compat", "insight", "maintain", "harness/compare", "harness/selftest"),
    *("apps/focus.py", "apps/images", "apps/quality", "apps/train"),
)
"""Parts of the package that nothing measured depends on; `tests/test_layering.py` keeps them out of `cases`."""
VARIABLES = (
    *("OMP_", "MKL_", "KMP_", "GOMP_", "PFT_", "TORCH", "PYTORCH_", "TRITON_", "CUDA_"),
    *("NVIDIA_TF32", "MALLOC_", "LD_PRELOAD"),
)
"""Beginnings of the names of environment variables that can change a result or a time."""
ISA_FLAGS = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"),
    *("avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_fp16", "asimd", "sve", "sve2"),
)

_CPU = Path("/sys/devices/system/cpu/cpu0/cpufreq")


def _attempt(read: Callable[[], Any]) -> Any:
    """The value, or None: a missing tool, file or field must not cost a measurement."""
    try:
        return read()
    except Exception:
        return None


def _psutil() -> ModuleType:
    """Imported where it is asked: a machine without it, such as a lent GPU's, can measure all the same."""
    return importlib.import_module("psutil")


def _command(*arguments: str) -> str | None:
    """Standard output of a command, or None if it is missing, fails or takes more than ten seconds."""
    done = _attempt(lambda: subprocess.run(arguments, capture_output=True, text=True, timeout=10, check=True))
    return None if done is None else str(done.stdout).strip()


def processor() -> dict[str, Any]:
    """Model, instruction sets, caches and clock of this machine's processors; empty where it cannot be read."""
    return _attempt(_cpu) or {}


def _cpu() -> dict[str, Any]:
    lines = _attempt(lambda: Path("/proc/cpuinfo").read_text().splitlines()) or []
    # The first processor's block is enough; x86 says "flags", Arm "Features".
    info = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    flags = set((info.get("flags") or info.get("Features") or "").split())
    affinity = _attempt(lambda: len(os.sched_getaffinity(0)))
    return {
        "model": info.get("model name") or platform.processor() or None,
        "family_model_stepping": [info.get(key) for key in ("cpu family", "model", "stepping")],
        "architecture": platform.machine(),
        "cores_physical": _attempt(lambda: _psutil().cpu_count(logical=False)),
        "cores_logical": _attempt(lambda: _psutil().cpu_count()),
        "cores_usable": affinity,
        "isa": [flag for flag in ISA_FLAGS if flag in flags],
        "hypervisor": "hypervisor" in flags,
        "governor": _attempt(lambda: (_CPU / "scaling_governor").read_text().strip()),
        "max_mhz": _attempt(lambda: int((_CPU / "cpuinfo_max_freq").read_text()) // 1000),
        "caches": _caches(),
    }


def _caches() -> dict[str, str] | None:
    """Size of each cache level of the first processor, as the kernel writes it ("1024K")."""

    def read() -> dict[str, str]:
        sizes = {}
        for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
            level, kind = (index / "level").read_text().strip(), (index / "type").read_text().strip()
            if kind != "Instruction":
                sizes[f"L{level}"] = (index / "size").read_text().strip()
        return sizes

    return _attempt(read) or None


def _gpu() -> dict[str, Any] | None:
    import torch

    if not _attempt(torch.cuda.is_available):
        return None
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": _attempt(lambda: properties.L2_cache_size),
        "count": torch.cuda.device_count(),
        "cuda": torch.version.cuda,
        "driver": _command("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "max_clocks": _command(
            "nvidia-smi", "--query-gpu=clocks.max.sm,clocks.max.mem", "--format=csv,noheader"
        ),
    }


def _gpu_now() -> str | None:
    import torch

    if not _attempt(torch.cuda.is_available):
        return None
    fields = "clocks.sm,clocks.mem,temperature.gpu,power.draw,clocks_throttle_reasons.active"
    return _command("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader")


def _builds() -> dict[str, Any]:
    """What each compiled module tells of its compiler, flags and instruction set; None where it is absent."""

    def read(name: str) -> Any:
        module = importlib.import_module(name)
        told = {key: getattr(module, key)() for key in ("build_info", "isa", "isas") if hasattr(module, key)}
        return json.loads(json.dumps(told, default=str))

    return {name: _attempt(partial(read, name)) for name in COMPILED_MODULES}


def _version(library: str) -> str | None:
    """The imported module's own version where there is one: it tells a `+cpu` build from a CUDA one."""
    if library == "torch":
        import torch

        return str(torch.__version__)
    found = _attempt(lambda: metadata.version(library))
    return None if found is None else str(found)


def _commit() -> dict[str, Any] | None:
    """Commit and state of the checkout this file belongs to; None for an installed copy."""
    here = Path(__file__).resolve()
    root = _command("git", "-C", str(here.parent), "rev-parse", "--show-toplevel")
    if not root or here != Path(root).resolve() / "pft_bench/harness/measure" / here.name:
        return None
    status = _command("git", "-C", root, "status", "--porcelain", "--untracked-files=no")
    return {
        "commit": _command("git", "-C", root, "rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
    }


def code_files() -> list[tuple[Path, Path]]:
    """This package's sources, wherever they lie, and its compiled modules: each with its name inside of the package."""
    package = Path(__file__).parents[2]
    sources = [(path, path.relative_to(package)) for path in package.rglob("*.py")]
    sources = [
        (path, name) for path, name in sources if not any(map(name.is_relative_to, ("reference", "kernels")))
    ]
    for part in ("reference", "kernels/triton"):  # a checkout has them beside the package
        found = importlib.util.find_spec(f"pft_bench.{part.replace('/', '.')}")
        for folder in map(Path, (found.submodule_search_locations or ()) if found else ()):
            sources += [(path, Path(part, path.relative_to(folder))) for path in folder.rglob("*.py")]
    for module in COMPILED_MODULES:
        built = _attempt(partial(importlib.util.find_spec, module))
        if built is not None and built.origin:
            sources.append((Path(built.origin), Path(module)))
    return sorted(sources, key=lambda source: str(source[1]))


def _code() -> str:
    """Digest of what can decide a number."""
    digest = hashlib.sha256()
    for path, name in code_files():
        if not any(map(name.is_relative_to, READERS)):
            digest.update(f"{name}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def environment() -> dict[str, Any]:
    """All about this machine and process that belongs to a measurement; JSON-serialisable, never raises.

    `now` holds what varies from minute to minute and `host` who ran it; neither is part of the `fingerprint`.
    `machine` is the fingerprint of the processors and memory alone: equal over commits and library versions.
    """
    import torch

    memory = _attempt(lambda: _psutil().virtual_memory())
    cores = _attempt(lambda: sorted(os.sched_getaffinity(0)))
    found: dict[str, Any] = {
        "cpu": _attempt(_cpu),
        "gpu": _attempt(_gpu),
        "memory_bytes": None if memory is None else memory.total,
        "limits": {"cpu_quota": cpu_quota(), "memory_bytes": memory_limit()},
        "flushes_denormals": flushes_denormals(),
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "libraries": {name: _version(name) for name in LIBRARIES},
        "builds": _builds(),
        "torch_config": _attempt(torch.__config__.show),
        "git": _attempt(_commit),
        "code": _attempt(_code),
        "threads": {"torch": torch.get_num_threads(), "interop": torch.get_num_interop_threads()},
        "variables": {key: value for key, value in sorted(os.environ.items()) if key.startswith(VARIABLES)},
    }
    found["machine"] = machine_fingerprint(found)
    found["fingerprint"] = fingerprint(found)
    found["host"] = {"name": platform.node(), "command": sys.argv}
    found["now"] = {
        "cores": cores,
        "load_average": _attempt(lambda: list(os.getloadavg())),
        "memory_available_bytes": None if memory is None else memory.available,
        "cpu_mhz": _attempt(lambda: round(_psutil().cpu_freq().current)),
        "gpu": _attempt(_gpu_now),
    }
    return found


def machine_fingerprint(found: Mapping[str, Any]) -> str:
    """Twelve hex digits of the processors and memory alone; a CPU quota makes another machine of the same ones."""
    parts = {key: found.get(key) for key in ("cpu", "gpu", "memory_bytes")}
    quota = (found.get("limits") or {}).get("cpu_quota")
    return fingerprint(parts if quota is None else {**parts, "cpu_quota": quota})


def fingerprint(found: Mapping[str, Any]) -> str:
    """Twelve hex digits: equal for equal machine, software, commit, threads and variables."""
    lasting = {
        key: value for key, value in found.items() if key not in ("fingerprint", "seal", "host", "now")
    }
    text = json.dumps(lasting, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
