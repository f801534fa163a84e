"""How much memory a forward pass without gradients takes, from shapes alone: nothing is computed.

The walk below follows `PFT.forward` and `pft_bench.model.strips` and adds up what is alive at once, moment by moment.
Each part of a moment is named; `Footprint.parts` shows those of the worst one. An activation is [B, h, w, embed_dim]
of the padded image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..backends import get
from ..backends.base import LayerShape
from ..reference import index_dtype
from .config import PFTConfig
from .strips import Strip, strips
from .upsamplers import FEATURES


@dataclass(frozen=True)
class Footprint:
    """Bytes by name at the worst moment of a forward pass, above what the process held before it."""

    moment: str
    parts: dict[str, int]

    @property
    def bytes(self) -> int:
        """Their sum."""
        return sum(self.parts.values())


def forward_footprint(
    config: PFTConfig,
    size_hw: tuple[int, int],
    *,
    batch: int = 1,
    backend: str = "cpu",
    threads: int = 1,
    itemsize: int = 4,
) -> Footprint:
    """Predict the peak of a forward pass on [batch, in_chans, h, w] under `torch.no_grad()`, on a CPU."""
    walk = _Walk(config, size_hw, batch, backend, threads, itemsize)
    return max(walk.moments(), key=lambda moment: moment.bytes)


class _Walk:
    """The moments of one forward pass at which memory may peak."""

    def __init__(
        self,
        config: PFTConfig,
        size_hw: tuple[int, int],
        batch: int,
        backend: str,
        threads: int,
        itemsize: int,
    ) -> None:
        self.config, self.backend, self.threads, self.itemsize = config, backend, threads, itemsize
        size = config.window_size
        self.area = size * size
        self.height, self.width = (-(-side // size) * size for side in size_hw)
        self.batch, self.tokens = batch, batch * self.height * self.width
        self.cuts = strips(batch, self.height, self.width, size)
        self.activation = self._map(config.embed_dim)
        # The given image, and its padded and normalised copy; the latter and conv_first's output live to the end.
        self.always = {"image": self._map(config.in_chans), "output of conv_first": self.activation}

    def _map(self, channels: int, scale: int = 1) -> int:
        """Bytes of [B, channels, h, w], `scale` times as large."""
        return self.tokens * channels * scale * scale * self.itemsize

    def moments(self) -> Iterator[Footprint]:
        """All of them, in the order of the forward pass."""
        config = self.config
        yield self._convolution("conv_first", {}, config.in_chans, config.embed_dim)
        yield from self._body()
        yield from self._tail()

    def _convolution(
        self, moment: str, held: dict[str, int], inputs: int, outputs: int, scale: int = 1
    ) -> Footprint:
        """A convolution on [B, C, h, w]: oneDNN computes on copies in its own layout, channels padded to 16.

        First the copied input and the blocked output exist, then the blocked output and the plain one. The copies come
        from oneDNN's own allocator: torch's profiler does not see them, the peak of the process does.
        """
        blocked_in, blocked_out = (
            self._map(-(-channels // 16) * 16, scale) for channels in (inputs, outputs)
        )
        made = blocked_out + max(blocked_in, self._map(outputs, scale))
        image = {"image": self._map(self.config.in_chans)}
        return Footprint(moment, {**image, **held, "convolution": made})

    def _body(self) -> Iterator[Footprint]:
        config, area = self.config, self.area
        states, dense_layers = [0, 0], [0, 0]
        starts = {sum(config.depths[:block]) for block in range(len(config.depths) + 1)}
        steps = zip(config.chains, config.along_chains(config.num_topk), strict=True)
        for number, (chain, (candidates, kept)) in enumerate(steps):
            before, other = states[chain], states[1 - chain]
            dense_layers[chain] += candidates == area
            after = states[chain] = self._state(kept, dense_layers[chain])
            held = self.always | {
                "block input, layer input": (1 if number in starts else 2) * self.activation,
                "attention result, v": 2 * self.activation,
            }
            layer = _Layer(f"layer {number} ({candidates} -> {kept})", candidates, kept)
            yield from self._attention(
                layer, held | {"other chain": other}, before, after, dense_layers[chain]
            )
            held["chains"] = other + after
            yield from self._feed_forward(layer, held)
            if number + 1 in starts:
                del held["attention result, v"]
                held["block input, layer input"] = 2 * self.activation
                yield Footprint(f"convolution after {layer.name}", held | {"convolution": self.activation})

    def _state(self, kept: int, dense_layers: int) -> int:
        """One chain: index and float32 logits of the kept entries, or queries and keys of its dense layers."""
        if kept < self.area:
            return self.tokens * self.config.num_heads * kept * (index_dtype(self.area).itemsize + 4)
        return 2 * dense_layers * self.activation

    def _share(self, cut: Strip) -> float:
        return (cut.last - cut.first) * self.config.window_size / self.height

    def _attention(
        self, layer: _Layer, held: dict[str, int], before: int, after: int, dense_layers: int
    ) -> Iterator[Footprint]:
        """Strip after strip: those done hold the chain's new state, the others the old one."""
        for cut in (self.cuts[0], self.cuts[-1]):
            share, done = self._share(cut), cut.first * self.config.window_size / self.height
            chain = {"this chain": int(done * after + (1 - done) * before)}
            one = int(share * self.activation)
            yield Footprint(f"{layer.name}, qkv", held | chain | {"strip: windows, qkv": 4 * one})
            strip = {"strip: qkv, result": 4 * one}
            if layer.candidates == self.area and (dense_layers > 1 or layer.kept == self.area):
                # Queries and keys of the chain so far joined with this layer's, or copied out of qkv for the next.
                strip["strip: queries and keys"] = int(2 * dense_layers * one)
            rows = int(share * self.tokens) * self.config.num_heads
            index_bytes = index_dtype(self.area).itemsize if layer.kept < layer.candidates else 0
            new = rows * layer.kept * (index_bytes + 4) if layer.kept < self.area else 0
            strip["strip: new index and logits, logsumexp"] = new + 4 * rows
            strip["kernel's work memory"] = self._work_bytes(layer, rows, dense_layers)
            yield Footprint(f"{layer.name}, attention", held | chain | strip)

    def _work_bytes(self, layer: _Layer, rows: int, dense_layers: int) -> int:
        config = self.config
        dim = config.embed_dim // config.num_heads
        sparse = layer.candidates < self.area
        shape = LayerShape(
            windows=rows // config.num_heads // self.area,
            heads=config.num_heads,
            tokens=self.area,
            dim_qk=dim * (1 if sparse else dense_layers),
            dim_v=dim,
            candidates=layer.candidates,
            kept=layer.kept,
        )
        return get(self.backend).attention_work_bytes(shape, self.threads)

    def _feed_forward(self, layer: _Layer, held: dict[str, int]) -> Iterator[Footprint]:
        config = self.config
        halo = 2 * (config.convffn_kernel_size // 2) if len(self.cuts) > 1 else 0
        share = max(self._share(cut) for cut in self.cuts)
        rows = min(1.0, share + halo / self.height)
        lepe = {"strip: LePE and projection": int((share + rows) * self.activation)}
        yield Footprint(f"{layer.name}, projection", held | lepe)
        hidden = self._map(config.hidden_dim)
        first = int(rows * (self.activation + hidden))
        second = int(2 * rows * hidden)
        third = int(rows * hidden + share * self.activation)
        widest = {"strip: feed-forward": max(first, second, third)}
        yield Footprint(f"{layer.name}, feed-forward", held | widest)

    def _tail(self) -> Iterator[Footprint]:
        """From the body's result to the image; `features` stays while `reconstruct` runs."""
        config, dim = self.config, self.config.embed_dim
        first = {"output of conv_first": self.activation, "body's result": self.activation}
        yield self._convolution("conv_after_body", first, dim, dim)
        held = {"features": self.activation}
        if config.upsampler == "pixelshuffledirect":
            made = config.in_chans * config.upscale**2
            yield self._convolution("upsample", held, dim, made)
            yield Footprint("image", held | {"image, twice": 2 * self._map(config.in_chans, config.upscale)})
            return
        if config.upsampler == "":
            yield self._convolution("conv_last", held, dim, config.in_chans)
            return
        yield self._convolution("conv_before_upsample", held, dim, FEATURES)
        held["output of conv_before_upsample"] = self._map(FEATURES)
        if config.upsampler == "pixelshuffle":
            yield from self._shuffles(held)
        else:
            held["input of conv_hr"] = self._map(FEATURES, 4)
            yield self._convolution("conv_hr", held, FEATURES, FEATURES, 4)

    def _shuffles(self, held: dict[str, int]) -> Iterator[Footprint]:
        config = self.config
        factors = [3] if config.upscale == 3 else [2] * (config.upscale.bit_length() - 1)
        scale = 1
        for factor in factors:
            before = {"step's input": self._map(FEATURES, scale)} if scale > 1 else {}
            outputs = FEATURES * factor**2
            yield self._convolution(f"upsample x{scale * factor}", held | before, FEATURES, outputs, scale)
            twice = {"pixel shuffle": 2 * self._map(outputs, scale)}
            scale *= factor
            yield Footprint(f"pixel shuffle x{scale}", held | twice)
        held = held | {"upsampled features": self._map(FEATURES, scale)}
        yield self._convolution("conv_last", held, FEATURES, config.in_chans, scale)


@dataclass(frozen=True)
class _Layer:
    name: str
    candidates: int
    kept: int
