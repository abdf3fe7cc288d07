"""Every convolution from its definition, in NumPy float64: the oracle of all tests.

One idea: tap t of a kernel meets the input at every `t * dilation + i * stride`. A convolution gathers there, for every
tap, what the weight multiplies; a transposed convolution, its adjoint, scatters there; a deformable one moves each
place by an offset. Pooling reads the same windows. The other kinds are convolutions one after another, side by side,
with weights left out, or of integers.

Values are IEEE: NaN and infinity go where the arithmetic takes them, and padding counts as input, so that an infinite
weight on a zero of padding gives NaN.
"""

from convwright.reference.composed import (
    channel_shuffle,
    het_conv,
    mix_conv,
    separable_conv,
    shuffled_conv,
    spatial_conv,
)
from convwright.reference.convolution import conv
from convwright.reference.deformable import deform_conv
from convwright.reference.integer import conv_integer, qlinear_conv
from convwright.reference.pooling import average_pool, max_pool

__all__ = [
    "average_pool", "channel_shuffle", "conv", "conv_integer", "deform_conv", "het_conv", "max_pool", "mix_conv",
    "qlinear_conv", "separable_conv", "shuffled_conv", "spatial_conv",
]  # fmt: skip
