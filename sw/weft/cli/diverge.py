"""`weft diverge`: where two computations of a model first differ."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from weft.cli.files import check_writable
from weft.cli.options import ConfigOption, JsonOption, LatencyOption, ModelArgument
from weft.cli.output import Output
from weft.cli.run_model import DIFFERENT, read_inputs
from weft.errors import InputError
from weft_hw import load_config

__all__ = ["diverge"]

AGAINST = ("rtl", "reference")


def diverge(
    model: ModelArgument,
    input_paths: Annotated[
        list[str],
        typer.Option("--input", metavar="[NAME=]FILE", help=".npy: one sample of each input."),
    ],
    against: Annotated[
        str,
        typer.Option(
            "--against",
            metavar="rtl|reference",
            help="What to compare the functional engine with: the rtl engine, or the tensors of "
            "the model's own software.",
        ),
    ] = "rtl",
    reference_path: Annotated[
        Path | None,
        typer.Option("--reference", help=".npz of int8 tensors by name, instead of computed ones."),
    ] = None,
    config: ConfigOption = None,
    verilog: Annotated[
        Path | None,
        typer.Option("--verilog", help="Verilog of the machine, if not what weft generates."),
    ] = None,
    waveform: Annotated[
        Path | None,
        typer.Option("--waveform", help="Waveform around the difference, .vcd or .fst."),
    ] = None,
    window: Annotated[
        int, typer.Option("--window", min=0, help="Cycles of the waveform on either side.")
    ] = 50,
    latency: LatencyOption = 20,
    as_json: JsonOption = False,
) -> None:
    """Find the first instruction and element in which two computations differ.

    The status is 0 if there is no difference and 3 if there is one.
    """
    output = Output(as_json=as_json)
    chosen = load_config(config) if config else None
    if against not in AGAINST:
        raise InputError(f"--against {against}: must be one of {', '.join(AGAINST)}")
    if reference_path is not None and against != "reference":
        raise InputError(f"--reference {reference_path}: needs --against reference")
    if waveform is not None:
        check_writable("--waveform", waveform, (".vcd", ".fst"))
    text = None if verilog is None else _read_verilog(verilog)
    from weft.diverge import compare_machine, compare_reference, reference_tensors
    from weft.models import load_model
    from weft_sim.rtl import RtlDevice

    with output.stages() as stage:
        stage(f"loading {model.name}", None)
        program = load_model(model, chosen)
        inputs = read_inputs(input_paths, program)
        machine = partial(RtlDevice, latency=latency, verilog=text, progress=stage)
        options: dict[str, Any] = {
            "waveform": waveform,
            "window": window,
            "machine": machine,
            "progress": stage,
        }
        if against == "rtl":
            try:
                found = compare_machine(program, inputs, **options)
            except RuntimeError as error:  # of the tools: weft's own Verilog compiles
                if verilog is None:
                    raise
                raise InputError(f"--verilog {verilog}: no machine of weft: {error}") from None
        else:
            stage("computing the reference", None)
            if reference_path is None:
                tensors = reference_tensors(model, program, inputs)
            else:
                tensors = _read_tensors(reference_path)
            found = compare_reference(program, inputs, tensors, **options)
    output.console.print(found.text(), markup=False, soft_wrap=True)
    output.result(found.to_dict())
    if found.difference is not None:
        raise typer.Exit(DIFFERENT)


def _read_verilog(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise InputError(f"--verilog {path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"--verilog {path}: this is not text") from None


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            if not hasattr(file, "files"):
                raise ValueError("it holds one array without a name")
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise InputError(f"--reference {path}: there is no such file") from None
    except (ValueError, EOFError, OSError, TypeError) as error:
        raise InputError(f"--reference {path}: not a readable .npz file ({error})") from None
