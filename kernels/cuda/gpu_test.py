"""A short session on a machine with a GPU, `pft_bench.maintain.gpu`, by a short name; `--help` says what it does."""

import sys

from pft_bench.maintain.gpu.session import main

sys.exit(main())
