"""The products of a training step: generators of int32 sums, by MATRIX, tile by tile."""

from weft.train.machine.data_gradient import data_gradient_sums
from weft.train.machine.forward import convolution_sums
from weft.train.machine.weight_gradient import weight_gradient_sums

__all__ = ["convolution_sums", "data_gradient_sums", "weight_gradient_sums"]
