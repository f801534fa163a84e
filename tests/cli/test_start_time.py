"""How long the program takes to answer, beside the least that any program of its libraries takes."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

LEAST = ("-c", "import typer, rich.console")
ANSWERS = {
    "help": ("-m", "pft_bench", "--help"),
    "version": ("-m", "pft_bench", "--version"),
    "help of a command": ("-m", "pft_bench", "run", "--help"),
    "usage error": ("-m", "pft_bench", "run", "--nosuch"),
}
TRIES = 4


def processor_s(arguments: tuple[str, ...]) -> float:
    """Processor time of one process: what it waits for a core is not counted."""

    def used() -> float:
        found = resource.getrusage(resource.RUSAGE_CHILDREN)
        return found.ru_utime + found.ru_stime

    before = used()
    subprocess.run([sys.executable, *arguments], capture_output=True, timeout=60, check=False)
    return used() - before


@pytest.fixture(scope="module")
def fastest_s() -> dict[str, float]:
    """The fastest of a few tries, in turns: noise only lengthens."""
    tries = [
        {name: processor_s(arguments) for name, arguments in {"least": LEAST, **ANSWERS}.items()}
        for _ in range(TRIES)
    ]
    return {name: min(one[name] for one in tries) for name in tries[0]}


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_takes_at_most_three_times_what_its_libraries_take(
    fastest_s: dict[str, float], answer: str
) -> None:
    assert fastest_s[answer] <= 3 * fastest_s["least"], fastest_s
