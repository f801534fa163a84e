"""Kernels that cheat get no time, who runs beside them does, and without the guard they are caught by nobody."""

from __future__ import annotations

import functools
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator

import pytest
import torch

from pft_bench.backends import get
from pft_bench.harness.cases import model
from pft_bench.harness.cases.changing_inputs import Inputs
from pft_bench.harness.measure import process_state, timer
from pft_bench.harness.selftest.cheating import HONEST, rejections
from pft_bench.harness.selftest.cheats import CHEATS, Cheat, tried
from pft_bench.harness.selftest.mutant import BASE
from pft_bench.harness.selftest.mutation import run_cheat


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """What takes long and is not what is tested here is done once."""
    small = functools.cache(model.low_resolution)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timer, "WARMUP_S", 0.002)
        patch.setattr(gc, "collect", lambda *_: 0)  # a tenth of a second in a full process, once a round
        patch.setattr(model, "low_resolution", lambda *given: small(*given).clone())
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # several wait for each other, for long on a busy machine
        get(HONEST), get(BASE)
        with process_state.holding_functions():
            yield
        torch.set_num_threads(threads)


@pytest.mark.parametrize(("cheat", "mode"), list(tried()), ids=lambda item: getattr(item, "name", item))
def test_a_cheat_gets_no_time_and_without_its_guards_it_does(cheat: Cheat, mode: str) -> None:
    if cheat.lacks:
        pytest.skip(cheat.lacks)
    state = process_state.Snapshot(first_call=True)
    found = rejections(cheat, mode)
    assert found[HONEST] is None
    caught = found[cheat.kind.name]
    assert caught is not None
    assert caught.status == "failed"
    assert cheat.says in caught.reason
    assert rejections(cheat, mode, cheat.guards)[cheat.kind.name] is None
    assert state.restore() == []


def test_what_needs_two_processors_is_skipped_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    (pins,) = (cheat for cheat in CHEATS if cheat.name == "pins the process to one processor")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    assert not pins.lacks
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})
    outcome = run_cheat(pins, "infer")
    assert outcome.skipped == "needs 2 processors, this process may use 1"
    assert {cheat.name for cheat in CHEATS if cheat.lacks} == {pins.name}


def test_every_cheat_has_a_name_of_its_own() -> None:
    assert len({cheat.name for cheat in CHEATS}) == len(CHEATS) >= 18 + 8 + 20


def test_the_process_is_restored_and_what_changed_is_named() -> None:
    threads = torch.get_num_threads()
    variables = ("OMP_PLANTED", "OPENBLAS_PLANTED", "MALLOC_PLANTED")

    def change() -> None:
        with process_state.unchanged("during a test"):
            torch.set_num_threads(threads + 1)
            os.environ.update(dict.fromkeys(variables, "1"))

    with pytest.raises(process_state.ProcessChanged, match="torch threads") as caught:
        change()
    assert torch.get_num_threads() == threads
    for name in variables:
        assert f"{name} None -> '1'" in str(caught.value)
        assert name not in os.environ


class _Unshown:
    """A function whose `repr` raises."""

    def __call__(self, *_: object) -> None:
        """Nothing."""

    def __repr__(self) -> str:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("plant", "now", "name"),
    [
        (sys.setprofile, sys.getprofile, "trace or profile function"),
        (
            lambda handler: signal.signal(signal.SIGRTMIN + 1, handler),
            lambda: signal.getsignal(signal.SIGRTMIN + 1),
            "signal handlers",
        ),
    ],
    ids=["a profile function", "a handler of a real-time signal"],
)
def test_an_object_whose_repr_raises_is_named_and_taken_away(
    plant: Callable[[object], object], now: Callable[[], object], name: str
) -> None:
    right = now()

    def change() -> None:
        with process_state.unchanged("during a test"):
            plant(_Unshown())

    with pytest.raises(process_state.ProcessChanged, match=f"changed {name}: .*cannot be shown"):
        change()
    assert now() is right


def test_copies_that_were_written_to_are_named() -> None:
    inputs = Inputs({"a": torch.rand(3, 4, 2), "v": torch.rand(3, 4, 2)})
    assert inputs.untouched().passed
    assert inputs.glance().passed
    inputs._first["v"].tensor().zero_()  # torch writes to the `bytes` that it reads
    inputs.restore()
    assert "the harness's copy of v" in inputs.untouched().detail
    assert "the harness's copy of v" in inputs.glance().detail


def test_operators_are_told_by_name_not_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """One registered and one forgotten leave as many as there were."""
    monkeypatch.setattr(torch.library, "_impls", {"aten/planted/CPU", "other/planted/CPU"})
    before = process_state.Snapshot()
    torch.library._impls.clear()
    torch.library._impls.update(("aten/another/CPU", "other/planted/CPU"))
    assert any("aten/another/CPU" in told for told in before.restore())


@pytest.fixture
def planted_library() -> Iterator[torch.library.Library]:
    """One of a derived class, which the collector of garbage has frozen."""

    class Derived(torch.library.Library):
        def _destroy(self) -> None:
            """Stays."""

    made = Derived("aten", "IMPL")
    gc.freeze()
    yield made
    gc.unfreeze()
    torch.library.Library._destroy(made)


def test_an_operator_that_a_hidden_library_registered_is_restored(
    planted_library: torch.library.Library,
) -> None:
    right = torch.special.entr(torch.full((2,), 3.0))
    before = process_state.Snapshot()
    planted_library.impl("special_entr", lambda given: given, "CPU", with_keyset=False)
    assert not torch.equal(torch.special.entr(torch.full((2,), 3.0)), right)
    assert any("aten/special_entr/CPU" in told for told in before.restore())
    assert torch.equal(torch.special.entr(torch.full((2,), 3.0)), right)


def test_no_result_counts_while_torch_keeps_a_replaced_operator(
    planted_library: torch.library.Library,
) -> None:
    before = process_state.Snapshot()
    planted_library.impl("special_entr", lambda given: given, "CPU")
    known, planted_library._op_impls = planted_library._op_impls, set()
    (told,) = before.restore()
    assert "of which torch keeps aten/special_entr/CPU" in told
    with (
        pytest.raises(process_state.ProcessChanged, match="nothing that is computed here counts"),
        process_state.unchanged("for somebody else"),
    ):
        pass
    planted_library._op_impls = known
    torch.library.Library._destroy(planted_library)
    with process_state.unchanged("for somebody else"):
        pass
