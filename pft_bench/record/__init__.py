"""Results: a record (`schema`) and its parts, the folder of a run (`folder`), records as a table (`frame`)."""

from .folder import (
    FolderLocked,
    Problem,
    RecordWriter,
    Scan,
    lock_folder,
    read_records,
    remember_environment,
    scan_records,
)
from .frame import to_frame
from .parts import (
    Baseline,
    Case,
    CheckResult,
    Derived,
    Flops,
    Level,
    Memory,
    Mode,
    RecordError,
    Scalar,
    Status,
    Timing,
    derive,
)
from .schema import SCHEMA, Record, recompute, timing_of

__all__ = [
    "SCHEMA",
    "Baseline",
    "Case",
    "CheckResult",
    "Derived",
    "Flops",
    "FolderLocked",
    "Level",
    "Memory",
    "Mode",
    "Problem",
    "Record",
    "RecordError",
    "RecordWriter",
    "Scalar",
    "Scan",
    "Status",
    "Timing",
    "derive",
    "lock_folder",
    "read_records",
    "recompute",
    "remember_environment",
    "scan_records",
    "timing_of",
    "to_frame",
]
