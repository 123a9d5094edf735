"""The engine: host time, cold start, U-Nets on a CPU, steps on a GPU, and its code for a GPU without one."""
