"""One training step as a list of integer operations on named tensors: what every engine executes.

Nothing here knows an engine. ``docs/training-arithmetic.md`` says what each operation computes;
all formulas are in :mod:`weft_hw.training`. Images are int8 codes (batch, height, width, channels),
channels innermost. Gradients are descent directions (minus the derivative), so that updates add.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from weft_hw.training import ONE

__all__ = [
    "Add",
    "AveragePool",
    "AveragePoolGradient",
    "BiasGradient",
    "BitUpdate",
    "CompensationGradient",
    "Convolution",
    "DataGradient",
    "Exponent",
    "Geometry",
    "Image",
    "LossGradient",
    "Mask",
    "MaxPool",
    "MaxPoolGradient",
    "MomentumUpdate",
    "Operation",
    "Parameter",
    "Quantizer",
    "TrainingStep",
    "Update",
    "WeightGradient",
]


@dataclass(frozen=True)
class Exponent:
    """An exponent: ``offset``, plus the one that a quantizer has set in this step, if named."""

    quantizer: str | None = None
    offset: int = 0


@dataclass(frozen=True)
class Image:
    """int8 codes of (batch, height, width, channels).

    Parameters
    ----------
    name : str
    shape : (height, width, channels)
    exponent : Exponent
    """

    name: str
    shape: tuple[int, int, int]
    exponent: Exponent


@dataclass(frozen=True)
class Geometry:
    """Of a convolution; each (y, x). Padding is the same on opposite sides."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    def result(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the output of an input of that size."""
        rows, columns = (
            (size + 2 * padding - (kernel - 1) * dilation - 1) // stride + 1
            for size, kernel, stride, padding, dilation in zip(
                (height, width), self.kernel, self.stride, self.padding, self.dilation, strict=True
            )
        )
        return rows, columns


@dataclass(frozen=True)
class Quantizer:
    """How int32 sums become the codes of an image (:func:`weft_hw.training.quantize`).

    The shift is ``shift_of(largest)``, with ``clipped`` that of ``clip_range(largest)``, whose
    ``clamp_bound`` is then the clamp. ``largest`` is the largest absolute sum: of this step if
    not ``delayed``, else of the step before (a cell of the state, see :attr:`cells`).
    The exponent of the result is that of the sums plus the shift plus ``offset``.

    Parameters
    ----------
    name : str
    number : int
        Of the tensor, for random bits. An element's index is ``((n * height + y) * width + x) *
        channels + c``.
    stochastic : bool
        Else half to even.
    clipped : bool
    delayed : bool
    multiplier, offset : int
        Of a constant factor ``multiplier / 2^30 * 2**offset`` of the sums.
    """

    name: str
    number: int
    stochastic: bool
    clipped: bool
    delayed: bool
    multiplier: int = ONE
    offset: int = 0

    @property
    def cells(self) -> tuple[str, str, str]:
        """int32 numbers of the state: largest absolute sum of the last step, exponent that it
        used, number of codes that its clamp changed."""
        return f"{self.name}.largest", f"{self.name}.exponent", f"{self.name}.saturated"


@dataclass(frozen=True)
class Parameter:
    """A trained tensor: int8 codes with a fixed exponent, and finer state behind them.

    Parameters
    ----------
    name : str
        As in the module's ``state_dict``.
    shape : tuple of int
        Weights (kernel y, kernel x, input channels, output channels); biases (channels,);
        compensation (height, width, channels). Indices for random bits count in this order.
    exponent : int
        Of a code.
    group : str
        The rates that apply: ``weights`` or ``compensation``.
    numbers : (int, int, int)
        Of its random bits: for the scaled sums, for the master's step, for its decay.
    """

    name: str
    shape: tuple[int, ...]
    exponent: int
    group: str
    numbers: tuple[int, int, int]


@dataclass(frozen=True)
class MomentumUpdate:
    """Integer SGD (:func:`weft_hw.training.update_velocity`, ``update_master``).

    A master has ``fraction`` bits below its parameter's codes, a velocity ``finer`` bits below the
    master's lowest. The rates of a step come with the call.
    """

    state_bits: int = 16
    momentum: float = 0.9
    decays: bool = False

    @property
    def fraction(self) -> int:
        """Bits of a master below its codes."""
        return 8 if self.state_bits == 16 else 16

    @property
    def finer(self) -> int:
        """Bits of a velocity below its master's lowest."""
        return 4 if self.state_bits == 16 else 8


@dataclass(frozen=True)
class BitUpdate:
    """Updates of a few bits (:func:`weft_hw.training.update_bits`): codes alone are the state.

    The shift is ``shift_of(largest, bits)``; ``largest`` of the gradient's int32 sums, of this
    step or, if ``delayed``, the last one. A parameter then has the cells ``NAME.largest`` and
    ``NAME.saturated``. The bits of a step come with the call.
    """

    delayed: bool = False
    fraction: int = field(default=0, init=False)


Update = MomentumUpdate | BitUpdate


@dataclass(frozen=True)
class Convolution:
    """``quantize(sum of source * weights + biases) + compensation``, then ReLU if ``rectified``.

    A dense layer is the convolution whose kernel is the whole image. ``biases`` (channels,) enter
    the sums by ``aligned_bias``, ``compensation`` (height, width, channels) is added to the codes
    by ``aligned_codes``, before the clamp.
    """

    source: Image
    weights: Parameter
    biases: tuple[Parameter, ...]
    compensation: Parameter | None
    result: Image
    quantizer: Quantizer
    rectified: bool
    geometry: Geometry


