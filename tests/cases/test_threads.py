"""Thread counts as candidates of one group: what runs on how many threads, and which bits must be the same."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from made import measure_quickly, product, tiny_config

from pft_bench.backends import get
from pft_bench.harness.cases import Settings, plan_groups
from pft_bench.harness.cases import group as group_module
from pft_bench.harness.cases import settings as settings_module
from pft_bench.harness.cases.threads import ThreadsGroup, thread_counts, unlike, use_threads
from pft_bench.harness.measure.admission import Refused, verify
from pft_bench.harness.measure.rounds import Plan
from pft_bench.harness.measure.timer import CpuTimer
from pft_bench.harness.measure.verified import Verified
from pft_bench.harness.record import Status
from pft_bench.insight.counts import formula_counts
from pft_bench.model import PFT, PRESETS

TINY = tiny_config(16, 5, 5)
LAYERS = 6
Make = Callable[..., Settings]
Change = Callable[[torch.Tensor], torch.Tensor]


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    measure_quickly(monkeypatch)
    monkeypatch.setitem(PRESETS, "tiny_x2", TINY)
    monkeypatch.setattr(settings_module, "usable_cores", lambda: 64)
    before = torch.get_num_threads()

    def make(**others: Any) -> Settings:
        given: dict[str, Any] = {
            "schedules": ["16,5"],
            "preset_name": "tiny_x2",
            "device": "cpu",
            "levels": ["threads"],
            "backends": ["cpu"],
            "threads": 2,
            "lr_hw": (8, 8),
            "plan": Plan(rounds=6, max_rounds=6, budget_s=0.1),
        }
        return Settings.make(**(given | others))

    yield make
    torch.set_num_threads(before)


def groups_of(made: Settings) -> dict[str, ThreadsGroup]:
    found = {}
    for group in plan_groups(made):
        assert isinstance(group, ThreadsGroup)
        found[group.title] = group
    return found


def layer_and_model(made: Settings) -> tuple[ThreadsGroup, ThreadsGroup]:
    """The sparse layer and the model."""
    _, layer, model = groups_of(made).values()
    return layer, model


def checked(group: ThreadsGroup) -> dict[str, Verified | Refused]:
    """The outcome of each candidate's check, as a run makes it, without the timing."""
    torch.set_num_threads(group.settings.threads)
    with torch.set_grad_enabled(group.settings.mode == "train"):
        return {candidate.name: verify(candidate) for candidate in group.contenders()}


def on_two_threads(monkeypatch: pytest.MonkeyPatch, backend: str, change: Change) -> None:
    """Plant in the layer's output what a kernel would do whose result depends on the number of threads."""
    right = get(backend).attention_forward

    def wrong(layer: Any) -> Any:
        out, *rest = right(layer)
        return (out if torch.get_num_threads() == 1 else change(out), *rest)

    monkeypatch.setattr(get(backend), "attention_forward", wrong)


def nudged(out: torch.Tensor) -> torch.Tensor:
    """The next float of one element: far below every bound."""
    out = out.clone()
    out[-1, -1, -1, -1] = torch.nextafter(out[-1, -1, -1, -1], torch.tensor(9.0))
    return out


@pytest.mark.parametrize(
    ("most", "counts"),
    [(1, [1]), (2, [1, 2]), (8, [1, 2, 3, 4, 5, 6, 7, 8]), (12, [1, 2, 4, 8, 12]), (16, [1, 2, 4, 8, 16])],
)
def test_every_count_where_they_are_few_and_all_threads_always(most: int, counts: list[int]) -> None:
    assert thread_counts(most) == counts


