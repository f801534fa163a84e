"""What users see of kernels that do without, fail or cheat, of copies, of damage and of machines that are busy."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pft_bench.backends import base
from pft_bench.cli import compare as compare_command
from pft_bench.cli import sweeping
from pft_bench.harness.measure import roof
from pft_bench.harness.record import read_records
from pft_bench.harness.sweep import load_plugins

Command = Callable[..., Any]

PLUGIN = """
from pft_bench.backends import get, register
from pft_bench.harness.selftest.mutant import Mutant

@register
class Mine(Mutant):
    name = "mine"
"""
SPMM = """
def spmm(self, a, v, index):
    return get("cpu").spmm(a, v, index)
"""
SMALL = ("--tokens", 4, "--head-dim", 3, "--seeds", 1, "--dtype", "float32")


@pytest.mark.parametrize("wrong", [False, True])
def test_check_skips_the_ops_that_a_backend_lacks_and_holds_the_others(
    pft_bench_command: Command, bare_plugin: Callable[[str], tuple[Any, ...]], wrong: bool
) -> None:
    text = SPMM.replace("index)\n", "index) * 2\n") if wrong else SPMM
    ended = pft_bench_command("check", *bare_plugin(text), *SMALL, "--verbose")
    assert ended.code == wrong, ended
    for lacking in ("sddmm", "attention_forward"):
        assert f"backend 'mine' has no {lacking}" in ended.out
    assert "spmm operator" in ended.out


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("raise RuntimeError('no such chip')", "mine.sddmm raised RuntimeError at mine.py:"),
        ("return None", "sddmm operator K=4 D=3 seed=0: FAILED: None was returned, a tensor is expected"),
    ],
)
def test_check_goes_on_after_an_exception_or_none(
    pft_bench_command: Command, plugin: Callable[[str], tuple[Any, ...]], body: str, told: str
) -> None:
    text = PLUGIN + f"    def sddmm(self, q, k, index):\n        {body}\n"
    ended = pft_bench_command("check", *plugin(text), *SMALL, "--verbose")
    assert ended.code == 1
    assert told in ended.out
    assert "spmm operator" in ended.out
    assert "attention out" in ended.out


def test_available_that_raises_names_its_backend(
    pft_bench_command: Command, plugin: Callable[[str], tuple[Any, ...]]
) -> None:
    text = PLUGIN + "    def available(self):\n        raise OSError('no driver')\n"
    ended = pft_bench_command("check", *plugin(text))
    assert ended.code == 2
    assert "mine" in ended.err
    assert "its available() raised OSError: no driver" in ended.err
    assert len(ended.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("does", "told"),
    [
        (
            "from pft_bench.harness.measure import verified\nverified.Verified._require = staticmethod(lambda *a: 0)",
            "replaced pft_bench.harness.measure.verified.Verified._require",
        ),
        ("import time\ntime.perf_counter_ns = lambda: 0", "replaced time.perf_counter_ns"),
        ("import sys\nsys.setprofile(lambda *a: None)", "changed trace or profile function"),
        ("import gc\ngc.callbacks.append(lambda *a: None)", "changed garbage collection"),
        ("import os\nos.write = lambda fd, data: len(data)", "replaced os.write"),
        ("import json\njson.dumps = lambda *a, **b: '{}'", "replaced json.dumps"),
        ("import signal\nsignal.signal(signal.SIGUSR2, lambda *a: None)", "changed signal handlers: SIGUSR2"),
        ("import sys\nsys.stdout = open('/dev/null', 'w')", "changed standard output or error"),
        ("import os, time\nif not os.fork():\n    time.sleep(60)", "left 1 child processes running"),
        ("import os\nos.fork()", "left 1 child processes running"),
        (
            "import threading, time\nthreading.Thread(target=lambda: [time.sleep(0.01) for _ in range(999)]).start()",
            "left 1 threads running",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # how it is ended
def test_a_plugin_that_changes_the_harness_while_it_is_imported_is_refused(
    pft_bench_command: Command, plugin: Callable[[str], tuple[Any, ...]], does: str, told: str
) -> None:
    ended = pft_bench_command("check", *plugin(f"{does}\n{PLUGIN}"), *SMALL)
    assert ended.code == 2
    assert "while it was imported it" in ended.err
    assert told in ended.err
    assert len(ended.err.splitlines()) == 1


def test_a_plugin_whose_import_fails_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "fails.py"
    path.write_text(
        "import time\nimport torch\n" + PLUGIN + "torch.relu = time.sleep = abs\n"
        "torch.set_default_dtype(torch.float64)\nraise OSError('no such chip')\n"
    )
    relu, sleep, known = torch.relu, time.sleep, base.names()
    with pytest.raises(ValueError, match="OSError: no such chip"):
        load_plugins([str(path)])
    assert (torch.relu, time.sleep, torch.get_default_dtype(), base.names()) == (
        relu,
        sleep,
        torch.float32,
        known,
    )


REACHING = """
import os, shutil, sys
from pathlib import Path
from pft_bench.backends import get, register
from pft_bench.harness.selftest.mutant import Mutant

