"""No kernel's wavefronts, sectors or matrix products rise unnoticed: small shapes against reports/counters.json."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pft_bench._cuda_count")

from pft_bench.counters.counted import Launch
from pft_bench.counters.gates import GATED, RENEW, gate_counts, gated_works, key_of, risen

COMMITTED = Path(__file__).resolve().parents[2] / "reports" / "counters.json"


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
    launch = Launch.of(counted, "float32")
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
