"""Small models and the published facts, shared by the tests of pft_bench.model."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made import SMALL
from torch import Tensor

import pft_bench
from pft_bench.model import PFT, generated_weights

DATA = Path(__file__).parent.parent / "data"


@dataclass(frozen=True)
class Golden:
    """One model of tests/data/golden."""

    config: dict[str, Any]
    fp32_error: float
    loss: float
    grad_norms: dict[str, float]
    arrays: dict[str, Tensor]

    def model(self, dtype: torch.dtype, backend: str) -> PFT:
        model = PFT(**self.config, backend=backend).to(dtype)
        model.load_state_dict(generated_weights(model))
        return model


@pytest.fixture(scope="session", params=["classical_small_x2", "light_small_x4_odd"])
def golden(request: pytest.FixtureRequest) -> Golden:
    facts = json.loads((DATA / "golden" / f"{request.param}.json").read_text())
    with np.load(DATA / "golden" / f"{request.param}.npz") as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    train = facts["train"]
    return Golden(
        facts["config"], facts["official_fp32_rel_error"], train["loss"], train["grad_norms"], arrays
    )


@pytest.fixture(scope="session")
def published() -> dict[str, dict[str, Any]]:
    facts: dict[str, dict[str, Any]] = json.loads((DATA / "presets.json").read_text())
    return facts


@pytest.fixture(scope="session")
def published_keys() -> Callable[[str], dict[str, tuple[str, tuple[int, ...]]]]:
    """Key -> (dtype, shape) of a preset's published weights, in order."""

    def read(name: str) -> dict[str, tuple[str, tuple[int, ...]]]:
        lines = gzip.decompress((DATA / "state_dict" / f"{name}.tsv.gz").read_bytes()).decode().splitlines()
        rows = (line.split("\t") for line in lines)
        return {key: (dtype, tuple(int(n) for n in shape.split(","))) for key, dtype, shape in rows}

    return read


@pytest.fixture(scope="session")
def make_model() -> Callable[..., PFT]:
    """Make a small model with generated weights; keywords override those of SMALL."""

    def make(dtype: torch.dtype = torch.float32, backend: str = "dense", **keywords: Any) -> PFT:
        model = PFT(**(SMALL | keywords), backend=backend).to(dtype)
        model.load_state_dict(generated_weights(model))
        return model

    return make


@pytest.fixture
def image() -> Callable[..., Tensor]:
    """Make an image [B, C, h, w] in 0..1, the same for the same arguments."""

    def make(
        height: int = 12,
        width: int = 8,
        batch: int = 1,
        channels: int = 3,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(7)).to(
            dtype
        )

    return make


@pytest.fixture(params=["reference", "dense", "cpu"])
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend that computes on a CPU; one that is not available is skipped with its own reason."""
    name: str = request.param
    rows = {row.name: row for row in pft_bench.backends()}
    if name not in rows:
        pytest.skip(f"backend {name!r} is not registered")
    if not rows[name].available:
        pytest.skip(rows[name].reason)
    return name


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """On a busy machine, threads that wait for each other take far longer than models this small do on one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
