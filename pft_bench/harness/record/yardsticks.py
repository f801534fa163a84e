"""Names, in records, of what the kernels are compared with: such rows are shown and not judged."""

BASELINE = "dense"
"""The backend that every speed-up is measured against: masked dense attention."""

PEERS = {"sddmm": "sampled_addmm", "spmm": "embedding_bag"}
"""Public operators that do the same work on a CPU; the strongest known ones."""

ROW_READS = "row_reads"
"""The floor: the rows that the index names, read in its order and added up, by the `cpu` kernels' own loads."""

SAMPLED, DENSE = "composed-sampled", "composed-dense"
FRESH = {f"{SAMPLED}-fresh": SAMPLED, f"{DENSE}-fresh": DENSE}
COMPOSED = (SAMPLED, DENSE, *FRESH)
"""A layer put together from PyTorch's own operators; a fresh one prepares its index anew in every call."""

FACTORIZED = "rank-factorized"
"""Dense attention with its positions inside the product (SST), by PyTorch's flash kernel."""

MECHANISMS = ("compute-then-select", "progressive", "progressive, halving", "hashed", "graph", FACTORIZED)
"""Ways to attend to a few tokens; `dense` attends to all."""

YARDSTICKS = frozenset(
    {BASELINE, "official", "spandrel", "networks", *PEERS.values(), ROW_READS, *COMPOSED, *MECHANISMS}
)
"""What kernels are held against: PyTorch's own operators, the published extension, other systems, reads alone. A step
of theirs from one commit to the next is one of the machine or of PyTorch: shown, not judged."""
