"""`pft-bench systems` with small peers in the place of those from spandrel: its run folder and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pft_bench.apps.systems import PeersMissing, Published, System, size
from pft_bench.cli import systems as command
from pft_bench.harness.cases import systems as cases
from pft_bench.harness.cases.mechanisms import MechanismsGroup
from pft_bench.harness.measure import roof
from pft_bench.harness.record import Status, read_records

Command = Callable[..., Any]


class Enlarges(nn.Module):
    """Twice the size, and twice the value with each further call: what is not repeatable is not timed."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor, self.value = factor, 1.0

    def forward(self, x: Tensor) -> Tensor:
        self.value *= self.factor
        return self.value * nn.functional.interpolate(x, scale_factor=2)


@pytest.fixture
def systems(pft_bench_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Command]:
    """The command with PFT and two peers, on 8x8 pixels; `missing` names a peer that is not installed."""
    missing: set[str] = set()

    def make(system: System) -> nn.Module:
        if system.name in missing:
            raise PeersMissing(f"{system.name} needs spandrel: install it")
        return Enlarges(2.0 if system.name == "HAT" else 1.0)

    peers = [
        System(name, Published(1.0, 0.1, psnr_db=(38.0, 33.0, 39.0)), architecture=name)
        for name in ("SwinIR", "HAT")
    ]
    shown = (
        *peers,
        System("PFT", Published(), preset="small_x2"),
        System("IPG", Published(), network=Enlarges),
        System(
            "SAT", Published(19.4, 3.64, psnr_db=(38.74, 34.92, 40.70), source="its table"), note="no model"
        ),
    )
    monkeypatch.setattr(command, "SYSTEMS", shown)
    monkeypatch.setattr(size, "macs", lambda *_: 10**12)
    for module in (size, cases):
        monkeypatch.setattr(module, "make_system", make)

    def call(*arguments: object, without: str = "") -> Any:
        missing.clear()
        missing.update(filter(None, [without]))
        rounds = ("--rounds", 6, "--budget", 0.001, "--lr", "8x8", "--threads", 1, "--no-isolate")
        return pft_bench_command("systems", *rounds, "--out", tmp_path / "run", *arguments)

    return call


def test_a_run_folder_like_any_other(systems: Command, pft_bench_command: Command, tmp_path: Path) -> None:
    ended = systems()
    assert ended.code == 1, ended
    folder = tmp_path / "run"
    found = {str(r.case.options["system"]): r for r in read_records(folder / "records.jsonl").records}
    assert {name: record.status for name, record in found.items()} == {
        "SwinIR": Status.OK,
        "HAT": Status.FAILED,
        "PFT": Status.OK,
        "IPG": Status.OK,
    }
    assert "SAT (its table): no model" in ended.out
    assert "19.4 M" in ended.out
    assert "not measured: model HAT on spandrel: failed: repeatable" in ended.out
    assert found["SwinIR"].timing.baseline.name == "PFT"
    assert len(found["PFT"].timing.control_s) == 6
    assert found["PFT"].flops.paper_macs

    ended = pft_bench_command("verify", folder)
    assert (ended.code, "settings.json" in ended.out) == (0, True), ended
    assert pft_bench_command("report", folder).code == 0
    text = (folder / "report.md").read_text()
    assert "| SwinIR | spandrel |" in text
    assert "| PFT | cpu | baseline |" in text


def test_it_is_shown_again_and_peers_join(
    systems: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert systems(without="HAT").code == 0
    path = tmp_path / "run" / "records.jsonl"
    before = path.read_bytes()
    ended = systems(without="HAT")
    assert (ended.code, "--out must be a new folder (or add --resume)" in ended.err) == (2, True)
    with monkeypatch.context() as patched:
        patched.setattr(cases.SystemsGroup, "contenders", lambda self: pytest.fail("measured again"))
        ended = systems("--resume", without="HAT")
    assert ended.code == 0, ended
    assert "speed-up over PFT" in ended.out
    assert path.read_bytes() == before
    ended = systems("--resume")
    assert ended.code == 1
    assert path.read_bytes().startswith(before)
    assert [str(r.case.options["system"]) for r in read_records(path).records] == [
        "SwinIR",
        "PFT",
        "IPG",
        "HAT",
    ]


def test_a_missing_package_costs_no_other_row(systems: Command, tmp_path: Path) -> None:
    """It may go between the sizes and the times: that peer alone has none."""

    def gone(system: System) -> nn.Module:
        raise PeersMissing("it went")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cases, "make_system", gone)
        assert systems().code == 1
    records = read_records(tmp_path / "run" / "records.jsonl").records
    assert {str(r.case.options["system"]): r.status for r in records} == {
        "SwinIR": Status.ERROR,
        "HAT": Status.ERROR,
        "PFT": Status.OK,
        "IPG": Status.ERROR,
    }


def test_published_weights_are_loaded_and_their_output_looked_at(
    systems: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, loaded = tmp_path / "published.pth", []
    torch.save({"weight": torch.ones(1)}, file)
    monkeypatch.setattr(cases, "load_published", lambda model, path: loaded.append(path))
    assert systems("--weights", f"IPG={file}", without="HAT").code == 0
    assert set(loaded) == {file}
    records = {
        str(r.case.options["system"]): r for r in read_records(tmp_path / "run" / "records.jsonl").records
    }
    assert str(records["IPG"].case.options["weights"]).startswith("published.pth ")
    assert records["SwinIR"].case.options["weights"] == "random"
    assert [check.name for check in records["IPG"].checks][-1] == "plausible"

    monkeypatch.setattr(Enlarges, "forward", lambda self, x: torch.full((1, 3, 16, 16), 5.0))
    ended = systems("--weights", f"IPG={file}", "--out", tmp_path / "other", without="HAT")
    assert ended.code == 1
    assert "model IPG on networks: failed: plausible" in ended.out
    assert "dB against the input enlarged" in ended.out


def test_weights_of_no_system_are_refused(systems: Command, tmp_path: Path) -> None:
    ended = systems("--weights", "SAT=file.pth")
    assert ended.code == 2
    assert "--weights must be NAME=FILE with a NAME of SwinIR, HAT, PFT, IPG" in " ".join(ended.err.split())
    assert not (tmp_path / "run").exists()
    assert "--weights is of whole networks" in " ".join(
        systems("--mechanisms", "--weights", "IPG=f").err.split()
    )


def test_mechanisms_alone(systems: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """With those that take all tokens; `tests/cases/test_mechanisms.py` has the others."""
    monkeypatch.setattr(command, "mechanism_groups", lambda settings: [MechanismsGroup(settings, ())])
    monkeypatch.setattr(roof, "MATRIX_SIDE", 768)  # real sizes need a real roof
    ended = systems("--mechanisms")
    assert ended.code == 0, ended
    assert "Attention alone" in ended.out
    assert "rank-factorized" in ended.out
    assert "SwinIR" not in ended.out, "whole networks are left out"
