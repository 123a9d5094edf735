"""The pages' tables and figures, made from benchmarks/results."""
