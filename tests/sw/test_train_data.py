"""The pictures and networks of training."""

import hashlib

import numpy as np
import pytest
import torch

from weft.errors import InputError
from weft.train.data import CLASSES, SIDE, DataSet, digits, input_codes, pictures
from weft.train.networks import DigitsNetwork, ResidualNetwork

pytestmark = pytest.mark.torch


def everything(data: DataSet) -> tuple[np.ndarray, np.ndarray]:
    parts = ("train", "validation", "test")
    return (
        np.concatenate([getattr(data, f"{part}_images") for part in parts]),
        np.concatenate([getattr(data, f"{part}_labels") for part in parts]),
    )


def test_input_codes() -> None:
    values = [-2.0, -1.0, -0.5 / 128, 0.0, 1.5 / 128, 0.5, 127 / 128, 1.0, 7.0]
    codes = [-127, -127, 0, 0, 2, 64, 127, 127, 127]
    assert input_codes(values).tolist() == codes
    assert input_codes(values).dtype == np.int8


def test_digits_are_whole_sixteenths() -> None:
    data = digits(validation=200)
    assert data.train_images.shape == (1797 - 360 - 200, 8, 8, 1)
    assert len(data.test_images) == len(data.test_labels) == 360
    images, labels = everything(data)
    assert set(np.unique(images)) <= {min(8 * level, 127) for level in range(17)}
    assert set(labels) == set(range(10))


def test_pictures_are_the_same_bytes_everywhere() -> None:
    images, labels = everything(pictures(40, seed=5, validation=10, test=10))
    assert images.shape == (40, SIDE, SIDE, 3) and images.dtype == np.int8
    assert (np.bincount(labels, minlength=CLASSES) == 4).all()
    found = hashlib.sha256(images.tobytes() + labels.astype("<i8").tobytes()).hexdigest()
    assert found == "f6c5b34d33767118c3f0841fe1bb9c9931fa005d733a22cd64f6cb5c1fdb1ca5"


def test_pictures_depend_on_the_seed_alone() -> None:
    first, again, other = (pictures(40, seed=s, validation=5, test=5) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.train_images, again.train_images)
    assert (first.train_images != other.train_images).mean() > 0.9
    assert first.train_images.min() >= -127


@pytest.mark.parametrize("count", [0, -10, 25])
def test_pictures_of_a_wrong_count(count: int) -> None:
    with pytest.raises(InputError, match="multiple of 10"):
        pictures(count)


def test_too_few_to_split() -> None:
    with pytest.raises(InputError, match="leave none to train on"):
        pictures(20, validation=10, test=10)


@pytest.mark.parametrize(
    ("network", "shape", "parameters"),
    [(DigitsNetwork, (2, 1, 8, 8), 12_282), (ResidualNetwork, (2, 3, 32, 32), 77_706)],
)
def test_networks(network: type[torch.nn.Module], shape: tuple[int, ...], parameters: int) -> None:
    torch.manual_seed(0)
    built = network()
    assert sum(parameter.numel() for parameter in built.parameters()) == parameters
    assert f"{parameters:,}" in (network.__doc__ or "")
    logits = built(torch.rand(shape))
    assert logits.shape == (2, 10)
    allowed = "Conv2d|Linear|MaxPool2d|AvgPool2d".split("|")
    for module in built.modules():
        assert list(module.children()) or type(module).__name__ in allowed
