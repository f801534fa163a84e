"""Progressive focused attention: sparse kernels, their proof and their measurement, and the PFT model."""

__version__ = "0.1.0"