@dataclass(frozen=True)
class DataGradient:
    """Gradient of a convolution's source, 0 where ``mask`` is not positive (ReLU's gradient)."""

    gradient: Image
    weights: Parameter
    result: Image
    quantizer: Quantizer
    mask: Image | None
    geometry: Geometry


@dataclass(frozen=True)
class WeightGradient:
    """Gradient of a convolution's weights, and their update."""

    source: Image
    gradient: Image
    weights: Parameter
    geometry: Geometry


@dataclass(frozen=True)
class BiasGradient:
    """Sum of a gradient over the batch and all pixels, and the parameter's update."""

    gradient: Image
    parameter: Parameter


@dataclass(frozen=True)
class CompensationGradient:
    """Sum of a gradient over the batch, by pixel and channel, and the parameter's update."""

    gradient: Image
    parameter: Parameter


@dataclass(frozen=True)
class MaxPool:
    """Largest code of each window (stride = window, whole windows only) and its place in it.

    ``index`` is ``y * window[1] + x`` of the first largest, as codes of an image.
    """

    source: Image
    result: Image
    index: Image
    window: tuple[int, int]


@dataclass(frozen=True)
class MaxPoolGradient:
    """The gradient's code at the place that ``index`` names, else 0; 0 outside the windows."""

    gradient: Image
    index: Image
    result: Image
    window: tuple[int, int]


@dataclass(frozen=True)
class AveragePool:
    """Sum over each window (stride = window, whole windows only), quantized.

    The quantizer's multiplier and offset are ``1 / (window[0] * window[1])``.
    """

    source: Image
    result: Image
    quantizer: Quantizer
    window: tuple[int, int]


@dataclass(frozen=True)
class AveragePoolGradient:
    """``requantize(code, multiplier, 1, HALF_EVEN)`` of the gradient's code at every place of the
    window, 0 outside windows and where ``mask`` is not positive.

    Multiplier and the offset of the result's exponent are ``1 / (window[0] * window[1])``.
    """

    gradient: Image
    result: Image
    mask: Image | None
    window: tuple[int, int]
    multiplier: int = ONE


@dataclass(frozen=True)
class Add:
    """Sum of two images, in the exponent ``residual_base`` of theirs, quantized; then ReLU if
    ``rectified``, or 0 where ``mask`` is not positive."""

    first: Image
    second: Image
    result: Image
    quantizer: Quantizer
    rectified: bool = False
    mask: Image | None = None


@dataclass(frozen=True)
class Mask:
    """The gradient's codes, 0 where ``mask`` is not positive."""

    gradient: Image
    result: Image
    mask: Image


@dataclass(frozen=True)
class LossGradient:
    """:func:`weft_hw.training.loss_gradient` of logits (1, 1, classes) and target codes, quantized.

    Its quantizer is neither delayed, nor clipped, nor stochastic.
    """

    logits: Image
    target: Image
    result: Image
    quantizer: Quantizer


Operation = (
    Convolution
    | DataGradient
    | WeightGradient
    | BiasGradient
    | CompensationGradient
    | MaxPool
    | MaxPoolGradient
    | AveragePool
    | AveragePoolGradient
    | Add
    | Mask
    | LossGradient
)


@dataclass(frozen=True)
class TrainingStep:
    """A whole step: forward, loss gradient, backward and updates, in the order of execution.

    A parameter's update stands behind the last use of its codes.

    Parameters
    ----------
    name : str
    batch : int
    source, target, logits : Image
        Given: pixels, and (1, 1, classes) codes of 127 at the label; computed: logits.
    forward, backward : tuple of Operation
    update : Update
    """

    name: str
    batch: int
    source: Image
    target: Image
    logits: Image
    forward: tuple[Operation, ...]
    backward: tuple[Operation, ...]
    update: Update

    @property
    def operations(self) -> tuple[Operation, ...]:
        """All of them, in order."""
        return self.forward + self.backward

    def quantizers(self) -> Iterator[Quantizer]:
        """In order of execution."""
        for operation in self.operations:
            quantizer = getattr(operation, "quantizer", None)
            if quantizer is not None:
                yield quantizer

    def parameters(self) -> Iterator[Parameter]:
        """In order of their first use."""
        found: dict[str, Parameter] = {}
        for operation in self.operations:
            match operation:
                case Convolution(weights=weights, biases=biases, compensation=compensation):
                    used = [weights, *biases, *([compensation] if compensation else [])]
                case DataGradient(weights=weights) | WeightGradient(weights=weights):
                    used = [weights]
                case BiasGradient(parameter=parameter) | CompensationGradient(parameter=parameter):
                    used = [parameter]
                case _:
                    used = []
            for parameter in used:
                found.setdefault(parameter.name, parameter)
        yield from found.values()

    def cells(self) -> tuple[str, ...]:
        """Names of the int32 numbers that the state holds besides parameters."""
        names = [cell for quantizer in self.quantizers() for cell in quantizer.cells]
        if isinstance(self.update, BitUpdate):
            for parameter in self.parameters():
                names += [f"{parameter.name}.largest", f"{parameter.name}.saturated"]
        return tuple(names)
