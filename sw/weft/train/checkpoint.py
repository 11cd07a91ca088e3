"""Checkpoints: everything that a run needs to go on as if it had not stopped.

One file: a line with name and version, a line with the SHA-256 of what follows, and a .npz archive
of the state's arrays and a JSON text. It is written under another name and renamed, so that a
crash leaves the earlier one.
"""

import hashlib
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from weft.errors import CheckpointError
from weft.train.state import State
from weft.train.step import TrainingStep

__all__ = ["Checkpoint", "read_checkpoint", "write_checkpoint"]

HEADER = b"weft training checkpoint, version 1\n"
ARRAYS = ("codes", "master", "velocity")


@dataclass
class Checkpoint:
    """A run between two steps.

    Parameters
    ----------
    state : State
    number : int
        Steps done.
    seed : int
    """

    state: State
    number: int
    seed: int


def _fingerprint(step: TrainingStep) -> str:
    """Of everything about the step that the state's meaning depends on."""
    return hashlib.sha256(repr(step).encode()).hexdigest()


def _exponents(step: TrainingStep) -> dict[str, int]:
    return {parameter.name: parameter.exponent for parameter in step.parameters()}


def write_checkpoint(path: str | os.PathLike[str], step: TrainingStep, run: Checkpoint) -> None:
    """Write completely or not at all.

    Raises
    ------
    CheckpointError
        If the system refuses.
    """
    arrays: dict[str, Any] = {}
    for group in ARRAYS:
        for name, values in getattr(run.state, group).items():
            arrays[f"{group}/{name}"] = values
    header = {
        "step": _fingerprint(step),
        "name": step.name,
        "exponents": _exponents(step),
        "number": run.number,
        "seed": run.seed,
        "cells": run.state.cells,
    }
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    body = buffer.getvalue()
    digest = hashlib.sha256(body).hexdigest().encode()
    target = Path(path)
    partial = target.with_name(target.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(HEADER + digest + b"\n" + body)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    except OSError as error:
        raise CheckpointError(f"{target}: cannot be written: {error.strerror}") from None


def read_checkpoint(path: str | os.PathLike[str], step: TrainingStep) -> Checkpoint:
    """Read what belongs to a step.

    Raises
    ------
    CheckpointError
        If there is no such file, it is damaged, or it belongs to another module, batch or method.
    """
    target = Path(path)
    try:
        data = target.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{target}: cannot be read: {error.strerror}") from None
    if not data.startswith(HEADER):
        raise CheckpointError(f"{target}: not a checkpoint of weft training (version 1)")
    digest, _, body = data[len(HEADER) :].partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise CheckpointError(
            f"{target}: damaged (its checksum differs): use an earlier checkpoint or start anew"
        )
    with np.load(io.BytesIO(body), allow_pickle=False) as archive:
        header = json.loads(archive["header"].tobytes())
        exponents = _exponents(step)
        same_names = header["exponents"].keys() == exponents.keys()
        if same_names and header["exponents"] != exponents:
            raise CheckpointError(
                f"{target}: its parameters have other exponents, which come from the module's "
                "first weights: build the module from the same seed"
            )
        if header["step"] != _fingerprint(step):
            raise CheckpointError(
                f"{target}: belongs to another module, batch size or method (its module: "
                f"{header['name']}; this one: {step.name}): compile what it was saved from"
            )
        state = State(cells=header["cells"])
        for key in archive.files:
            group, _, name = key.partition("/")
            if group in ARRAYS:
                getattr(state, group)[name] = archive[key]
    return Checkpoint(state, header["number"], header["seed"])
