"""Correctness: operator, selection and model checks against masked dense attention in float64."""
