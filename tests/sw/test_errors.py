"""The exceptions of the software side."""

import pytest

import weft_hw.errors
from weft import errors


def test_every_error_is_a_weft_error() -> None:
    assert errors.WeftError is weft_hw.errors.WeftError
    for name in set(errors.__all__) - {"missing_extra"}:
        assert issubclass(getattr(errors, name), errors.WeftError)


def test_a_missing_extra_says_how_to_get_it() -> None:
    error = errors.missing_extra("PyTorch", "torch", purpose="reading a .pt2 file")
    assert str(error) == 'PyTorch is needed for reading a .pt2 file: pip install "weft[torch]"'
    with pytest.raises(ImportError):
        raise error
