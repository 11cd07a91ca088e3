"""The driver: a program loaded on a device, inputs in, outputs and a report out."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from weft.errors import InputError
from weft.host import dequantize as dequantize_codes
from weft.host import pack, prepare, unpack
from weft.host_operations import run_host_steps
from weft.program import Program
from weft.report import Accounting
from weft_hw.config import AcceleratorConfig, load_config
from weft_sim.device import Device, DeviceFault, RunResult, open_device

__all__ = ["ProgramFault", "Session"]

Array = NDArray[Any]


class ProgramFault(DeviceFault):
    """A :class:`DeviceFault`, with the instruction and the layer that it belongs to.

    ``location`` names them; the other attributes are those of the device's fault.
    """

    def __init__(self, fault: DeviceFault, program: Program) -> None:
        super().__init__(
            fault.cause,
            queue=fault.queue,
            instruction_offset=fault.instruction_offset,
            address=fault.address,
            sticky=fault.sticky,
        )
        self.location = program.locate(fault.instruction_offset)
        self.args = (f"{self.args[0]}; {self.location}",)


class Session:
    """A program on a device, ready to run inputs.

    Parameters
    ----------
    program : Program
    engine : {"rtl", "functional"}
    config : AcceleratorConfig or str, optional
        The configuration that the user means to run on; another one than the program's is refused.
    device : Device, optional
        A device that is open already (the session does not close it); instead of ``engine``.
    **options
        Of the engine, see :func:`weft_sim.device.open_device`.

    Raises
    ------
    ProgramFormatError
        If the program was compiled for another configuration.
    """

    def __init__(
        self,
        program: Program,
        engine: str = "rtl",
        *,
        config: AcceleratorConfig | str | None = None,
        device: Device | None = None,
        **options: Any,
    ) -> None:
        if config is not None:
            chosen = config if isinstance(config, AcceleratorConfig) else load_config(config)
            program.require_config(chosen)
        self.program = program
        self._owned = device is None
        if device is None:
            device = open_device(
                engine, program.config, memory_bytes=program.memory_bytes, **options
            )
        program.require_config(device.config)
        if device.memory_bytes < program.memory_bytes:
            raise InputError(
                f"the device has {device.memory_bytes} bytes of memory, program {program.name} "
                f"needs {program.memory_bytes}"
            )
        self.device = device
        self._accounting = Accounting(program, device.engine)
        device.write_memory(program.constants_address, program.constants)
        device.write_memory(program.instructions_address, program.instructions)

    def run(self, inputs: Any, *, dequantize: bool = False) -> Any:
        """Run one sample or a batch.

        Parameters
        ----------
        inputs : array, sequence of arrays or mapping of name to array
            An array for a network of one input, else one array each; float32, or int8 codes. Each
            has the model's shape, or that behind a batch axis.
        dequantize : bool
            Give float32 values instead of int8 codes.

        Returns
        -------
        array, or dict of name to array
            The output (all outputs by name, if there are several), with a batch axis if the inputs
            have one.

        Raises
        ------
        InputError
            If an input is missing, or has the wrong shape or type.
        ProgramFault
            If the machine stops with a fault; the session can run again.
        """
        batches, single = self._inputs(inputs)
        count = len(batches[0])
        self._accounting.begin()
        samples = [self._run_one([batch[n] for batch in batches]) for n in range(count)]
        known: dict[str, Array] = {}
        for position, port in enumerate(self.program.outputs):
            known[port.name] = np.stack([sample[position] for sample in samples])
        run_host_steps(self.program, known)
        outputs: dict[str, Array] = {}
        for name in self.program.results:
            values = known[name]
            result = self.program.result(name)
            if dequantize and result.dtype == "int8":
                values = dequantize_codes(values, result.scale, result.zero_point)
            outputs[name] = values[0] if single else values
        if len(outputs) == 1:
            return outputs[self.program.results[0]]
        return outputs

    @property
    def report(self) -> dict[str, Any]:
        """Figures of the last :meth:`run`, ready for JSON; see :class:`weft.report.Accounting`."""
        return self._accounting.report()

    @property
    def last_result(self) -> RunResult | None:
        """What the device gave for the last input of the last :meth:`run`; None before."""
        return self._accounting.last

    def close(self) -> None:
        """Close the device, if the session opened it."""
        if self._owned:
            self.device.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _run_one(self, sample: list[NDArray[np.int8]]) -> list[NDArray[np.int8]]:
        program, device = self.program, self.device
        for port, values in zip(program.inputs, sample, strict=True):
            device.write_memory(port.address, pack(port, values))
        try:
            result = device.run(program.instructions_address)
        except DeviceFault as fault:
            device.reset()
            raise ProgramFault(fault, program) from fault
        self._accounting.add(result)
        return [
            unpack(port, device.read_memory(port.address, port.size)) for port in program.outputs
        ]

    def _inputs(self, inputs: Any) -> tuple[list[NDArray[np.int8]], bool]:
        """Codes of each input with a batch axis, and whether that axis was added here."""
        ports = self.program.inputs
        names = [port.name for port in ports]
        if isinstance(inputs, Mapping):
            unknown = [name for name in inputs if name not in names]
            missing = [name for name in names if name not in inputs]
            if unknown or missing:
                raise InputError(
                    f"the inputs are {', '.join(names)}; given: {', '.join(map(str, inputs))}"
                )
            given: Sequence[Any] = [inputs[name] for name in names]
        elif isinstance(inputs, tuple | list) and len(ports) > 1:
            given = inputs
        elif isinstance(inputs, tuple) and len(inputs) == 1:
            given = inputs
        else:
            given = [inputs]
        if len(given) != len(ports):
            raise InputError(
                f"{len(ports)} inputs are needed ({', '.join(names)}), not {len(given)}"
            )
        prepared = [prepare(port, values) for port, values in zip(ports, given, strict=True)]
        if len({(len(codes), single) for codes, single in prepared}) > 1:
            raise InputError(f"the inputs {', '.join(names)} differ in their batch axis")
        return [codes for codes, _ in prepared], prepared[0][1]
