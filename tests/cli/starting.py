"""Run in a process of its own by test_start.py: what the program has loaded by the time that it has answered.

Prints one JSON line for each step: its name, its exit code, and which of the libraries below have been loaded by then.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from importlib import import_module
from importlib.abc import MetaPathFinder

TRAINING = ("pft_bench.apps.train", "torch.distributed.run", "tensorboard")
PICTURES = ("matplotlib", "PIL", "skimage", "pyvips", "cv2")
HEAVY = ("torch", "numpy", "pandas", "scipy", *PICTURES, *TRAINING)


def tell(name: str, code: object, **more: object) -> None:
    loaded = [library for library in HEAVY if library in sys.modules]
    print(json.dumps({"name": name, "code": code, "loaded": loaded, **more}), flush=True)


def answer(*arguments: str) -> tuple[object, str]:
    """The exit code of a command line and what it said."""
    from pft_bench.cli import main

    said = io.StringIO()
    sys.argv = ["pft-bench", *arguments]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            main()
    except SystemExit as end:
        return end.code, said.getvalue()
    return 0, said.getvalue()


class Interrupts(MetaPathFinder):
    """Ctrl-C at the moment when a module is looked for."""

    at: str | None = None

    def find_spec(self, name: str, *_: object) -> None:
        if name == self.at:
            self.at = None
            raise KeyboardInterrupt


def start(run: str, trials: str) -> None:
    import pft_bench

    tell("import pft_bench", 0)
    interrupts = Interrupts()
    sys.meta_path.insert(0, interrupts)
    for module in ("pft_bench.cli.app", "typer", "rich.progress", "pft_bench.cli.train"):
        interrupts.at = module
        code, said = answer("--help")
        tell(f"Ctrl-C at {module}", code, reached=interrupts.at is None, said=said)
    sys.meta_path.remove(interrupts)
    from pft_bench.cli.app import NAMES

    for arguments in (["--help"], ["--version"], [], *([name, "-h"] for name in sorted(NAMES))):
        tell(" ".join(arguments), answer(*arguments)[0])
    for arguments in (
        ["nosuch"], ["--nosuch"], ["run", "--nosuch"], ["run", "--rounds", "x"], ["run", "--rounds", "3"],
        ["run", "--threads", "100000"], ["run", "--lr", "64"], ["run", "--sched", "some"], ["run", "--scale", "5"],
        ["check", "--device", "tpu"], ["check", "--tokens", "0"], ["upscale"], ["upscale", "a", "b"], ["verify"],
        ["train", "--data", ""], ["profile", "--dtype", "int8"], ["compare", "--mode", "none"], ["doctor", "extra"],
        ["statistics", "--windows", "0"], ["fit", "--sched", "alpha:2"], ["history", "--margin", "none"],
    ):  # fmt: skip
        tell(" ".join(arguments), answer(*arguments)[0])
    complete()
    code, said = answer("verify", trials)
    tell("verify comparisons", code, said=said)
    for arguments in (["compare", run, run, "--ci"], ["history", run], ["report", run]):
        code, said = answer(*arguments)
        tell(arguments[0], code, said=said)
    interrupts.at = "torch"
    sys.meta_path.insert(0, interrupts)
    code, said = answer("doctor")
    tell("Ctrl-C at torch", code, reached=interrupts.at is None, said=said)
    from pft_bench import PFT, load, progressive_attention  # noqa: F401

    offered = {name: hasattr(pft_bench, name) for name in (*pft_bench.__all__, "model", "ops", "nosuch")}
    tell("everything of pft_bench", 0, offered=offered, listed=dir(pft_bench))
    from pft_bench.cli import work

    for name in sorted(NAMES):
        module = import_module(f"pft_bench.cli.{name}")
        work.complete(module)
        tell(f"complete {name}", 0, names=sorted(vars(module)))


def complete() -> None:
    """What a shell asks for: the commands that begin with `ru`, the options of one."""
    for words, place in (("pft-bench ru", 1), ("pft-bench run --sch", 2)):
        asked = {"_PFT_BENCH_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(place)}
        os.environ.update(asked)
        code, said = answer()
        for name in asked:
            del os.environ[name]
        tell(f"complete {words}", code, said=said)


if __name__ == "__main__":
    start(*sys.argv[1:])
