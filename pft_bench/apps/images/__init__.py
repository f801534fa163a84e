"""Pictures in files: one reader for every command, writing without loss, and the field's bicubic resizing."""

from .enlarge import enlarge
from .files import SUFFIXES, check_writable, fit_to_file, write_picture
from .folders import READ_SUFFIXES, is_hidden, list_pictures, name_files, pictures_left_out, walk_pictures
from .picture import Header, Metadata, Picture, PictureError, eight_bits, rgb, rgb8, taken
from .read import read_header, read_picture
from .resize import imresize

__all__ = [
    "READ_SUFFIXES",
    "SUFFIXES",
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
    "pictures_left_out",
    "read_header",
    "read_picture",
    "rgb",
    "rgb8",
    "taken",
    "walk_pictures",
    "write_picture",
]
