"""The published small models through the `triton` backend: their outputs, within twice their own float32 error."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from triton_cases import DEVICE, runs_kernels

pytestmark = runs_kernels

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
