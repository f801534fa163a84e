"""The shape of a PFT model: the published constructor's keywords, checked, and the six published presets."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

UPSAMPLERS = ("pixelshuffle", "pixelshuffledirect", "nearest+conv", "")
RESI_CONNECTIONS = ("1conv", "3conv")
ATTENTIONS = ("dense", "topk", "progressive", "pfa", "compute-then-select", "hashed", "rank-factorized")
# The published model shares one bias column between all heads up to this width.
SHARED_BIAS_MAX_DIM = 100


@dataclass(frozen=True)
class PFTConfig:
    """The keywords of the published constructor, under their published names and defaults.

    ``num_topk`` has one entry for each layer, counted over all blocks; left out, every layer keeps everything
    (``window_size**2``). An ``upsampler`` of ``""`` is the restoration model: output as large as its input.
    Raises ValueError or TypeError where a value cannot make a model.
    """

    img_size: int | tuple[int, int] = 64
    patch_size: int = 1
    in_chans: int = 3
    embed_dim: int = 90
    depths: tuple[int, ...] = (6, 6, 6, 6)
    num_heads: int = 6
    num_topk: tuple[int, ...] = ()
    window_size: int = 8
    convffn_kernel_size: int = 5
    mlp_ratio: float = 2.0
    qkv_bias: bool = True
    norm_layer: Callable[[int], nn.Module] = nn.LayerNorm
    ape: bool = False
    patch_norm: bool = True
    use_checkpoint: bool = False
    upscale: int = 2
    img_range: float = 1.0
    upsampler: str = ""
    resi_connection: str = "1conv"
    attention: str = "pfa"
    """Not published: what stands in progressive focused attention's place, see `pft_bench.model.variants`."""
    ignored: tuple[str, ...] = ()
    """Names of keywords that `from_keywords` was given and that PFT does not know."""

    def __post_init__(self) -> None:
        for name in (
            "patch_size",
            "in_chans",
            "embed_dim",
            "num_heads",
            "window_size",
            "convffn_kernel_size",
            "upscale",
        ):
            _require_int(name, getattr(self, name))
        for name in ("qkv_bias", "ape", "patch_norm", "use_checkpoint"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be a bool, got {getattr(self, name)!r}")
        if self.attention not in ATTENTIONS:
            raise ValueError(f"attention must be one of {', '.join(ATTENTIONS)}, got {self.attention!r}")
        self._check_image()
        self._check_widths()
        self._check_schedule()
        self._check_upsampler()

    def _check_image(self) -> None:
        if not isinstance(self.img_size, int):
            pair = tuple(self.img_size) if isinstance(self.img_size, (tuple, list)) else ()
            if len(pair) != 2:
                raise TypeError(
                    f"img_size must be one integer or a pair (height, width), got {self.img_size!r}"
                )
            object.__setattr__(self, "img_size", pair)
        for side in self.img_hw:
            _require_int("img_size", side)
        if not _is_number(self.img_range) or not math.isfinite(self.img_range) or self.img_range <= 0:
            raise ValueError(f"img_range must be a positive number, got {self.img_range!r}")

    def _check_widths(self) -> None:
        if self.embed_dim % self.num_heads:
            raise ValueError(
                f"embed_dim must be a multiple of num_heads, got embed_dim={self.embed_dim}, num_heads={self.num_heads}"
            )
        if self.convffn_kernel_size % 2 == 0:
            raise ValueError(f"convffn_kernel_size must be odd, got {self.convffn_kernel_size}")
        if not _is_number(self.mlp_ratio) or not math.isfinite(self.mlp_ratio) or self.hidden_dim < 1:
            raise ValueError(f"mlp_ratio must make at least one hidden channel, got {self.mlp_ratio!r}")
        if not callable(self.norm_layer):
            raise TypeError(f"norm_layer must be callable with a number of channels, got {self.norm_layer!r}")
        if self.resi_connection not in RESI_CONNECTIONS:
            raise ValueError(
                f"resi_connection must be one of {RESI_CONNECTIONS}, got {self.resi_connection!r}"
            )
        if self.resi_connection == "3conv" and self.embed_dim < 4:
            raise ValueError(f"resi_connection '3conv' needs embed_dim >= 4, got embed_dim={self.embed_dim}")

    def _check_schedule(self) -> None:
        object.__setattr__(self, "depths", _int_tuple("depths", self.depths))
        if not self.depths:
            raise ValueError("depths must name at least one block, got ()")
        layers, area = sum(self.depths), self.window_size**2
        if isinstance(self.num_topk, tuple) and not self.num_topk:
            object.__setattr__(self, "num_topk", (area,) * layers)
        object.__setattr__(self, "num_topk", _int_tuple("num_topk", self.num_topk))
        if len(self.num_topk) != layers:
            raise ValueError(
                f"num_topk must have one entry for each of the {layers} layers of depths={self.depths}, "
                f"got {len(self.num_topk)}"
            )
        steps = self.along_chains(self.num_topk)
        for layer, (topk, (candidates, _)) in enumerate(zip(self.num_topk, steps, strict=True)):
            if min(topk, area) > candidates:
                raise ValueError(
                    f"num_topk must not increase along a chain of layers, got {topk} for layer {layer} "
                    f"after {candidates}"
                )

    def _check_upsampler(self) -> None:
        if self.upsampler not in UPSAMPLERS:
            raise ValueError(f"upsampler must be one of {UPSAMPLERS}, got {self.upsampler!r}")
        if self.upsampler == "nearest+conv" and self.upscale != 4:
            raise ValueError(f"upsampler 'nearest+conv' needs upscale=4, got upscale={self.upscale}")
        power_of_two = self.upscale & (self.upscale - 1) == 0
        if self.upsampler == "pixelshuffle" and not power_of_two and self.upscale != 3:
            raise ValueError(
                f"upsampler 'pixelshuffle' needs upscale 3 or a power of two, got upscale={self.upscale}"
            )

    @classmethod
    def from_keywords(cls, **keywords: Any) -> PFTConfig:
        """Make a config from the published keywords; unknown ones are ignored, as upstream does, and listed."""
        known = {field.name for field in dataclasses.fields(cls)} - {"ignored"}
        unknown = tuple(name for name in keywords if name not in known)
        return cls(**{name: value for name, value in keywords.items() if name in known}, ignored=unknown)

    def with_topk(self, num_topk: Iterable[int]) -> PFTConfig:
        """Return the same model with another focus schedule: kept entries for each layer, over all blocks."""
        topk = _int_tuple("num_topk", num_topk)
        if not topk:
            raise ValueError(f"num_topk must have one entry for each of the {sum(self.depths)} layers, got 0")
        return dataclasses.replace(self, num_topk=topk)

    @property
    def hidden_dim(self) -> int:
        """Channels inside the feed-forward part, rounded down as upstream does."""
        return int(self.embed_dim * self.mlp_ratio)

    @property
    def bias_heads(self) -> int:
        """Columns of a relative_position_bias_table: one for each head, or one for all of them."""
        return self.num_heads if self.embed_dim > SHARED_BIAS_MAX_DIM else 1

    @property
    def chains(self) -> tuple[int, ...]:
        """For each layer over all blocks its chain: 0 unshifted, 1 shifted (the odd layers of a block)."""
        return tuple(i % 2 for depth in self.depths for i in range(depth))

    def along_chains(self, num_topk: Sequence[int]) -> list[tuple[int, int]]:
        """(candidates, kept) of every layer: what the layer before in its chain kept, and what it keeps itself."""
        carried, steps = [self.window_size**2] * 2, []
        for chain, topk in zip(self.chains, num_topk, strict=True):
            candidates, carried[chain] = carried[chain], min(topk, carried[chain])
            steps.append((candidates, carried[chain]))
        return steps

    @property
    def img_hw(self) -> tuple[int, int]:
        """`img_size` as (height, width)."""
        return (self.img_size, self.img_size) if isinstance(self.img_size, int) else self.img_size

    @property
    def output_scale(self) -> int:
        """Output pixels for each input pixel along one side."""
        return self.upscale if self.upsampler else 1


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _require_int(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def _int_tuple(name: str, values: object) -> tuple[int, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a sequence of integers, got {values!r}")
    result = tuple(values)
    for value in result:
        _require_int(f"every entry of {name}", value)
    return result


def _per_layer(depths: Iterable[int], kept: Iterable[int]) -> tuple[int, ...]:
    return tuple(topk for depth, topk in zip(depths, kept, strict=True) for _ in range(depth))


_CLASSICAL: dict[str, Any] = {
    "embed_dim": 240,
    "depths": (4, 4, 4, 6, 6, 6),
    "num_heads": 6,
    "num_topk": _per_layer((4, 4, 4, 6, 6, 6), (1024, 256, 128, 64, 32, 16)),
    "window_size": 32,
    "convffn_kernel_size": 7,
    "mlp_ratio": 2,
    "upsampler": "pixelshuffle",
}
_LIGHT: dict[str, Any] = {
    "embed_dim": 52,
    "depths": (2, 4, 6, 6, 6),
    "num_heads": 4,
    "num_topk": _per_layer((2, 4, 6, 6, 6), (1024, 256, 128, 64, 32)),
    "window_size": 32,
    "convffn_kernel_size": 7,
    "mlp_ratio": 1,
    "upsampler": "pixelshuffledirect",
}

PRESETS: dict[str, PFTConfig] = {
    f"{family}_x{scale}": PFTConfig(upscale=scale, **keywords)
    for family, keywords in (("classical", _CLASSICAL), ("light", _LIGHT))
    for scale in (2, 3, 4)
}


# Not published: the model whose weights this package ships (see data/small_x2.md), and which tests train.
_SMALL: dict[str, Any] = {
    "embed_dim": 32,
    "depths": (2, 2, 2),
    "num_heads": 4,
    "num_topk": _per_layer((2, 2, 2), (256, 64, 16)),
    "window_size": 16,
    "convffn_kernel_size": 5,
    "mlp_ratio": 2,
    "upsampler": "pixelshuffledirect",
}
OWN_PRESETS: dict[str, PFTConfig] = {"small_x2": PFTConfig(upscale=2, **_SMALL)}


def preset(name: str) -> PFTConfig:
    """Return a published configuration (classical_x2, ..., light_x4), or this package's own, small_x2."""
    known = PRESETS | OWN_PRESETS
    if name not in known:
        raise ValueError(f"preset must be one of {', '.join(known)}, got {name!r}")
    return known[name]


def preset_of(config: PFTConfig) -> str | None:
    """The name of the preset that has the shape of `config`, whatever its schedule; None where there is none."""
    for name, known in (PRESETS | OWN_PRESETS).items():
        if known.depths == config.depths and known.with_topk(config.num_topk) == config:
            return name
    return None
