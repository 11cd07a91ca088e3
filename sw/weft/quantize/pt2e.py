"""The names of torchao that weft uses, imported without torchao's messages.

torchao reports at import which of its GPU libraries it could not load, on every machine without
them. Import this module before anything else of torchao; it also registers the operators without
which a quantized `.pt2` file cannot be read.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from weft.errors import missing_extra


@contextmanager
def _silence() -> Iterator[None]:
    """Drop log records up to WARNING, and warnings, while the body runs."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


try:
    with _silence():
        import torch
        import torchao  # noqa: F401  (the first import is the loud one)
        from torchao.quantization.pt2e import (
            HistogramObserver,
            MinMaxObserver,
            PerChannelMinMaxObserver,
        )
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer import (
            DerivedQuantizationSpec,
            QuantizationAnnotation,
            QuantizationSpec,
            Quantizer,
            SharedQuantizationSpec,
        )
        from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY
except ImportError as error:
    _package = "torchao" if (error.name or "").startswith("torchao") else "PyTorch"
    raise missing_extra(_package, "torch", purpose="quantizing and loading models") from error

__all__ = [
    "Q_ANNOTATION_KEY",
    "DerivedQuantizationSpec",
    "HistogramObserver",
    "MinMaxObserver",
    "PerChannelMinMaxObserver",
    "QuantizationAnnotation",
    "QuantizationSpec",
    "Quantizer",
    "SharedQuantizationSpec",
    "convert_pt2e",
    "prepare_pt2e",
    "torch",
]
