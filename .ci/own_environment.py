"""Exit with a line if an environment runs another folder's pft_bench: copied or moved with its clone, or shared.

`make` runs this with the environment's Python, in the clone: `python -I .ci/own_environment.py`. An editable install
holds the absolute path of its sources, and goes on running those wherever its environment lies.
"""

import importlib.util
import sys
from pathlib import Path


def foreign_root(here: Path) -> "Path | None":
    """The folder whose pft_bench this Python runs where that is not `here`; None where none is installed yet."""
    spec = importlib.util.find_spec("pft_bench")
    if spec is None or not spec.origin:
        return None
    root = Path(spec.origin).resolve().parents[1]
    inside = (here.resolve(), Path(sys.prefix).resolve())
    return None if any(root.is_relative_to(own) for own in inside) else root


def main() -> "int | str":
    """0, or what is wrong and what to do, which sys.exit prints."""
    here, environment = Path.cwd(), Path(sys.prefix)
    root = foreign_root(here)
    if root is None:
        return 0
    if not environment.resolve().is_relative_to(here.resolve()):
        return f"error: {environment} runs the pft_bench in {root}, not the one here; name another with VENV=FOLDER"
    return (
        f"error: {environment} runs the pft_bench in {root}, not the one here: it was copied or moved with the folder; "
        "remove what was built there with `make clean`, then run make again"
    )


if __name__ == "__main__":
    sys.exit(main())
