"""What a run plans: settings, the steps of a schedule, groups, the input picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pft_bench.common.schedule import parse_schedule
from pft_bench.harness.cases import Settings, check_inputs, left_out, plan_groups
from pft_bench.harness.cases.image import low_resolution
from pft_bench.harness.cases.op import CALLED
from pft_bench.harness.measure.rounds import Plan, measure
from pft_bench.harness.measure.timer import CpuTimer
from pft_bench.harness.problem import Problem
from pft_bench.model import PRESETS


def test_steps_of_the_published_schedule_follow_its_two_chains() -> None:
    """Layers 0 to 3 are dense, 4 and 5 select from dense logits, later ones are sparse (unshifted and shifted)."""
    config = PRESETS["classical_x4"]
    steps = config.along_chains(parse_schedule("paper", config.depths, 1024).num_topk)
    assert steps[:10] == [(1024, 1024)] * 4 + [(1024, 256)] * 2 + [(256, 256)] * 2 + [(256, 128)] * 2
    assert steps[-6:] == [(32, 16)] * 2 + [(16, 16)] * 4
    assert len(steps) == sum(config.depths)


def test_chains_do_not_inherit_from_each_other() -> None:
    config = PRESETS["light_x4"]
    values = [1024, *[64] * (sum(config.depths) - 1)]
    text = "layers:" + ",".join(map(str, values))
    steps = config.along_chains(parse_schedule(text, config.depths, 1024).num_topk)
    assert steps[:4] == [(1024, 1024), (1024, 64), (1024, 64), (64, 64)]


def test_groups_are_distinct_and_start_with_the_densest() -> None:
    made = Settings.make(schedules=["1024,64", "1024,64,16"], levels=["op", "layer", "model"], threads=1)
    groups = plan_groups(made)
    titles = [group.title for group in groups]
    assert len(set(titles)) == len(titles)
    assert titles[:2] == ["sddmm K=1024", "spmm K=1024"]
    steps = ("1024 -> 1024", "1024 -> 64", "64 -> 64", "64 -> 16", "16 -> 16")
    assert [title for title in titles if title.startswith("layer")] == [f"layer {step}" for step in steps]
    identities = [case.case_id for group in groups for case in group.cases.values()]
    assert len(set(identities)) == len(identities)
    for group in groups:
        assert group.baseline in group.cases


def test_windows_count_the_padded_input() -> None:
    for size, windows in (((64, 64), 4), ((65, 64), 6), ((1, 1), 1), ((32, 96), 3)):
        assert Settings.make(schedules=["dense"], lr_hw=size).windows == windows


def test_a_problem_is_the_same_layer_for_every_backend() -> None:
    problem = Problem("attention", 2, 3, 16, 5, 9, 4)
    first, again = problem.layer(), problem.layer()
    for name in ("q", "k", "v", "bias", "index", "logits"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert first.scale == 5**-0.5
    assert first.topk == 4


def test_the_bundled_photograph_has_the_asked_size_and_contents() -> None:
    picture = low_resolution((24, 40))
    assert picture.shape == (1, 3, 24, 40)
    assert picture.dtype == torch.float32
    assert 0 <= float(picture.min()) < 0.2
    assert 0.8 < float(picture.max()) <= 1
    assert torch.equal(picture, low_resolution((24, 40)))


@pytest.mark.parametrize("shape", [(8, 9), (8, 9, 3), (8, 9, 4)], ids=["grey", "RGB", "RGBA"])
def test_pictures_of_any_kind_become_rgb(tmp_path: Path, shape: tuple[int, ...]) -> None:
    from skimage import io

    path = tmp_path / "picture.png"
    io.imsave(path, np.full(shape, 51, dtype=np.uint8), check_contrast=False)
    torch.testing.assert_close(low_resolution((4, 5), path), torch.full((1, 3, 4, 5), 0.2))


def test_a_file_that_is_no_picture_is_named(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a picture")
    with pytest.raises(ValueError, match=r"notes\.txt must be a picture"):
        low_resolution((4, 4), path)


def test_an_image_that_no_level_uses_is_refused(tmp_path):
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"")
    made = Settings.make(schedules=["dense"], levels=["layer"], device="cpu", image=picture)
    with pytest.raises(ValueError, match="image is used at levels model and threads only"):
        check_inputs(made)


def test_kernels_without_the_dtype_are_named():
    made = Settings.make(schedules=["dense"], device="cpu", dtype="float64")
    assert ("cpu", "it has no float64 kernels") in left_out(made)


def test_calls_of_the_public_op_are_timed_beside_kernels_whose_index_changes(
    monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    monkeypatch.setenv("PFT_OP_CALLS", "1")
    made = Settings.make(
        schedules=["16"], levels=["op"], backends=["cpu"], device="cpu", threads=1, lr_hw=(8, 8)
    )
    group = next(group for group in plan_groups(made) if group.title == "spmm K=16")
    chosen = [item for item in group.contenders() if item.name in ("dense", "cpu", *CALLED)]
    plan = Plan(rounds=6, budget_s=0.01)
    found = measure(chosen, "dense", plan, timer=CpuTimer(5e-4)).contenders
    assert set(found) == {"dense", "cpu", *CALLED}
    assert all(item.rejection is None for item in found.values()), found
