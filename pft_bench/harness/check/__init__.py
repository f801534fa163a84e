"""Correctness: operator, selection and model checks against masked dense attention in float64."""

from ...reference import Layer
from .model import ModelOracle, captured_layers, check_layers, check_output
from .operator import check_layer, check_product, exact_product
from .result import CheckResult, failures, within
from .ties import check_ties

__all__ = [
    "CheckResult",
    "Layer",
    "ModelOracle",
    "captured_layers",
    "check_layer",
    "check_layers",
    "check_output",
    "check_product",
    "check_ties",
    "exact_product",
    "failures",
    "within",
]
