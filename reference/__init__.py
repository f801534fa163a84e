"""The specification: every op in plain PyTorch, readable before fast, on any device."""
