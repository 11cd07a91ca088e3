"""Memory of a training step in float32 PyTorch: what integer training is compared with.

``python -m weft.train.float_memory`` prints the figure of the ResNet-8-class network at batch 32.
Counted are bytes that any implementation of SGD with momentum in float32 holds: no allocator's
rounding, no workspaces of convolutions.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from weft.train.networks import ResidualNetwork

__all__ = ["FloatMemory", "float_memory"]


@dataclass(frozen=True)
class FloatMemory:
    """Bytes of a training step.

    Parameters
    ----------
    parameters, gradients, momentum : int
        As many values each.
    kept : int
        Tensors that autograd saves from the forward pass for the backward pass, each storage once,
        without parameters; the input is one of them.
    transient : int
        The most that one operation of the backward pass takes and gives, without parameters'
        gradients and what is kept.
    """

    parameters: int
    gradients: int
    momentum: int
    kept: int
    transient: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.parameters + self.gradients + self.momentum + self.kept + self.transient


def float_memory(network: nn.Module, images: Tensor, labels: Tensor) -> FloatMemory:
    """Measured in one forward and backward pass of cross-entropy.

    Parameters
    ----------
    network : nn.Module
        Float32, in training mode; its gradients are overwritten.
    images : float32 tensor
        A batch.
    labels : int64 tensor (batch,)
    """
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, int] = {}
    held: list[Tensor] = []  # so that no storage's address is used again

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = functional.cross_entropy(network(images), labels)
    transients: list[int] = [0]
    for node in _nodes(loss.grad_fn):
        node.register_hook(_counter(node, transients))
    network.zero_grad()
    loss.backward()
    parameters = sum(parameter.nbytes for parameter in network.parameters())
    gradients = sum(parameter.grad.nbytes for parameter in network.parameters())
    return FloatMemory(parameters, gradients, parameters, sum(kept.values()), max(transients))


def _nodes(last: Any) -> list[Any]:
    """All operations of the backward pass."""
    found: list[Any] = []
    waiting = [last]
    while waiting:
        node = waiting.pop()
        if node is None or node in found:
            continue
        found.append(node)
        waiting += [each for each, _ in node.next_functions]
    return found


def _counter(node: Any, transients: list[int]) -> Any:
    of_parameter = [_ends_in_parameter(following) for following, _ in node.next_functions]

    def count(results: Sequence[Tensor | None], taken: Sequence[Tensor | None]) -> None:
        given = [
            tensor
            for tensor, excluded in zip(results, of_parameter, strict=True)
            if tensor is not None and not excluded
        ]
        storages = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for tensor in (*given, *taken)
            if tensor is not None
        }
        transients.append(sum(storages.values()))

    return (lambda *_: None) if _ends_in_parameter(node) else count


def _ends_in_parameter(node: Any) -> bool:
    """Whether an operation yields a parameter's gradient; dense layers transpose theirs."""
    if type(node).__name__ == "TBackward0":
        return _ends_in_parameter(node.next_functions[0][0])
    return type(node).__name__ == "AccumulateGrad"


def main() -> None:
    """Print the figure."""
    batch = 32
    torch.manual_seed(0)
    memory = float_memory(ResidualNetwork(), torch.rand(batch, 3, 32, 32), torch.arange(batch) % 10)
    print(f"ResidualNetwork, batch {batch}, float32, SGD with momentum: bytes")
    for name, value in {**asdict(memory), "total": memory.total}.items():
        print(f"{name:12}{value:12,}")


if __name__ == "__main__":
    main()
