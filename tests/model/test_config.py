"""PFTConfig: bad values for every keyword, and what is derived from them."""

from __future__ import annotations

import dataclasses

import pytest

from pft_bench.model import PFT, PFTConfig

BAD = [
    ({"img_size": "64"}, TypeError, "img_size must be one integer or a pair"),
    ({"img_size": (64, 64, 3)}, TypeError, "img_size must be one integer or a pair"),
    ({"img_size": (64, 0)}, ValueError, "img_size must be at least 1, got 0"),
    ({"img_size": 1.5}, TypeError, "img_size must be one integer or a pair"),
    ({"patch_size": 0}, ValueError, "patch_size must be at least 1, got 0"),
    ({"in_chans": -3}, ValueError, "in_chans must be at least 1, got -3"),
    ({"embed_dim": "90"}, TypeError, "embed_dim must be an integer, got '90'"),
    ({"embed_dim": 90.0}, TypeError, "embed_dim must be an integer, got 90.0"),
    ({"embed_dim": True}, TypeError, "embed_dim must be an integer, got True"),
    ({"depths": 6}, TypeError, "depths must be a sequence of integers, got 6"),
    ({"depths": "66"}, TypeError, "depths must be a sequence of integers, got '66'"),
    ({"depths": ()}, ValueError, "depths must name at least one block"),
    ({"depths": (6, 0)}, ValueError, "every entry of depths must be at least 1, got 0"),
    (
        {"num_heads": 7},
        ValueError,
        "embed_dim must be a multiple of num_heads, got embed_dim=90, num_heads=7",
    ),
    ({"num_heads": [6, 6, 6, 6]}, TypeError, "num_heads must be an integer"),
    ({"num_topk": 64}, TypeError, "num_topk must be a sequence of integers, got 64"),
    (
        {"num_topk": (64,) * 23},
        ValueError,
        "num_topk must have one entry for each of the 24 layers .* got 23",
    ),
    ({"num_topk": (64,) * 23 + (0,)}, ValueError, "every entry of num_topk must be at least 1, got 0"),
    ({"num_topk": (64,) * 23 + (2.5,)}, TypeError, "every entry of num_topk must be an integer, got 2.5"),
    (
        {"num_topk": (32,) * 23 + (33,)},
        ValueError,
        "num_topk must not increase .* got 33 for layer 23 after 32",
    ),
    ({"window_size": 0}, ValueError, "window_size must be at least 1, got 0"),
    ({"convffn_kernel_size": 4}, ValueError, "convffn_kernel_size must be odd, got 4"),
    ({"mlp_ratio": 0}, ValueError, "mlp_ratio must make at least one hidden channel, got 0"),
    ({"mlp_ratio": float("inf")}, ValueError, "mlp_ratio must make at least one hidden channel, got inf"),
    ({"mlp_ratio": "2"}, ValueError, "mlp_ratio must make at least one hidden channel, got '2'"),
    ({"qkv_bias": 1}, TypeError, "qkv_bias must be a bool, got 1"),
    ({"norm_layer": "LayerNorm"}, TypeError, "norm_layer must be callable"),
    ({"ape": None}, TypeError, "ape must be a bool, got None"),
    ({"patch_norm": "yes"}, TypeError, "patch_norm must be a bool, got 'yes'"),
    ({"use_checkpoint": 0}, TypeError, "use_checkpoint must be a bool, got 0"),
    ({"upscale": 0}, ValueError, "upscale must be at least 1, got 0"),
    (
        {"upsampler": "pixelshuffle", "upscale": 6},
        ValueError,
        "'pixelshuffle' needs upscale 3 or a power of two",
    ),
    (
        {"upsampler": "nearest+conv", "upscale": 2},
        ValueError,
        "'nearest\\+conv' needs upscale=4, got upscale=2",
    ),
    ({"upsampler": "bicubic"}, ValueError, "upsampler must be one of .* got 'bicubic'"),
    ({"upsampler": None}, ValueError, "upsampler must be one of .* got None"),
    ({"img_range": 0}, ValueError, "img_range must be a positive number, got 0"),
    ({"img_range": float("nan")}, ValueError, "img_range must be a positive number, got nan"),
    ({"resi_connection": "2conv"}, ValueError, "resi_connection must be one of .* got '2conv'"),
    (
        {"resi_connection": "3conv", "embed_dim": 3, "num_heads": 3},
        ValueError,
        "'3conv' needs embed_dim >= 4",
    ),
    ({"attention": "sparse"}, ValueError, "attention must be one of"),
]


@pytest.mark.parametrize(("keywords", "error", "message"), BAD, ids=[str(keywords) for keywords, *_ in BAD])
def test_bad_keyword(keywords, error, message):
    with pytest.raises(error, match=message):
        PFT(**keywords)


def test_every_keyword_has_a_bad_value():
    tested = {name for keywords, *_ in BAD for name in keywords}
    assert tested == {field.name for field in dataclasses.fields(PFTConfig)} - {"ignored"}


def test_defaults_are_the_published_ones():
    config = PFTConfig()
    assert (config.embed_dim, config.depths, config.window_size) == (90, (6, 6, 6, 6), 8)
    assert config.num_topk == (64,) * 24
    assert config.hidden_dim == 180
    assert config.bias_heads == 1
    assert config.output_scale == 1


def test_unknown_keywords_are_ignored_and_listed():
    config = PFTConfig.from_keywords(embed_dim=12, drop_rate=0.1, ignored=("x",))
    assert config.ignored == ("drop_rate", "ignored")
    assert dataclasses.replace(config, ignored=()) == PFTConfig(embed_dim=12)


def test_chains_restart_with_every_block():
    assert PFTConfig(depths=(1, 2, 3)).chains == (0, 0, 1, 0, 1, 0)


def test_chains_are_independent_in_the_schedule():
    """The shifted chain may keep more than the unshifted layer before it: it has not lost those entries."""
    assert PFTConfig(depths=(4,), num_topk=(8, 32, 8, 32)).num_topk == (8, 32, 8, 32)


def test_lists_become_tuples_so_that_configurations_compare_and_hash():
    config = PFTConfig(depths=[2, 2], num_topk=[9, 9, 4, 4], img_size=[32, 48])
    assert hash(config) == hash(PFTConfig(depths=(2, 2), num_topk=(9, 9, 4, 4), img_size=(32, 48)))
    assert config.img_hw == (32, 48)


def test_bias_is_shared_up_to_a_width_of_100():
    assert PFTConfig(embed_dim=100, num_heads=5).bias_heads == 1
    assert PFTConfig(embed_dim=105, num_heads=5).bias_heads == 5
