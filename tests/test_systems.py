"""The compared systems: sizes, an import that leaves no trace, and no dependency that would replace torch."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from torch import nn

from pft_bench.apps.systems import PAPER_LR_HW, SYSTEMS, PeersMissing, macs, make_system, parameters, peers
from pft_bench.model import PFT, parameter_count, preset, published_macs

ROOT = Path(__file__).parent.parent
PEERS = [system for system in SYSTEMS if system.architecture]
OWN = [system for system in SYSTEMS if system.preset]
with_spandrel = pytest.mark.skipif(
    importlib.util.find_spec("spandrel") is None, reason=f"spandrel is not installed: {peers.INSTALL}"
)


@with_spandrel
@pytest.mark.parametrize("system", PEERS, ids=lambda system: system.name)
def test_parameters_are_the_papers_to_a_tenth_of_a_million(system) -> None:
    model = make_system(system)
    assert round(parameters(model) / 1e6, 1) == system.published.parameters_m
    assert not model.training
    assert "torchvision" not in sys.modules or hasattr(sys.modules["torchvision"], "__version__")


@pytest.mark.parametrize("system", OWN, ids=lambda system: system.name)
def test_pft_is_the_papers_exactly(system) -> None:
    config = preset(system.preset)
    digits = 1 if system.name == "PFT" else 2
    assert round(parameter_count(config) / 1e6, digits) == system.published.parameters_m
    assert published_macs(config, *PAPER_LR_HW) == system.published.exact_macs
    assert round(system.published.exact_macs / 1e12, 2) == system.published.macs_t


def test_macs_are_those_of_a_convolution_and_of_matrix_products() -> None:
    class Known(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)

        def forward(self, x):
            y = self.conv(x).flatten(2).transpose(1, 2)
            return self.linear(y), y @ y.transpose(1, 2)

    assert macs(Known(), 6, 7) == 42 * (27 * 8 + 8 * 5 + 42 * 8)


def test_macs_of_pft_grow_with_the_windows() -> None:
    config = preset("small_x2")
    model = PFT.from_config(config, "cpu")
    assert macs(model, 17, 32) == 4 * macs(model, 16, 1), "padded to windows of 16x16"


def test_without_spandrel_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spandrel", None)
    monkeypatch.delitem(sys.modules, "spandrel.architectures", raising=False)
    monkeypatch.delitem(sys.modules, "spandrel.architectures.HAT", raising=False)
    system = next(system for system in PEERS if system.name == "HAT")
    with pytest.raises(PeersMissing, match=r"HAT needs spandrel .* pip install --no-deps 'spandrel"):
        make_system(system)


BROKEN = """
import sys
from pft_bench.apps.systems import peers
before = set(sys.modules)
with peers._torchvision_or_stand_in():
    from torchvision.transforms.functional import InterpolationMode, normalize, rotate
    try:
        rotate(None)
    except RuntimeError as error:
        assert "torchvision does not import here" in str(error)
    else:
        raise SystemExit("the stand-in computes something")
left = {name for name in set(sys.modules) - before if name.startswith("torchvision")}
assert not left, left
try:
    import torchvision
except RuntimeError as error:
    assert "nms" in str(error)
else:
    raise SystemExit("the stand-in stayed")
"""


def test_a_torchvision_for_another_torch_is_replaced_for_the_import_only(tmp_path: Path) -> None:
    """Such a torchvision raises RuntimeError, not ImportError, and leaves half of itself in sys.modules."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "from . import half\nraise RuntimeError('operator torchvision::nms does not exist')\n"
    )
    (tmp_path / "torchvision" / "half.py").write_text("")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{BROKEN}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_a_torchvision_that_works_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    functional = tmp_path / "torchvision" / "transforms" / "functional.py"
    functional.parent.mkdir(parents=True)
    (tmp_path / "torchvision" / "__init__.py").write_text("real = True\n")
    (tmp_path / "torchvision" / "transforms" / "__init__.py").write_text("")
    functional.write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with peers._torchvision_or_stand_in():
        assert importlib.import_module("torchvision").real
    assert importlib.import_module("torchvision").real
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)


def test_no_extra_brings_torchvision_or_another_torch() -> None:
    """spandrel depends on torch and torchvision by name; pip would resolve them anew."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [item for items in project["optional-dependencies"].values() for item in items]
    assert not [item for item in extras if item.startswith(("spandrel", "torch"))]
    assert "--no-deps" in peers.INSTALL


def test_every_system_of_the_paper_has_a_row() -> None:
    names = {system.name for system in SYSTEMS}
    assert names == {"SwinIR", "HAT", "ATD", "PFT", "PFT light", "IPG", "NLSN", "DRSformer", "SST", "SAT"}
    for system in SYSTEMS:
        assert sum(map(bool, (system.preset, system.architecture, system.network))) == system.runs
        assert system.runs == (system.name not in ("SST", "SAT"))
        assert system.published.source


@with_spandrel
def test_counted_swinir_is_what_its_note_says() -> None:
    system = next(system for system in SYSTEMS if system.name == "SwinIR")
    model = make_system(system)
    assert macs(model, 8, 8) == 64 * 12_464_748
    assert "12,464,748" in system.note
    at_x4 = 12_464_748 + 589_824 + 20_736
    assert f"{at_x4:,}" in system.note
    assert round(4 * 57_600 * at_x4 / 1e12, 2) == 3.01
    assert round(4 * 57_600 * (at_x4 + 74 * 180 * 5) / 1e12, 2) == 3.03


@with_spandrel
def test_counted_atd_is_what_its_note_says() -> None:
    system = next(system for system in SYSTEMS if system.name == "ATD")
    counted = macs(make_system(system), *PAPER_LR_HW)
    stated = system.stated_macs(*PAPER_LR_HW)
    uncounted = 30 * 128 * 210 + 6 * 210**2 + (9 * 210 * 64 + 4 * 9 * 64 * 3)
    too_much = 36 * (210 - 128) * 20 + 210
    pixel = round(stated / 230_400) + uncounted - too_much
    assert pixel == 27_485_544
    assert abs(230_400 * pixel * 368 / 360 / counted - 1) < 1e-5
