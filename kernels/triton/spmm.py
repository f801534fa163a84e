"""SpMM ``out[i] = sum_t a[i,t] v[index[i,t]]`` and its transpose ``out[j] = sum over index[i,t] == j of a[i,t] x[i]``.

The transpose turns the index round first: for each key the list of (query, place) that name it, queries ascending.
One program counts and places the entries of a window-head row by row; keys are distinct within a row, so that no two
threads meet and no atomic is needed. Every sum then has one owner and one order.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

from typing import Any

from torch import Tensor

import triton
import triton.language as tl

from .config import Config, choose
from .launch import Launch, padded, strides, tiles, vector
from .tiles import INTERPRETED, at_head, listing_rows, store_rows, weighted_rows, window_head_tile


@triton.jit
def spmm_kernel(
    a, v, index, out, saw, sah, san, svw, svh, svn, sow, soh, son, H, N, K, factor,
    VEC: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """A program owns ROWS queries and DIM channels: factor * a @ v[index]."""
    chunks = tl.cdiv(D, DIM)
    both, w, h, tile = window_head_tile(H, tl.cdiv(N, ROWS) * chunks)
    rows = tile // chunks * ROWS + tl.arange(0, ROWS)
    d = tile % chunks * DIM + tl.arange(0, DIM)
    index += both * N * K
    a, san = at_head(a, w, h, saw, sah, san, 1)
    v, svn = at_head(v, w, h, svw, svh, svn, VEC)
    acc = weighted_rows(v, svn, index, a, san, rows, rows < N, K, d, D, TERMS, False) * factor
    out, son = at_head(out, w, h, sow, soh, son, VEC)
    store_rows(out, rows, rows < N, son, d, D, acc)


@triton.jit
def invert_index_kernel(index, start, cursor, entries, N, M, K, KEPT: tl.constexpr, KEYS: tl.constexpr):
    """Per key, where its list starts (start [M + 1]) and the entries i * K + t that name it, ascending."""
    both = tl.program_id(0).to(tl.int64)
    index += both * N * K
    entries += both * N * K
    start += both * (M + 1)
    cursor += both * M
    t = tl.arange(0, KEPT)
    for begin in range(0, M, KEYS):
        keys = begin + tl.arange(0, KEYS)
        tl.store(cursor + keys, tl.zeros([KEYS], tl.int32), mask=keys < M)
    tl.debug_barrier()
    for i in range(0, N):
        j = tl.load(index + i * K + t, mask=t < K, other=0).to(tl.int32)
        count = tl.load(cursor + j, mask=t < K, other=0)
        tl.debug_barrier()  # a tile smaller than the program is held by several threads: all read before any writes
        tl.store(cursor + j, count + 1, mask=t < K)
        tl.debug_barrier()
    total = 0
    for begin in range(0, M, KEYS):
        keys = begin + tl.arange(0, KEYS)
        count = tl.load(cursor + keys, mask=keys < M, other=0)
        before = total + tl.cumsum(count, 0) - count
        tl.debug_barrier()
        tl.store(start + keys, before, mask=keys < M)
        tl.store(cursor + keys, before, mask=keys < M)
        total += tl.sum(count, 0)
    tl.store(start + M, total)
    tl.debug_barrier()
    for i in range(0, N):
        j = tl.load(index + i * K + t, mask=t < K, other=0).to(tl.int32)
        slot = tl.load(cursor + j, mask=t < K, other=0)
        tl.debug_barrier()
        tl.store(entries + slot, i * K + t, mask=t < K)
        tl.store(cursor + j, slot + 1, mask=t < K)
        tl.debug_barrier()


@triton.jit
def spmm_transpose_kernel(
    a, x, start, entries, out, saw, sah, san, sxw, sxh, sxn, sow, soh, son, H, N, M, K, factor,
    VEC: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """A program owns ROWS keys and DIM channels: factor * a^T @ x over the inverted index."""
    chunks = tl.cdiv(D, DIM)
    both, w, h, tile = window_head_tile(H, tl.cdiv(M, ROWS) * chunks)
    keys = tile // chunks * ROWS + tl.arange(0, ROWS)
    d = tile % chunks * DIM + tl.arange(0, DIM)
    a, san = at_head(a, w, h, saw, sah, san, 1)
    x, sxn = at_head(x, w, h, sxw, sxh, sxn, VEC)
    start += both * (M + 1)
    entries += both * N * K
    acc = listing_rows(x, sxn, start, entries, a, san, keys, keys < M, K, d, D, TERMS) * factor
    out, son = at_head(out, w, h, sow, soh, son, VEC)
    store_rows(out, keys, keys < M, son, d, D, acc)


def default_config(listed: int, dim: int, registers: int = 0) -> Config:
    """All channels in one tile up to 64; rows and gathered rows so that a thread holds 32 products."""
    channels = min(padded(dim, 8), 64)
    if INTERPRETED.value:
        return Config(rows=32, dim=channels, terms=min(padded(listed), 16))
    rows = 16
    terms = max(1, min(padded(listed), 4096 // (rows * channels)))
    return Config(rows=rows, dim=channels, terms=terms, registers=registers)


_CANDIDATES = ((4, 16, 4), (8, 8, 4), (16, 2, 2), (16, 8, 4), (32, 2, 4), (32, 4, 8), (64, 1, 4))


def _candidates(dim: int) -> list[Config]:
    channels = min(padded(dim, 8), 64)
    return [Config(rows=r, dim=channels, terms=t, warps=w) for r, t, w in _CANDIDATES]


def plan_spmm(
    a: Tensor, v: Tensor, index: Tensor, out: Tensor, factor: float = 1.0, config: Config | None = None
) -> Launch:
    """Launch for a [W, H, N, K], v [W, H, M, D], contiguous index [W, H, N, K], out [W, H, N, D]."""
    windows, heads, queries, listed = index.shape
    dim = v.shape[3]
    unit = vector(v, out)

    def plan(config: Config) -> Launch:
        arguments: dict[str, Any] = {"a": a, "v": v, "index": index, "out": out}
        arguments |= {**strides("sa", a), **strides("sv", v, unit), **strides("so", out, unit)}
        arguments |= {"H": heads, "N": queries, "K": listed, "factor": factor}
        constants = {"VEC": unit, "D": dim, "ROWS": config.rows, "DIM": config.dim, "TERMS": config.terms}
        programs = windows * heads * tiles(queries, config.rows) * tiles(dim, config.dim)
        return Launch(spmm_kernel, programs, arguments, constants, config)

    key = f"{v.dtype} N={queries} M={v.shape[2]} D={dim} K={listed}"
    default = default_config(listed, dim)
    return plan(
        choose("spmm", default, config, candidates=_candidates(dim), plan=plan, key=key, device=v.device)
    )


def plan_invert_index(
    index: Tensor, start: Tensor, cursor: Tensor, entries: Tensor, config: Config | None = None
) -> Launch:
    """Launch for index [W, H, N, K]; start [W * H, M + 1], cursor [W * H, M], entries [W * H, N * K] int32."""
    windows, heads, queries, listed = index.shape
    keys = cursor.shape[1]
    kept = padded(listed)
    # A row is the unit of progress, and each costs two barriers: as few warps as hold it with 4 entries a thread.
    config = choose("invert_index", Config(warps=max(1, min(kept // 128, 8)), cols=256), config)
    arguments: dict[str, Any] = {"index": index, "start": start, "cursor": cursor, "entries": entries}
    arguments |= {"N": queries, "M": keys, "K": listed}
    constants = {"KEPT": kept, "KEYS": config.cols}
    return Launch(invert_index_kernel, windows * heads, arguments, constants, config)


def plan_spmm_transpose(
    a: Tensor,
    x: Tensor,
    start: Tensor,
    entries: Tensor,
    out: Tensor,
    factor: float = 1.0,
    config: Config | None = None,
) -> Launch:
    """Launch for a [W, H, N, K], x [W, H, N, D], an inverted index, out [W, H, M, D]."""
    windows, heads, queries, listed = a.shape
    keys, dim = out.shape[2], out.shape[3]
    unit = vector(x, out)

    def plan(config: Config) -> Launch:
        arguments: dict[str, Any] = {"a": a, "x": x, "start": start, "entries": entries, "out": out}
        arguments |= {**strides("sa", a), **strides("sx", x, unit), **strides("so", out, unit)}
        arguments |= {"H": heads, "N": queries, "M": keys, "K": listed, "factor": factor}
        constants = {"VEC": unit, "D": dim, "ROWS": config.rows, "DIM": config.dim, "TERMS": config.terms}
        programs = windows * heads * tiles(keys, config.rows) * tiles(dim, config.dim)
        return Launch(spmm_transpose_kernel, programs, arguments, constants, config)

    key = f"{x.dtype} N={queries} M={keys} D={dim} K={listed}"
    default = default_config(-(-queries * listed // max(keys, 1)), dim, registers=255)
    return plan(
        choose(
            "spmm_transpose",
            default,
            config,
            candidates=_candidates(dim),
            plan=plan,
            key=key,
            device=x.device,
        )
    )
