"""The six published configurations: parameters, weights' names and shapes, the published counts."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from pft_bench.model import (
    PFT,
    PRESETS,
    PUBLISHED_LR,
    PFTConfig,
    infer_config,
    parameter_count,
    preset,
    published_macs,
)

NAMES = sorted(PRESETS)


def test_presets_are_the_published_ones(published):
    assert set(PRESETS) == set(published)
    for name, facts in published.items():
        assert preset(name) == PFTConfig.from_keywords(**facts["config"])


@pytest.mark.parametrize("name", NAMES)
def test_parameter_count(name, published):
    assert parameter_count(preset(name)) == published[name]["params"]


@pytest.mark.parametrize("name", NAMES)
def test_macs(name, published):
    width, height = published[name]["lr_hw"]
    assert PUBLISHED_LR[preset(name).upscale] == (width, height)
    assert published_macs(preset(name), height, width) == published[name]["official_macs"]


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_has_the_published_keys_in_order(name, published_keys):
    with torch.device("meta"):
        state = PFT.from_config(preset(name)).state_dict()
    mine = {key: (str(v.dtype).removeprefix("torch."), tuple(v.shape)) for key, v in state.items()}
    assert list(mine.items()) == list(published_keys(name).items())


@pytest.mark.parametrize("name", NAMES)
def test_configuration_is_inferred_from_published_shapes(name, published_keys):
    shapes = {key: shape for key, (_, shape) in published_keys(name).items()}
    assert infer_config(shapes) == preset(name)


def test_parameters_do_not_depend_on_the_schedule():
    config = preset("light_x4")
    denser = config.with_topk([1024] * 24)
    assert parameter_count(denser) == parameter_count(config)
    assert published_macs(denser, 64, 64) > published_macs(config, 64, 64)


def test_schedule_can_be_changed_without_touching_the_rest():
    config = preset("light_x4").with_topk(range(24, 0, -1))
    assert config.num_topk == tuple(range(24, 0, -1))
    assert dataclasses.replace(config, num_topk=preset("light_x4").num_topk) == preset("light_x4")


def test_unknown_preset():
    with pytest.raises(ValueError, match=r"preset must be one of classical_x2, .*, got 'classical_x8'"):
        preset("classical_x8")
