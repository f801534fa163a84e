"""Files of weights: told by their content, and one clear line for each that cannot be read."""

from __future__ import annotations

import argparse
import bz2
import lzma
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

from pft_bench.model import PFT, load, read_weights, weights_file
from pft_bench.model.config import preset
from pft_bench.model.files import SHIPPED

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state(make_model: Callable[..., PFT]) -> State:
    return dict(make_model().state_dict())


def old_format(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


READABLE = {
    "net.PTH": torch.save,
    "net.Pt": torch.save,
    "net.SafeTensors": save_file,
    "epoch=3.ckpt": torch.save,
    "pytorch_model.bin": torch.save,
    "best.pth.tar": torch.save,
    "safetensors.pth": save_file,
    "torch.safetensors": torch.save,
    "old.pth": old_format,
    "old.safetensors": old_format,
    "weights": torch.save,
    "weights (1)": save_file,
    "net.pth.1": torch.save,
    "net.model": old_format,
}


@pytest.mark.parametrize("name", READABLE)
def test_the_content_says_what_a_file_is(name: str, state: State, tmp_path: Path) -> None:
    READABLE[name](state, tmp_path / name)
    found = read_weights(tmp_path / name)
    assert all(torch.equal(found[key], state[key]) for key in state)


@pytest.mark.parametrize("write", [torch.save, old_format])
def test_numbers_of_numpy_beside_the_weights(
    write: Callable[[Any, Path], None], state: State, tmp_path: Path
) -> None:
    numbers = [np.float64(31.5), np.float32(0.9), np.int64(5), np.bool_(True), np.uint64(1) << np.uint64(63)]
    write({"params": state, "best": numbers}, tmp_path / "net.pth")
    assert read_weights(tmp_path / "net.pth").keys() == state.keys()


def test_numbers_of_numpy_1(state: State, tmp_path: Path) -> None:
    """Its module has another name, which is in the file."""
    torch.save({"params": state, "best": np.float64(31.5)}, tmp_path / "now.pth")
    with zipfile.ZipFile(tmp_path / "now.pth") as now, zipfile.ZipFile(tmp_path / "net.pth", "w") as then:
        for member in now.infolist():
            then.writestr(member, now.read(member).replace(b"numpy._core.", b"numpy.core."))
    assert read_weights(tmp_path / "net.pth").keys() == state.keys()


class Upscaler(nn.Module):
    """A model of a user, saved whole."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_first = nn.Conv2d(3, 3, 3)


def beside(thing: Any) -> Callable[[Path], None]:
    return lambda path: torch.save({"params": {"x": torch.ones(1)}, "opt": thing}, path)


def scripted(path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.ReLU()), path)


def archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("weights/net.pth", b"x")


def tarred(path: Path) -> None:
    with tarfile.open(path, "w") as opened:
        opened.addfile(tarfile.TarInfo("net.pth"))


def cut(write: Callable[[Any, Path], None]) -> Callable[[Path], None]:
    def written(path: Path) -> None:
        write({"norm.bias": torch.ones(1000)}, path)
        os.truncate(path, path.stat().st_size // 2)

    return written


AGAIN = r"In a program of yours that trusts the file, save again with torch.save\(torch.load\('.*', weights_only=F\w+\)"
UNREADABLE = {
    "a namespace": (beside(argparse.Namespace(a=1)), rf"run code when read: argparse.Namespace. {AGAIN}\['params'\]"),
    "a path": (beside(Path("x")), "run code when read: pathlib.PosixPath"),
    "an array of numpy": (
        beside(np.ones(3)),
        r"run code when read: numpy\.(_core|core)\.multiarray\._reconstruct.*torch.save"
        r"\({name: torch.as_tensor\(value\) for name, value in torch.load\('.*'"
        r", weights_only=False\)\['params'\].items\(\)},",
    ),
    "a plain pickle": (
        lambda p: p.write_bytes(pickle.dumps({"norm.bias": torch.ones(3)})),
        r"pickle that torch.save did not write.*torch.save\(pickle.load\(open\('.*net.pth', 'rb'\)\), 'weights.pth'\)",
    ),
    "a type in the old format": (
        lambda p: old_format({"opt": argparse.Namespace()}, p),
        "run code when read: argparse.Namespace",
    ),
    "a whole model": (
        lambda p: torch.save(Upscaler(), p),
        rf"a whole model, pickled with its code: [\w.]*test_weight_files.Upscaler, .*{AGAIN}.state_dict\(\)",
    ),
    "a whole model in the old format": (
        lambda p: old_format(Upscaler(), p),
        r"a whole model, pickled with its code: [\w.]*test_weight_files.Upscaler",
    ),
    "a whole model under a key": (lambda p: torch.save({"model": Upscaler()}, p), "holds a whole model"),
    "TorchScript": (scripted, r"a TorchScript program.*torch.save\(torch.jit.load\('.*'\).state_dict\(\), "),
    "nothing": (lambda p: p.write_bytes(b""), "the file is empty, 0 bytes"),
    "cut short": (cut(torch.save), "it is damaged or cut short, or no checkpoint: RuntimeError: "),
    "cut short, in the old format": (cut(old_format), "it is damaged or cut short, or no checkpoint: "),
    "cut short, safetensors": (cut(save_file), "not a safetensors file, or one that is damaged or cut short"),
    "text": (lambda p: p.write_bytes(b"weights"), "or no checkpoint: UnpicklingError: Unsupported operand 119"),
    "escape codes": (lambda p: p.write_bytes(b"\x80\x02c\x1b[31m\nx\n."), "or no checkpoint: "),
    "a pointer of Git LFS": (
        lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "it is a Git LFS pointer",
    ),
    "a web page with a mark before it": (
        lambda p: p.write_bytes(b"\xef\xbb\xbf<!DOCTYPE html>"),
        "it is a web page, not the file itself",
    ),
    "an answer of a server": (
        lambda p: p.write_bytes(b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>'),
        "it is XML, not the file itself: download it again",
    ),
    "JSON": (lambda p: p.write_bytes(b'{"weight_map": {}}'), "it is JSON, not the file itself"),
    "tar": (tarred, "it is a tar archive: unpack it first"),
    "bzip2": (lambda p: p.write_bytes(bz2.compress(b"x")), "it is a bzip2 archive: unpack it first"),
    "xz": (lambda p: p.write_bytes(lzma.compress(b"x")), "it is an xz archive: unpack it first"),
    "zstd": (lambda p: p.write_bytes(b"\x28\xb5\x2f\xfdx"), "it is a zstd archive: unpack it first"),
    "7z": (lambda p: p.write_bytes(b"7z\xbc\xaf\x27\x1cx"), "it is a 7z archive: unpack it first"),
    "rar": (lambda p: p.write_bytes(b"Rar!\x1a\x07x"), "it is a rar archive: unpack it first"),
    "an array alone": (
        lambda p: np.save(p.open("wb"), np.ones(3)),
        "it is an array of NumPy: only files of PyTorch and safetensors are read",
    ),
    "GGUF": (lambda p: p.write_bytes(b"GGUF\3\0\0\0"), "it is a GGUF file: only files of PyTorch"),
    "a web page": (lambda p: p.write_bytes(b"\n<!DOCTYPE html><html>"), "it is a web page, not the file itself"),
    "an archive": (archive, "torch.save did not write: unpack it first; it holds weights/net.pth"),
    "a compressed file": (lambda p: p.write_bytes(b"\x1f\x8b\x08..."), "a gzip archive: unpack it first"),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_file_that_cannot_be_read(kind: str, tmp_path: Path) -> None:
    write, message = UNREADABLE[kind]
    path = tmp_path / "net.pth"
    write(path)
    with pytest.raises(ValueError, match=message) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: not a ")
    assert str(caught.value).isprintable(), "one line, no escape codes"


class Spiteful:
    """Unpickled, it would make a file."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("made",)


@pytest.mark.parametrize("write", [torch.save, old_format])
def test_nothing_in_a_file_is_executed(
    write: Callable[[Any, Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write({"params": {"x": torch.ones(1)}, "best": Spiteful()}, Path("net.pth"))
    with pytest.raises(ValueError, match=r"objects that would run code when read: posix.mkdir"):
        load("net.pth")
    assert not Path("made").exists()


def test_a_folder_does_not_hide_the_shipped_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small_x2").mkdir()
    assert weights_file("small_x2") == weights_file(Path("small_x2")) == SHIPPED / "small_x2.safetensors"
    assert load("small_x2").config == preset("small_x2")


def test_a_folder_says_what_it_holds(state: State, tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(save(state))
    (tmp_path / "loss.jsonl").write_text("")
    with pytest.raises(FileNotFoundError, match=r"that is a folder, which holds weights.safetensors$"):
        load(tmp_path)
    (tmp_path / ".metadata").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"format_utils.dcp_to_torch_save\('.*', 'weights.pth'\)$"):
        load(tmp_path)
    os.mkfifo(tmp_path / "net.pth")
    with pytest.raises(FileNotFoundError, match="that is not a regular file"):
        load(tmp_path / "net.pth")


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "pytorch_model-00001-of-00002.bin"])
def test_a_part_of_several_says_so(name: str, state: State, tmp_path: Path) -> None:
    write = save_file if name.endswith(".safetensors") else torch.save
    path = tmp_path / name
    first = ("conv_first.weight", "norm.bias")
    for left_out in (first[:1], first[1:]):
        write({key: value for key, value in state.items() if key not in left_out}, path)
        with pytest.raises(
            ValueError, match="by its name the file is part 1 of 2: save the weights of all parts in one"
        ):
            load(path, num_heads=3, num_topk=(16, 16, 9, 9, 5, 5))
    write(state, path)
    assert load(path, num_heads=3, num_topk=(16, 16, 9, 9, 5, 5), backend="dense")


def test_a_schedule_as_text(make_model: Callable[..., PFT], tmp_path: Path) -> None:
    """Where no preset has the shape, the loader needs the schedule: a layer's entries, or text as commands take it."""
    model = make_model(embed_dim=102, num_heads=6)
    torch.save(model.state_dict(), tmp_path / "net.pth")
    assert load(tmp_path / "net.pth", num_topk="9,4").num_topk == (9, 9, 9, 4, 4, 4)
    with pytest.raises(ValueError, match=r"net.pth: schedule '4,9' must not increase"):
        load(tmp_path / "net.pth", num_topk="4,9")
    with pytest.raises(
        ValueError, match=r"num_topk must be given, e.g. load\(path, num_topk=...\) or --sched"
    ):
        load(tmp_path / "net.pth")
