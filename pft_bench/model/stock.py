"""Whether inference may take another way than the modules' own `forward` (`strips`): only for what it knows.

The other way computes the same and takes less memory, but it calls few of the modules: their hooks would not fire, and
what was put in a module's place would not be asked. So everything that is not exactly as `PFT` builds it takes the
ordinary way: other classes, hooks of any kind (pruning and the older weight norm are hooks), parametrized and compiled
modules, a `forward` that was replaced.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module

from ..ops import is_eager
from .attention import PFTLayer, WindowAttention
from .block import Block, ResidualGroup
from .layers import ConvFFN, DepthwiseConv
from .variants import VARIANTS

_NORMS = (nn.LayerNorm, nn.RMSNorm)
# The classes, and what their `forward` is: somebody may replace it for all modules of a class.
_FORWARDS = {
    kind: kind.forward
    for kind in (
        *(Block, ResidualGroup, PFTLayer, WindowAttention, ConvFFN, DepthwiseConv),
        *(nn.ModuleList, nn.Sequential, nn.Conv2d, nn.Linear, nn.GELU, nn.LeakyReLU, *_NORMS),
    )
}
_GLOBAL_HOOKS = (
    nn_module._global_forward_hooks,
    nn_module._global_forward_pre_hooks,
    nn_module._global_backward_hooks,
    nn_module._global_backward_pre_hooks,
)


def may_infer(blocks: nn.ModuleList, x: Tensor) -> bool:
    """Whether `Block.infer` does what the blocks' `forward` would do with x [B, h, w, C]."""
    if torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type) or not is_eager(x):
        return False
    if any(_GLOBAL_HOOKS) or not _untouched(blocks):
        return False
    return all(type(block) is Block and all(map(_is_stock, block.residual_group)) for block in blocks)


def _untouched(root: nn.Module) -> bool:
    """Whether `root` and all modules inside are of known classes, with nothing attached to them."""
    waiting: list[nn.Module] = [root]
    for module in waiting:
        kind, held = type(module), module.__dict__
        if kind not in _FORWARDS or kind.forward is not _FORWARDS[kind] or "forward" in held:
            return False
        if held["_forward_hooks"] or held["_forward_pre_hooks"] or module._compiled_call_impl is not None:
            return False
        if held["_backward_hooks"] or held["_backward_pre_hooks"]:
            return False
        waiting += [child for child in held["_modules"].values() if child is not None]
    return True


def _is_stock(layer: PFTLayer) -> bool:
    """Whether everything in a layer stands in its own place."""
    if type(layer) is not PFTLayer:
        return False
    attention, ffn = layer.attn_win, layer.convffn
    if type(attention) is not WindowAttention or type(ffn) is not ConvFFN:
        return False
    return (
        attention.attend in VARIANTS.values()
        and all(map(_acts_on_tokens, (layer.norm1, layer.norm2)))
        and all(type(x) is nn.Linear for x in (layer.wqkv, attention.proj, ffn.fc1, ffn.fc2))
        and _is_gelu(ffn.act)
        and all(map(_is_depthwise, (layer.v_LePE, ffn.dwconv)))
    )


def _acts_on_tokens(norm: nn.Module) -> bool:
    """Whether a norm treats each token alone, so that tokens may come in any arrangement."""
    return type(norm) in _NORMS and len(norm.normalized_shape) == 1  # type: ignore[arg-type]


def _is_gelu(module: nn.Module) -> bool:
    return type(module) is nn.GELU and module.approximate == "none"


def _is_depthwise(module: nn.Module) -> bool:
    if type(module) is not DepthwiseConv or type(module.depthwise_conv) is not nn.Sequential:
        return False
    parts = list(module.depthwise_conv)
    if len(parts) != 2 or type(parts[0]) is not nn.Conv2d or not _is_gelu(parts[1]):
        return False
    conv = parts[0]
    side = conv.kernel_size[0]
    geometry = (conv.kernel_size, conv.stride, conv.dilation, conv.padding, conv.padding_mode)
    return (
        side % 2 == 1
        and geometry == ((side, side), (1, 1), (1, 1), (side // 2, side // 2), "zeros")
        and conv.groups == conv.in_channels == conv.out_channels
        and _are_plain((conv.weight, conv.bias))
    )


def _are_plain(weights: Iterable[Tensor | None]) -> bool:
    """Whether a kernel may read them: no classes of their own, which would say what reading means."""
    return all(x is None or type(x) in (nn.Parameter, Tensor) for x in weights)
