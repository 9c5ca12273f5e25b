"""Benchmarks of the gateway on one machine: `python -m bench`, run from the repository root."""
