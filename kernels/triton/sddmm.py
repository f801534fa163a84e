"""SDDMM: ``out[i,t] = q[i] . k[index[i,t]]``, by gathering keys or by picking from dense tiles of products."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import torch
from torch import Tensor

import triton
import triton.language as tl

from .config import Config, choose
from .launch import Launch, padded, strides, tiles, vector
from .tiles import INTERPRETED, at_head, narrowed, products_gathered, products_picked, window_head_tile


@triton.jit
def sddmm_gather_kernel(
    q, k, index, out, sqw, sqh, sqn, skw, skh, skn, H, N, K,
    VEC: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """A program owns ROWS queries and COLS of their listed keys."""
    col_tiles = tl.cdiv(K, COLS)
    both, w, h, tile = window_head_tile(H, tl.cdiv(N, ROWS) * col_tiles)
    rows = tile // col_tiles * ROWS + tl.arange(0, ROWS)
    t = tile % col_tiles * COLS + tl.arange(0, COLS)
    ok = (rows < N)[:, None] & (t < K)[None, :]
    place = both * N * K + (rows[:, None] * K + t[None, :])
    j = tl.load(index + place, mask=ok, other=0).to(tl.int32)
    q, sqn = at_head(q, w, h, sqw, sqh, sqn, VEC)
    k, skn = at_head(k, w, h, skw, skh, skn, VEC)
    z = products_gathered(q, k, rows, rows < N, j, ok, sqn, skn, D, DIM)
    tl.store(out + place, narrowed(z, out), mask=ok)


@triton.jit
def sddmm_dense_kernel(
    q, k, index, out, sqw, sqh, sqn, skw, skh, skn, H, N, M, K,
    VEC: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, DIM: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """A program owns ROWS queries and, COLS at a time, all of their listed keys."""
    both, w, h, tile = window_head_tile(H, tl.cdiv(N, ROWS))
    rows = tile * ROWS + tl.arange(0, ROWS)
    q, sqn = at_head(q, w, h, sqw, sqh, sqn, VEC)
    k, skn = at_head(k, w, h, skw, skh, skn, VEC)
    for start in range(0, K, COLS):
        t = start + tl.arange(0, COLS)
        ok = (rows < N)[:, None] & (t < K)[None, :]
        place = both * N * K + (rows[:, None] * K + t[None, :])
        j = tl.load(index + place, mask=ok, other=0).to(tl.int32)
        z = products_picked(q, k, rows, rows < N, j, sqn, skn, M, D, DIM, KEYS)
        tl.store(out + place, narrowed(z, out), mask=ok)


def dense_pays(keys: int, listed: int, dtype: torch.dtype) -> bool:
    """Whether computing all products costs less than gathering the listed ones: an estimate, not yet measured.

    Half-precision products run on tensor cores at about 16 times the rate of gathered ones. float32 ones have no
    such unit: computing more of them never pays.
    """
    return dtype != torch.float32 and listed >= 64 and keys <= 16 * listed


def default_config(keys: int, listed: int, dtype: torch.dtype) -> Config:
    """Gathering: about 8192 products in flight a program (64 a thread). Picking: 16 rows, the tensor core's height."""
    cols = min(padded(listed, 16), 256)
    if INTERPRETED.value:  # the cost is per program
        dense = min(padded(keys, 16), 64) if listed >= 64 else 0
        return Config(rows=32, cols=cols, dim=16, dense=dense)
    if dense_pays(keys, listed, dtype):
        return Config(rows=16, cols=cols, dim=16, dense=min(padded(keys, 16), 256), warps=4)
    return Config(rows=max(1, 1024 // cols), cols=cols, dim=8, warps=4, registers=255)


def plan_sddmm(q: Tensor, k: Tensor, index: Tensor, out: Tensor, config: Config | None = None) -> Launch:
    """Launch for q [W, H, N, D], k [W, H, M, D], contiguous index and out [W, H, N, K]."""
    windows, heads, queries, dim = q.shape
    keys, listed = k.shape[2], index.shape[3]
    unit = vector(q, k)

    def plan(config: Config) -> Launch:
        arguments = {
            "q": q,
            "k": k,
            "index": index,
            "out": out,
            **strides("sq", q, unit),
            **strides("sk", k, unit),
        }
        arguments |= {"H": heads, "N": queries, "K": listed}
        constants = {"VEC": unit, "D": dim, "ROWS": config.rows, "COLS": config.cols, "DIM": config.dim}
        programs = windows * heads * tiles(queries, config.rows)
        if not listed:
            programs = 0
        if config.dense:
            arguments["M"] = keys
            constants["KEYS"] = config.dense
            return Launch(sddmm_dense_kernel, programs, arguments, constants, config)
        programs *= tiles(listed, config.cols)
        return Launch(sddmm_gather_kernel, programs, arguments, constants, config)

    default = default_config(keys, listed, q.dtype)
    gather = [Config(rows=r, cols=c, dim=8, warps=w) for r, c, w in _GATHER if c <= 2 * listed]
    pick = [
        Config(rows=r, cols=default.cols, dim=d, dense=n, warps=w) for r, d, n, w in _PICK if n <= 2 * keys
    ]
    return plan(
        choose(
            "sddmm",
            default,
            config,
            candidates=gather + (pick if q.dtype != torch.float32 else []),
            plan=plan,
            key=f"{q.dtype} N={queries} M={keys} D={dim} K={listed}",
            device=q.device,
        )
    )


_GATHER = ((16, 16, 2), (64, 16, 4), (32, 32, 4), (8, 64, 2), (16, 64, 4), (4, 256, 4), (8, 256, 8))
_PICK = ((16, 16, 128, 4), (16, 16, 256, 4), (16, 64, 128, 4), (32, 16, 128, 4), (32, 16, 256, 8))
