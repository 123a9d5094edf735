"""Tables and figures of the documentation, from benchmarks/results."""
