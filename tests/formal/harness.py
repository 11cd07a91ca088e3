"""What harnesses share: free inputs, signals inside a unit, registers of the past, environments."""

from amaranth.asserts import AnyConst, AnySeq
from amaranth.hdl import Assert, Assume, Elaboratable, Fragment, Module, Signal, Value

__all__ = ["Inside", "add", "always", "constant", "free", "given", "past", "stable"]


class Inside:
    """Looks up signals inside a unit by name, for invariants that its ports do not show."""

    def __init__(self, fragment: Fragment, path: str) -> None:
        self._fragment = fragment
        self._path = path

    def __getitem__(self, name: str) -> Signal:
        found = {
            id(signal): signal
            for statements in self._fragment.statements.values()
            for statement in statements
            for signal in statement._lhs_signals()
            if signal.name == name
        }
        if len(found) != 1:
            raise LookupError(f"{self._path} drives {len(found)} signals named `{name}`, not one")
        return next(iter(found.values()))

    def unit(self, name: str) -> "Inside":
        """A submodule."""
        for fragment, own_name, _ in self._fragment.subfragments:
            if own_name == name:
                return Inside(fragment, f"{self._path}.{name}")
        raise LookupError(f"{self._path} has no submodule `{name}`")


class _Elaborated(Elaboratable):
    def __init__(self, fragment: Fragment) -> None:
        self._fragment = fragment

    def elaborate(self, platform: object) -> Fragment:
        return self._fragment


def add(m: Module, unit: Elaboratable) -> Inside:
    """Add the unit under proof as submodule ``dut``."""
    fragment = Fragment.get(unit, "formal")
    m.submodules.dut = _Elaborated(fragment)
    return Inside(fragment, type(unit).__name__)


def free(m: Module, *signals: Value) -> None:
    """Let the solver choose these inputs anew in each cycle."""
    for signal in signals:
        value = Value.cast(signal)
        m.d.comb += value.eq(AnySeq(len(value)))


def constant(m: Module, width: int, name: str) -> Signal:
    """A value that the solver chooses once."""
    chosen = Signal(width, name=name)
    m.d.comb += chosen.eq(AnyConst(width))
    return chosen


def past(m: Module, value: Value, name: str, init: int = 0) -> Signal:
    """The value in the cycle before."""
    cast = Value.cast(value)
    register = Signal(len(cast), name=name, init=init)
    m.d.sync += register.eq(cast)
    return register


def always(m: Module, condition: Value) -> None:
    m.d.comb += Assert(condition)


def given(m: Module, condition: Value) -> None:
    m.d.comb += Assume(condition)


def stable(
    m: Module, name: str, valid: Value, ready: Value, payload: Value, *, given: bool
) -> None:
    """Valid and payload, once offered, stay until taken: asserted, or assumed where ``given``."""
    claim = Assume if given else Assert
    offered = past(m, valid & ~ready, f"{name}_offered")
    payload = Value.cast(payload)
    before = past(m, payload, f"{name}_before")
    m.d.comb += claim(~offered | (valid & (payload == before)))
