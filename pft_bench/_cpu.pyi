"""The compiled CPU kernels (bindings/cpu): addresses, strides in elements and sizes in; errors as exceptions."""

# sizes of a sparse product: batch, queries, keys, head_dim, kept
_Sizes = tuple[int, int, int, int, int]
# address and strides: batch, row, column (which must be 1)
_Matrix = tuple[int, tuple[int, ...]]

def isa() -> str: ...
def isas() -> list[str]: ...
def build_info() -> dict[str, str]:
    """Compiler, flags for all kernels ("flags_all") and for each instruction set, kind of build."""

def peak_per_second(what: str, block_bytes: int, threads: int) -> float:
    """What `threads` threads reach together: "fma_flops", "load_bytes" or "gather_bytes" (rows of 160 bytes, random).

    `block_bytes` is the size of each thread's own block, which decides the cache it comes from.
    """

def index_error(
    index: int,
    index_bytes: int,
    rows: int,
    kept: int,
    keys: int,
    threads: int = 0,
    to: int = 0,
    to_bytes: int = 4,
) -> tuple[int, int, int, str] | None:
    """First bad entry as (row, position, value, "range" or "duplicate"); threads 0: as many as OpenMP would use.

    `to` receives a copy in `to_bytes` an entry, 2 for up to 32767 keys, else 4; incomplete where something is wrong.
    """

def sddmm_workspace_bytes(sizes: _Sizes, threads: int) -> int: ...
def spmm_workspace_bytes(sizes: _Sizes, threads: int) -> int: ...
def spmm_transpose_workspace_bytes(sizes: _Sizes, threads: int) -> int: ...
def sddmm(
    q: _Matrix,
    k: _Matrix,
    index: int,
    index_bytes: int,
    out: int,
    sizes: _Sizes,
    workspace: int,
    workspace_bytes: int,
    threads: int,
) -> None: ...
def spmm(
    a: _Matrix,
    v: _Matrix,
    index: int,
    index_bytes: int,
    out: int,
    sizes: _Sizes,
    workspace: int,
    workspace_bytes: int,
    threads: int,
) -> None: ...
def spmm_transpose(
    a: _Matrix,
    x: _Matrix,
    index: int,
    index_bytes: int,
    out: int,
    sizes: _Sizes,
    workspace: int,
    workspace_bytes: int,
    threads: int,
) -> None: ...
def row_reads_workspace_bytes(sizes: _Sizes, threads: int) -> int: ...
def row_reads(
    rows: _Matrix,
    index: int,
    index_bytes: int,
    out: int,
    sizes: _Sizes,
    workspace: int,
    workspace_bytes: int,
    threads: int,
) -> None:
    """[B, D]: every row that the index names, added up: the reads of the sparse products and nothing else."""

# address and strides: window, head, row, column (which must be 1)
_Tensor = tuple[int, tuple[int, ...]]
# address (0: none) and bytes per element
_Index = tuple[int, int]
# windows, heads, queries, keys, dim_qk, dim_v, candidates, topk, window_size (0: no bias), patterns (0: no region)
_AttentionSizes = tuple[int, int, int, int, int, int, int, int, int, int]

MAX_DEPTHWISE_KERNEL: int

# batch, height, width, channels, kernel, first_row, rows
_ImageSizes = tuple[int, ...]

def depthwise_workspace_bytes(sizes: _ImageSizes, threads: int) -> int: ...
def depthwise_gelu_add(
    x: _Tensor,
    weight: int,
    bias: int,
    residual: _Tensor,
    out: _Tensor,
    sizes: _ImageSizes,
    workspace: int,
    workspace_bytes: int,
    threads: int,
) -> None:
    """Images [batch, height, width, channels]; weight [kernel, kernel, channels]."""

def attention_forward_workspace_bytes(sizes: _AttentionSizes, sparse: bool, threads: int) -> int: ...
def attention_backward_workspace_bytes(sizes: _AttentionSizes, sparse: bool, threads: int) -> int: ...
def attention_forward(
    sizes: _AttentionSizes,
    scale: float,
    region_penalty: float,
    q: _Tensor,
    k: _Tensor,
    v: _Tensor,
    bias: int,
    region: int,
    index: _Index,
    logits: int,
    out: _Tensor,
    new_index: _Index,
    new_logits: int,
    lse: int,
    timed: bool,
    workspace: int,
    workspace_bytes: int,
    threads: int,
) -> tuple[float, float, float] | None: ...
def attention_backward(
    sizes: _AttentionSizes,
    scale: float,
    region_penalty: float,
    grad_out: _Tensor,
    grad_logits: int,
    q: _Tensor,
    k: _Tensor,
    v: _Tensor,
    bias: int,
    region: int,
    index: _Index,
    logits: int,
    new_index: _Index,
    out: _Tensor,
    lse: int,
    grad_q: _Tensor,
    grad_k: _Tensor,
    grad_v: _Tensor,
    grad_bias: int,
    grad_logits_prev: int,
    workspace: int,
    workspace_bytes: int,
    threads: int,
) -> None: ...
