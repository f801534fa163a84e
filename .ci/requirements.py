"""Print what pft_bench needs, one requirement a line, with the extras named: `python .ci/requirements.py test`.

So `make` installs it while it builds the kernels, which take none of it. Where pip builds first, both take their time.
"""

import re
import sys
import tomllib
from pathlib import Path


def requirements(project: "dict[str, object]", extras: "list[str]") -> "list[str]":
    """The dependencies of a pyproject's table `project`, and those of the extras, which may name others by its name."""
    found = list(project["dependencies"])
    for extra in extras:
        for line in project["optional-dependencies"][extra]:
            own = re.fullmatch(rf"{project['name']}\[(.*)\]", line)
            found += requirements(project, own[1].split(",")) if own else [line]
    return list(dict.fromkeys(found))


if __name__ == "__main__":
    pyproject = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    print("\n".join(requirements(pyproject["project"], sys.argv[1:])))
