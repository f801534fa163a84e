"""Pictures in files: one reader for every command, writing without loss, and the field's bicubic resizing."""

from .enlarge import enlarge
from .files import SUFFIXES, check_writable, fit_to_file, write_picture
from .folders import OTHER_SUFFIXES, READ_SUFFIXES, is_hidden, list_pictures, name_files, walk_pictures
from .picture import TAKEN_AS_EIGHT, Metadata, Picture, PictureError, eight_bits, rgb, rgb8
from .read import Header, read_header, read_picture
from .resize import imresize

__all__ = [
    "OTHER_SUFFIXES",
    "READ_SUFFIXES",
    "SUFFIXES",
    "TAKEN_AS_EIGHT",
    "Header",
    "Metadata",
    "Picture",
    "PictureError",
    "check_writable",
    "eight_bits",
    "enlarge",
    "fit_to_file",
    "imresize",
    "is_hidden",
    "list_pictures",
    "name_files",
    "read_header",
    "read_picture",
    "rgb",
    "rgb8",
    "walk_pictures",
    "write_picture",
]
