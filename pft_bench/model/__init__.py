"""The published PFT model on this package's ops: configuration, weights, and the published counts."""

from .checkpoint import load, read_weights
from .config import PRESETS, PFTConfig, preset
from .footprint import Footprint, forward_footprint
from .infer import infer_config
from .macs import PUBLISHED_LR, parameter_count, published_macs
from .pft import PFT
from .weights import fill_with_generated_weights, generated_weights

__all__ = [
    "PFT",
    "PRESETS",
    "PUBLISHED_LR",
    "PFTConfig",
    "Footprint",
    "fill_with_generated_weights",
    "forward_footprint",
    "generated_weights",
    "infer_config",
    "load",
    "parameter_count",
    "preset",
    "published_macs",
    "read_weights",
]
