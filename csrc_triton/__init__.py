"""Triton kernels, one folder an op; installed as `stepcache.kernels`."""
