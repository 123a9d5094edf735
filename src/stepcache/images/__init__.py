"""Pipelines loaded, prompts read, images compared and drawn: what commands, calibration and benchmarks share."""