def test_a_group_is_a_layer_or_the_model_on_one_backend(settings: Make) -> None:
    made = settings(threads=3, schedules=["16,5", "dense"])
    groups = groups_of(made)
    assert list(groups) == [
        "threads, layer 16 -> 16 on cpu",
        "threads, layer 5 -> 5 on cpu",
        "threads, tiny_x2 16,5 on cpu",
        "threads, tiny_x2 dense on cpu",
    ]
    others = plan_groups(settings(threads=3, schedules=["16,5", "dense"], levels=["layer", "model"]))
    cases = [case for group in (*groups.values(), *others) for case in group.cases.values()]
    assert len({case.case_id for case in cases}) == len(cases), "a row of another level has the same id"
    for group in groups.values():
        assert [(n, c.threads, c.backend, c.level) for n, c in group.cases.items()] == [
            ("1 thread", 1, "cpu", "threads"),
            ("2 threads", 2, "cpu", "threads"),
            ("3 threads", 3, "cpu", "threads"),
        ]
        assert group.baseline == "1 thread"
        assert {formula_counts(c) for c in group.cases.values()} == {group.flops("2 threads")}, "for verify"


def test_dense_attention_only_where_it_is_all(settings: Make) -> None:
    assert all(title.endswith("on cpu") for title in groups_of(settings(backends=["dense", "cpu"])))
    assert all(title.endswith("on dense") for title in groups_of(settings(backends=["dense"])))


