"""One layer of progressive attention, forward: logits, softmax, selection and AV in one launch.

Three kernels for three situations of a chain: all keys kept (the flash-attention way: no row is ever whole), all keys
candidates but K kept (a row's logits are whole in registers), and listed candidates.
The selected list is stored first and read back for AV, because AV walks through it and a register tile cannot be
indexed. Nothing else of a row touches device memory.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import triton
import triton.language as tl

from .config import Config, choose
from .launch import Launch, padded, strides, tiles, vector
from .sddmm import dense_pays
from .selection import logit_of, order_kept, row_keys, select, write_kept
from .tiles import (
    INTERPRETED,
    added_logits,
    at_head,
    dot_weights,
    load_rows,
    products_block,
    products_gathered,
    products_outer,
    products_picked,
    store_rows,
    weighted_rows,
    window_head_tile,
)


@triton.jit
def attention_all_kernel(
    q, k, v, bias, region, out, lse, sqw, sqh, sqn, skw, skh, skn, svw, svh, svn, sow, soh, son,
    H, N, M, P, scale, penalty, VEC: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, WINDOW: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, DIM: tl.constexpr, DIM_V: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Every key is a candidate and is kept: softmax and AV by online rescaling over tiles of COLS keys."""
    both, w, h, tile = window_head_tile(H, tl.cdiv(N, ROWS))
    rows = tile * ROWS + tl.arange(0, ROWS)
    rows_ok = rows < N
    d = tl.arange(0, DIM_V)
    q, sqn = at_head(q, w, h, sqw, sqh, sqn, VEC)
    k, skn = at_head(k, w, h, skw, skh, skn, VEC)
    v, svn = at_head(v, w, h, svw, svh, svn, VEC)
    if region is not None:
        region += (w % P) * N
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, DIM_V], tl.float32)
    for start in range(0, M, COLS):
        keys = start + tl.arange(0, COLS)
        ok = rows_ok[:, None] & (keys < M)[None, :]
        z = products_block(q, k, rows, keys, rows_ok, keys < M, sqn, skn, D, DIM) * scale
        z += added_logits(rows[:, None], keys[None, :], ok, bias, region, penalty, H, h, N, WINDOW)
        z = tl.where((keys < M)[None, :], z, float("-inf"))
        above = tl.maximum(top, tl.max(z, 1))
        shrink = tl.exp(top - above)
        weight = tl.exp(z - above[:, None])
        total = total * shrink + tl.sum(weight, 1)
        values = load_rows(v, keys, keys < M, svn, d, DV)
        acc = dot_weights(weight, values, acc * shrink[:, None], PRECISION)
        top = above
    tl.store(lse + both * N + rows, top + tl.log(total), mask=rows_ok)
    out, son = at_head(out, w, h, sow, soh, son, VEC)
    store_rows(out, rows, rows_ok, son, d, DV, acc / total[:, None])


@triton.jit
def row_softmax(z, rows_ok):
    """Of whole rows of logits: the largest, the sum of the exponentials of what lies below it, the logsumexp."""
    top = tl.where(rows_ok, tl.max(z, 1), 0.0)
    total = tl.where(rows_ok, tl.sum(tl.exp(z - top[:, None]), 1), 1.0)
    return top, total, top + tl.log(total)