FOLDER = Path(sys.argv[sys.argv.index("--out") + 1])
RECORDS = FOLDER / "records.jsonl"

class Reaching(Mutant):
    calls = 0

    def sddmm(self, q, k, index):
        raise NotImplementedError("no sddmm")

    def spmm(self, a, v, index):
        self.calls += 1
        if self.calls == 2:
            self.reach()
        return get("cpu").spmm(a, v, index)

def reaching(does):
    kind = type(does.__name__, (Reaching,), {"name": does.__name__, "reach": lambda self: does()})
    return register(kind)

@reaching
def appends():
    RECORDS.open("a").write(RECORDS.read_text().splitlines()[0].replace("dense", "dense2") + chr(10))

@reaching
def adds():
    shutil.copy(RECORDS, FOLDER / "records-2of3.jsonl")

@reaching
def rewrites():
    (FOLDER / "environment.json").write_text("{}")

@reaching
def cuts():
    os.truncate(RECORDS, 10)

@reaching
def links():
    RECORDS.rename(FOLDER / "elsewhere")
    RECORDS.symlink_to("elsewhere")

@reaching
def honest():
    pass

@reaching
def removes():
    shutil.rmtree(FOLDER)
"""
REACHES = {
    "appends": "records.jsonl",
    "adds": "records-2of3.jsonl",
    "rewrites": "environment.json",
    "cuts": "records.jsonl",
    "links": "records.jsonl",
    "removes": ".lock, environment.json, plan.json, records-2of3.jsonl, records.jsonl, settings.json",
}
"""Backend of `REACHING` -> the files that its row names; in the order in which they run."""


@pytest.fixture
def plugin_of(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "reaching.py"
        path.write_text(text)
        return path

    return write


def test_who_changes_the_run_folder_is_named_and_what_was_measured_stays(
    tiny_run: Command, pft_bench_command: Command, plugin_of: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    backends = [word for name in (*REACHES, "honest") for word in ("--backend", name)]
    given = ("--sched", "16", "--level", "op", "--out", folder, "--plugin", plugin_of(REACHING))
    ended = tiny_run(*given, *backends)
    assert ended.code == 1
    found = read_records(folder / "records.jsonl").records
    rows = {r.case.backend: r for r in found if r.case.op == "spmm"}
    for name, files in REACHES.items():
        assert rows[name].timing is None
        assert f"it changed the run folder: {files} (restored)" in str(rows[name].reason), name
    assert all(rows[name].timing is not None for name in ("dense", "honest", "embedding_bag"))
    assert {r.case.backend for r in found if r.case.op == "sddmm"} >= {"dense", "sampled_addmm", *REACHES}
    assert len({record.case_id for record in found}) == len(found)
    assert not (folder / "records-2of3.jsonl").exists()
    ended = pft_bench_command("verify", folder, "--no-recount")
    assert ended.code == 0, ended


def test_a_plugin_that_edits_plugins_or_this_package_has_no_time(
    tiny_run: Command, pft_bench_command: Command, plugin_of: Callable[[str], Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from pft_bench.harness.sweep import foreign

    package = tmp_path / "package"
    package.mkdir()
    monkeypatch.setattr(
        foreign, "code_files", lambda: [(path, Path(path.name)) for path in package.iterdir()]
    )
    text = (
        REACHING.partition("@reaching\ndef appends")[0]
        + """
