"""The published PFT model on this package's ops: configuration, weights, and the published counts."""

from .checkpoint import load, read_weights, weights_config
from .config import PRESETS, PFTConfig, preset, preset_of
from .files import weights_file
from .footprint import Footprint, forward_footprint
from .infer import infer_config
from .macs import PUBLISHED_LR, parameter_count, published_macs
from .notes import noted_settings, settings_note
from .pft import PFT
from .tiles import (
    Seams,
    UpscalePlan,
    available_bytes,
    compare_tiled,
    parse_tile,
    plan_upscale,
    upscale,
)
from .unwrap import CheckpointNote
from .weights import fill_with_generated_weights, generated_weights

__all__ = [
    "PFT",
    "PRESETS",
    "PUBLISHED_LR",
    "CheckpointNote",
    "Footprint",
    "PFTConfig",
    "Seams",
    "UpscalePlan",
    "available_bytes",
    "compare_tiled",
    "fill_with_generated_weights",
    "forward_footprint",
    "generated_weights",
    "infer_config",
    "load",
    "noted_settings",
    "parameter_count",
    "parse_tile",
    "plan_upscale",
    "preset",
    "preset_of",
    "published_macs",
    "read_weights",
    "settings_note",
    "upscale",
    "weights_config",
    "weights_file",
]
