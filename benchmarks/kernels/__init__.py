"""The two Triton ops: timed on a GPU, and their code and a model of it without one."""
