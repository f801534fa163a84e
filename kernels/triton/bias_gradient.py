"""Gradient of the relative position bias table: a sum over windows and token pairs, without atomics.

Each program adds into a table of its own, [parts, H * T]; one more kernel adds the tables up in their order.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

from torch import Tensor

import triton
import triton.language as tl

from .config import Config, choose
from .launch import Launch, padded, strides, tiles, vector
from .progressive_attention import layer_arguments
from .tiles import INTERPRETED, added_logits, at_head, products_block

PARTIAL_BYTES = 64 * 2**20
"""Limit on the tables together; it and the shapes alone decide how many there are, so results repeat exactly."""


@triton.jit
def bias_listed_kernel(
    index, grad, partial, W, H, N, K, T, part_windows,
    WINDOW: tl.constexpr, KEPT: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Adds grad [W, H, N, K] at listed keys; the keys of one query differ, so no two threads meet within a row."""
    part = tl.program_id(0) // H
    h = tl.program_id(0) % H
    partial += (part.to(tl.int64) * H + h) * T
    for start in range(0, T, COLS):
        cell = start + tl.arange(0, COLS)
        tl.store(partial + cell, tl.zeros([COLS], tl.float32), mask=cell < T)
    tl.debug_barrier()
    t = tl.arange(0, KEPT)
    for w in range(part * part_windows, tl.minimum(W, (part + 1) * part_windows)):
        for i in range(0, N):
            place = ((w * H + h).to(tl.int64) * N + i) * K + t
            j = tl.load(index + place, mask=t < K, other=0).to(tl.int32)
            dy = i // WINDOW - j // WINDOW + WINDOW - 1
            dx = i % WINDOW - j % WINDOW + WINDOW - 1
            cell = partial + dy * (2 * WINDOW - 1) + dx
            value = tl.load(cell, mask=t < K, other=0.0) + tl.load(grad + place, mask=t < K, other=0.0)
            tl.debug_barrier()  # all read before any writes: a small tile is held by several threads
            tl.store(cell, value, mask=t < K)
            tl.debug_barrier()


