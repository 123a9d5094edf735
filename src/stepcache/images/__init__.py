"""Pipelines and prompts loaded, images made, compared and drawn: what commands, calibration and benchmarks share."""