def test_layer_and_model_are_checked_and_timed_on_their_threads(
    settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: set[tuple[str, int]] = set()
    counted: list[int] = []
    sample_s, count_flops = CpuTimer.sample_s, group_module.counted_flops

    def watched_sample_s(timer: CpuTimer, subject: Verified, repeats: int) -> float:
        timed.add((subject.name, torch.get_num_threads()))
        return sample_s(timer, subject, repeats)

    def watched_flops(call: Any) -> int:
        counted.append(torch.get_num_threads())
        return count_flops(call)

    monkeypatch.setattr(CpuTimer, "sample_s", watched_sample_s)
    monkeypatch.setattr(group_module, "counted_flops", watched_flops)
    before = torch.get_num_threads()
    for group in layer_and_model(settings()):
        one, two = group.run("here").records
        assert [(r.status, r.reason) for r in (one, two)] == [(Status.OK, None)] * 2
        assert (one.case.threads, two.case.threads) == (1, 2)
        assert one.timing is not None
        assert two.timing is not None
        assert two.timing.baseline is not None
        assert two.timing.baseline.name == "1 thread"
        assert two.timing.baseline.control_s == one.timing.control_s != ()
        assert two.derived is not None
        assert two.derived.verdict is not None
        assert one.flops == two.flops
        assert {check.name for check in one.checks} < {check.name for check in two.checks}
        told = {check.name: check.detail for check in two.checks}
        assert told["result as on 1 thread"] == "the same bits"
        if one.case.work == "model":
            assert told["attention as on 1 thread"] == f"{LAYERS} layers, the same bits"
            assert one.stages_s
            assert two.stages_s
    assert timed == {("1 thread", 1), ("2 threads", 2)}
    assert counted == [1, 2, 1, 2], "FLOPs, memory and stages on other threads"
    assert torch.get_num_threads() == before


def test_gradients_have_the_same_bits_too(settings: Make) -> None:
    """The bias' gradient is a sum over the windows, which threads share."""
    for group in layer_and_model(settings(mode="train")):
        found = checked(group)
        assert all(isinstance(outcome, Verified) for outcome in found.values()), found
        names = [check.name for check in found["2 threads"].checks]
        assert "result as on 1 thread" in names
        # the loss alone has the same bits: the gradients are checked on two
        assert ("model gradients, 2 threads" in names) is ("model gradients" in names)


def test_one_bit_that_depends_on_the_threads_fails_where_the_same_are_promised(
    settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_two_threads(monkeypatch, "cpu", nudged)
    layer, model = map(checked, layer_and_model(settings()))
    for found, name in ((layer, "result as on 1 thread"), (model, "attention as on 1 thread")):
        assert isinstance(found["1 thread"], Verified)
        refused = found["2 threads"]
        assert isinstance(refused, Refused)
        assert [check.name for check in refused.checks if not check.passed] == [name]
        assert "relative difference" in refused.rejection.reason


def test_other_bits_without_a_promise_are_told_and_checked_again(
    settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_two_threads(monkeypatch, "dense", nudged)
    layer, model = map(checked, layer_and_model(settings(backends=["dense"])))
    for found in (layer, model):
        assert isinstance(found["2 threads"], Verified), found["2 threads"]
        told = {check.name: check.detail for check in found["2 threads"].checks}
        assert "relative difference" in told["result as on 1 thread"]
        again = "model output" if found is model else "attention out"
        assert {again, f"{again}, 2 threads"} <= set(told)


def test_what_is_wrong_on_two_threads_alone_fails_without_a_promise(
    settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_two_threads(monkeypatch, "dense", lambda out: out * 1.01)
    for found in map(checked, layer_and_model(settings(backends=["dense"]))):
        assert isinstance(found["1 thread"], Verified)
        refused = found["2 threads"]
        assert isinstance(refused, Refused)
        assert "2 threads:" in refused.rejection.reason, "not by the check of one thread"


def test_other_bits_around_the_attention_are_no_error_of_its_kernels(
    settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As PyTorch's matrix products have them: `cpu` keeps its promise, the model is checked again."""
    right = PFT.forward

    def other(model: PFT, x: torch.Tensor) -> torch.Tensor:
        return right(model, x) * (1 if torch.get_num_threads() == 1 else 1 + 2**-22)

    monkeypatch.setattr(PFT, "forward", other)
    found = checked(layer_and_model(settings())[1])
    told = {check.name: check.detail for check in found["2 threads"].checks}
    assert isinstance(found["2 threads"], Verified), found["2 threads"]
    assert "relative difference" in told["result as on 1 thread"]
    assert told["attention as on 1 thread"] == f"{LAYERS} layers, the same bits"
    assert "model output, 2 threads" in told


def test_what_is_wrong_on_one_thread_is_timed_on_none(
    settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = get("cpu").attention_forward
    monkeypatch.setattr(
        get("cpu"), "attention_forward", lambda layer: (right(layer)[0] * 2, *right(layer)[1:])
    )
    for group in layer_and_model(settings()):
        assert all(isinstance(outcome, Refused) for outcome in checked(group).values())


def test_no_thread_is_started_inside_of_a_timed_call() -> None:
    """The pool grows in its first parallel region on more threads: `use_threads` runs one."""
    q, k, index = product("sddmm", 6, 16, 16, 8, 5).values()

    def started() -> int:
        """OS threads that one call of a kernel adds to this process."""
        found = len(os.listdir("/proc/self/task"))
        get("cpu").sddmm(q, k, index)
        return len(os.listdir("/proc/self/task")) - found

    before = torch.get_num_threads()
    try:
        for count in (3, 2, 3, 1, 3):
            use_threads(count)
            assert torch.get_num_threads() == count
            assert started() <= 0, f"on {count} threads"
            time.sleep(0.05)  # those that are too many end by themselves
    finally:
        torch.set_num_threads(before)


def test_results_that_differ_in_number_shape_or_a_bit() -> None:
    one = torch.tensor([0.0, 1.0])
    assert unlike([one], [one.clone()]) == ""
    assert unlike([torch.tensor([float("nan")])], [torch.tensor([float("nan")])]) == "", "the same bits"
    assert unlike([torch.tensor([-0.0, 1.0])], [one]).startswith("result 0: relative difference 0")
    assert unlike([one], [one, one]) == "1 results instead of 2"
    assert unlike([one.double()], [one]).startswith(
        "result 0: [2] torch.float64 instead of [2] torch.float32"
    )


@pytest.mark.parametrize(
    ("cores", "given", "message"),
    [
        (1, {}, "level threads needs at least 2 cores, got a process that may use 1"),
        (4, {"threads": 1}, "threads must be 2 to 4, the cores there are, at level threads, got 1"),
        (2, {"threads": 3}, "threads must be 2 to 2, the cores there are, at level threads, got 3"),
        (4, {"attentions": ["pfa", "topk"], "levels": ["model", "threads"]}, "two comparisons"),
    ],
)
def test_no_scaling_to_measure(
    settings: Make, monkeypatch: pytest.MonkeyPatch, cores: int, given: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(settings_module, "usable_cores", lambda: cores)
    with pytest.raises(ValueError, match=message):
        settings(**given)
