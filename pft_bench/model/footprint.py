"""How much memory a forward pass without gradients takes, from shapes alone: nothing is allocated.

The walk below follows `PFT.forward` and `pft_bench.model.strips` step by step and adds up what is alive at once. Each
term names what it is; `Footprint.parts` shows those of the worst moment. A is one activation of the padded image,
[B, h, w, embed_dim].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..backends import get
from ..ops.progressive_attention import index_dtype
from .config import PFTConfig
from .strips import Strip, strips
from .upsamplers import FEATURES

ONEDNN_COPIES = 2
"""Copies of input and output that oneDNN makes in its own layout for a convolution on [B, C, h, w]. They come from
its own allocator: torch's profiler does not see them, the process's peak does."""


@dataclass(frozen=True)
class Footprint:
    """Bytes at the worst moment of a forward pass, above what the process holds before it."""

    moment: str
    parts: dict[str, int]

    @property
    def bytes(self) -> int:
        """The sum of the parts."""
        return sum(self.parts.values())


def padded(config: PFTConfig, size_hw: tuple[int, int]) -> tuple[int, int]:
    """An input size rounded up to whole windows."""
    size = config.window_size
    return -(-size_hw[0] // size) * size, -(-size_hw[1] // size) * size


def weight_bytes(config: PFTConfig, parameters: int, itemsize: int = 4) -> int:
    """Parameters, and the published int64 index of bias rows, [window_size^2, window_size^2]."""
    return parameters * itemsize + 8 * config.window_size**4


def forward_footprint(
    config: PFTConfig,
    size_hw: tuple[int, int],
    *,
    batch: int = 1,
    backend: str = "cpu",
    threads: int = 1,
    itemsize: int = 4,
) -> Footprint:
    """Predict the peak of one forward pass of `config` on [batch, in_chans, *size_hw] under `torch.no_grad()`."""
    walk = _Walk(config, size_hw, batch, backend, threads, itemsize)
    return max(walk.moments(), key=lambda moment: moment.bytes)


class _Walk:
    """The moments of one forward pass at which memory may peak."""

    def __init__(
        self, config: PFTConfig, size_hw: tuple[int, int], batch: int, backend: str, threads: int, itemsize: int
    ) -> None:
        self.config, self.backend, self.threads, self.itemsize = config, backend, threads, itemsize
        height, width = padded(config, size_hw)
        self.tokens = batch * height * width
        self.activation = self.tokens * config.embed_dim * itemsize
        self.rows = height
        self.cuts = strips(batch, height, width, config.window_size)
        # Before the body: the input, and the padded, normalised image, which stays until the end.
        self.image = 2 * batch * config.in_chans * height * width * itemsize
        self.always = {"image": self.image, "output of conv_first": self.activation}

    def moments(self) -> Iterator[Footprint]:
        """All of them, in the order of the forward pass."""
        yield self._at(
            "conv_first", {"convolution's own copies": self.activation + self.image // 2, **self.always}
        )
        yield from self._body()
        yield from self._tail()

    def _at(self, moment: str, parts: dict[str, int]) -> Footprint:
        return Footprint(moment, parts)

    def _body(self) -> Iterator[Footprint]:
        config, area = self.config, self.config.window_size**2
        kept, dense_layers = [area, area], [0, 0]
        first_of_block = {sum(config.depths[:i]) for i in range(len(config.depths))}
        for number, (chain, topk) in enumerate(zip(config.chains, config.num_topk, strict=True)):
            if number in first_of_block:
                held = {"block input, also the layer's": self.activation}
            else:
                held = {"block input": self.activation, "layer input": self.activation}
            held |= {**self.always, "attention result and v": 2 * self.activation}
            other = self._state(kept[1 - chain], dense_layers[1 - chain])
            before = self._state(kept[chain], dense_layers[chain])
            candidates, kept[chain] = kept[chain], min(topk, kept[chain])
            is_dense = kept[chain] == area
            dense_layers[chain] += candidates == area
            after = self._state(kept[chain], dense_layers[chain])
            name = f"layer {number} ({candidates} -> {kept[chain]})"
            yield from self._attention(
                name, held | {"other chain": other}, before, after, candidates, kept[chain], dense_layers[chain]
            )
            held["chains"] = other + after
            yield from self._rest(name, held)
            if number + 1 in first_of_block or number + 1 == len(config.num_topk):
                block = {**self.always, "chains": other + after, "block input and layers' result": 2 * self.activation}
                yield self._at(f"{name}, block convolution", block | {"convolution": self.activation})
            del is_dense

    def _state(self, kept: int, dense_layers: int) -> int:
        """One chain: index and float32 logits of the kept entries, or queries and keys of all its dense layers."""
        area = self.config.window_size**2
        if kept < area:
            index_bytes = index_dtype(area).itemsize
            return self.tokens * self.config.num_heads * kept * (index_bytes + 4)
        return 2 * dense_layers * self.activation

    def _attention(
        self, name: str, held: dict[str, int], before: int, after: int, candidates: int, kept: int, dense_layers: int
    ) -> Iterator[Footprint]:
        """The strips one after the other: those done hold the new state, the others still the old one."""
        area = self.config.window_size**2
        for cut in (self.cuts[0], self.cuts[-1]):
            share = (cut.last - cut.first) * self.config.window_size / self.rows
            done = cut.first * self.config.window_size / self.rows
            one = share * self.activation
            parts = dict(held)
            parts["this chain, new and old"] = int(done * after + (1 - done) * before)
            yield self._at(f"{name}, projection", parts | {"strip: windows, norm, qkv": int(5 * one)})
            strip = {"strip: qkv and result": int(4 * one)}
            if candidates == area and dense_layers > 1:
                strip["strip: queries and keys of the dense chain"] = int(2 * dense_layers * one)
            if candidates == area and kept < area:
                pass
            new_state = self.tokens * self.config.num_heads * kept * (4 + (2 if kept < candidates else 0))
            strip["strip: new index and logits"] = int(share * new_state) if kept < area else 0
            strip["strip: logsumexp"] = int(share * self.tokens * self.config.num_heads * 4)
            strip["kernel's work memory"] = self._workspace(candidates, kept, dense_layers, cut)
            yield self._at(f"{name}, attention", parts | strip)

    def _workspace(self, candidates: int, kept: int, dense_layers: int, cut: Strip) -> int:
        return 0

    def _rest(self, name: str, held: dict[str, int]) -> Iterator[Footprint]:
        return iter(())

    def _tail(self) -> Iterator[Footprint]:
        return iter(())


__all__ = ["FEATURES", "Footprint", "forward_footprint", "get", "padded", "weight_bytes"]
