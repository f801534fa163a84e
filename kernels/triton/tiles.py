"""What the kernels share: tiles of logits, gathered sums, selection. Everything is float32 once it is loaded.

A program owns a tile of rows of one window-head. Offsets of a window-head are 64-bit, offsets inside it 32-bit.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def window_head_tile(H, tiles):
    """(window-head, window, head, tile) of this program; the first three 64-bit."""
    program = tl.program_id(0)
    both = (program // tiles).to(tl.int64)
    return both, both // H, both % H, program % tiles


@triton.jit
def at_head(x, w, h, sxw, sxh, sxn, VEC: tl.constexpr):
    """The start of window-head (w, h) of x, and the stride of its rows; strides come in units of VEC elements."""
    return x + (w * sxw + h * sxh) * VEC, sxn * VEC


@triton.jit
def narrowed(x, pointer):
    """float32 x in the dtype that `pointer` points to, rounded to nearest even."""
    if INTERPRETED and pointer.dtype.element_ty == tl.bfloat16:  # the interpreter would cut the low bits off
        bits = x.to(tl.uint32, bitcast=True)
        high = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return high.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(pointer.dtype.element_ty)


@triton.jit
def dot_products(a, b, acc):
    """acc + a @ b for operands in the inputs' dtype: exact products, float32 sums."""
    if INTERPRETED:  # the interpreter keeps bfloat16 as integers and multiplies those
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def dot_weights(a, b, acc, PRECISION: tl.constexpr):
    """acc + a @ b for float32 weights `a`; `b` in the inputs' dtype is exact in float32."""
    return tl.dot(a, b.to(tl.float32), acc, input_precision=PRECISION)


@triton.jit
def load_rows(x, rows, ok, sxn, d, D: tl.constexpr):
    """Rows of a matrix, [ROWS, DIM], zero outside."""
    mask = ok[:, None] & (d < D)[None, :]
    return tl.load(x + rows[:, None] * sxn + d[None, :], mask=mask, other=0.0)


@triton.jit
def store_rows(x, rows, ok, sxn, d, D: tl.constexpr, values):
    """Writes `values` [ROWS, DIM] where `load_rows` reads, in x's dtype."""
    mask = ok[:, None] & (d < D)[None, :]
    tl.store(x + rows[:, None] * sxn + d[None, :], narrowed(values, x), mask=mask)


@triton.jit
def load_columns(x, rows, ok, sxn, d, D: tl.constexpr):
    """The same, transposed: [DIM, ROWS]."""
    mask = (d < D)[:, None] & ok[None, :]
    return tl.load(x + rows[None, :] * sxn + d[:, None], mask=mask, other=0.0)


@triton.jit
def products_block(x, y, rows, cols, rows_ok, cols_ok, sxn, syn, D: tl.constexpr, DIM: tl.constexpr):
    """All products of some rows of x with some rows of y, [ROWS, COLS]."""
    acc = tl.zeros([rows.shape[0], cols.shape[0]], tl.float32)
    for start in range(0, D, DIM):
        d = start + tl.arange(0, DIM)
        left = load_rows(x, rows, rows_ok, sxn, d, D)
        right = load_columns(y, cols, cols_ok, syn, d, D)
        acc = dot_products(left, right, acc)
    return acc


@triton.jit
def products_outer(x, y, rows, cols, rows_ok, cols_ok, sxn, syn, D: tl.constexpr):
    """The same by rank-one updates: any number of rows, and no operand tiles besides the result."""
    acc = tl.zeros([rows.shape[0], cols.shape[0]], tl.float32)
    for d in range(0, D):
        left = tl.load(x + rows * sxn + d, mask=rows_ok, other=0.0).to(tl.float32)
        right = tl.load(y + cols * syn + d, mask=cols_ok, other=0.0).to(tl.float32)
        acc += left[:, None] * right[None, :]
    return acc


@triton.jit
def products_gathered(q, k, rows, rows_ok, j, ok, sqn, skn, D: tl.constexpr, DIM: tl.constexpr):
    """q.k for the keys j [ROWS, COLS] of each row, by gathering keys DIM channels at a time."""
    acc = tl.zeros(j.shape, tl.float32)
    for start in range(0, D, DIM):
        d = start + tl.arange(0, DIM)
        left = load_rows(q, rows, rows_ok, sqn, d, D).to(tl.float32)
        mask = ok[:, :, None] & (d < D)[None, None, :]
        right = tl.load(k + (j * skn)[:, :, None] + d[None, None, :], mask=mask, other=0.0).to(tl.float32)
        acc += tl.sum(left[:, None, :] * right, 2)
    return acc


