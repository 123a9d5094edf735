"""The 1x1 convolution of a concat without the concat: the op, its specification and its bare launcher."""

from .op import dual_conv1x1, dual_conv1x1_triton
from .reference import dual_conv1x1_reference

__all__ = ["dual_conv1x1", "dual_conv1x1_reference", "dual_conv1x1_triton"]
