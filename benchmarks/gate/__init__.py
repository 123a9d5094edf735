"""The GPU gate: its jobs, their order, how they run, and the summary. gpu_gate.py is its command."""
