"""scikit-learn's bundled handwritten digits, split once and for all."""

from dataclasses import dataclass

import numpy as np

from weft.errors import missing_extra

__all__ = ["HELD_OUT", "Digits", "load_digits"]

HELD_OUT = 360


@dataclass(frozen=True)
class Digits:
    """Images (N, 1, 8, 8) float32 in [0, 1] and labels (N,) int64."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def load_digits() -> Digits:
    """The 1,797 digits, shuffled with a fixed seed; the last 360 are held out.

    Raises
    ------
    MissingExtra
        If scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as load_bundled
    except ImportError:
        raise missing_extra("scikit-learn", "demo") from None
    bundled = load_bundled()
    order = np.random.default_rng(0).permutation(len(bundled.target))
    images = (bundled.images[order] / 16).astype(np.float32)[:, None]
    labels = bundled.target[order].astype(np.int64)
    return Digits(images[:-HELD_OUT], labels[:-HELD_OUT], images[-HELD_OUT:], labels[-HELD_OUT:])
