"""Reference tensors: what a front end's own software makes of an input, by tensor name.

The interface is a mapping of tensor name to int8 array, in the model's order of elements, with or
without a batch axis of one. :func:`reference_tensors` fills it for the files that weft reads;
anything else that computes codes can.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.diverge.locate import region_coordinates
from weft.errors import InputError, missing_extra
from weft.frontends.tflite_file import FILE_IDENTIFIER
from weft.host import dequantize, prepare
from weft.models import TFLITE_AT, ZIP_MAGIC
from weft.program import Program, ProgramRegion
from weft_sim.race_check import Space

__all__ = ["Expected", "expected_regions", "reference_tensors"]

Codes = NDArray[np.int8]


@dataclass(frozen=True)
class Expected:
    """What a tensor's home is to hold.

    Parameters
    ----------
    region : ProgramRegion
    codes : int8 array
        By byte of the region.
    known : bool array
        Where ``codes`` means something: not in padding.
    """

    region: ProgramRegion
    codes: Codes
    known: NDArray[np.bool_]

    @property
    def space(self) -> Space:
        """The memory of the region."""
        return Space.ACTIVATION if self.region.memory == "activation" else Space.DRAM


def expected_regions(
    program: Program, reference: Mapping[str, NDArray[Any]]
) -> tuple[tuple[Expected, ...], tuple[str, ...]]:
    """The homes of a reference's tensors, and the names of tensors that have none.

    Raises
    ------
    InputError
        If no tensor has one, an array is not of int8, or its size is not its tensor's.
    """
    homes = [region for region in program.regions if region.pitch and region.name in reference]
    if not homes:
        raise InputError(
            f"no tensor of the reference ({', '.join(list(reference)[:5]) or 'it is empty'}) has a "
            f"place in program {program.name}; it has "
            f"{', '.join(dict.fromkeys(region.name for region in program.regions)) or 'none'}"
        )
    ports = (*program.inputs, *program.outputs)
    order = next((port.order for port in ports if not port.source), "HWC")
    expected = tuple(
        _expected(region, np.asarray(reference[region.name]), order) for region in homes
    )
    known = {region.name for region in homes}
    return expected, tuple(name for name in reference if name not in known)


def _expected(region: ProgramRegion, values: NDArray[Any], order: str) -> Expected:
    height, width, channels = region.height, region.width, region.channels
    if values.dtype != np.int8 or values.size != height * width * channels:
        raise InputError(
            f"reference tensor {region.name} must hold {height * width * channels} int8 codes "
            f"({height} x {width} pixels of {channels} channels), not {values.dtype} of shape "
            f"{'x'.join(map(str, values.shape)) or 'a scalar'}"
        )
    if order == "CHW":
        image = values.reshape(channels, height, width).transpose(1, 2, 0)
    else:
        image = values.reshape(height, width, channels)
    codes, known = np.zeros(region.size, np.int8), np.zeros(region.size, np.bool_)
    for byte in range(region.size):
        place = region_coordinates(region, region.address + byte)
        if place is not None:
            codes[byte], known[byte] = image[place], True
    return Expected(region, codes, known)


def reference_tensors(
    path: str | os.PathLike[str], program: Program, inputs: Mapping[str, NDArray[Any]]
) -> dict[str, Codes]:
    """The int8 tensors that the model file's own software computes, by name.

    * .pt2: the integer reference of the PyTorch door (:mod:`weft.quantize.integer_reference`).
    * .tflite: TFLite's interpreter with its reference kernels.

    Parameters
    ----------
    path : path
        The model file.
    program : Program
        Compiled from it: how inputs are quantized.
    inputs : mapping of name to array
        One sample, int8 or float32.

    Raises
    ------
    InputError
        If the file has no reference (a compiled Program), or an input does not fit.
    MissingExtra
        If the software is not installed.
    """
    data = Path(path).read_bytes()
    samples = {port.name: prepare(port, inputs[port.name])[0] for port in program.inputs}
    if data.startswith(ZIP_MAGIC):
        import weft.quantize.pt2e  # noqa: F401  (names the missing extra if there is no PyTorch)
        from weft.frontends.pt2_file import load_pt2
        from weft.quantize.integer_reference import IntegerReference

        floats = [
            dequantize(samples[port.name], port.scale, port.zero_point) for port in program.inputs
        ]
        return IntegerReference(load_pt2(path)).layers(*floats)
    if data[TFLITE_AT : TFLITE_AT + len(FILE_IDENTIFIER)] == FILE_IDENTIFIER:
        return _interpreted(data, samples)
    raise InputError(
        f"{path}: only a .pt2 or a .tflite file has reference tensors; give them with "
        "--reference FILE.npz"
    )


def _interpreted(data: bytes, samples: Mapping[str, Codes]) -> dict[str, Codes]:
    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    except ImportError as error:
        raise missing_extra("TFLite's interpreter", "tflite", purpose="its tensors") from error
    interpreter = Interpreter(
        model_content=data,
        experimental_op_resolver_type=OpResolverType.BUILTIN_REF,
        experimental_preserve_all_tensors=True,
    )
    interpreter.allocate_tensors()
    for detail in interpreter.get_input_details():
        if detail["dtype"] != np.int8:
            raise InputError(
                f"input {detail['name']} of the model is {np.dtype(detail['dtype'])}; reference "
                "tensors are computed for int8 inputs"
            )
        interpreter.set_tensor(detail["index"], samples[detail["name"]].reshape(detail["shape"]))
    interpreter.invoke()
    written = {
        index for operation in interpreter._get_ops_details() for index in operation["outputs"]
    }
    return {
        detail["name"]: interpreter.get_tensor(detail["index"])
        for detail in interpreter.get_tensor_details()
        if detail["index"] in written and detail["dtype"] == np.int8
    }
