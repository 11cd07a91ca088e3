"""Methods of integer training, as settings of the step's quantizers and updates."""

from dataclasses import dataclass, replace

from weft.errors import InputError
from weft.train.step import BitUpdate, MomentumUpdate, Update

__all__ = ["EXPONENTS", "METHODS", "Method", "choose_method"]

EXPONENTS = ("own", "delayed")
COMPENSATIONS = ("none", "channel", "pixel")


@dataclass(frozen=True)
class Method:
    """How sums become codes in either pass, and how parameters move.

    Parameters
    ----------
    name : str
    forward_stochastic, backward_stochastic : bool
        Else half to even.
    clipped : bool
        Gradients are clipped to 0.95 of their range (Octo's range clipping).
    compensation : str
        A trained tensor added to each layer's result (Octo's loss-aware compensation): ``none``,
        by ``channel``, or by ``pixel`` and channel.
    update : Update
    delayed : bool
        Exponents of the step before; else of the same.
    """

    name: str
    forward_stochastic: bool = True
    backward_stochastic: bool = False
    clipped: bool = False
    compensation: str = "none"
    update: Update = MomentumUpdate()
    delayed: bool = False


METHODS = {
    method.name: method
    for method in (
        Method("int8"),
        Method("compensated", compensation="channel"),
        Method("clipped", clipped=True),
        Method("octo", clipped=True, compensation="channel"),
        Method("shared", forward_stochastic=False, backward_stochastic=True, update=BitUpdate()),
    )
}
"""By name. ``int8`` is plain integer SGD; ``octo`` has both parts of Octo, ``compensated`` and
``clipped`` one each; ``shared`` is NITI: a shared exponent and updates of a few bits."""


def choose_method(
    method: str | Method,
    *,
    update: Update | None = None,
    exponents: str | None = None,
    compensation: str | None = None,
) -> Method:
    """A method by name, with parts of it replaced.

    Parameters
    ----------
    method : str or Method
    update : Update, optional
        In place of the method's own.
    exponents : str, optional
        ``own`` or ``delayed``.
    compensation : str, optional
        ``none``, ``channel`` or ``pixel``.

    Raises
    ------
    InputError
        If there is no such method or setting.
    """
    if isinstance(method, str):
        if method not in METHODS:
            raise InputError(f"method {method!r}: choose one of {', '.join(METHODS)}")
        method = METHODS[method]
    for name, value, allowed in (
        ("exponents", exponents, EXPONENTS),
        ("compensation", compensation, COMPENSATIONS),
    ):
        if value is not None and value not in allowed:
            raise InputError(f"{name} {value!r}: choose one of {', '.join(allowed)}")
    if update is not None:
        method = replace(method, update=update)
    if exponents is not None:
        method = replace(method, delayed=exponents == "delayed")
    if compensation is not None:
        method = replace(method, compensation=compensation)
    if isinstance(method.update, BitUpdate):
        method = replace(method, update=BitUpdate(delayed=method.delayed))
    elif method.update.state_bits not in (16, 32):
        raise InputError(f"a state of {method.update.state_bits} bits: choose 16 or 32")
    return method