@reaching
def edits():
    Path(__file__).open("a").write("# edited")
    (Path(__file__).parent / "package" / "new.py").touch()
"""
    )
    folder = tmp_path / "run"
    plugin = plugin_of(text)
    ended = tiny_run(
        "--sched", "16", "--level", "op", "--out", folder, "--plugin", plugin, "--backend", "edits"
    )
    assert ended.code == 1
    rows = {(r.case.op, r.case.backend): r for r in read_records(folder / "records.jsonl").records}
    reason = str(rows["spmm", "edits"].reason)
    assert f"changed the file of a plug-in: {plugin}" in reason
    assert "changed this package's own files: new.py" in reason
    assert rows["spmm", "dense"].timing is not None
    assert plugin.read_text().endswith("# edited"), "its author may be editing it"
    assert pft_bench_command("verify", folder, "--no-recount").code == 0


def test_a_folder_that_is_to_be_continued_is_held_before_anything_is_measured(
    tiny_run: Command, pft_bench_command: Command, plugin_of: Callable[[str], Path], tmp_path: Path
) -> None:
    text = (
        REACHING.partition("@reaching\ndef appends")[0]
        + """
from pft_bench.harness.selftest.mutant import Mutant

@register
class Waits(Mutant):
    name = "waits"

    def available(self):
        if (FOLDER.parent / "now").exists():
            RECORDS.write_text("")
"""
    )
    folder = tmp_path / "run"
    given = (
        "--sched",
        "16",
        "--level",
        "op",
        "--out",
        folder,
        "--plugin",
        plugin_of(text),
        "--backend",
        "waits",
    )
    assert tiny_run(*given).code == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (tmp_path / "now").touch()
    ended = tiny_run(*given, "--resume", "--sched", "5")
    assert ended.code == 2
    assert "before anything was measured it changed the run folder: records.jsonl (put back)" in ended.err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert pft_bench_command("verify", folder, "--no-recount").code == 0


def test_a_cheat_is_a_row_without_a_time_and_the_others_have_theirs(
    tiny_run: Command, pft_bench_command: Command, plugin: Callable[[str], tuple[Any, ...]], tmp_path: Path
) -> None:
    text = (
        PLUGIN
        + """
    known = {}
    def spmm(self, a, v, index):
        if a.shape not in self.known:
            self.known[a.shape] = get("cpu").spmm(a, v, index)
        return self.known[a.shape].clone()
