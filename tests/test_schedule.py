"""Focus schedules: every form, every error, and what must hold for any of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pft_bench.common.schedule import PRESETS, FocusSchedule, ScheduleError, parse_schedule
from pft_bench.model import PRESETS as MODELS

DEPTHS = (2, 1, 3)


def per_block(text: str, depths: tuple[int, ...] = DEPTHS, area: int = 1024) -> list[tuple[int, ...]]:
    return list(parse_schedule(text, depths, area).per_block(depths))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1024,256,128", [(1024, 1024), (256,), (128, 128, 128)]),
        ("512", [(512, 512), (512,), (512, 512, 512)]),
        ("512,64", [(512, 512), (64,), (64, 64, 64)]),
        (" 1024 , 256,128 ", [(1024, 1024), (256,), (128, 128, 128)]),
        ("dense", [(1024, 1024), (1024,), (1024, 1024, 1024)]),
        ("paper", [(1024, 1024), (256,), (128, 128, 128)]),
        ("light", [(1024, 1024), (256,), (128, 128, 128)]),
        ("alpha:0.5", [(1024, 1024), (512,), (256, 256, 256)]),
        ("alpha:0.1:64", [(1024, 1024), (102,), (64, 64, 64)]),
        ("alpha:1", [(1024, 1024), (1024,), (1024, 1024, 1024)]),
        ("layers:1024,512,512,3,2,1", [(1024, 512), (512,), (3, 2, 1)]),
    ],
)
def test_every_form_means_what_it_says(text: str, expected: list[tuple[int, ...]]) -> None:
    assert per_block(text) == expected


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("classical")])
def test_paper_schedule_is_the_published_classical_models(name: str) -> None:
    config = MODELS[name]
    assert parse_schedule("paper", config.depths, config.window_size**2).num_topk == config.num_topk


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("light")])
def test_light_schedule_is_the_published_light_models(name: str) -> None:
    config = MODELS[name]
    assert parse_schedule("light", config.depths, config.window_size**2).num_topk == config.num_topk


def test_last_preset_value_holds_for_more_blocks_than_published() -> None:
    assert parse_schedule("light", (1,) * 7, 1024).num_topk == (1024, 256, 128, 64, 32, 32, 32)


def test_alpha_never_rounds_down_to_nothing() -> None:
    assert parse_schedule("alpha:0.01", (1, 1, 1, 1), 16).num_topk == (16, 1, 1, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1024,2.5", "'2.5'"),
        ("1024,many", "'many'"),
        ("", "must be"),
        (",", "must be"),
        ("1024,,128", "must be"),
        ("1024,0", "at least 1 entry, got 0"),
        ("1024,-3", "at least 1 entry, got -3"),
        ("2048", "at most the 1024 tokens of a window, got 2048"),
        ("256,512", "must not increase.*got 512 after 256"),
        ("4,3,2,1", "at most one value per block, got 4 values for 3 blocks"),
        ("layers:1024,256", "one value for each of the model's 6 layers, got 2"),
        ("layers:", "must be"),
        ("layers:6,5,4,3,2,3", "must not increase"),
        ("layers:6,5,4,3,2,0", "at least 1"),
        ("alpha:", "alpha:RATIO"),
        ("alpha:half", "alpha:RATIO"),
        ("alpha:0.5:low", "alpha:RATIO"),
        ("alpha:0", "ratio above 0"),
        ("alpha:1.5", "ratio above 0 and at most 1"),
        ("alpha:nan", "ratio above 0"),
        ("alpha:0.5:0", "floor in 1..1024"),
        ("alpha:0.5:2000", "floor in 1..1024"),
        ("alhpa:0.5", "unknown form 'alhpa'"),
        ("papers", "'papers'"),
        ("DENSE", "'DENSE'"),
    ],
)
def test_every_error_names_the_schedule_and_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ScheduleError, match=message) as caught:
        parse_schedule(text, DEPTHS, 1024)
    assert repr(text) in str(caught.value)


def test_a_preset_that_does_not_fit_small_windows_says_so() -> None:
    with pytest.raises(ScheduleError, match="at most the 64 tokens of a window, got 1024"):
        parse_schedule("paper", DEPTHS, 64)


DEPTH_LISTS = st.lists(st.integers(1, 6), min_size=1, max_size=8).map(tuple)
AREAS = st.integers(1, 64).map(lambda side: side * side)


def check(schedule: FocusSchedule, depths: tuple[int, ...], area: int) -> None:
    values = schedule.num_topk
    assert len(values) == sum(depths)
    assert all(isinstance(value, int) and 1 <= value <= area for value in values)
    assert list(values) == sorted(values, reverse=True)
    blocks = schedule.per_block(depths)
    assert tuple(len(block) for block in blocks) == depths
    assert tuple(value for block in blocks for value in block) == values


@given(depths=DEPTH_LISTS, area=AREAS, data=st.data())
def test_any_list_never_increases_and_stays_inside_the_window(
    depths: tuple[int, ...], area: int, data: st.DataObject
) -> None:
    values = data.draw(st.lists(st.integers(1, area), min_size=1, max_size=len(depths)))
    values.sort(reverse=True)
    text = ",".join(map(str, values))
    schedule = parse_schedule(text, depths, area)
    check(schedule, depths, area)
    expected = values + [values[-1]] * (len(depths) - len(values))
    assert [set(block) for block in schedule.per_block(depths)] == [{value} for value in expected]


@given(depths=DEPTH_LISTS, area=AREAS, ratio=st.floats(1e-6, 1), data=st.data())
def test_any_alpha_never_increases_and_stays_inside_the_window(
    depths: tuple[int, ...], area: int, ratio: float, data: st.DataObject
) -> None:
    floor = data.draw(st.integers(1, area))
    schedule = parse_schedule(f"alpha:{ratio}:{floor}", depths, area)
    check(schedule, depths, area)
    assert schedule.num_topk[0] == area
    assert schedule.num_topk[-1] >= floor


@given(text=st.text(alphabet="0123456789,:. -layersphdn", max_size=24), depths=DEPTH_LISTS, area=AREAS)
def test_any_text_is_a_schedule_or_a_schedule_error(text: str, depths: tuple[int, ...], area: int) -> None:
    try:
        schedule = parse_schedule(text, depths, area)
    except ScheduleError:
        return
    check(schedule, depths, area)


@given(text=st.sampled_from(["1024,256,128", "dense", *PRESETS, "alpha:0.25:16"]), depths=DEPTH_LISTS)
def test_text_is_kept_and_reads_back_to_the_same_schedule(text: str, depths: tuple[int, ...]) -> None:
    if len(depths) < 3:
        depths = (*depths, 1, 1)
    schedule = parse_schedule(f" {text}\n", depths, 1024)
    assert schedule.text == text
    assert parse_schedule(schedule.text, depths, 1024) == schedule
    per_layer = "layers:" + ",".join(map(str, schedule.num_topk))
    assert parse_schedule(per_layer, depths, 1024).num_topk == schedule.num_topk
