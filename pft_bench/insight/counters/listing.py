"""Reads what nvdisasm prints (`-c -gi`, of objects made with -lineinfo) into basic blocks.

A block has its instructions by unit, and the places of the source that its accesses come from.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ..kernel_table import parse_name

# Lines of what kernels are written in, and of CUDA's own headers: a place is named by who called it.
_NOT_OURS = re.compile(r"^(portable\.cuh|sm_|cuda_|device_|math_|crt|vector_)")
_SIZES = {"64": 8, "128": 16, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
_MEMORY = {
    "LDS": "load shared",
    "STS": "store shared",
    "LDG": "load global",
    "STG": "store global",
    "LDGSTS": "async shared",
    "LDSM": "ldmatrix shared",
    "ATOMS": "atomic shared",
}
STEPS = {"SHFL": "shuffle", "REDUX": "reduce", "HMMA": "mma", "BAR": "barrier", "VOTE": "vote"}
_FMA = {"FFMA", "FMUL", "FADD", "FFMA32I", "HADD2", "HFMA2", "HMUL2"}
_MUFU = {"MUFU", "POPC", "FLO", "BREV", "I2F", "F2I", "I2FP", "F2F"}
_ELSEWHERE = {
    *(
        "BRA",
        "BSSY",
        "BSYNC",
        "EXIT",
        "RET",
        "CALL",
        "WARPSYNC",
        "NOP",
        "YIELD",
        "BAR",
        "DEPBAR",
        "LDGDEPBAR",
    ),
    *(
        "BREAK",
        "S2R",
        "S2UR",
        "MEMBAR",
        "ERRBAR",
        "CCTL",
        "LDC",
        "SHFL",
        "REDUX",
        "HMMA",
        "LDL",
        "STL",
        "BMOV",
    ),
    *_MEMORY,
}


@dataclass
class SassBlock:
    """One basic block: instructions by unit (`issue` is all), accesses by (kind, bytes, place), steps, successors."""

    units: Counter[str] = field(default_factory=Counter)
    accesses: Counter[tuple[str, int, tuple[str, ...]]] = field(default_factory=Counter)
    steps: Counter[str] = field(default_factory=Counter)
    optional: set[tuple[str, int, tuple[str, ...]]] = field(default_factory=set)
    """Accesses under a predicate: the block may run without them."""
    after: list[int] = field(default_factory=list)


def unit_of(opcode: str) -> str | None:
    """The unit that an opcode keeps busy beside an issue slot; None for memory, control and matrix instructions."""
    base = opcode.split(".")[0]
    if base in _FMA:
        return "fma"
    if base == "IMAD":
        return "imad"
    if base in _MUFU:
        return "mufu"
    if base in _ELSEWHERE or base.startswith("U"):  # the uniform data path is one of its own
        return None
    return "alu"


def access_of(opcode: str) -> tuple[str, int] | None:
    """Kind and bytes of a memory instruction, None for any other."""
    base, *modifiers = opcode.split(".")
    if base not in _MEMORY:
        return None
    if base in ("LDSM", "LDGSTS"):
        return _MEMORY[base], 16
    return _MEMORY[base], next((_SIZES[m] for m in modifiers if m in _SIZES), 4)


def read_listing(text: str) -> dict[str, list[SassBlock]]:
    """Kernel label (name with template types) -> its blocks, in order, the entry first."""
    found = {}
    for mangled, lines in _functions(text.splitlines()):
        parsed = parse_name(mangled)
        if parsed is not None:
            name, types = parsed
            found[f"{name}<{', '.join(types)}>" if types else name] = _blocks(lines)
    return found


def _functions(lines: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    name = ""
    body: list[str] = []
    for line in lines:
        match = re.match(r"\.text\.(\S+):", line)
        if match or line.startswith("\t.section"):
            if name:
                yield name, body
            name, body = (match.group(1) if match else ""), []
        elif name:
            body.append(line)
    if name:
        yield name, body


def _blocks(lines: list[str]) -> list[SassBlock]:
    """Cut at labels and after branches; a function called in the kernel (a long division) is left out."""
    blocks = [SassBlock()]
    labels: dict[str, int] = {}
    jumps: list[tuple[int, str]] = []
    chain: tuple[str, ...] = ()
    fresh = True
    for line in lines:
        if (match := re.match(r"\s*\.(L_\S+):", line)) is not None:
            if blocks[-1].units["issue"]:
                _fall_through(blocks)
            labels[match.group(1)] = len(blocks) - 1
        elif (match := re.search(r'//## File "([^"]+)", line (\d+)', line)) is not None:
            chain = (() if fresh else chain) + (f"{match.group(1).rsplit('/', 1)[-1]}:{match.group(2)}",)
            fresh = False
        elif (match := re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?)\s*;", line)) is not None:
            fresh = True
            _add(blocks, match.group(1), tuple(c for c in chain if not _NOT_OURS.match(c)), jumps)
    for source, label in jumps:
        if label in labels:
            blocks[source].after.append(labels[label])
    last = len(blocks)
    for block in blocks:
        block.after = [n for n in block.after if n < last]
    return blocks


def _fall_through(blocks: list[SassBlock]) -> None:
    blocks[-1].after.append(len(blocks))
    blocks.append(SassBlock())


def _add(blocks: list[SassBlock], text: str, chain: tuple[str, ...], jumps: list[tuple[int, str]]) -> None:
    predicate = re.match(r"@(!?U?P[T\d]+)\s+", text)
    opcode = text[predicate.end() if predicate else 0 :].split()[0]
    block, base = blocks[-1], opcode.split(".")[0]
    never = predicate is not None and predicate.group(1) == "!PT"
    block.units["issue"] += 1
    unit = unit_of(opcode)
    if unit and not never:
        block.units[unit] += 1
    access = access_of(opcode)
    if access and not never:
        key = (*access, chain)
        block.accesses[key] += 1
        if predicate:
            block.optional.add(key)
    if base in STEPS and not never:
        block.steps[STEPS[base]] += 1
    if opcode.startswith("MUFU.EX2"):
        block.steps["exp"] += 1
    if base in ("BRA", "EXIT", "RET", "BRX", "JMP"):
        _branch(blocks, text, opcode, predicate is not None, jumps)


def _branch(
    blocks: list[SassBlock], text: str, opcode: str, predicated: bool, jumps: list[tuple[int, str]]
) -> None:
    block = len(blocks) - 1
    target = re.search(r"`\(\.?(L_\S+?)\)", text)
    operands = text.split("`")[0].split(opcode, 1)[-1]
    conditional = predicated or bool(re.search(r"\bU?P\d", operands))
    if opcode.startswith("BRA.DIV"):
        conditional, target = True, None  # a warp that has come together does not take it
    if target and opcode.startswith("BRA"):
        jumps.append((block, target.group(1)))
    if conditional:
        blocks[block].after.append(block + 1)
    blocks.append(SassBlock())
