"""Runs a pipe's models eager, compiled or captured.

Only this package calls torch.compile and CUDA graphs. It knows nothing of steps or schedules. unet.py and decoder.py
make a bucket for each set of static shapes (bucket.py). A bucket runs programs (program.py), through a capture if it
has one (capture.py).
"""