@triton.jit
def attention_select_kernel(
    q, k, v, bias, region, out, new_index, new_logits, lse,
    sqw, sqh, sqn, skw, skh, skn, svw, svh, svn, sow, soh, son, H, N, M, P, K, scale, penalty,
    VEC: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, WINDOW: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr,
    DIM: tl.constexpr, DIM_V: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """Every key is a candidate, K are kept. KEYS >= M: a row of logits is whole. DIM = 0: logits without tl.dot."""
    both, w, h, tile = window_head_tile(H, tl.cdiv(N, ROWS))
    rows = tile * ROWS + tl.arange(0, ROWS)
    rows_ok = rows < N
    keys = tl.arange(0, KEYS)
    ok = rows_ok[:, None] & (keys < M)[None, :]
    q, sqn = at_head(q, w, h, sqw, sqh, sqn, VEC)
    k, skn = at_head(k, w, h, skw, skh, skn, VEC)
    v, svn = at_head(v, w, h, svw, svh, svn, VEC)
    if region is not None:
        region += (w % P) * N
    if DIM > 0:
        z = products_block(q, k, rows, keys, rows_ok, keys < M, sqn, skn, D, DIM)
    else:
        z = products_outer(q, k, rows, keys, rows_ok, keys < M, sqn, skn, D)
    z = z * scale + added_logits(rows[:, None], keys[None, :], ok, bias, region, penalty, H, h, N, WINDOW)
    z = tl.where(ok, z, float("-inf"))
    top, total, logsumexp = row_softmax(z, rows_ok)
    tl.store(lse + both * N + rows, logsumexp, mask=rows_ok)
    j = keys[None, :] + tl.zeros([ROWS, KEYS], tl.int32)
    new_index += both * N * K
    new_logits += both * N * K
    key = row_keys(z, ok, logsumexp)
    kept = select(key, j, ok, K, M) & ok
    write_kept(kept, j, logit_of(key) - top[:, None], rows, new_index, new_logits, K)
    tl.debug_barrier()
    d = tl.arange(0, DIM_V)
    acc = weighted_rows(v, svn, new_index, new_logits, K, rows, rows_ok, K, d, DV, TERMS, True)
    out, son = at_head(out, w, h, sow, soh, son, VEC)
    store_rows(out, rows, rows_ok, son, d, DV, acc / total[:, None])


@triton.jit
def attention_listed_kernel(
    q, k, v, bias, index, logits, out, new_index, new_logits, lse,
    sqw, sqh, sqn, skw, skh, skn, svw, svh, svn, sow, soh, son, H, N, M, C, K, scale,
    VEC: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, WINDOW: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
    DIM: tl.constexpr, DIM_V: tl.constexpr, TERMS: tl.constexpr, KEYS: tl.constexpr, KEPT: tl.constexpr,
    SELECT: tl.constexpr,
):  # fmt: skip
    """The candidates are listed (COLS >= C); K of them are kept where SELECT is set, else all in their order."""
    both, w, h, tile = window_head_tile(H, tl.cdiv(N, ROWS))
    rows = tile * ROWS + tl.arange(0, ROWS)
    rows_ok = rows < N
    t = tl.arange(0, COLS)
    ok = rows_ok[:, None] & (t < C)[None, :]
    q, sqn = at_head(q, w, h, sqw, sqh, sqn, VEC)
    k, skn = at_head(k, w, h, skw, skh, skn, VEC)
    v, svn = at_head(v, w, h, svw, svh, svn, VEC)
    index += both * N * C
    new_logits += both * N * K
    place = rows[:, None] * C + t[None, :]
    j = tl.load(index + place, mask=ok, other=0).to(tl.int32)
    if KEYS > 0:
        z = products_picked(q, k, rows, rows_ok, j, sqn, skn, M, D, DIM, KEYS)
    else:
        z = products_gathered(q, k, rows, rows_ok, j, ok, sqn, skn, D, DIM)
    z = z * scale + added_logits(rows[:, None], j, ok, bias, None, 0.0, H, h, N, WINDOW)
    if logits is not None:
        z += tl.load(logits + both * N * C + place, mask=ok, other=0.0)
    z = tl.where(ok, z, float("-inf"))
    top, total, logsumexp = row_softmax(z, rows_ok)
    tl.store(lse + both * N + rows, logsumexp, mask=rows_ok)
    d = tl.arange(0, DIM_V)
    if SELECT:
        new_index += both * N * K
        key = row_keys(z, ok, logsumexp)
        kept = select(key, j, ok, K, M) & ok
        write_kept(kept, j, logit_of(key) - top[:, None], rows, new_index, new_logits, K)
        before = tl.load(index + place - 1, mask=ok & (t > 0)[None, :], other=-1).to(tl.int32)
        if tl.max(tl.max((ok & (before > j)).to(tl.int32), 1), 0) > 0:
            order_kept(rows, rows_ok, new_index, new_logits, K, KEPT)
        tl.debug_barrier()
        acc = weighted_rows(v, svn, new_index, new_logits, K, rows, rows_ok, K, d, DV, TERMS, True)
    else:
        tl.store(new_logits + place, z - top[:, None], mask=ok)
        tl.debug_barrier()
        acc = weighted_rows(v, svn, index, new_logits, K, rows, rows_ok, K, d, DV, TERMS, True)
    out, son = at_head(out, w, h, sow, soh, son, VEC)
    store_rows(out, rows, rows_ok, son, d, DV, acc / total[:, None])


def precision(dtype: torch.dtype) -> str:
    """How tl.dot multiplies float32 weights with inputs of `dtype`.

    float32 inputs are multiplied in IEEE float32, never in TF32. Half-precision inputs are exact in TF32 and weights
    are the sum of two TF32 numbers to within 2^-22, so that three tensor-core products give float32 accuracy.
    """
    return "tf32x3" if dtype != torch.float32 and torch.version.hip is None else "ieee"


def interpreted_rows(queries: int) -> int:
    """Rows of a tile under the interpreter, whose cost is per program: a window of 64 tokens is one tile."""
    return 64 if queries % 64 == 0 else 16


def window_size(keys: int, bias: Tensor | None) -> int:
    """Side of the window, 0 where nothing depends on it."""
    return 0 if bias is None else math.isqrt(keys)


def layer_arguments(q: Tensor, k: Tensor, scale: float, unit: int) -> dict[str, Any]:
    """The arguments that every kernel of a layer takes."""
    arguments: dict[str, Any] = {"q": q, "k": k, **strides("sq", q, unit), **strides("sk", k, unit)}
    return arguments | {"H": q.shape[1], "N": q.shape[2], "M": k.shape[2], "scale": scale}


def plan_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    region: Tensor | None,
    index: Tensor | None,
    logits: Tensor | None,
    scale: float,
    region_penalty: float,
    topk: int,
    out: Tensor,
    new_index: Tensor,
    new_logits: Tensor,
    lse: Tensor,
    config: Config | None = None,
) -> Launch:
    """Launch for one layer; arguments and results as `pft_bench.reference.attention` has them, results allocated."""
    unit = vector(q, k, v, out)
    common = layer_arguments(q, k, scale, unit) | {"v": v, "bias": bias, "out": out, "lse": lse}
    common |= {**strides("sv", v, unit), **strides("so", out, unit)}
    constants = {"VEC": unit, "D": q.shape[3], "DV": v.shape[3], "WINDOW": window_size(k.shape[2], bias)}
    constants["DIM_V"] = padded(v.shape[3], 16)
    if index is not None:
        common |= {"index": index, "logits": logits, "new_index": new_index, "new_logits": new_logits}
        return _plan_listed(common, constants, topk, config)
    patterns = 1 if region is None else region.shape[0]
    common |= {"region": region, "penalty": region_penalty, "P": patterns}
    if topk >= k.shape[2]:
        return _plan_all(common, constants, config)
    common |= {"new_index": new_index, "new_logits": new_logits, "K": topk}
    return _plan_select(common, constants, config)


