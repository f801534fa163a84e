"""Counted FLOPs: what PyTorch's own counter sees. Two per multiply-add (`paper_macs` counts one)."""

from __future__ import annotations

from collections.abc import Callable

from torch.utils.flop_counter import FlopCounterMode


def counted_flops(call: Callable[[], object]) -> int:
    """FLOPs of `call()` by `torch.utils.flop_counter.FlopCounterMode`.

    Matrix products, convolutions, attention and every operator with a registered formula count; elementwise
    work, softmax, selection and normalisation do not. Run it on meta tensors to count without computing.
    """
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())
