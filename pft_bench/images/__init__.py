"""Pictures in files: reading and writing them without loss, and the field's bicubic resizing."""

from .enlarge import enlarge
from .files import SUFFIXES, Picture, PictureError, check_writable, read_picture, write_picture
from .resize import imresize

__all__ = [
    "SUFFIXES",
    "Picture",
    "PictureError",
    "check_writable",
    "enlarge",
    "imresize",
    "read_picture",
    "write_picture",
]
