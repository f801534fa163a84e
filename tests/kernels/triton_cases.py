"""Shared by the tests that execute Triton kernels: where they run, and random problems for them.

On a GPU they run on it. Without one they need Triton's interpreter, which is chosen for a whole process before the
kernels are imported: `test_triton_interpreter.py` starts that process, so that no other test is touched by it.
"""

import os

import pytest
import torch

from pft_bench.backends import get
from pft_bench.harness.check import Layer, failures

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def with_dtypes(cases):
    """Parameters (case, dtype) from {name: case}: every case in every dtype.

    Under the interpreter, which takes a second for each, the dtypes in turn: what differs between them is how operands
    are loaded, multiplied and stored, which all cases of a kind share.
    """
    made = []
    for number, (name, case) in enumerate(cases.items()):
        dtypes = [DTYPES[number % 3]] if INTERPRETED else DTYPES
        made += [pytest.param(case, dtype, id=f"{name}-{dtype}") for dtype in dtypes]
    return made


if INTERPRETED:
    from triton.runtime.interpreter import InterpretedFunction

    _call_anew, _called_from = InterpretedFunction.__call__, set()

    def _call(self, *given, **named):
        """As Triton's own, which puts the interpreter's operations into the modules that a function sees at every call.

        Once is enough, for a launch does so too, and to look for them takes a third of a launch's time.
        """
        if id(self.fn.__globals__) in _called_from:
            return self.rewrite()(*given, **named)
        _called_from.add(id(self.fn.__globals__))
        return _call_anew(self, *given, **named)

    InterpretedFunction.__call__ = _call

UNAVAILABLE = get("triton").available()
runs_kernels = pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))


def random_index(batch, queries, keys, kept, dtype=torch.int16, *, ascending=True, seed=0):
    """[batch, queries, kept] distinct keys a row."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.rand(batch, queries, keys, generator=generator).argsort(-1)[..., :kept]
    if ascending:
        index = index.sort(-1).values
    return index.to(dtype).contiguous().to(DEVICE)


def normal(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype).to(DEVICE)


def random_layer(
    dtype,
    *,
    windows=1,
    heads=2,
    queries=25,
    keys=None,
    dim=13,
    dim_v=None,
    candidates=0,
    topk=5,
    bias=True,
    patterns=0,
    index_dtype=torch.int16,
    ascending=True,
    projected=False,
):
    """A layer with random inputs; `projected`: q, k and v are views of one qkv projection."""
    keys, dim_v = keys or queries, dim_v or dim
    if projected:
        q, k, v = normal(windows, queries, 3, heads, dim, dtype=dtype).permute(2, 0, 3, 1, 4)
    else:
        q = normal(windows, heads, queries, dim, dtype=dtype, seed=1)
        k = normal(windows, heads, keys, dim, dtype=dtype, seed=2)
        v = normal(windows, heads, keys, dim_v, dtype=dtype, seed=3)
    side = round(keys**0.5)
    region = torch.arange(patterns * queries).view(-1, queries) // 7 % 3 if patterns else None
    index = logits = None
    if candidates:
        flat = random_index(windows * heads, queries, keys, candidates, index_dtype, ascending=ascending)
        index = flat.view(windows, heads, queries, candidates)
        logits = normal(windows, heads, queries, candidates, seed=4)
    return Layer(
        q,
        k,
        v,
        normal((2 * side - 1) ** 2, heads, seed=5) if bias else None,
        None if region is None else region.to(torch.uint8).to(DEVICE),
        index,
        logits,
        dim**-0.5,
        100.0 if patterns else 0.0,
        topk,
    )


def assert_passed(results):
    assert results
    assert not failures(results), "\n".join(map(str, failures(results)))
