"""Selecting the K largest logits of each row, by bisection on integers that order as the floats do.

No sort: each step counts the entries at or above the middle of the interval that still holds the K-th largest.
A row is done when exactly K entries lie above the middle, so about log2(range / gap) steps, at most 32.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
import triton
import triton.language as tl

# Bits are flipped by ^ 0xFFFFFFFF: the interpreter of Triton 3.5 to 3.7 fails on ~ of unsigned integers with NumPy 2.


@triton.jit
def ordered_key(z):
    """float32 -> uint32, increasing; -0 and +0 become the same key."""
    bits = tl.where(z == 0.0, 0.0, z).to(tl.uint32, bitcast=True)
    return tl.where((bits >> 31) != 0, bits ^ 0xFFFFFFFF, bits | 0x80000000)


@triton.jit
def row_keys(z, ok, logsumexp):
    """Ordered keys of rows of logits, 0 where not ok.

    A row with NaN or plus infinity in it, or with minus infinity alone, has a NaN logsumexp and a NaN result; all its
    keys are made that of a NaN, so that the first places are kept and every family of kernels keeps the same.
    """
    key = tl.where((logsumexp == logsumexp)[:, None], ordered_key(z), 0xFFFFFFFF)
    return tl.where(ok, key, 0)


@triton.jit
def logit_of(key):
    """The float32 that ordered_key made `key` of: a tile of keys replaces the tile of logits in registers."""
    bits = tl.where((key >> 31) != 0, key ^ 0x80000000, key ^ 0xFFFFFFFF)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def select(key, j, ok, K, M):
    """Mask of the K largest ordered keys of each row [ROWS, COLS]; of equal ones those with smaller key position j.

    Places that are not ok hold 0, which is less than the ordered key of any number.
    """
    high = tl.max(key, 1)
    low = tl.minimum(tl.min(tl.where(ok, key, 0xFFFFFFFF), 1), high)
    # Invariant: at least K entries are >= low, fewer than K are > high.
    while tl.max(high - low, 0) > 0:
        middle = low + ((high - low) >> 1) + ((high - low) & 1)
        count = tl.sum((key >= middle[:, None]).to(tl.int32), 1)
        low = tl.where(count >= K, middle, low)
        high = tl.where(count == K, middle, tl.where(count > K, high, middle - 1))
    above = key > low[:, None]
    equal = (key == low[:, None]) & ok
    wanted = K - tl.sum(above.to(tl.int32), 1)
    excess = tl.sum(equal.to(tl.int32), 1) > wanted
    # The last key position at which an entry equal to the threshold is kept; searched only in rows with excess.
    last = tl.zeros_like(wanted) + (M - 1)
    first = tl.where(excess, 0, last)
    while tl.max(last - first, 0) > 0:
        middle = (first + last) >> 1
        enough = tl.sum((equal & (j <= middle[:, None])).to(tl.int32), 1) >= wanted
        first = tl.where(enough, first, middle + 1)
        last = tl.where(enough, middle, last)
    return above | (equal & (j <= last[:, None]))


@triton.jit
def write_kept(kept, j, relative, rows, new_index, new_logits, K):
    """Close up the kept entries of each row and store their key positions j and logits."""
    place = rows[:, None] * K + tl.cumsum(kept.to(tl.int32), 1) - 1
    tl.store(new_index + place, j.to(new_index.dtype.element_ty), mask=kept)
    tl.store(new_logits + place, relative, mask=kept)


@triton.jit
def order_kept(rows, rows_ok, new_index, new_logits, K, KEPT: tl.constexpr):
    """Bring stored rows into ascending key order, for candidates that came in another one (never from our kernels)."""
    t = tl.arange(0, KEPT)
    ok = rows_ok[:, None] & (t < K)[None, :]
    place = rows[:, None] * K + t[None, :]
    tl.debug_barrier()
    j = tl.load(new_index + place, mask=ok, other=0)
    relative = tl.load(new_logits + place, mask=ok, other=0.0)
    rank = tl.zeros(j.shape, tl.int32)
    for s in range(0, K):
        other = tl.load(new_index + rows * K + s, mask=rows_ok, other=0)
        rank += (other[:, None] < j).to(tl.int32)
    tl.debug_barrier()
    tl.store(new_index + rows[:, None] * K + rank, j, mask=ok)
    tl.store(new_logits + rows[:, None] * K + rank, relative, mask=ok)
