"""What people have in the place of a file of weights, told by how it begins, and what to do about it."""

from __future__ import annotations

import re
from pathlib import Path

_AGAIN = "not the file itself: download it again"
_UNPACK = "archive: unpack it first"
_ONLY = "only files of PyTorch and safetensors are read"
# In lower case, without white space and a byte order mark before it.
_BEGINNINGS = {
    b"version https://git-lfs": "it is a Git LFS pointer, not the file itself: git lfs pull brings that",
    b"<!doctype html": f"it is a web page, {_AGAIN}",
    b"<html": f"it is a web page, {_AGAIN}",
    b"<?xml": f"it is XML, {_AGAIN}",
    b'{"': f"it is JSON, {_AGAIN}",
    b"\x1f\x8b": f"it is a gzip {_UNPACK}",
    b"bzh": f"it is a bzip2 {_UNPACK}",
    b"\xfd7zxz": f"it is an xz {_UNPACK}",
    b"\x28\xb5\x2f\xfd": f"it is a zstd {_UNPACK}",
    b"7z\xbc\xaf": f"it is a 7z {_UNPACK}",
    b"rar!": f"it is a rar {_UNPACK}",
    b"\x89hdf": f"it is an HDF5 file: {_ONLY}",
    b"\x93numpy": f"it is an array of NumPy: {_ONLY}",
    b"gguf": f"it is a GGUF file: {_ONLY}",
}
_TAR = slice(257, 262)


def foreign(head: bytes) -> str | None:
    """What a file is that begins with these 512 bytes and is not one of weights; None where nothing tells it.

    A .safetensors file may begin with anything, for its first bytes are a number.
    """
    if head[_TAR] == b"ustar":
        return f"it is a tar {_UNPACK}"
    text = re.sub(rb'\{\s*"', b'{"', head.removeprefix(b"\xef\xbb\xbf").lstrip().lower())
    return next((said for mark, said in _BEGINNINGS.items() if text.startswith(mark)), None)


def plain_pickle(head: bytes) -> bool:
    """Whether pickle.dump wrote it: torch.save takes protocol 2, also in its old format."""
    return head[:1] == b"\x80" and head[1:2] > b"\x02"


def part_of_several(file: Path) -> str:
    """What the name of a file says where large models are kept in parts, to follow an error; "" for other names."""
    found = re.search(r"-(\d{3,})-of-(\d{3,})\.", file.name)
    if found is None:
        return ""
    part, parts = int(found[1]), int(found[2])
    return f"; by its name the file is part {part} of {parts}: save the weights of all parts in one file"


def folder_of_parts(folder: Path) -> str:
    """What to do with a folder of torch.distributed.checkpoint, to follow an error; "" for other folders."""
    if not (folder / ".metadata").is_file():
        return ""
    return (
        " of torch.distributed.checkpoint: make one file of it with "
        f"torch.distributed.checkpoint.format_utils.dcp_to_torch_save({str(folder)!r}, 'weights.pth')"
    )
