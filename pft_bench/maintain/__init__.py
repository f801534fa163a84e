"""Scripts for maintainers, run through the Makefile."""
