"""Is a run folder consistent? Every derived number is computed again and every text of the report made again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..harness.measure.environment import fingerprint, machine_fingerprint
from ..harness.record import (
    ENVIRONMENTS,
    PLAN,
    RECORDS,
    SETTINGS,
    WRITTEN,
    Case,
    Flops,
    Record,
    RecordError,
    RunFolder,
    Status,
    derive,
    known_environments,
    known_files,
    known_settings,
    record_files,
    seal,
    to_frame,
)
from .folder import QUALITY, with_quality
from .page import generator
from .verification import Mismatch, Verification, hold_table
from .write import SUMMARY, texts

Formula = Callable[[Case], Flops | None]
Recount = Callable[[Case], int | str]


def verify_folder(
    path: Path | str,
    *,
    formula: Formula | None = None,
    recount: Recount | None = None,
    processor: Mapping[str, Any] | None = None,
) -> Verification:
    """Hold everything derived in a run folder against its raw samples.

    Args:
        path: the folder; the report's files are checked where they exist.
        formula: the operations and bytes of a case (`insight.counts.formula_counts`).
        recount: its counted FLOPs, or why they cannot be counted (`insight.counts.recount`).
        processor: the `cpu` entry of this machine's environment. Records of the same processor and numpy have to
            agree in every bit; those of others in all but the last place.
    """
    result = Verification()
    if not record_files(Path(path)) and (Path(path) / QUALITY).is_file():
        _hold_evaluation_alone(result, Path(path))
        return result
    try:
        folder = RunFolder.read(path)
    except RecordError as error:
        result.mismatches.append(Mismatch(RECORDS, "the file", str(error), "records that can be read"))
        return result
    result.files.append(RECORDS)
    result.notes += folder.notes
    result.unfinished = folder.unfinished
    if folder.plan:
        result.files.append(PLAN)
    _hold_files(result, folder.path)
    _hold_seals(result, folder)
    hold_environments(result, folder.environments)
    for record in folder.records:
        if folder.environments and record.environment not in folder.environments:
            where = f"environment of {record.case_id}"
            result.mismatches.append(Mismatch(RECORDS, where, record.environment, f"one of {ENVIRONMENTS}"))
        _hold_record(result, record, exact=_same_arithmetic(folder.environment(record), processor))
        _hold_counts(result, record, formula, recount)
        _hold_roof(result, folder, record)
    if (folder.path / SUMMARY).is_file():
        _hold_summary(result, folder)
    result.notes += result.left_out_notes
    readable = _hold_quality(result, folder.path)
    for name, text in texts(with_quality(folder) if readable else folder).items():
        if (folder.path / name).is_file() and not readable:
            result.notes.append(f"{name} not compared: it shows numbers of {QUALITY}")
        elif (folder.path / name).is_file():
            result.files.append(name)
            found = _text_mismatch(name, (folder.path / name).read_text(encoding="utf-8"), text())
            result.mismatches += [] if found is None else [found]
    return result


def _hold_evaluation_alone(result: Verification, path: Path) -> None:
    """A folder of `pft-bench evaluate --rounds 0`: nothing was timed, so there are no records."""
    _hold_files(result, path)
    _hold_settings(result, path)
    with result.reading(ENVIRONMENTS, "environments"):
        hold_environments(result, known_environments(path))
    _hold_quality(result, path)


def _hold_quality(result: Verification, path: Path) -> bool:
    """The rows of an evaluation, by their digests, and its table; whether the rows can be read."""
    if not (path / QUALITY).is_file():
        return True
    from ..apps.quality.evaluate import read_rows  # here: few folders have one, and it needs scikit-image
    from .quality import QUALITY_TABLE, quality_frame

    result.files.append(QUALITY)
    try:
        rows = read_rows(path / QUALITY)
    except RecordError as error:
        result.mismatches.append(Mismatch(QUALITY, "the file", str(error), "the rows that were written"))
        return False
    bare = sum('"seal":' not in line for line in (path / QUALITY).read_text().splitlines()[: len(rows)])
    result.values += len(rows) - bare
    if bare:
        result.notes.append(
            f"{bare} of {len(rows)} rows of {QUALITY} carry no digest (older versions wrote none): "
            f"a number changed there and in {QUALITY_TABLE} would not be noticed"
        )
    result.notes.append(
        f"PSNR and SSIM of {QUALITY} are not computed again: the restored images are not kept. "
        f"Held are the rows' digests, {QUALITY_TABLE} and the report's texts"
    )
    if (path / QUALITY_TABLE).is_file():
        frame = quality_frame(rows).to_csv(index=False)
        hold_table(
            result,
            path / QUALITY_TABLE,
            frame,
            lambda row: f"{row['dataset']} {row['image']}, {row['schedule']} {row['backend']}".strip(),
        )
    return True


def _hold_files(result: Verification, path: Path) -> None:
    """Every file that was written is still there; older versions kept no list."""
    with result.reading(WRITTEN, "the list that was written"):
        listed = known_files(path)
        if listed is None:
            result.notes.append(
                f"no {WRITTEN}: a file that was deleted would not be missed (older versions wrote no list)"
            )
            return
        result.files.append(WRITTEN)
        result.values += len(listed)
        missing = [name for name in listed if not (path / name).is_file()]
        result.mismatches += [Mismatch(name, "the file", "not there", "what was written") for name in missing]


def _hold_roof(result: Verification, folder: RunFolder, record: Record) -> None:
    """No time beats the roof of its run; a row that did says so and has none."""
    if record.status is Status.IMPLAUSIBLE:
        result.notes.append(f"{record.case_id} has no time: {record.reason}")
    roof = folder.roof(record)
    if roof is None or record.derived is None:
        return
    result.values += 1
    beyond = record.beyond(roof)
    if beyond is not None:
        where = f"the time of {record.case_id}"
        result.mismatches.append(Mismatch(RECORDS, where, beyond, f"status {Status.IMPLAUSIBLE.value}"))


def _hold_seals(result: Verification, folder: RunFolder) -> None:
    """The digests of the records, which reading them held already, and that of the settings."""
    count, bare = len(folder.records), len(folder.unsealed)
    result.values += count - bare
    if bare:
        result.notes.append(
            f"{bare} of {count} records carry no digest (older versions wrote none): a raw sample changed so little "
            "that no derived number moves would not be noticed"
        )
    _hold_settings(result, folder.path)


def _hold_settings(result: Verification, path: Path) -> None:
    with result.reading(SETTINGS, "the settings that were written"):
        known = known_settings(path)
        if known is not None:
            result.files.append(SETTINGS)
            result.values += known[1]
            if not known[1]:
                result.notes.append(f"{SETTINGS} carries no digest (older versions wrote none)")


def hold_environments(result: Verification, environments: Mapping[str, Mapping[str, Any]]) -> None:
    """The digests of each environment; older versions wrote none of the parts that may vary (`seal`)."""
    if environments:
        result.files.append(ENVIRONMENTS)
    for name, found in environments.items():
        digests = {
            "its name": (name, fingerprint(found)),
            "fingerprint": (found.get("fingerprint"), fingerprint(found)),
            "machine": (found.get("machine"), machine_fingerprint(found)),
        }
        if "seal" in found:
            digests["seal"] = (found["seal"], seal(found))
        else:
            result.notes.append(
                f"environment {name}: its varying part (roof, load, command) has no digest to hold it to"
            )
        for where, (stored, fresh) in digests.items():
            result.values += 1
            if stored != fresh:
                where = f"{where} of environment {name}"
                result.mismatches.append(Mismatch(ENVIRONMENTS, where, repr(stored), repr(fresh)))


def _same_arithmetic(environment: Mapping[str, Any], processor: Mapping[str, Any] | None) -> bool:
    """Whether numpy's logarithms here are those of the records: the same version on the same instruction sets."""
    recorded = environment.get("cpu") or {}
    library = (environment.get("libraries") or {}).get("numpy")
    return (
        processor is not None
        and library == version("numpy")
        and all(recorded.get(key) == processor.get(key) for key in ("architecture", "isa"))
    )


