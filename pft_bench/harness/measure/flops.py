"""Counted FLOPs: what PyTorch's own counter sees. Two per multiply-add (`paper_macs` counts one)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def flop_counter() -> FlopCounterMode:
    """PyTorch's counter, silent, with a formula for the attention kernel of a CPU, which it has none for."""
    return FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
    )


def _attention(q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], *_: object, **__: object) -> int:
    return int(sdpa_flop_count(q, k, v))


def counted_flops(call: Callable[[], object]) -> int:
    """FLOPs of `call()` by `torch.utils.flop_counter.FlopCounterMode`.

    Matrix products, convolutions, attention and every operator with a registered formula count; elementwise
    work, softmax, selection and normalisation do not. Run it on meta tensors to count without computing.
    """
    with flop_counter() as counter:
        call()
    return int(counter.get_total_flops())