def _key(arguments: dict[str, Any], constants: dict[str, Any], extra: str = "") -> str:
    sizes = f"N={arguments['N']} M={arguments['M']} D={constants['D']} DV={constants['DV']}"
    return f"{arguments['q'].dtype} {sizes} {extra}".strip()


def _plan_all(arguments: dict[str, Any], constants: dict[str, Any], config: Config | None) -> Launch:
    q = arguments["q"]
    windows, heads, queries, dim = q.shape
    half = q.dtype != torch.float32
    default = Config(
        rows=32,
        cols=32,
        dim=min(padded(dim, 16), 64),
        precision=precision(q.dtype),
        warps=4,
        stages=2 if half else 1,
    )

    def plan(config: Config) -> Launch:
        sizes = {"ROWS": config.rows, "COLS": config.cols, "DIM": config.dim, "PRECISION": config.precision}
        programs = windows * heads * tiles(queries, config.rows)
        return Launch(attention_all_kernel, programs, arguments, constants | sizes, config)

    candidates = [
        Config(rows=r, cols=c, dim=d, precision=default.precision, warps=w, stages=s)
        for r, c, d, w, s in (
            (32, 64, 16, 4, 2),
            (64, 32, 16, 4, 2),
            (128, 64, 64, 8, 2),
            (128, 32, 64, 4, 3),
        )
    ]
    key = _key(arguments, constants)
    return plan(
        choose("attention_all", default, config, candidates=candidates, plan=plan, key=key, device=q.device)
    )


