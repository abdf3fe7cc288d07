"""What a convolution is: immutable descriptions, N-dimensional, normalised and validated once.

`ConvSpec` is the description that everyone reads: cost, reference, kernels, pictures and messages. The other kinds are
described over it: `SeparableSpec(ConvSpec(...))` is the depthwise separable form of that convolution, and so on.

Conventions: one MAC is one multiply-accumulate and FLOPs are twice the MACs; biases, shuffles, bilinear sampling and
pooling are not MACs. Inputs are N x C x spatial, weights K x C/groups x kernel, outputs N x K x spatial.
"""

from convwright.spec.base import Spec
from convwright.spec.chains import SeparableSpec, SpatialSpec
from convwright.spec.checks import INT64_MAX, AxesLike, PaddingLike, Pads
from convwright.spec.conv import PADDING_MODES, ConvOptions, ConvSpec, PaddingMode, SameWord
from convwright.spec.mix import MixSpec
from convwright.spec.variants import DeformableSpec, HetSpec, IntegerSpec, ShuffledSpec

__all__ = [
    "INT64_MAX", "PADDING_MODES", "AxesLike", "ConvOptions", "ConvSpec", "DeformableSpec", "HetSpec", "IntegerSpec",
    "MixSpec", "PaddingLike", "PaddingMode", "Pads", "SameWord", "SeparableSpec", "ShuffledSpec", "SpatialSpec", "Spec",
]  # fmt: skip