def _hold_record(result: Verification, record: Record, *, exact: bool) -> None:
    """Medians, ratios, intervals, verdicts; and each check's answer against its numbers."""
    if record.timing is not None and record.derived is not None:
        stored, fresh = asdict(record.derived), asdict(derive(record.timing))
        for name, value in fresh.items():
            result.hold(name, record.case_id, stored[name], value, exact=exact)
    for check in record.checks:
        if check.error is not None and check.bound is not None:
            result.hold(repr(check.name), record.case_id, check.passed, check.error <= check.bound)


def _hold_counts(
    result: Verification, record: Record, formula: Formula | None, recount: Recount | None
) -> None:
    expected = None if formula is None else formula(record.case)
    if expected is not None:
        for name in ("paper_macs", "kernel_flops", "kernel_bytes"):
            stored = getattr(record.flops, name)
            if stored is not None:
                result.hold(name, record.case_id, stored, getattr(expected, name))
    elif formula is not None:
        name = record.case.preset or record.case.op
        result.leave_out(
            "operations and bytes", f"{name} is no model whose shape is known here", record.case_id
        )
    if recount is not None and record.flops.counted_flops is not None:
        counted = recount(record.case)
        if isinstance(counted, str):
            result.leave_out("counted_flops", counted, record.case_id)
        else:
            result.hold("counted_flops", record.case_id, record.flops.counted_flops, counted)


def _hold_summary(result: Verification, folder: RunFolder) -> None:
    """Every cell of summary.csv, as the records give it."""
    hold_table(
        result,
        folder.path / SUMMARY,
        to_frame(folder.records).to_csv(index=False),
        lambda row: row["case_id"],
    )


def _differences(found: str, expected: str) -> Iterator[tuple[int, int]]:
    """Line and column of the first difference."""
    lines, wanted = found.split("\n"), expected.split("\n")
    for number in range(max(len(lines), len(wanted))):
        a = lines[number] if number < len(lines) else ""
        b = wanted[number] if number < len(wanted) else ""
        if a != b or number >= min(len(lines), len(wanted)):
            same = next(
                (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
            )
            yield number, same
            return


def _text_mismatch(name: str, found: str, expected: str) -> Mismatch | None:
    """The first place where a text is not the one that the records give."""
    for line, column in _differences(found, expected):
        if generator() not in found:
            return Mismatch(name, "the file", "made by another version", "that of `pft-bench report` now")
        start = max(0, column - 30)
        texts = [repr(text.split("\n")[line][start : column + 30]) if line < text.count("\n") + 1 else "the end"
                 for text in (found, expected)]  # fmt: skip
        return Mismatch(name, f"line {line + 1}, column {column + 1}", texts[0], texts[1])
    return None
