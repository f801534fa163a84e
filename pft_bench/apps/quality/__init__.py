"""Quality of restored images by the field's protocol, on the field's test sets, beside latency and memory."""

from .datasets import Dataset, ImagePair, find_datasets, load_pair
from .evaluate import (
    BICUBIC,
    QUALITY,
    QualityRow,
    Restored,
    Variant,
    bicubic_row,
    model_row,
    read_rows,
    rows_to_go_on_with,
)
from .metrics import luma, psnr_y, ssim_y
from .variants import image_rows

__all__ = [
    "BICUBIC",
    "QUALITY",
    "Dataset",
    "ImagePair",
    "QualityRow",
    "Restored",
    "Variant",
    "bicubic_row",
    "find_datasets",
    "image_rows",
    "load_pair",
    "luma",
    "model_row",
    "psnr_y",
    "read_rows",
    "rows_to_go_on_with",
    "ssim_y",
]
