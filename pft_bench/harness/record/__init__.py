"""Results: a record (`schema`) and its parts; a run folder as one value to read and to write (`run`), made of
files with records (`folder`) and what lies beside them (`beside`); records as a table (`frame`).

No other package opens these files.
"""

from .beside import (
    ENVIRONMENTS,
    SETTINGS,
    known_environments,
    known_settings,
    remember_environment,
    remember_settings,
)
from .folder import (
    RECORDS,
    BadLine,
    FolderLocked,
    RecordWriter,
    Scan,
    lock_folder,
    merge_shares,
    read_folder,
    read_records,
    record_file,
    record_files,
    scan_records,
)
from .frame import shown, to_frame
from .parts import (
    Baseline,
    Case,
    CheckEntry,
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
    seal,
    threads_text,
)
from .run import RunFolder, RunWriter, begin_run
from .schema import SCHEMA, Record, recompute, timing_of

__all__ = [
    "ENVIRONMENTS",
    "RECORDS",
    "SCHEMA",
    "SETTINGS",
    "BadLine",
    "Baseline",
    "Case",
    "CheckEntry",
    "Derived",
    "Flops",
    "FolderLocked",
    "Level",
    "Memory",
    "Mode",
    "Record",
    "RecordError",
    "RecordWriter",
    "RunFolder",
    "RunWriter",
    "Scalar",
    "Scan",
    "Status",
    "Timing",
    "begin_run",
    "derive",
    "known_environments",
    "known_settings",
    "lock_folder",
    "merge_shares",
    "read_folder",
    "read_records",
    "recompute",
    "record_file",
    "record_files",
    "remember_environment",
    "remember_settings",
    "scan_records",
    "seal",
    "shown",
    "threads_text",
    "timing_of",
    "to_frame",
]
