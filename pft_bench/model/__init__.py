"""The PFT model."""