def _plan_select(arguments: dict[str, Any], constants: dict[str, Any], config: Config | None) -> Launch:
    q = arguments["q"]
    windows, heads, queries, _ = q.shape
    keys = padded(arguments["M"], 16)
    default = _select_default(queries, keys, constants["DIM_V"])

    def plan(config: Config) -> Launch:
        sizes = {"ROWS": config.rows, "KEYS": keys, "DIM": config.dim, "TERMS": config.terms}
        programs = windows * heads * tiles(queries, config.rows)
        return Launch(attention_select_kernel, programs, arguments, constants | sizes, config)

    candidates = [
        Config(rows=r, dim=d, terms=t, warps=w)
        for r, d, t, w in ((16, 16, 4, 8), (16, 16, 4, 16), (8, 16, 4, 8), (4, 0, 8, 4))
        if d == 0 or (q.dtype != torch.float32 and keys <= 2048)
    ]
    key = _key(arguments, constants, f"K={arguments['K']}")
    return plan(
        choose(
            "attention_select", default, config, candidates=candidates, plan=plan, key=key, device=q.device
        )
    )


def _select_default(queries: int, keys: int, channels: int) -> Config:
    """A row of logits is whole in registers: 32 a thread. Wider rows than 1024 leave no shared memory for tl.dot."""
    if INTERPRETED.value:
        return Config(rows=interpreted_rows(queries), dim=64, terms=16)
    rows = max(1, min(16, 4096 // keys))
    warps = max(4, min(32, padded(rows * keys // 1024)))
    return Config(
        rows=rows, dim=16 if keys <= 1024 else 0, terms=max(1, 1024 // (rows * channels)), warps=warps
    )


def _plan_listed(
    arguments: dict[str, Any], constants: dict[str, Any], topk: int, config: Config | None
) -> Launch:
    q = arguments["q"]
    windows, heads, queries, _ = q.shape
    listed = arguments["index"].shape[3]
    keys = arguments["M"]
    kept = min(topk, listed)
    cols = padded(listed)
    arguments |= {"C": listed, "K": kept}
    constants |= {"COLS": cols, "KEPT": padded(kept), "SELECT": topk < listed}
    default = _listed_default(queries, cols, listed, keys, q.dtype, constants["DIM_V"])

    def plan(config: Config) -> Launch:
        sizes = {"ROWS": config.rows, "DIM": config.dim, "TERMS": config.terms, "KEYS": config.dense}
        programs = windows * heads * tiles(queries, config.rows)
        return Launch(attention_listed_kernel, programs, arguments, constants | sizes, config)

    candidates = [
        Config(rows=max(1, r // cols), dim=8, terms=t, warps=w) for r, t, w in ((512, 8, 2), (2048, 8, 8))
    ]
    if q.dtype != torch.float32:
        candidates += [Config(rows=16, dim=16, dense=n, terms=8, warps=w) for n, w in ((128, 4), (256, 8))]
    key = _key(arguments, constants, f"C={listed} K={kept}")
    return plan(
        choose(
            "attention_listed", default, config, candidates=candidates, plan=plan, key=key, device=q.device
        )
    )


def _listed_default(
    queries: int, cols: int, listed: int, keys: int, dtype: torch.dtype, channels: int
) -> Config:
    if INTERPRETED.value:
        dense = min(padded(keys, 16), 64) if listed >= 64 else 0
        return Config(rows=interpreted_rows(queries), dim=64, terms=16, dense=dense)
    if dense_pays(keys, listed, dtype):
        rows, warps = 16, 4 if cols <= 128 else 8
        dense = min(padded(keys, 16), 128)
        return Config(rows=rows, dim=16, dense=dense, terms=max(1, 4096 // (rows * channels)), warps=warps)
    rows = max(1, 1024 // cols)
    warps = max(4, padded(rows * cols // 256))
    return Config(rows=rows, dim=8, terms=max(1, 4096 // (rows * channels)), warps=min(warps, 16))
