"""Convolutions as functions of NumPy arrays: NumPy in, NumPy out.

Each call is a small network of one or two operators. What it needs (the plan, packed weights, compiled kernels) is
prepared at the first call and remembered, see `prepared`; later calls with the same shapes and weights only run it.
"""

from convwright.functional.comparison import AlgorithmReport, Algorithms, algorithms
from convwright.functional.composed import (
    channel_shuffle,
    het_conv,
    mix_conv,
    separable_conv,
    spatial_conv,
)
from convwright.functional.convolution import conv, conv_transpose
from convwright.functional.deformable import deform_conv
from convwright.functional.integer import conv_integer, qlinear_conv
from convwright.functional.prepared import forget

__all__ = [
    "AlgorithmReport", "Algorithms", "algorithms", "channel_shuffle", "conv", "conv_integer", "conv_transpose",
    "deform_conv", "forget", "het_conv", "mix_conv", "qlinear_conv", "separable_conv", "spatial_conv",
]  # fmt: skip
