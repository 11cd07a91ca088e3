"""The core: engines, memories, dispatch and fault control; everything that a soft reset resets."""

from functools import reduce
from operator import or_

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect

from weft_hw.config import AcceleratorConfig
from weft_hw.gateware.accumulator_memory import AccumulatorMemory
from weft_hw.gateware.bus import AxiPort, ReadArbiter, constant_axi_fields
from weft_hw.gateware.counters import COUNTER_NAMES, Counters
from weft_hw.gateware.dispatch import Dispatch
from weft_hw.gateware.fault_control import FaultControl
from weft_hw.gateware.fetch import Fetch
from weft_hw.gateware.load import LoadEngine
from weft_hw.gateware.lookup_tables import LookupTables
from weft_hw.gateware.matrix import MatrixEngine
from weft_hw.gateware.parameter_memory import ParameterMemory
from weft_hw.gateware.scratchpad import Scratchpad
from weft_hw.gateware.store import StoreEngine
from weft_hw.gateware.vector import VectorEngine
from weft_hw.instruction_values import SCALAR_REGISTER_BITS
from weft_hw.instructions import DRAM_BITS, Queue
from weft_hw.registers import FaultCause

__all__ = ["Core"]


class Core(wiring.Component):
    """Runs one program at a time: from ``start`` until ``done`` or, after a fault, ``halted``.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    start : In(1)
        Allowed only if neither ``running`` nor ``halted``.
    abort : In(1)
        Bring the machine to rest as after a fault.
    program_address : In(40)
        Held while the program runs.
    watchdog_limit : In(32)
    random_seed, random_step : In(32), In(32)
        Held while the program runs.
    scalar_index, scalar_value : In(4), Out(32)
        A scalar register to look at while no program runs; two cycles later.
    running : Out(1)
        From the cycle after ``start`` to ``done`` or ``halted``.
    done : Out(1)
        High for the last cycle of ``running``, if the program came to its END.
    halted : Out(1)
        High from the end of ``running`` to reset, after a fault or ``abort``.
    faulted, cause, sticky, queue, instruction, address : Out
        See :class:`FaultControl`.
    head_offset : Out(32), array by queue
        Byte offset of the oldest instruction that has not retired.
    cycles, counts : Out(64), Out(32) array
        See :class:`Counters`.
    started, retired : Out(4)
        One bit a queue.
    axi : Out(AxiPort)
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        queues = len(Queue)
        super().__init__(
            {
                "start": In(1),
                "abort": In(1),
                "program_address": In(DRAM_BITS),
                "watchdog_limit": In(32),
                "random_seed": In(32),
                "random_step": In(32),
                "scalar_index": In(SCALAR_REGISTER_BITS),
                "scalar_value": Out(32),
                "running": Out(1),
                "done": Out(1),
                "halted": Out(1),
                "faulted": Out(1),
                "cause": Out(FaultCause),
                "sticky": Out(32),
                "queue": Out(range(queues + 1)),
                "instruction": Out(32),
                "address": Out(DRAM_BITS),
                "head_offset": Out(32).array(queues),
                "cycles": Out(64),
                "counts": Out(32).array(len(COUNTER_NAMES)),
                "started": Out(queues),
                "retired": Out(queues),
                "axi": Out(AxiPort(config)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        m.submodules.load = load = LoadEngine(config)
        m.submodules.matrix = matrix = MatrixEngine(config)
        m.submodules.vector = vector = VectorEngine(config)
        m.submodules.store = store = StoreEngine(config)
        engines = {
            Queue.LOAD: load,
            Queue.MATRIX: matrix,
            Queue.VECTOR: vector,
            Queue.STORE: store,
        }
        ports = [engines[queue].engine for queue in Queue]
        m.submodules.dispatch = dispatch = Dispatch(config)
        m.submodules.fetch = fetch = Fetch(config)
        m.submodules.faults = faults = FaultControl()
        m.submodules.counters = counters = Counters()

        for queue, engine in engines.items():
            connect(m, getattr(dispatch, queue.name.lower()), engine.engine)
        self._connect_memories(m, load, matrix, vector, store, faults.stop)
        self._connect_bus(m, fetch, load, store)
        self._connect_control(m, dispatch, fetch, faults)
        # Late in a cycle: faults and counters see them in the next.
        busy, stall = Signal(len(ports), name="busy"), Signal(len(ports), name="stall")
        m.d.sync += [
            busy.eq(Cat(port.busy for port in ports)),
            stall.eq(Cat(port.stall for port in ports)),
        ]
        self._connect_faults(m, dispatch, fetch, faults, ports, busy, stall)
        self._connect_counters(m, dispatch, counters, busy, stall)
        m.d.comb += [
            vector.random_seed.eq(self.random_seed),
            vector.random_step.eq(self.random_step),
            vector.scalar_index.eq(self.scalar_index),
            self.scalar_value.eq(vector.scalar_value),
        ]
        m.d.sync += [
            counters.read_beats.eq(load.beat),
            counters.fetch_beats.eq(fetch.beat),
            counters.write_beats.eq(store.beat),
        ]
        return m

    def _connect_memories(
        self,
        m: Module,
        load: LoadEngine,
        matrix: MatrixEngine,
        vector: VectorEngine,
        store: StoreEngine,
        inhibit: Signal,
    ) -> None:
        config = self._config
        line = config.line_bytes
        activation_reads = [matrix.left, vector.a, vector.b, store.activation]
        activation_writes = [load.activation, vector.result]
        m.submodules.activation = activation = Scratchpad(
            config.activation_bytes,
            config.activation_banks,
            config.left_port_bytes,
            readers=len(activation_reads),
            writers=len(activation_writes),
            read_bytes=[len(requester.data) // 8 for requester in activation_reads],
            write_bytes=[len(requester.data) // 8 for requester in activation_writes],
            byte_order=config.activation_byte_order,
            told_banks=True,
        )
        activation_banks = (matrix.left_banks, vector.a_banks, vector.b_banks, store.banks)
        m.d.comb += [port.eq(mask) for port, mask in zip(activation.read_banks, activation_banks)]
        m.submodules.weight = weight = Scratchpad(
            config.weight_bytes,
            config.weight_banks,
            line,
            readers=2,
            writers=1,
            choose_by_bank=activation.choose_by_bank,
            told_banks=True,
        )
        for port, mask in zip(weight.read_banks, (matrix.top_banks, vector.weight_b_banks)):
            m.d.comb += port.eq(mask)
        accumulator_reads = [vector.accumulator_a, vector.accumulator_b, store.accumulator]
        accumulator_writes = [vector.accumulator_result, load.accumulator]
        m.submodules.accumulator = accumulator = AccumulatorMemory(
            config, readers=len(accumulator_reads), writers=len(accumulator_writes)
        )
        m.submodules.parameter = parameter = ParameterMemory(config)
        m.submodules.tables = tables = LookupTables(config)
        for requester, port in zip(activation_reads, activation.reads):
            _connect_read(m, requester, port)
        for requester, port in zip(activation_writes, activation.writes):
            _connect_write(m, requester, port)
        connect(m, matrix.top, weight.reads[0])
        connect(m, vector.weight_b, weight.reads[1])
        connect(m, load.weight, weight.writes[0])
        connect(m, matrix.update, accumulator.update)
        for requester, port in zip(accumulator_reads, accumulator.reads):
            connect(m, requester, port)
        for requester, port in zip(accumulator_writes, accumulator.writes):
            connect(m, requester, port)
        connect(m, load.parameter, parameter.write)
        connect(m, vector.parameters, parameter.read)
        connect(m, load.lookup, tables.write)
        connect(m, vector.tables, tables.read)
        for memory in (activation, weight, accumulator, parameter, tables):
            m.d.comb += memory.inhibit.eq(inhibit)

    def _connect_bus(self, m: Module, fetch: Fetch, load: LoadEngine, store: StoreEngine) -> None:
        axi = self.axi
        m.submodules.read_arbiter = arbiter = ReadArbiter(self._config)
        connect(m, fetch.axi, arbiter.fetch)
        connect(m, load.axi, arbiter.load)
        for manager in (arbiter.axi, store.axi):
            for name, member in manager.signature.members.items():
                ours, theirs = getattr(axi, name), getattr(manager, name)
                m.d.comb += ours.eq(theirs) if member.flow is Out else theirs.eq(ours)
        for name, value in constant_axi_fields(self._config).items():
            m.d.comb += getattr(axi, name).eq(value)

    def _connect_control(
        self, m: Module, dispatch: Dispatch, fetch: Fetch, faults: FaultControl
    ) -> None:
        connect(m, fetch.words, dispatch.words)
        m.d.comb += [
            dispatch.start.eq(self.start),
            dispatch.program_address.eq(self.program_address),
            dispatch.fetch_busy.eq(fetch.bus_busy),
            dispatch.stop.eq(faults.stop),
            fetch.start.eq(dispatch.fetch_start),
            fetch.address.eq(self.program_address),
            fetch.ended.eq(dispatch.fetch_ended),
            fetch.stop.eq(faults.stop),
            self.done.eq(dispatch.done),
            self.started.eq(dispatch.started),
            self.retired.eq(dispatch.retired),
            self.halted.eq(faults.halted),
        ]
        with m.If(self.start):
            m.d.sync += self.running.eq(1)
        with m.Elif(self.done | self.halted):
            m.d.sync += self.running.eq(0)
        for ours, theirs in zip(self.head_offset, dispatch.oldest_offset):
            m.d.comb += ours.eq(theirs)

    def _connect_faults(
        self,
        m: Module,
        dispatch: Dispatch,
        fetch: Fetch,
        faults: FaultControl,
        ports: list[wiring.PureInterface],
        busy: Signal,
        stall: Signal,
    ) -> None:
        # Everything comes a cycle late, so that no path through an engine ends in the choice of the
        # first fault.
        reports = [*(port.fault for port in ports), dispatch.fault, dispatch.overflow]
        for report, target in zip(reports, [*faults.reports, faults.overflow]):
            m.d.sync += target.valid.eq(report.valid)
            for name in ("cause", "instruction", "address"):
                m.d.sync += getattr(target, name).eq(getattr(report, name))
        axi = self.axi
        transfers = [
            getattr(axi, f"{channel}valid") & getattr(axi, f"{channel}ready")
            for channel in ("ar", "r", "aw", "w", "b")
        ]
        bus_busy = [port.bus_busy for port in ports] + [fetch.bus_busy]
        moved = Signal(len(ports))
        m.d.sync += [
            faults.overflow_queue.eq(dispatch.overflow_queue),
            moved.eq(dispatch.started | dispatch.retired),
            faults.progress.eq((moved | (busy & ~stall)).any()),
            faults.bus_progress.eq(reduce(or_, transfers)),
            faults.bus_busy.eq(Cat(bus_busy)),
            faults.waiting.eq(dispatch.waiting),
        ]
        m.d.comb += [
            faults.busy.eq(busy),
            faults.running.eq(self.running),
            faults.abort.eq(self.abort),
            faults.limit.eq(self.watchdog_limit),
        ]
        for offsets in ("head_offset", "oldest_offset"):
            for target, source in zip(getattr(faults, offsets), getattr(dispatch, offsets)):
                m.d.comb += target.eq(source)
        for name in ("faulted", "cause", "sticky", "queue", "instruction", "address"):
            m.d.comb += getattr(self, name).eq(getattr(faults, name))

    def _connect_counters(
        self,
        m: Module,
        dispatch: Dispatch,
        counters: Counters,
        busy: Signal,
        stall: Signal,
    ) -> None:
        m.d.comb += [
            counters.clear.eq(self.start),
            counters.running.eq(self.running),
            self.cycles.eq(counters.cycles),
            counters.busy.eq(busy),
            counters.stall.eq(busy & stall),
        ]
        m.d.sync += [  # the events' cycles are over before the program's
            counters.retired.eq(dispatch.retired),
            counters.wait.eq(dispatch.waiting),
        ]
        for ours, theirs in zip(self.counts, counters.counts):
            m.d.comb += ours.eq(theirs)


def _connect_read(m: Module, requester: wiring.PureInterface, port: wiring.PureInterface) -> None:
    """A reader may take fewer bytes than the port gives."""
    m.d.comb += [
        port.valid.eq(requester.valid),
        port.address.eq(requester.address),
        requester.ready.eq(port.ready),
        requester.data_valid.eq(port.data_valid),
        requester.data.eq(port.data),
    ]


def _connect_write(m: Module, requester: wiring.PureInterface, port: wiring.PureInterface) -> None:
    """A writer may write fewer bytes than the port takes."""
    m.d.comb += [
        port.valid.eq(requester.valid),
        port.address.eq(requester.address),
        port.data.eq(requester.data),
        port.strobe.eq(requester.strobe),
        requester.ready.eq(port.ready),
    ]
