"""`python -m pft_bench.maintain.gpu`."""

import sys

from .session import main

if __name__ == "__main__":
    sys.exit(main())
