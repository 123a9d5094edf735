"""Benchmarks, run as modules from the root of a checkout: `python -m benchmarks.engine.host_overhead`."""
