"""The machine's AXI buses: their signatures, and the arbitration of reads."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import fifo, wiring
from amaranth.lib.wiring import In, Out

from weft_hw.config import AcceleratorConfig
from weft_hw.gateware.interfaces import AxiReadPort

__all__ = [
    "REGISTER_ADDRESS_BITS",
    "AxiLitePort",
    "AxiPort",
    "ReadArbiter",
    "constant_axi_fields",
]

REGISTER_ADDRESS_BITS = 12

BURST_INCREMENTING = 0b01
CACHE_NORMAL = 0b0011  # normal memory, not cacheable, bufferable


class AxiLitePort(wiring.Signature):
    """AXI4-Lite of 32 bits; seen from the manager."""

    def __init__(self) -> None:
        super().__init__(
            {
                "awaddr": Out(REGISTER_ADDRESS_BITS),
                "awprot": Out(3),
                "awvalid": Out(1),
                "awready": In(1),
                "wdata": Out(32),
                "wstrb": Out(4),
                "wvalid": Out(1),
                "wready": In(1),
                "bresp": In(2),
                "bvalid": In(1),
                "bready": Out(1),
                "araddr": Out(REGISTER_ADDRESS_BITS),
                "arprot": Out(3),
                "arvalid": Out(1),
                "arready": In(1),
                "rdata": In(32),
                "rresp": In(2),
                "rvalid": In(1),
                "rready": Out(1),
            }
        )


class AxiPort(wiring.Signature):
    """Full AXI4 with IDs of one bit; seen from the manager."""

    def __init__(self, config: AcceleratorConfig) -> None:
        members: dict[str, object] = {}
        for channel in ("aw", "ar"):
            members |= {
                f"{channel}id": Out(1),
                f"{channel}addr": Out(config.address_width),
                f"{channel}len": Out(8),
                f"{channel}size": Out(3),
                f"{channel}burst": Out(2),
                f"{channel}lock": Out(1),
                f"{channel}cache": Out(4),
                f"{channel}prot": Out(3),
                f"{channel}valid": Out(1),
                f"{channel}ready": In(1),
            }
        members |= {
            "wdata": Out(config.bus_width),
            "wstrb": Out(config.bus_bytes),
            "wlast": Out(1),
            "wvalid": Out(1),
            "wready": In(1),
            "bid": In(1),
            "bresp": In(2),
            "bvalid": In(1),
            "bready": Out(1),
            "rid": In(1),
            "rdata": In(config.bus_width),
            "rresp": In(2),
            "rlast": In(1),
            "rvalid": In(1),
            "rready": Out(1),
        }
        super().__init__(members)


def constant_axi_fields(config: AcceleratorConfig) -> dict[str, int]:
    """Fields of :class:`AxiPort` that never change: incrementing bursts of whole beats, ID 0."""
    constants: dict[str, int] = {}
    for channel in ("aw", "ar"):
        constants |= {
            f"{channel}id": 0,
            f"{channel}size": config.bus_bytes.bit_length() - 1,
            f"{channel}burst": BURST_INCREMENTING,
            f"{channel}lock": 0,
            f"{channel}cache": CACHE_NORMAL,
            f"{channel}prot": 0,
        }
    return constants


class ReadArbiter(wiring.Component):
    """Shares the read channels between instruction fetch and LOAD.

    Fetch goes first. It cannot starve LOAD, as its buffer bounds what it has in flight. A request
    that the bus has seen is held until it is taken. As all bursts have one ID, data come in the
    order of the requests: a FIFO of ``max_outstanding`` entries remembers whose turn it is, and
    thereby bounds the bursts in flight of both together.

    Requests and data pass in the cycle in which they come.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    fetch, load : In(AxiReadPort)
    axi : Out(AxiReadPort)
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        super().__init__(
            {
                "fetch": In(AxiReadPort(config)),
                "load": In(AxiReadPort(config)),
                "axi": Out(AxiReadPort(config)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        fetch, load, axi = self.fetch, self.load, self.axi
        m.submodules.order = order = fifo.SyncFIFO(width=1, depth=self._config.max_outstanding)

        to_load = Signal()
        held = Signal()
        held_choice = Signal()
        m.d.comb += [
            to_load.eq(Mux(held, held_choice, ~fetch.arvalid)),
            axi.arvalid.eq((fetch.arvalid | load.arvalid) & order.w_rdy),
            axi.araddr.eq(Mux(to_load, load.araddr, fetch.araddr)),
            axi.arlen.eq(Mux(to_load, load.arlen, fetch.arlen)),
            fetch.arready.eq(axi.arready & order.w_rdy & ~to_load),
            load.arready.eq(axi.arready & order.w_rdy & to_load),
            order.w_en.eq(axi.arvalid & axi.arready),
            order.w_data.eq(to_load),
        ]
        m.d.sync += [held.eq(axi.arvalid & ~axi.arready), held_choice.eq(to_load)]

        data_to_load = Signal()
        m.d.comb += [
            data_to_load.eq(order.r_data),
            fetch.rvalid.eq(axi.rvalid & order.r_rdy & ~data_to_load),
            load.rvalid.eq(axi.rvalid & order.r_rdy & data_to_load),
            axi.rready.eq(order.r_rdy & Mux(data_to_load, load.rready, fetch.rready)),
            order.r_en.eq(axi.rvalid & axi.rready & axi.rlast),
        ]
        for port in (fetch, load):
            m.d.comb += [
                port.rdata.eq(axi.rdata),
                port.rresp.eq(axi.rresp),
                port.rlast.eq(axi.rlast),
            ]
        return m
