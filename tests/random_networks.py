"""Random PyTorch networks of everything that training supports, branches included."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

__all__ = ["RandomNetwork", "draw_network"]

MOST_ELEMENTS = 600
"""Of one sample's largest image: enough for several tiles of small machines."""


@dataclass
class Line:
    """``value number = operation(values by number)``; its module, if it has one."""

    operation: str
    sources: tuple[int, ...]
    module: nn.Module | None = None
    settings: tuple[Any, ...] = ()


@dataclass
class _Draft:
    """A network as it grows; ``shapes`` (C, H, W) of the values so far.

    Values that are rectified are not used without ReLU.
    """

    shapes: list[tuple[int, int, int]]
    lines: list[Line] = field(default_factory=list)
    usable: list[int] = field(default_factory=lambda: [0])

    def append(self, line: Line, shape: tuple[int, int, int], *, rectified: bool = False) -> None:
        self.lines.append(line)
        self.shapes.append(shape)
        if rectified:
            self.lines.append(Line("relu", (len(self.lines),)))
            self.shapes.append(shape)
        self.usable.append(len(self.lines))


class RandomNetwork(nn.Module):
    """Value 0 is the input; each line makes the next value; the last are logits."""

    def __init__(self, lines: list[Line], shape: tuple[int, int, int], description: str) -> None:
        super().__init__()
        self.lines = lines
        self.shape = shape
        self.description = description
        for number, line in enumerate(lines):
            if line.module is not None:
                self.add_module(f"layer{number}", line.module)

    def forward(
        self, images: torch.Tensor, given: dict[int, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Logits; ``given`` values replace what their lines compute, whose gradient they keep."""
        values = [images]
        for number, line in enumerate(self.lines, start=1):
            first, *others = (values[source] for source in line.sources)
            if line.operation == "add":
                result = first + others[0]
            elif line.operation == "relu":
                result = first.relu()
                if given is not None and number in given:
                    result = first * (given[number].reshape(first.shape) > 0)
            elif line.operation == "flatten":
                result = first.flatten(1)
            else:
                assert line.module is not None
                result = line.module(first)
            if given is not None and number in given:
                result = result + (given[number].reshape(result.shape) - result).detach()
            values.append(result)
        return values[-1]

    def used(self) -> set[int]:
        """Numbers of the values on which the logits depend."""
        found = {len(self.lines)}
        for number in range(len(self.lines), 0, -1):
            if number in found:
                found.update(self.lines[number - 1].sources)
        return found

    def results(self, names: list[str]) -> dict[int, str]:
        """Which value each result of a training step is; sums are told by their order."""
        used = self.used()
        sums = iter(name for name in names if name.startswith("add"))
        found = {}
        for number, line in enumerate(self.lines, start=1):
            if number not in used or line.operation in ("relu", "flatten"):
                continue
            name = next(sums) if line.operation == "add" else f"layer{number - 1}"
            follower = self.lines[number].operation if number < len(self.lines) else ""
            found[number + (follower == "relu")] = name
        return found


def draw_network(rng: np.random.Generator) -> RandomNetwork:
    """A network of one to seven layers before its dense ones; PyTorch's generator draws weights."""

    def size(low: int, high: int) -> int:
        return int(rng.integers(low, high + 1))

    shape = size(1, 5), size(1, 11), size(1, 11)
    draft = _Draft([shape])
    for _ in range(size(1, 7)):
        _grow(draft, rng, size)
    channels, height, width = draft.shapes[-1]
    features = channels * height * width
    draft.append(Line("flatten", (len(draft.lines),)), (features, 1, 1))
    if rng.random() < 0.5:
        hidden = size(1, 20)
        bias = bool(rng.integers(2))
        draft.append(Line("linear", (len(draft.lines),), nn.Linear(features, hidden, bias)), shape)
        draft.append(Line("relu", (len(draft.lines),)), shape)
        features = hidden
    classes = size(2, 20)
    draft.append(Line("linear", (len(draft.lines),), nn.Linear(features, classes)), shape)
    description = "; ".join(
        f"{line.operation} of {', '.join(map(str, line.sources))}"
        + (f" {line.module}" if line.module is not None else "")
        for line in draft.lines
    )
    return RandomNetwork(draft.lines, shape, f"{shape}: {description}")


def _grow(draft: _Draft, rng: np.random.Generator, size: Any) -> None:
    """Append a layer that fits, perhaps behind an older value than the last."""
    source = len(draft.lines)
    if rng.random() < 0.2:
        source = int(rng.choice(draft.usable))
    channels, height, width = draft.shapes[source]
    kind = rng.choice(["convolution", "convolution", "maximum", "average", "add", "add"])
    rectified = bool(rng.integers(2))
    if kind == "add":
        partners = [
            other
            for other in draft.usable
            if draft.shapes[other] == draft.shapes[source] and other != source
        ]
        if partners:
            other = int(rng.choice(partners))
            line = Line("add", (source, other))
            draft.append(line, draft.shapes[source], rectified=rectified)
            return
        kind = "residual"
    if kind in ("maximum", "average"):
        window = size(1, min(3, height)), size(1, min(3, width))
        pool = nn.MaxPool2d(window) if kind == "maximum" else nn.AvgPool2d(window)
        pooled = channels, height // window[0], width // window[1]
        draft.append(Line("pool", (source,), pool), pooled)
        return
    kernel = size(1, 3), size(1, 3)
    dilation = size(1, 2), size(1, 2)
    reach = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
    if kind == "residual":  # keeps the shape, for a sum with its source
        kernel, dilation, reach = (3, 1), (1, 1), [2, 0]
        stride, padding, filters = (1, 1), (1, 0), channels
    else:
        stride, filters = (size(1, 2), size(1, 3)), size(1, 9)
        padding = size(0, reach[0]), size(0, reach[1])
    rows, columns = (
        (pixels + 2 * p - r - 1) // s + 1 if pixels + 2 * p > r else 0
        for pixels, p, r, s in zip((height, width), padding, reach, stride, strict=True)
    )
    if rows * columns == 0 or rows * columns * filters > MOST_ELEMENTS:
        return
    convolution = nn.Conv2d(
        channels, filters, kernel, stride, padding, dilation, bias=bool(rng.integers(2))
    )
    inner = rectified or kind == "residual"
    line = Line("convolution", (source,), convolution)
    draft.append(line, (filters, rows, columns), rectified=inner)
    if kind == "residual":
        line = Line("add", (source, len(draft.lines)))
        draft.append(line, draft.shapes[source], rectified=rectified)
