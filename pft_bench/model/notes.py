"""What weights do not say about their model, kept in the header of a safetensors file beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .config import PFTConfig
from .files import is_safetensors

NOTE = "pft"
"""The header's entry: a JSON object of constructor keywords."""
UNTOLD = ("num_topk", "num_heads", "img_range", "img_size", "patch_size", "attention")
"""Keywords that no name or shape of a weight tells, or not always: the schedule first."""


def settings_note(config: PFTConfig) -> dict[str, str]:
    """An entry for the header of the model's weights, from which `noted_settings` reads the keywords again."""
    return {NOTE: json.dumps({name: getattr(config, name) for name in UNTOLD})}


def noted_settings(file: Path) -> dict[str, Any]:
    """Constructor keywords that a weights file notes; none for the files of others.

    Raises ValueError where the note cannot be read; PFTConfig checks the values.
    """
    if not is_safetensors(file):
        return {}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            note = (opened.metadata() or {}).get(NOTE)
    except SafetensorError as error:
        raise ValueError(f"{file}: not a safetensors file ({error})") from error
    if note is None:
        return {}
    try:
        found = json.loads(note)
    except (ValueError, RecursionError):
        found = None
    right = isinstance(found, dict) and set(found) <= set(UNTOLD)
    if not right or not isinstance(found.get("num_topk", []), list):
        raise ValueError(
            f"{file}: the entry {NOTE!r} of its header must be a JSON object of {', '.join(UNTOLD)}, got {note[:80]!r}"
        )
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
