"""The compiler: a graph to a :class:`weft.program.Program`, stage by stage.

passes (:mod:`weft.passes`) -> :mod:`~weft.compiler.kernels` (each operation's geometry) ->
:mod:`~weft.compiler.memory_plan` (what stays on chip, with :mod:`~weft.compiler.tiling`) ->
:mod:`~weft.compiler.lower_convolution`, :mod:`~weft.compiler.lower_vector` and
:mod:`~weft.compiler.lower_add` (instructions without semaphores) ->
:mod:`~weft.compiler.overlap` (their order) -> :mod:`~weft.compiler.synchronize` (semaphores) ->
:mod:`~weft.compiler.driver` (program).
"""

from weft.compiler.driver import compile_graph

__all__ = ["compile_graph"]
