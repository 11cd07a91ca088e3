"""What a pass is, and how a sequence of them runs."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

from weft.ir import Graph

__all__ = ["Pass", "run_passes"]


@dataclass(frozen=True)
class Pass(ABC):
    """A rewriting of graphs; subclasses say in their docstring what holds afterwards."""

    @property
    def name(self) -> str:
        """The pass's name in errors."""
        return type(self).__name__

    @abstractmethod
    def apply(self, graph: Graph) -> Graph:
        """The rewritten graph; the argument is left as it is."""


def run_passes(graph: Graph, passes: Iterable[Pass]) -> Graph:
    """Apply passes in order.

    Raises
    ------
    GraphError
        If the graph, as given or after a pass, breaks a rule; the message names the pass.
    """
    graph.verify()
    for each in passes:
        graph = each.apply(graph)
        graph.verify(after=f"pass {each.name}")
    return graph
