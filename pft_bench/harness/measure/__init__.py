"""Sampling, rounds, verdicts, memory, FLOPs and the environment of a measurement."""