@triton.jit
def products_picked(
    q, k, rows, rows_ok, j, sqn, skn, M, D: tl.constexpr, DIM: tl.constexpr, KEYS: tl.constexpr
):
    """The same from dense tiles of KEYS keys: more products than needed, but on tensor cores and without gathers."""
    acc = tl.zeros(j.shape, tl.float32)
    for start in range(0, M, KEYS):
        keys = start + tl.arange(0, KEYS)
        block = products_block(q, k, rows, keys, rows_ok, keys < M, sqn, skn, D, DIM)
        inside = (j >= start) & (j < start + KEYS)
        acc = tl.where(inside, tl.gather(block, tl.where(inside, j - start, 0), 1), acc)
    return acc


@triton.jit
def added_logits(i, j, ok, bias, region, penalty, H, h, N, WINDOW: tl.constexpr):
    """Relative position bias minus region penalty for query positions i and key positions j that broadcast to ok."""
    z = tl.zeros(ok.shape, tl.float32)
    if bias is not None:
        dy = i // WINDOW - j // WINDOW + WINDOW - 1
        dx = i % WINDOW - j % WINDOW + WINDOW - 1
        z += tl.load(bias + (dy * (2 * WINDOW - 1) + dx) * H + h, mask=ok, other=0.0)
    if region is not None:
        own = tl.load(region + i, mask=i < N, other=0)
        theirs = tl.load(region + j, mask=j < N, other=0)
        z -= tl.where(own != theirs, penalty, 0.0)
    return z


@triton.jit
def weighted_rows(
    x, sxn, index, weights, swn, rows, rows_ok, K, d, D: tl.constexpr, TERMS: tl.constexpr, EXP: tl.constexpr
):
    """Sum over a row's list of weight * x[listed], [ROWS, DIM]; the weight is exp(weights) where EXP is set."""
    acc = tl.zeros([rows.shape[0], TERMS, d.shape[0]], tl.float32)
    for start in range(0, K, TERMS):
        t = start + tl.arange(0, TERMS)
        ok = rows_ok[:, None] & (t < K)[None, :]
        j = tl.load(index + rows[:, None] * K + t[None, :], mask=ok, other=0).to(tl.int32)
        weight = tl.load(weights + rows[:, None] * swn + t[None, :], mask=ok, other=0.0).to(tl.float32)
        if EXP:
            weight = tl.where(ok, tl.exp(weight), 0.0)
        mask = ok[:, :, None] & (d < D)[None, None, :]
        gathered = tl.load(x + (j * sxn)[:, :, None] + d[None, None, :], mask=mask, other=0.0)
        acc += weight[:, :, None] * gathered.to(tl.float32)
    return tl.sum(acc, 1)


@triton.jit
def listing_rows(
    x, sxn, start, entries, weights, swn, keys, keys_ok, K, d, D: tl.constexpr, TERMS: tl.constexpr
):
    """Sum over the (query, place) entries that list a key of weight * x[query], [KEYS, DIM], queries ascending."""
    first = tl.load(start + keys, mask=keys_ok, other=0)
    count = tl.load(start + keys + 1, mask=keys_ok, other=0) - first
    acc = tl.zeros([keys.shape[0], TERMS, d.shape[0]], tl.float32)
    for begin in range(0, tl.max(count, 0), TERMS):
        s = begin + tl.arange(0, TERMS)
        ok = s[None, :] < count[:, None]
        entry = tl.load(entries + first[:, None] + s[None, :], mask=ok, other=0)
        i = entry // K
        weight = tl.load(weights + i * swn + entry % K, mask=ok, other=0.0).to(tl.float32)
        mask = ok[:, :, None] & (d < D)[None, None, :]
        gathered = tl.load(x + (i * sxn)[:, :, None] + d[None, None, :], mask=mask, other=0.0)
        acc += weight[:, :, None] * gathered.to(tl.float32)
    return tl.sum(acc, 1)