"""
    )
    folder = tmp_path / "run"
    ended = tiny_run("--sched", "16,5", "--level", "op", "--out", folder, *plugin(text))
    assert ended.code == 1
    found = {
        (r.case.op, r.case.backend): r
        for r in read_records(folder / "records.jsonl").records
        if r.case.k == 5
    }
    assert found["spmm", "mine"].status.value == "failed"
    assert found["spmm", "mine"].timing is None
    assert found["spmm", "dense"].timing is not None
    assert found["sddmm", "mine"].timing is not None
    assert "the output did not follow" in ended.out.replace("\n", " ")


@pytest.fixture
def folder(copy_of_kept: Callable[..., Path], tiny_run: Command) -> Path:
    """A run folder of one op, to be damaged."""
    arguments = ("--sched", "16,5", "--level", "op", "--backend", "cpu")
    return copy_of_kept(lambda out: tiny_run(*arguments, "--out", out))


def test_copies_of_a_run_are_said_to_be_identical(
    pft_bench_command: Command, folder: Path, kept: Path
) -> None:
    ended = pft_bench_command("compare", kept, folder)
    assert "the two runs are identical" in ended.out
    lines = (folder / "records.jsonl").read_text().splitlines(keepends=True)
    (folder / "records.jsonl").write_text("".join(lines[:-1]))
    ended = pft_bench_command("compare", kept, folder)
    assert "identical" not in ended.out
    assert f"{len(lines) - 1} of {len(lines)} records are the same in both" in ended.out


@pytest.mark.parametrize(
    "damage", ["{", "[]", '{"a": 1}', '{"a": {"now": []}}', '{"a": {"now": {"roof": {"x": 1}}}}', b"\xff"]
)
def test_a_damaged_environment_names_its_file(
    pft_bench_command: Command, folder: Path, damage: str | bytes
) -> None:
    (folder / "environment.json").write_bytes(damage if isinstance(damage, bytes) else damage.encode())
    for command in (("verify", folder), ("report", folder), ("compare", folder, folder)):
        ended = pft_bench_command(*command)
        assert ended.code != 0
        assert "environment.json" in (ended.out + ended.err).replace("\n", "")
        assert "Traceback" not in ended.out + ended.err


@pytest.mark.parametrize("name", ["summary.csv", "settings.json", "files.json"])
def test_verify_misses_a_file_that_was_deleted(pft_bench_command: Command, folder: Path, name: str) -> None:
    assert pft_bench_command("verify", folder).code == 0
    (folder / name).unlink()
    ended = pft_bench_command("verify", folder)
    assert ended.code == 1
    assert f"{name}: the file" in ended.out


def test_a_time_below_the_roof_is_a_row_of_its_own_status(
    tiny_run: Command, pft_bench_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = roof.Roof(1.0, 1.0, ceiling_flops_per_s=1.0)
    monkeypatch.setattr(roof, "measure_roof", lambda *_: slow)
    folder = tmp_path / "run"
    levels = ("--level", "op", "--level", "layer", "--level", "model")
    ended = tiny_run("--sched", "5", *levels, "--backend", "cpu", "--out", folder)
    assert ended.code == 1
    assert "times the roof of the same run" in ended.out
    found = read_records(folder / "records.jsonl").records
    assert {record.case.level for record in found} == {"op", "layer", "model"}
    for record in found:
        assert (record.status.value == "implausible") == (record.case.backend != "row_reads")
        assert (record.timing is None) == (record.case.backend != "row_reads")
    ended = pft_bench_command("verify", folder)
    assert ended.code == 0, ended
    assert "has no time" in ended.out
    assert pft_bench_command("report", folder).code == 0
    assert "times the roof of the same run" in (folder / "report.html").read_text()
    ended = pft_bench_command("compare", folder, folder)
    assert "times the roof of the same run" in ended.out.replace("\n", " ")


def test_a_busy_machine_is_told_in_the_first_line(
    tiny_run: Command, pft_bench_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping, "busy_machine", lambda: "this machine is busy")
    monkeypatch.setattr(compare_command, "busy_machine", lambda: "this machine is busy")
    one_case = ("--sched", "16", "--level", "layer")
    ended = tiny_run(*one_case, "--backend", "cpu", "--out", tmp_path / "run")
    assert ended.out.startswith("this machine is busy")
    given = ("--preset", "tiny_x2", "--lr", "8x8", "--threads", 1, "--budget", 0.01)
    ended = pft_bench_command("compare", "--backends", "dense,cpu", *one_case, *given)
    assert ended.out.startswith("this machine is busy")


def test_compare_gives_a_cheat_no_time(
    pft_bench_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pft_bench.backends import lent
    from pft_bench.harness.selftest.cheats.looking import LayerZerosLater

    given = ("--sched", "16,5", "--preset", "tiny_x2", "--lr", "8x8", "--threads", 1, "--budget", 0.01)
    with lent(LayerZerosLater):
        ended = pft_bench_command(
            "compare", "--backends", f"cpu,{LayerZerosLater.name}", "--level", "layer", *given
        )
    assert ended.code == 1
    assert "B: failed: " in ended.out
    assert "timed call" in ended.out
