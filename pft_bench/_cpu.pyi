"""The compiled CPU kernels (bindings/cpu): addresses, strides in elements and sizes in; errors as exceptions."""

# sizes of a sparse product: batch, queries, keys, head_dim, kept
_Sizes = tuple[int, int, int, int, int]
# strides: batch, row; of attention tensors: window, head, row
_Strides = tuple[int, int]

def isa() -> str: ...
def isas() -> list[str]: ...
def index_error(
    index: int, index_bytes: int, rows: int, kept: int, keys: int, threads: int
) -> tuple[int, int, int, str] | None: ...
def sddmm_workspace_bytes(sizes: _Sizes, threads: int) -> int: ...
def spmm_workspace_bytes(sizes: _Sizes, threads: int) -> int: ...
def spmm_transpose_workspace_bytes(sizes: _Sizes, threads: int) -> int: ...
def sddmm(
    q: int,
    q_strides: _Strides,
    k: int,
    k_strides: _Strides,
    index: int,
    index_bytes: int,
    out: int,
    sizes: _Sizes,
    workspace: int,
    workspace_bytes: int,
    threads: int,
) -> None: ...
def spmm(
    a: int,
    a_strides: _Strides,
    v: int,
    v_strides: _Strides,
    index: int,
    index_bytes: int,
    out: int,
    sizes: _Sizes,
    workspace: int,
    workspace_bytes: int,
    threads: int,
) -> None: ...
def spmm_transpose(
    a: int,
    a_strides: _Strides,
    x: int,
    x_strides: _Strides,
    index: int,
    index_bytes: int,
    out: int,
    sizes: _Sizes,
    workspace: int,
    workspace_bytes: int,
    threads: int,
) -> None: ...
