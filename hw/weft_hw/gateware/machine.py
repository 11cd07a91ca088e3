"""The whole accelerator: registers on AXI4-Lite, the core on AXI4, an interrupt."""

from amaranth.hdl import Cat, Module, ResetInserter, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from weft_hw.config import AcceleratorConfig
from weft_hw.gateware.bus import AxiLitePort, AxiPort
from weft_hw.gateware.core import Core
from weft_hw.gateware.counters import COUNTER_NAMES
from weft_hw.gateware.register_block import RegisterBlock
from weft_hw.instructions import Queue
from weft_hw.registers import Control, Interrupt, Status

__all__ = ["Machine"]


class Machine(wiring.Component):
    """The top of the design; its registers are :data:`weft_hw.registers.REGISTERS`.

    ``CONTROL.START`` is ignored while STATUS shows BUSY or FAULT. ``CONTROL.SOFT_RESET`` acts at
    once if no program runs. Otherwise the machine first comes to rest, so that no answer to an old
    burst can meet a new program; STATUS shows BUSY until then, and a second one does not wait.

    A soft reset resets everything but the registers that hold what was written to them; it clears
    STATUS, INTERRUPT_STATUS, the fault registers and the counters. After BUS_HUNG, or a second soft
    reset that did not wait, bursts may still be outstanding: then the bus has to be reset with the
    machine, or it would take late answers for those to the next program.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    s_axil : In(AxiLitePort)
    m_axi : Out(AxiPort)
    interrupt : Out(1)
        Some bit is set in both INTERRUPT_STATUS and INTERRUPT_ENABLE.
    event_start, event_retire : Out(4)
        One bit a queue: its engine takes an instruction, retires one.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        super().__init__(
            {
                "s_axil": In(AxiLitePort()),
                "m_axi": Out(AxiPort(config)),
                "interrupt": Out(1),
                "event_start": Out(len(Queue)),
                "event_retire": Out(len(Queue)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.registers = registers = RegisterBlock(self._config)
        core = Core(self._config)
        reset_core = Signal()
        m.submodules.core = ResetInserter(reset_core)(core)
        connect(m, flipped(self.s_axil), registers.bus)
        connect(m, core.axi, flipped(self.m_axi))
        m.d.comb += [
            self.event_start.eq(core.started),
            self.event_retire.eq(core.retired),
        ]
        m.d.comb += registers.clear_events.eq(reset_core)
        busy = self._control(m, registers, core, reset_core)
        self._show(m, registers, core, busy)
        return m

    def _control(
        self, m: Module, registers: RegisterBlock, core: Core, reset_core: Signal
    ) -> Signal:
        """Start and reset of the core; the result is high while it must not be started."""
        start = Signal()
        soft_reset = Signal()
        reset_pending = Signal()
        busy = Signal()
        unready = Signal()
        # Registers: the address decoder and the core's reset are far apart.
        m.d.sync += [
            start.eq((registers.control & Control.START.value).any()),
            soft_reset.eq((registers.control & Control.SOFT_RESET.value).any()),
            reset_core.eq(
                ((soft_reset & (~core.running | reset_pending)) | (reset_pending & core.halted))
                & ~reset_core
            ),
        ]
        m.d.comb += [
            unready.eq(core.running | reset_pending | reset_core),
            busy.eq(start | soft_reset | unready),
            core.start.eq(start & ~soft_reset & ~unready & ~core.halted & ~core.faulted),
            core.abort.eq(reset_pending),
            core.program_address.eq(Cat(registers.program_address, registers.program_address_high)),
            core.watchdog_limit.eq(registers.watchdog_limit),
            core.random_seed.eq(registers.random_seed),
            core.random_step.eq(registers.random_step),
            core.scalar_index.eq(registers.scalar_index),
            registers.scalar_value.eq(core.scalar_value),
        ]
        with m.If(reset_core):
            m.d.sync += reset_pending.eq(0)
        with m.Elif(soft_reset):
            m.d.sync += reset_pending.eq(1)
        return busy

    def _show(self, m: Module, registers: RegisterBlock, core: Core, busy: Signal) -> None:
        """Status, events and counters."""
        done = Signal()
        resting = Signal()
        m.d.sync += resting.eq(core.halted)
        with m.If(core.start | registers.clear_events):
            m.d.sync += done.eq(0)
        with m.Elif(core.done):
            m.d.sync += done.eq(1)
        status = {Status.BUSY: busy, Status.DONE: done, Status.FAULT: core.halted & core.faulted}
        events = {
            Interrupt.DONE: core.done,
            Interrupt.FAULT: core.halted & core.faulted & ~resting,
        }
        for flag, value in status.items():
            m.d.comb += registers.status[int(flag).bit_length() - 1].eq(value)
        for flag, value in events.items():
            m.d.comb += registers.interrupt_status_set[int(flag).bit_length() - 1].eq(value)
        m.d.comb += [
            self.interrupt.eq((registers.interrupt_status & registers.interrupt_enable).any()),
            registers.fault_cause.eq(core.cause),
            registers.fault_sticky.eq(core.sticky),
            registers.fault_queue.eq(core.queue),
            registers.fault_instruction.eq(core.instruction),
            Cat(registers.fault_address, registers.fault_address_high).eq(core.address),
            Cat(registers.cycles_low, registers.cycles_high).eq(core.cycles),
        ]
        for queue in Queue:
            name = f"{queue.name.lower()}_head"
            m.d.comb += getattr(registers, name).eq(core.head_offset[queue])
        for name, count in zip(COUNTER_NAMES, core.counts):
            m.d.comb += getattr(registers, name).eq(count)
