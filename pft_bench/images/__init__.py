"""Pictures in files: reading and writing them without loss, and the field's bicubic resizing."""

from .enlarge import enlarge
from .files import (
    OTHER_SUFFIXES,
    SUFFIXES,
    Picture,
    PictureError,
    check_writable,
    name_files,
    read_picture,
    write_picture,
)
from .resize import imresize

__all__ = [
    "OTHER_SUFFIXES",
    "SUFFIXES",
    "Picture",
    "PictureError",
    "check_writable",
    "enlarge",
    "imresize",
    "name_files",
    "read_picture",
    "write_picture",
]
