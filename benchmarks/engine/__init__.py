"""What the engine costs: host time, cold start, code for a GPU, real U-Nets on a CPU."""
