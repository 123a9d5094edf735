"""The graphs of a pipe's models, and how they run: eager, compiled, captured.

The only room that names torch.compile and CUDA graphs. It knows no steps and no schedules. unet.py and decoder.py make
a bucket for each set of static shapes (bucket.py); a bucket runs programs (program.py), through a capture where there
is one (capture.py).
"""
