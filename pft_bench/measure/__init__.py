"""Measurement: timer, rounds, statistics, memory, environment."""