@triton.jit
def bias_dense_kernel(
    q, k, v, bias, region, grad_out, lse, delta, partial,
    sqw, sqh, sqn, skw, skh, skn, svw, svh, svn, sgw, sgh, sgn, W, H, N, M, P, T, scale, penalty, part_windows,
    VEC: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, WINDOW: tl.constexpr, SIDE: tl.constexpr,
    COLS: tl.constexpr, DIM: tl.constexpr, ALL: tl.constexpr,
):  # fmt: skip
    """Adds the dense part of G. A program owns one row of query tokens of a window, yi, in part of the windows.

    Against one row of key tokens, the tile G [xi, xj] belongs to 2 * WINDOW - 1 cells, one for each diagonal.
    """
    program = tl.program_id(0)
    h = (program % H).to(tl.int64)
    yi = program // H % WINDOW
    part = program // (H * WINDOW)
    partial += (program // H * H + h) * T
    for start in range(0, T, COLS):
        cell = start + tl.arange(0, COLS)
        tl.store(partial + cell, tl.zeros([COLS], tl.float32), mask=cell < T)
    tl.debug_barrier()
    x = tl.arange(0, SIDE)
    x_ok = x < WINDOW
    ok = x_ok[:, None] & x_ok[None, :]
    rows = yi * WINDOW + x
    diagonal = tl.arange(0, 2 * SIDE)
    xj = x[:, None] + WINDOW - 1 - diagonal[None, :]
    on_tile = (xj >= 0) & (xj < WINDOW) & x_ok[:, None]
    xj = tl.where(on_tile, xj, 0)
    for window in range(part * part_windows, tl.minimum(W, (part + 1) * part_windows)):
        w = h * 0 + window  # 64-bit
        both = (w * H + h) * N
        row_lse = tl.load(lse + both + rows, mask=x_ok, other=0.0)
        row_delta = tl.load(delta + both + rows, mask=x_ok, other=0.0)
        regions = region
        if region is not None:
            regions = region + (w % P) * N
        q_head, q_stride = at_head(q, w, h, sqw, sqh, sqn, VEC)
        k_head, k_stride = at_head(k, w, h, skw, skh, skn, VEC)
        for yj in range(0, WINDOW):
            keys = yj * WINDOW + x
            z = products_block(q_head, k_head, rows, keys, x_ok, x_ok, q_stride, k_stride, D, DIM) * scale
            z += added_logits(rows[:, None], keys[None, :], ok, bias, regions, penalty, H, h, N, WINDOW)
            g = tl.where(ok, tl.exp(z - row_lse[:, None]), 0.0)
            if ALL:
                v_head, v_stride = at_head(v, w, h, svw, svh, svn, VEC)
                g_head, g_stride = at_head(grad_out, w, h, sgw, sgh, sgn, VEC)
                grad_a = products_block(g_head, v_head, rows, keys, x_ok, x_ok, g_stride, v_stride, DV, DIM)
                g = g * (grad_a - row_delta[:, None])
            else:
                g = g * (0.0 - row_delta[:, None])
            sums = tl.sum(tl.where(on_tile, tl.gather(g, xj, 1), 0.0), 0)
            cell = partial + (yi - yj + WINDOW - 1) * (2 * WINDOW - 1) + diagonal
            mask = diagonal < 2 * WINDOW - 1
            value = tl.load(cell, mask=mask, other=0.0) + sums
            tl.debug_barrier()
            tl.store(cell, value, mask=mask)
            tl.debug_barrier()


@triton.jit
def add_tables_kernel(partial, out, parts, H, T, COLS: tl.constexpr):
    """out [T, H] = sum of partial [parts, H, T] over the parts, in their order."""
    cell = tl.program_id(0) * COLS + tl.arange(0, COLS)
    mask = cell < H * T
    acc = tl.zeros([COLS], tl.float32)
    table = partial + cell
    for _ in range(0, parts):
        acc += tl.load(table, mask=mask, other=0.0)
        table += H * T
    tl.store(out + cell % T * H + cell // T, acc, mask=mask)


def parts_of(windows: int, table_bytes: int) -> tuple[int, int]:
    """(parts, windows in each): as many parts as tables of table_bytes fit the limit."""
    each = -(-windows // max(1, min(windows, PARTIAL_BYTES // max(1, table_bytes)))) if windows else 1
    return -(-windows // each), each


def plan_bias_listed(
    index: Tensor, grad: Tensor, partial: Tensor, window: int, each: int, config: Config | None = None
) -> Launch:
    """Launch for index and grad [W, H, N, K] and partial [parts, H, T] of `each` windows a part."""
    windows, heads, queries, listed = index.shape
    parts, _, cells = partial.shape
    kept = padded(listed)
    config = choose("bias_listed", Config(warps=max(1, min(kept // 128, 8)), cols=256), config)
    arguments = {"index": index, "grad": grad, "partial": partial, "W": windows, "H": heads, "N": queries}
    arguments |= {"K": listed, "T": cells, "part_windows": each}
    constants = {"WINDOW": window, "KEPT": kept, "COLS": config.cols}
    return Launch(bias_listed_kernel, parts * heads, arguments, constants, config)


def plan_bias_dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    region: Tensor | None,
    grad_out: Tensor,
    lse: Tensor,
    delta: Tensor,
    partial: Tensor,
    scale: float,
    region_penalty: float,
    window: int,
    each: int,
    everything: bool,
    config: Config | None = None,
) -> Launch:
    """Launch for the dense part; partial [parts * window, H, T]. everything: all keys are kept."""
    unit = vector(q, k, v, grad_out)
    # Under the interpreter the cost is per step of a loop.
    default = Config(cols=1024, dim=64) if INTERPRETED.value else Config(cols=256, dim=16, registers=255)
    config = choose("bias_dense", default, config)
    arguments = layer_arguments(q, k, scale, unit) | {"v": v, "bias": bias, "region": region, "lse": lse}
    arguments |= {"grad_out": grad_out, "delta": delta, "partial": partial, "penalty": region_penalty}
    arguments |= {**strides("sv", v, unit), **strides("sg", grad_out, unit)}
    arguments |= {"W": q.shape[0], "P": 1 if region is None else region.shape[0], "T": partial.shape[2]}
    arguments |= {"part_windows": each}
    constants = {"VEC": unit, "D": q.shape[3], "DV": v.shape[3], "WINDOW": window, "ALL": everything}
    constants |= {"SIDE": padded(window, 16), "COLS": config.cols, "DIM": config.dim}
    return Launch(bias_dense_kernel, partial.shape[0] * partial.shape[1], arguments, constants, config)


def plan_add_tables(partial: Tensor, out: Tensor, config: Config | None = None) -> Launch:
    """Launch for partial [parts, H, T] and out [T, H]."""
    parts, heads, cells = partial.shape
    config = choose("add_tables", Config(cols=256), config)
    arguments = {"partial": partial, "out": out, "parts": parts, "H": heads, "T": cells}
    return Launch(
        add_tables_kernel, tiles(heads * cells, config.cols), arguments, {"COLS": config.cols}, config
    )
