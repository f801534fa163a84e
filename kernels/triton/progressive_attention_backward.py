"""One layer of progressive attention, backward: logits are recomputed, each sum has one owner, nothing is N x N.

With ``G = A (dA - delta)`` over all candidates, plus the gradient of the handed-on logits at the kept ones:
``dq = scale G k``, ``dk = scale G^T q``, ``dv = A_kept^T grad_out``, ``dbias = sum G``, ``dlogits = G``.

Listed candidates: G [N, C] is the gradient of the earlier logits anyway; a row pass writes it and the sparse products
of `spmm` do the rest. All keys candidates: tiles of G are recomputed by a pass over keys for each query tile (dq) and
one over queries for each key tile (dk, dv). Where K of all keys were kept, dA is zero elsewhere, so G is the dense
``-A delta`` plus a part on the kept list, which the same row pass writes.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

from typing import Any

from torch import Tensor

import triton
import triton.language as tl

from .config import Config, choose
from .launch import Launch, padded, strides, tiles, vector
from .progressive_attention import layer_arguments, precision, window_size
from .sddmm import dense_pays
from .tiles import (
    INTERPRETED,
    added_logits,
    at_head,
    dot_weights,
    listing_rows,
    load_rows,
    products_block,
    products_gathered,
    products_picked,
    store_rows,
    weighted_rows,
    window_head_tile,
)


@triton.jit
def row_delta_kernel(
    grad_out, out, delta, sgw, sgh, sgn, sow, soh, son, H, N,
    DV: tl.constexpr, ROWS: tl.constexpr, DIM_V: tl.constexpr,
):  # fmt: skip
    """delta = sum of grad_out * out over the channels of each row."""
    both, w, h, tile = window_head_tile(H, tl.cdiv(N, ROWS))
    rows = tile * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, DIM_V)
    grad_out, sgn = at_head(grad_out, w, h, sgw, sgh, sgn, 1)
    out, son = at_head(out, w, h, sow, soh, son, 1)
    left = load_rows(grad_out, rows, rows < N, sgn, d, DV).to(tl.float32)
    right = load_rows(out, rows, rows < N, son, d, DV).to(tl.float32)
    tl.store(delta + both * N + rows, tl.sum(left * right, 1), mask=rows < N)


@triton.jit
def position_in(new_index, rows, j, ok, K, STEPS: tl.constexpr):
    """Place of each key j in its row of the ascending list new_index, and whether it is there at all."""
    low = tl.zeros(j.shape, tl.int32)
    high = low + K
    for _ in range(STEPS):
        middle = (low + high) >> 1
        active = ok & (low < high)
        there = tl.load(new_index + rows[:, None] * K + middle, mask=active, other=0).to(tl.int32)
        right = active & (there < j)
        high = tl.where(active & (there >= j), middle, high)
        low = tl.where(right, middle + 1, low)
    there = tl.load(new_index + rows[:, None] * K + low, mask=ok & (low < K), other=-1).to(tl.int32)
    return low, ok & (there == j)


@triton.jit
def candidate_gradient_kernel(
    q, k, bias, region, index, logits, new_index, grad_kept, grad_logits, lse, delta, attention_kept, grad,
    sqw, sqh, sqn, skw, skh, skn, H, N, M, P, C, K, scale, penalty,
    VEC: tl.constexpr, D: tl.constexpr, WINDOW: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    DIM: tl.constexpr, KEYS: tl.constexpr, STEPS: tl.constexpr, SELECT: tl.constexpr,
):  # fmt: skip
    """Rows of G over listed candidates [N, C] and of A over the kept ones [N, K]; without delta its term is left out.

    grad_kept is dA of the kept entries. SELECT: they are a part of the candidates, named by new_index.
    """
    both, w, h, tile = window_head_tile(H, tl.cdiv(N, ROWS))
    rows = tile * ROWS + tl.arange(0, ROWS)
    rows_ok = rows < N
    t = tl.arange(0, COLS)
    ok = rows_ok[:, None] & (t < C)[None, :]
    q, sqn = at_head(q, w, h, sqw, sqh, sqn, VEC)
    k, skn = at_head(k, w, h, skw, skh, skn, VEC)
    place = both * N * C + (rows[:, None] * C + t[None, :])
    j = tl.load(index + place, mask=ok, other=0).to(tl.int32)
    if KEYS > 0:
        z = products_picked(q, k, rows, rows_ok, j, sqn, skn, M, D, DIM, KEYS)
    else:
        z = products_gathered(q, k, rows, rows_ok, j, ok, sqn, skn, D, DIM)
    if region is not None:
        region += (w % P) * N
    z = z * scale + added_logits(rows[:, None], j, ok, bias, region, penalty, H, h, N, WINDOW)
    if logits is not None:
        z += tl.load(logits + place, mask=ok, other=0.0)
    row_lse = tl.load(lse + both * N + rows, mask=rows_ok, other=0.0)
    attention = tl.where(ok, tl.exp(z - row_lse[:, None]), 0.0)
    if SELECT:
        s, kept = position_in(new_index + both * N * K, rows, j, ok, K, STEPS)
    else:
        s = t[None, :] + tl.zeros([ROWS, COLS], tl.int32)
        kept = ok
    kept_place = both * N * K + (rows[:, None] * K + s)
    g = attention * tl.load(grad_kept + kept_place, mask=kept, other=0.0)
    tl.store(attention_kept + kept_place, attention, mask=kept)
    if delta is not None:
        row_delta = tl.load(delta + both * N + rows, mask=rows_ok, other=0.0)
        g -= attention * row_delta[:, None]
    if grad_logits is not None:
        handed = tl.load(grad_logits + kept_place, mask=kept, other=0.0)
        z = tl.where(ok, z, float("-inf"))
        largest = tl.where(z == tl.max(z, 1)[:, None], j, M)
        is_first = j == tl.min(largest, 1)[:, None]
        g += handed - tl.where(is_first, tl.sum(handed, 1)[:, None], 0.0)
    tl.store(grad + place, g, mask=ok)


@triton.jit
def dense_query_kernel(
    q, k, v, bias, region, grad_out, lse, delta, kept_index, kept_grad, grad_q,
    sqw, sqh, sqn, skw, skh, skn, svw, svh, svn, sgw, sgh, sgn, sow, soh, son,
    H, N, M, P, K, scale, penalty, VEC: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, WINDOW: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, DIM: tl.constexpr, DIM_V: tl.constexpr, CHUNK: tl.constexpr,
    TERMS: tl.constexpr, PRECISION: tl.constexpr, ALL: tl.constexpr,
):  # fmt: skip
    """grad_q of ROWS queries and CHUNK channels. ALL keys kept: G = A (dA - delta); else -A delta and a kept part."""
    chunks = tl.cdiv(D, CHUNK)
    both, w, h, tile = window_head_tile(H, tl.cdiv(N, ROWS) * chunks)
    rows = tile // chunks * ROWS + tl.arange(0, ROWS)
    d = tile % chunks * CHUNK + tl.arange(0, CHUNK)
    rows_ok = rows < N
    q, sqn = at_head(q, w, h, sqw, sqh, sqn, VEC)
    k, skn = at_head(k, w, h, skw, skh, skn, VEC)
    v, svn = at_head(v, w, h, svw, svh, svn, VEC)
    grad_out, sgn = at_head(grad_out, w, h, sgw, sgh, sgn, VEC)
    if region is not None:
        region += (w % P) * N
    row_lse = tl.load(lse + both * N + rows, mask=rows_ok, other=0.0)
    row_delta = tl.load(delta + both * N + rows, mask=rows_ok, other=0.0)
    acc = tl.zeros([ROWS, CHUNK], tl.float32)
    for start in range(0, M, COLS):
        keys = start + tl.arange(0, COLS)
        keys_ok = keys < M
        ok = rows_ok[:, None] & keys_ok[None, :]
        z = products_block(q, k, rows, keys, rows_ok, keys_ok, sqn, skn, D, DIM) * scale
        z += added_logits(rows[:, None], keys[None, :], ok, bias, region, penalty, H, h, N, WINDOW)
        g = tl.where(ok, tl.exp(z - row_lse[:, None]), 0.0)
        if ALL:
            grad_a = products_block(grad_out, v, rows, keys, rows_ok, keys_ok, sgn, svn, DV, DIM)
            g = g * (grad_a - row_delta[:, None])
        else:
            g = g * (0.0 - row_delta[:, None])
        acc = dot_weights(g, load_rows(k, keys, keys_ok, skn, d, D), acc, PRECISION)
    if not ALL:
        lists = both * N * K
        acc += weighted_rows(
            k, skn, kept_index + lists, kept_grad + lists, K, rows, rows_ok, K, d, D, TERMS, False
        )
    grad_q, son = at_head(grad_q, w, h, sow, soh, son, VEC)
    store_rows(grad_q, rows, rows_ok, son, d, D, acc * scale)


@triton.jit
def dense_key_kernel(
    q, k, v, bias, region, grad_out, lse, delta, kept_start, kept_entries, kept_grad, grad_k, grad_v,
    sqw, sqh, sqn, skw, skh, skn, svw, svh, svn, sgw, sgh, sgn, sow, soh, son, spw, sph, spn,
    H, N, M, P, K, scale, penalty, FIRST, chunks,
    VEC: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, WINDOW: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, DIM: tl.constexpr, DIM_V: tl.constexpr, CHUNK: tl.constexpr,
    TERMS: tl.constexpr, PRECISION: tl.constexpr, ALL: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    """grad_k of ROWS keys and one of `chunks` chunks of CHUNK channels from FIRST on; VALUES: grad_v too."""
    both, w, h, tile = window_head_tile(H, tl.cdiv(M, ROWS) * chunks)
    keys = tile // chunks * ROWS + tl.arange(0, ROWS)
    d = (FIRST + tile % chunks) * CHUNK + tl.arange(0, CHUNK)
    d_v = tl.arange(0, DIM_V)
    keys_ok = keys < M
    q, sqn = at_head(q, w, h, sqw, sqh, sqn, VEC)
    k, skn = at_head(k, w, h, skw, skh, skn, VEC)
    v, svn = at_head(v, w, h, svw, svh, svn, VEC)
    grad_out, sgn = at_head(grad_out, w, h, sgw, sgh, sgn, VEC)
    if region is not None:
        region += (w % P) * N
    acc = tl.zeros([ROWS, CHUNK], tl.float32)
    acc_v = tl.zeros([ROWS, DIM_V], tl.float32)
    for start in range(0, N, COLS):
        rows = start + tl.arange(0, COLS)
        rows_ok = rows < N
        ok = keys_ok[:, None] & rows_ok[None, :]
        z = products_block(k, q, keys, rows, keys_ok, rows_ok, skn, sqn, D, DIM) * scale
        z += added_logits(rows[None, :], keys[:, None], ok, bias, region, penalty, H, h, N, WINDOW)
        row_lse = tl.load(lse + both * N + rows, mask=rows_ok, other=0.0)
        row_delta = tl.load(delta + both * N + rows, mask=rows_ok, other=0.0)
        g = tl.where(ok, tl.exp(z - row_lse[None, :]), 0.0)
        if VALUES:
            acc_v = dot_weights(g, load_rows(grad_out, rows, rows_ok, sgn, d_v, DV), acc_v, PRECISION)
        if ALL:
            grad_a = products_block(v, grad_out, keys, rows, keys_ok, rows_ok, svn, sgn, DV, DIM)
            g = g * (grad_a - row_delta[None, :])
        else:
            g = g * (0.0 - row_delta[None, :])
        acc = dot_weights(g, load_rows(q, rows, rows_ok, sqn, d, D), acc, PRECISION)
    if not ALL:
        starts = kept_start + both * (M + 1)
        lists = both * N * K
        acc += listing_rows(
            q, sqn, starts, kept_entries + lists, kept_grad + lists, K, keys, keys_ok, K, d, D, TERMS
        )
    grad_k, son = at_head(grad_k, w, h, sow, soh, son, VEC)
    store_rows(grad_k, keys, keys_ok, son, d, D, acc * scale)
    if VALUES:
        grad_v, spn = at_head(grad_v, w, h, spw, sph, spn, VEC)
        store_rows(grad_v, keys, keys_ok, spn, d_v, DV, acc_v)


def plan_row_delta(grad_out: Tensor, out: Tensor, delta: Tensor, config: Config | None = None) -> Launch:
    """Launch for grad_out and out [W, H, N, Dv], delta [W, H, N]."""
    windows, heads, queries, dim = out.shape
    config = choose("row_delta", Config(rows=32), config)
    arguments = {"grad_out": grad_out, "out": out, "delta": delta, "H": heads, "N": queries}
    arguments |= {**strides("sg", grad_out), **strides("so", out)}
    constants = {"DV": dim, "ROWS": config.rows, "DIM_V": padded(dim)}
    return Launch(
        row_delta_kernel, windows * heads * tiles(queries, config.rows), arguments, constants, config
    )


def plan_candidate_gradient(
    q: Tensor,
    k: Tensor,
    bias: Tensor | None,
    region: Tensor | None,
    index: Tensor,
    logits: Tensor | None,
    new_index: Tensor | None,
    grad_kept: Tensor,
    grad_logits: Tensor | None,
    lse: Tensor,
    delta: Tensor | None,
    attention_kept: Tensor,
    grad: Tensor,
    scale: float,
    region_penalty: float,
    config: Config | None = None,
) -> Launch:
    """Launch of the row pass. new_index None: all candidates are kept. delta None: its term is left to others."""
    windows, heads, queries, listed = index.shape
    keys, kept = k.shape[2], grad_kept.shape[3]
    unit = vector(q, k)
    cols = padded(listed)
    config = choose("candidate_gradient", _row_pass_default(q, keys, listed, cols), config)
    arguments = layer_arguments(q, k, scale, unit) | {"bias": bias, "region": region, "index": index}
    arguments |= {"logits": logits, "new_index": new_index, "grad_kept": grad_kept, "lse": lse}
    arguments |= {"grad_logits": grad_logits, "delta": delta, "attention_kept": attention_kept, "grad": grad}
    arguments |= {"P": 1 if region is None else region.shape[0], "C": listed, "K": kept}
    arguments |= {"penalty": region_penalty}
    constants = {"VEC": unit, "D": q.shape[3], "WINDOW": window_size(keys, bias), "COLS": cols}
    constants |= {"ROWS": config.rows, "DIM": config.dim, "KEYS": config.dense}
    constants |= {"STEPS": kept.bit_length(), "SELECT": new_index is not None}
    programs = windows * heads * tiles(queries, config.rows)
    return Launch(candidate_gradient_kernel, programs, arguments, constants, config)


def _row_pass_default(q: Tensor, keys: int, listed: int, cols: int) -> Config:
    if INTERPRETED.value:
        return Config(rows=32, dim=16, dense=min(padded(keys, 16), 64) if listed >= 64 else 0)
    if dense_pays(keys, listed, q.dtype):
        return Config(rows=16, dim=16, dense=min(padded(keys, 16), 128), warps=4 if cols <= 128 else 8)
    rows = max(1, 1024 // cols)
    return Config(rows=rows, dim=8, warps=min(16, max(4, padded(rows * cols // 256))))


def plan_dense_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    region: Tensor | None,
    grad_out: Tensor,
    lse: Tensor,
    delta: Tensor,
    kept: tuple[Tensor, Tensor, Tensor, Tensor] | None,
    grad_q: Tensor,
    grad_k: Tensor,
    grad_v: Tensor | None,
    scale: float,
    region_penalty: float,
    config: Config | None = None,
) -> list[Launch]:
    """Launches for grad_q and grad_k when all keys are candidates.

    kept: None when all keys are kept (then grad_v is computed too), else (new_index, start, entries, gradient) with
    the gradient [W, H, N, K] of the kept part and its inverted index.
    """
    everything = kept is None
    unit = vector(q, k, v, grad_out, grad_q, grad_k, *(() if grad_v is None else (grad_v,)))
    shared = layer_arguments(q, k, scale, unit) | {"v": v, "bias": bias, "region": region, "lse": lse}
    shared |= {"grad_out": grad_out, "delta": delta, "penalty": region_penalty}
    shared |= {**strides("sv", v, unit), **strides("sg", grad_out, unit)}
    shared |= {"P": 1 if region is None else region.shape[0], "K": 1 if kept is None else kept[0].shape[3]}
    new_index, start, entries, kept_grad = kept or (None, None, None, None)
    shared |= {"kept_grad": kept_grad}
    constants = {"VEC": unit, "D": q.shape[3], "DV": v.shape[3], "WINDOW": window_size(k.shape[2], bias)}
    constants |= {"DIM_V": padded(v.shape[3], 16), "ALL": everything}
    query = shared | {"kept_index": new_index, "grad_q": grad_q, **strides("so", grad_q, unit)}
    key = shared | {"kept_start": start, "kept_entries": entries, "grad_k": grad_k, "grad_v": grad_v}
    key |= {**strides("so", grad_k, unit), **strides("sp", grad_k if grad_v is None else grad_v, unit)}
    return [
        _plan_dense_query(query, constants, config),
        *_plan_dense_key(key, constants, config),
    ]


def _dense_default(q: Tensor, cols: int = 32) -> Config:
    """What does not spill: float32 products without tensor cores hold their operands in registers."""
    dim = min(padded(q.shape[3], 16), 64)
    if q.element_size() == 4:
        return Config(rows=32, cols=cols, dim=min(dim, cols), terms=2, registers=255)
    return Config(rows=32, cols=32, dim=dim, terms=4, precision=precision(q.dtype))


def _dense_constants(config: Config, dim: int) -> dict[str, Any]:
    return {
        "ROWS": config.rows,
        "COLS": config.cols,
        "DIM": config.dim,
        "TERMS": config.terms,
        "PRECISION": config.precision,
        "CHUNK": min(padded(dim, 16), 64),
    }


def _plan_dense_query(arguments: dict[str, Any], constants: dict[str, Any], config: Config | None) -> Launch:
    q = arguments["q"]
    windows, heads, queries, dim = q.shape
    config = choose("dense_query", _dense_default(q), config)
    constants = constants | _dense_constants(config, dim)
    programs = windows * heads * tiles(queries, config.rows) * tiles(dim, constants["CHUNK"])
    return Launch(dense_query_kernel, programs, arguments, constants, config)


def _plan_dense_key(
    arguments: dict[str, Any], constants: dict[str, Any], config: Config | None
) -> list[Launch]:
    q = arguments["q"]
    windows, heads, _, dim = q.shape
    config = choose("dense_key", _dense_default(q, cols=16), config)
    constants = constants | _dense_constants(config, dim)
    programs = windows * heads * tiles(arguments["M"], config.rows)
    chunks = tiles(dim, constants["CHUNK"])
    # grad_v depends on no chunk of D: the first launch computes it, a chain of dense layers has a second one.
    first, rest = (1, chunks - 1) if constants["ALL"] else (chunks, 0)
    parts = [(0, first, constants["ALL"])] + ([(first, rest, False)] if rest else [])
    return [
        Launch(
            dense_key_kernel,
            programs * count,
            arguments | {"FIRST": begin, "chunks": count},
            constants | {"VALUES": values},
            config,
        )
        for begin, count, values in parts
    ]
