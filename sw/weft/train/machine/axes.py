"""One spatial axis of a convolution or of its data gradient: what each tap of a result takes.

Both gather: result ``start + u * step`` adds, by kernel tap ``tap + m * tap_step``, the source at
``origin + u * stride + m * tap_stride``. A data gradient of stride s has s such phases, because
results of different remainders modulo s meet different taps.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from weft.train.step import Geometry

__all__ = [
    "Axis",
    "Part",
    "Phase",
    "Range",
    "axes_of",
    "data_gradient_axis",
    "forward_axis",
    "ranges",
]

Range = tuple[int, int]


@dataclass(frozen=True)
class Phase:
    """Results that meet the same taps; see the module."""

    start: int
    step: int
    tap: int
    tap_step: int
    taps: int
    origin: int
    stride: int
    tap_stride: int

    def met(self, positions: Range, taps: Range, size: int) -> Range:
        """Of a range of taps, the smallest that has all those that meet the source."""
        first, end = positions
        low, high = taps[1], taps[0]
        for tap in range(*taps):
            at = self.origin + tap * self.tap_stride
            begin = max(first, -(at // self.stride))
            if begin < end and at + begin * self.stride < size:
                low, high = min(low, tap), tap + 1
        return low, max(low, high)


@dataclass(frozen=True)
class Part:
    """A range of a phase's positions, and of the taps that these meet (both count from 0)."""

    phase: Phase
    positions: Range
    taps: Range

    @property
    def counts(self) -> tuple[int, int]:
        """Positions, taps."""
        return self.positions[1] - self.positions[0], self.taps[1] - self.taps[0]

    @property
    def source(self) -> int:
        """Of the first position by the first tap."""
        phase = self.phase
        return phase.origin + self.positions[0] * phase.stride + self.taps[0] * phase.tap_stride

    @property
    def result(self) -> int:
        """The first one."""
        return self.phase.start + self.positions[0] * self.phase.step

    @property
    def tap(self) -> int:
        """The kernel's, of the first tap."""
        return self.phase.tap + self.taps[0] * self.phase.tap_step

    def spans(self, size: int) -> Range:
        """The existing sources that it reads."""
        positions, taps = self.counts
        phase = self.phase
        steps = (taps - 1) * phase.tap_stride
        low = self.source + min(0, steps)
        high = self.source + max(0, steps) + (positions - 1) * phase.stride
        return max(0, low), min(size, high + 1)

    def halves(self, size: int) -> list["Part"]:
        """Two parts, of fewer positions if there are several, else of fewer taps."""
        (first, end), (tap, last) = self.positions, self.taps
        if end - first > 1:
            middle = (first + end) // 2
            return [
                Part(self.phase, part, self.phase.met(part, self.taps, size))
                for part in ((first, middle), (middle, end))
            ]
        middle = (tap + last) // 2
        return [
            Part(self.phase, self.positions, self.phase.met(self.positions, part, size))
            for part in ((tap, middle), (middle, last))
        ]


@dataclass(frozen=True)
class Axis:
    """Sizes of source, result and kernel, and the result's phases."""

    source: int
    result: int
    kernel: int
    phases: tuple[Phase, ...]

    def parts(self, results: Range, kernel: Range) -> list[Part]:
        """What a range of results takes by a range of the kernel, by phase; taps may be none."""
        found = []
        for phase in self.phases:
            positions = (
                -(-(results[0] - phase.start) // phase.step),
                -(-(results[1] - phase.start) // phase.step),
            )
            positions = max(0, positions[0]), positions[1]
            if positions[0] >= positions[1]:
                continue
            taps = (
                max(0, -(-(kernel[0] - phase.tap) // phase.tap_step)),
                min(phase.taps, -(-(kernel[1] - phase.tap) // phase.tap_step)),
            )
            taps = taps[0], max(taps)
            found.append(Part(phase, positions, phase.met(positions, taps, self.source)))
        return found

    def kernel_met(self, results: Range) -> Range:
        """The smallest range of the kernel that has all taps which meet the source."""
        parts = [part for part in self.parts(results, (0, self.kernel)) if part.counts[1]]
        if not parts:
            return 0, 0
        ends = [part.tap + (part.counts[1] - 1) * part.phase.tap_step + 1 for part in parts]
        return min(part.tap for part in parts), max(ends)


def forward_axis(size: int, kernel: int, stride: int, padding: int, dilation: int) -> Axis:
    """Of a convolution's sums."""
    result = (size + 2 * padding - (kernel - 1) * dilation - 1) // stride + 1
    return Axis(size, result, kernel, (Phase(0, 1, 0, 1, kernel, -padding, stride, dilation),))


def axes_of(
    kind: Callable[[int, int, int, int, int], Axis], size: tuple[int, int], geometry: Geometry
) -> tuple[Axis, Axis]:
    """Both axes, of :func:`forward_axis` or :func:`data_gradient_axis`, for a source's size."""
    sizes = (size, geometry.kernel, geometry.stride, geometry.padding, geometry.dilation)
    y, x = (kind(*axis) for axis in zip(*sizes, strict=True))
    return y, x


def data_gradient_axis(size: int, kernel: int, stride: int, padding: int, dilation: int) -> Axis:
    """Of the gradient of the source: the sources are the gradient of the convolution's result."""
    gradient = (size + 2 * padding - (kernel - 1) * dilation - 1) // stride + 1
    common = math.gcd(stride, dilation)
    tap_step = stride // common
    phases = []
    for start in range(min(stride, size)):
        at = start + padding
        first = next(
            (tap for tap in range(min(kernel, tap_step)) if (at - tap * dilation) % stride == 0),
            None,
        )
        taps = 0 if first is None else (kernel - first - 1) // tap_step + 1
        tap = first or 0
        origin = (at - tap * dilation) // stride
        phases.append(Phase(start, stride, tap, tap_step, taps, origin, 1, -(dilation // common)))
    return Axis(gradient, size, kernel, tuple(phases))


def ranges(whole: Range, size: int, wanted: Range | None = None) -> list[Range]:
    """Ranges of ``size`` in a whole one; only those that meet ``wanted``, if given."""
    first, end = wanted or whole
    begin = whole[0] + (first - whole[0]) // size * size
    return [(start, min(start + size, whole[1])) for start in range(begin, end, size)]
