"""`python -m pft_bench`: the `pft-bench` program, for where its script cannot be found."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.argv[0] = "pft-bench"  # records name the command that made them
    main()
