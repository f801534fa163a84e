"""How often each basic block of the SASS ran, from what the emulator counted: a linear program.

What is known exactly: requests by place of the source and width, instructions of a whole warp (shuffles, matrix
products, barriers), and that a warp that enters a block came from one before and goes on to one after. What ptxas
moved, joined or left out makes some of these disagree; the program finds the execution counts that disagree least, and
among those the fewest instructions. Where that leaves several, the result is a lower bound; `explained` says how much
of what was counted it agrees with.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_matrix

from .listing import SassBlock

Place = tuple[str, ...]
Key = tuple[str, int, Place]
Counted = Mapping[Key, int]
"""Requests by (kind and space, bytes, place)."""
Part = tuple[set[Key], set[Key]]
"""Accesses of the SASS, and the counted places that they belong to."""

_DISAGREE, _DISAGREE_IN_ALL, _INSTRUCTION = 10.0, 40.0, 1e-3
_AGREES = 0.98
"""Share of the counts at which no more places are taken together."""


@dataclass
class _Rows:
    """Linear equations or inequalities under construction: (row, column, value) and right-hand sides."""

    at: list[tuple[int, int, float]] = field(default_factory=list)
    right: list[float] = field(default_factory=list)

    def add(self, terms: Mapping[int, float], right: float = 0.0) -> int:
        row = len(self.right)
        self.at += [(row, column, value) for column, value in terms.items()]
        self.right.append(right)
        return row

    def matrix(self, columns: int) -> coo_matrix:
        rows, cols, values = zip(*self.at, strict=True) if self.at else ((), (), ())
        return coo_matrix((values, (rows, cols)), shape=(len(self.right), columns)).tocsr()


def executions(
    blocks: Sequence[SassBlock], counted: Counted, steps: Mapping[str, int], warps: int
) -> tuple[list[float], float]:
    """Execution count of each block by warps, and the share of the counts that it explains.

    ptxas confuses places: loads of neighbouring lines, of both arms of a branch. Those that disagree are taken
    together, as few as do: those of one function, then those of its caller, and so on.
    """
    parts = _components(blocks, counted)
    best, most = _solve(blocks, counted, steps, warps, parts)
    deepest = max((len(place) for _, _, place in counted), default=0)
    for dropped in range(1, deepest):
        if most >= _AGREES:
            break
        together = _joined(blocks, counted, parts, best, dropped)
        if len(together) == len(parts):
            continue
        parts = together
        ran, explained = _solve(blocks, counted, steps, warps, parts)
        if explained > most:
            best, most = ran, explained
    return best, most


def _solve(
    blocks: Sequence[SassBlock], counted: Counted, steps: Mapping[str, int], warps: int, parts: Sequence[Part]
) -> tuple[list[float], float]:
    equations, never = _equations(blocks, counted, steps, parts)
    edges = [(a, b) for a, block in enumerate(blocks) for b in block.after]
    nb, ne, nq = len(blocks), len(edges), len(equations)
    columns = nb + ne + 2 * nq
    equal, at_most = _Rows(), _Rows()
    for q, (terms, right, _) in enumerate(equations):
        equal.add({**terms, nb + ne + q: -1.0, nb + ne + nq + q: 1.0}, right)
    equal.add({0: 1.0}, warps)
    _flow(at_most, edges, nb)
    cost = np.zeros(columns)
    cost[:nb] = [_INSTRUCTION * max(1, block.units["issue"]) for block in blocks]
    for q, (_, _, weight) in enumerate(equations):
        cost[nb + ne + q] = cost[nb + ne + nq + q] = weight
    bounds = [(0, 0) if b in never else (0, None) for b in range(nb)] + [(0, None)] * (columns - nb)
    found = linprog(
        cost,
        A_ub=at_most.matrix(columns),
        b_ub=at_most.right,
        A_eq=equal.matrix(columns),
        b_eq=equal.right,
        bounds=bounds,
        method="highs",
    )
    if found.status:
        return [0.0] * nb, 0.0
    slack = found.x[nb + ne : nb + ne + nq] + found.x[nb + ne + nq :]
    whole = sum(right for _, right, _ in equations) or 1.0
    return list(found.x[:nb]), max(0.0, 1.0 - float(slack.sum()) / whole)


def _joined(
    blocks: Sequence[SassBlock], counted: Counted, parts: Sequence[Part], ran: Sequence[float], dropped: int
) -> list[Part]:
    """The parts; those of one kind whose places agree but for the innermost `dropped` made one, where some disagree."""
    groups: dict[tuple[str, Place], list[Part]] = defaultdict(list)
    for keys, owners in parts:
        kind, _, place = min(owners)
        groups[kind, place[min(dropped, len(place) - 1) :]].append((keys, owners))
    found: list[Part] = []
    for group in groups.values():
        if any(_disagrees(blocks, counted, part, ran) for part in group):
            found.append((set().union(*(k for k, _ in group)), set().union(*(o for _, o in group))))
        else:
            found += group
    return found


def _disagrees(blocks: Sequence[SassBlock], counted: Counted, part: Part, ran: Sequence[float]) -> bool:
    keys, owners = part
    right = sum(counted[own] * own[1] for own in owners)
    left = sum(
        times * key[1] * ran[b]
        for b, block in enumerate(blocks)
        for key, times in block.accesses.items()
        if key in keys
    )
    return abs(left - right) > 0.01 * right


def _flow(rows: _Rows, edges: Sequence[tuple[int, int]], blocks: int) -> None:
    """A block runs at most as often as its edges say, and an edge at most as often as its ends."""
    into, out = defaultdict(list), defaultdict(list)
    for n, (a, b) in enumerate(edges):
        out[a].append(blocks + n)
        into[b].append(blocks + n)
        rows.add({blocks + n: 1.0, a: -1.0})
        rows.add({blocks + n: 1.0, b: -1.0})
    for b in range(1, blocks):
        rows.add({b: 1.0} | dict.fromkeys(into[b], -1.0))
    for b in range(blocks):
        if out[b]:
            rows.add({b: 1.0} | dict.fromkeys(out[b], -1.0))


def _equations(
    blocks: Sequence[SassBlock], counted: Counted, steps: Mapping[str, int], components: Sequence[Part]
) -> tuple[list[tuple[dict[int, float], float, float]], set[int]]:
    """(terms, right-hand side, price of disagreeing) for each place, kind and step; and blocks that never run."""
    found: list[tuple[dict[int, float], float, float]] = []
    for keys, owners in components:
        least = min(owner[1] for owner in owners)
        terms: dict[int, float] = defaultdict(float)
        for b, block in enumerate(blocks):
            for key in keys & block.accesses.keys():
                terms[b] += block.accesses[key] * key[1] / least  # ptxas joins neighbours: bytes stay
        found.append((dict(terms), sum(counted[o] * o[1] for o in owners) / least, _DISAGREE))
    owned = {key for keys, _ in components for key in keys}
    never = {b for b, block in enumerate(blocks) if _is_a_twin(block, owned, counted)}
    for key in {key for block in blocks for key in block.accesses.keys() - block.optional} - owned:
        terms = {b: float(block.accesses[key]) for b, block in enumerate(blocks) if key in block.accesses}
        found.append((terms, 0.0, _DISAGREE))
    for name, count in steps.items():
        terms = {b: float(block.steps[name]) for b, block in enumerate(blocks) if block.steps[name]}
        if terms:
            found.append((terms, float(count), _DISAGREE_IN_ALL))
    for kind in ("load shared", "store shared", "async shared", "ldmatrix shared"):
        terms = defaultdict(float)
        for b, block in enumerate(blocks):
            for (k, size, _), times in block.accesses.items():
                if k == kind and size == 16:
                    terms[b] += times
        right = sum(n for (k, size, _), n in counted.items() if k == kind and size == 16)
        if terms and right:
            found.append((dict(terms), float(right), _DISAGREE_IN_ALL))
    return found, never


def _is_a_twin(block: SassBlock, owned: set[Key], counted: Counted) -> bool:
    """The int32 twin of an int16 index, the slow path of an aligned copy: known lines, accesses that never happened."""
    strange = any(
        key not in owned
        and key not in block.optional
        and any(key[0] == own[0] and key[2] == own[2] for own in counted)
        for key in block.accesses
    )
    return strange and not any(key in owned for key in block.accesses)


def _components(blocks: Sequence[SassBlock], counted: Counted) -> list[Part]:
    """Accesses of the SASS and the counted places that they belong to, one equation each.

    Where both name the same lines that is one to one. ptxas gives some accesses the lines of their neighbours: those
    left over on one side join what is most like them on the other. What the SASS has on a line of its own that no
    count is near to belongs to nothing: it did not run.
    """
    keys = {key for block in blocks for key in block.accesses}
    links = {(key, key) for key in keys if key in counted}
    links |= {
        (key, own)
        for key in keys
        for own in counted
        if key not in counted and own[2] == key[2] and _joins(own, key)
    }
    mine, theirs = {key for key, _ in links}, {own for _, own in links}
    for key in keys - mine:
        free = _most_like(key, [own for own in counted if own not in theirs and _joins(own, key)])
        near = free or _most_like(key, [own for own in counted if _joins(own, key)])
        links |= {(key, own) for own in near if own[2][:1] == key[2][:1] or own[2][1:] == key[2][1:]}
    for own in counted.keys() - {own for _, own in links}:
        links |= {(key, own) for key in _most_like(own, [key for key in keys if _joins(own, key)])}
    return _connected(links)


def _connected(links: set[tuple[Key, Key]]) -> list[Part]:
    found: list[Part] = []
    for key, own in sorted(links):
        touching = [part for part in found if key in part[0] or own in part[1]]
        merged = ({key}.union(*(p[0] for p in touching)), {own}.union(*(p[1] for p in touching)))
        found = [part for part in found if part not in touching] + [merged]
    return found


def _joins(own: Key, key: Key) -> bool:
    """The same kind and width, or a wider access of shared memory that neighbours were joined to."""
    return own[0] == key[0] and (own[1] == key[1] or ("shared" in key[0] and key[1] > own[1] >= 2))


def _most_like(key: Key, others: Sequence[Key]) -> list[Key]:
    """Those whose innermost and outermost lines agree best with `key`'s; none where neither does."""
    score = {other: 2 * (other[2][:1] == key[2][:1]) + (other[2][-1:] == key[2][-1:]) for other in others}
    best = max(score.values(), default=0)
    return [other for other in others if best and score[other] == best]
