"""Building blocks of PFT: window geometry, the depthwise convolution and the feed-forward part.

Activations travel as [B, h, w, C], contiguous. Seen as [B, C, h, w] that is PyTorch's channels-last format, so a
convolution takes and returns it without a copy; linear layers and norms want it as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _in_a_graph() -> bool:
    """Whether this call is being compiled, exported or traced: it is to serve all sizes, not to ask for this one."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]


def mirror_pad(x: Tensor, multiple: int) -> Tensor:
    """Pad [B, C, h, w] on the right and the bottom to multiples of `multiple`.

    The published rule is the image joined with its own mirror image, cropped. An image smaller than half a window
    is mirrored again until it is large enough.
    """
    for dim in (2, 3):
        size = x.shape[dim]
        target = -(-size // multiple) * multiple
        if _in_a_graph() or target != size:
            forth = torch.arange(size, device=x.device)
            period = (
                2 * forth[-1:] + 2
            )  # a tensor, for ONNX has no remainder of a number that it does not know
            place = torch.arange(target, device=x.device) % period
            x = x.index_select(dim, torch.minimum(place, period - 1 - place))
    return x


def crop(x: Tensor, height: int, width: int) -> Tensor:
    """The first rows and columns of [B, C, h, w], contiguous: what `mirror_pad` added is taken off again."""
    if not _in_a_graph():
        return x[..., :height, :width].contiguous()
    rows, columns = (torch.arange(size, device=x.device) for size in (height, width))
    return x.index_select(2, rows).index_select(3, columns)


def region_map(height: int, width: int, window_size: int, shift: int, device: torch.device) -> Tensor:
    """Label each token of the shifted windows of one image with its region: [windows, window_size**2] uint8.

    After the cyclic roll a window may hold parts of the image that are not neighbours; tokens with different labels
    must not see each other. Along each side there are three regions: untouched windows, and the last window before
    and after the seam.
    """

    def along(size: int) -> Tensor:
        position = torch.arange(size, device=device)
        return (position >= size - window_size).to(torch.uint8) + (position >= size - shift).to(torch.uint8)

    labels = 3 * along(height)[:, None] + along(width)[None, :]
    return to_windows(labels[None, :, :, None], window_size).squeeze(2)


def to_windows(x: Tensor, window_size: int, shift: int = 0) -> Tensor:
    """Roll [B, h, w, C] back by `shift` and cut it into windows: [B * windows, window_size**2, C]."""
    batch, height, width, channels = x.shape
    if shift:
        x = x.roll((-shift, -shift), (1, 2))
    rows, columns = height // window_size, width // window_size
    x = x.reshape(batch, rows, window_size, columns, window_size, channels).transpose(2, 3)
    return x.reshape(batch * rows * columns, window_size**2, channels)


def from_windows(windows: Tensor, window_size: int, height: int, width: int, shift: int = 0) -> Tensor:
    """Undo `to_windows`: [B * windows, window_size**2, C] to [B, h, w, C]."""
    rows, columns = height // window_size, width // window_size
    batch, channels = windows.shape[0] // (rows * columns), windows.shape[-1]
    x = windows.reshape(batch, rows, columns, window_size, window_size, channels).transpose(2, 3)
    x = x.reshape(batch, height, width, channels)
    return x.roll((shift, shift), (1, 2)) if shift else x


def convolve(conv: nn.Module, x: Tensor) -> Tensor:
    """Apply a 2-D convolution module to [B, h, w, C]; the result has that layout too."""
    y: Tensor = conv(x.permute(0, 3, 1, 2))
    return y.permute(0, 2, 3, 1).contiguous()


class DepthwiseConv(nn.Module):
    """Depthwise convolution and GELU on [B, h, w, C], any size."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        conv = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)
        # The same memory, described as the gradient will be: DistributedDataParallel warns where the two differ.
        shape, strides = conv.weight.shape, (kernel_size**2, 1, kernel_size, 1)
        conv.weight = nn.Parameter(conv.weight.detach().as_strided(shape, strides))
        self.depthwise_conv = nn.Sequential(conv, nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        """Return gelu(conv(x))."""
        return convolve(self.depthwise_conv, x)


class ConvFFN(nn.Module):
    """Feed-forward part with a depthwise convolution of its hidden channels added to them."""

    def __init__(self, dim: int, hidden_dim: int, kernel_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.dwconv = DepthwiseConv(hidden_dim, kernel_size)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, h, w, dim] to [B, h, w, dim]."""
        hidden = self.act(self.fc1(x))
        mixed = self.dwconv(hidden) + hidden
        del hidden
        out: Tensor = self.fc2(mixed)
        return out


def block_convolution(dim: int, kind: str) -> nn.Module:
    """Make the convolution that closes a block, "1conv" or the bottleneck "3conv".

    Here and in the upsamplers activations are not in place, as the published ones are: a module's output belongs to
    whoever hooks it.
    """
    if kind == "1conv":
        return nn.Conv2d(dim, dim, 3, padding=1)
    return nn.Sequential(
        nn.Conv2d(dim, dim // 4, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(dim // 4, dim // 4, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(dim // 4, dim, 3, padding=1),
    )


def relative_position_index(window_size: int) -> Tensor:
    """Make the published index of bias-table rows: [window_size**2, window_size**2] int64.

    Only published state dicts need it; the kernels compute a row from the two positions.
    """
    position = torch.arange(window_size**2)
    y, x = position // window_size, position % window_size
    dy = y[:, None] - y[None, :] + window_size - 1
    dx = x[:, None] - x[None, :] + window_size - 1
    return dy * (2 * window_size - 1) + dx
