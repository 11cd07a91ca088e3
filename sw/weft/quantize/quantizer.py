"""The PT2E quantizer that prepares a PyTorch model for the accelerator's integer arithmetic."""

from typing import Any

import torch
from torch.fx import GraphModule, Node

from weft.quantize.pt2e import (
    Q_ANNOTATION_KEY,
    MinMaxObserver,
    QuantizationAnnotation,
    Quantizer,
    SharedQuantizationSpec,
)
from weft.quantize.rewrite import constant, functionalize, is_float, unshare_constants
from weft.quantize.specs import WeightObserver, activation_spec, bias_spec, weight_spec

__all__ = ["WeftQuantizer"]

aten = torch.ops.aten

LAYERS = {aten.conv2d.default, aten.conv2d.padding, aten.linear.default}
"""Operators with a weight and perhaps a bias: (data, weight, bias=None, ...)."""

CLAMPS = {
    aten.clamp.default,
    aten.clamp_max.default,
    aten.clamp_min.default,
    aten.hardtanh.default,
    aten.relu.default,
    aten.relu6.default,
}

SAME_SCALE = CLAMPS | {
    aten.adaptive_avg_pool2d.default,
    aten.avg_pool2d.default,
    aten.contiguous.default,
    aten.dropout.default,
    aten.flatten.using_ints,
    aten.max_pool2d.default,
    aten.mean.dim,
    aten.reshape.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
    aten.view.default,
}


class WeftQuantizer(Quantizer):
    """Annotates an exported model for post-training quantization on the accelerator.

    Use it with torchao's own flow::

        graph = torch.export.export(model.eval(), example_inputs).module()
        prepared = prepare_pt2e(graph, WeftQuantizer())
        for batch in calibration:
            prepared(batch)
        converted = convert_pt2e(prepared)

    What it asks for:

    * Activations are int8 with one scale and zero point for each tensor, -128 .. 127; weights int8,
      symmetric, with one scale for each output channel, -127 .. 127; biases int32 in units of input
      scale times weight scale.
    * `conv2d` (with the batch normalization that `prepare_pt2e` folds into it), `linear` and `add`
      are one with the `relu`, `relu6`, `hardtanh` or `clamp` behind them, where nothing else reads
      the value in between: a single rounding at the end.
    * Max pooling, clamps of their own and operators that only move data keep the scale of their
      input, and so lose nothing. Average pooling and the mean keep it too: then they are an exact
      division of a sum of integers, rounded once, and no multiplier has to stand in for the scales.
    * Everything else stays in floating point; the compiler says what it cannot place.

    In-place operators are replaced by their functional forms, and a layer that is applied twice
    gets constants for each application.

    Parameters
    ----------
    activation_observer
        What picks the range of an activation. `MinMaxObserver` (the default) covers all that
        calibration shows; `HistogramObserver` may cut rare extremes, and takes longer.
    """

    def __init__(self, *, activation_observer: Any = MinMaxObserver) -> None:
        super().__init__()
        self._activation = activation_spec(activation_observer)
        self._weight = weight_spec()

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        functionalize(model)
        unshare_constants(model, LAYERS)
        model.graph.lint()
        model.recompile()
        return model

    def annotate(self, model: GraphModule) -> GraphModule:
        for node in model.graph.nodes:
            if Q_ANNOTATION_KEY in node.meta or not is_float(node):
                continue
            if node.target in LAYERS:
                self._annotate_layer(node)
            elif node.target is aten.add.Tensor:
                self._annotate_add(node)
            elif node.target in SAME_SCALE:
                self._annotate_same_scale(node)
        return model

    def validate(self, model: GraphModule) -> None:
        """Reject nothing: the compiler does, where it can name the layer and the machine."""

    def prepare_obs_or_fq_callback(self, model: GraphModule, observers: dict[Any, Any]) -> None:
        for node in model.graph.nodes:
            if node.target in LAYERS and Q_ANNOTATION_KEY in node.meta:
                data, weight, bias = _operands(node)
                observer = observers.get((weight, node))
                if bias is not None and isinstance(observer, WeightObserver):
                    observer.limit_bias(observers[data, node], constant(model, bias))

    def _annotate_layer(self, node: Node) -> None:
        data, weight, bias = _operands(node)
        constants = [weight] if bias is None else [weight, bias]
        if not is_float(data) or any(operand.op != "get_attr" for operand in constants):
            return  # a weight computed by the model itself: not a layer
        inputs = {data: self._activation, weight: self._weight}
        if bias is not None:
            inputs[bias] = bias_spec(data, weight, node)
        self._annotate_fused(node, inputs)

    def _annotate_add(self, node: Node) -> None:
        if all(is_float(operand) for operand in node.args[:2]):
            self._annotate_fused(node, dict.fromkeys(node.args[:2], self._activation))

    def _annotate_fused(self, node: Node, inputs: dict[Any, Any]) -> None:
        """Quantize what `node` reads, and what it or the clamp behind it yields."""
        users = list(node.users)
        if len(users) == 1 and users[0].target in CLAMPS:
            _mark(node, inputs, None)
            _mark(users[0], {}, self._activation)
        else:
            _mark(node, inputs, self._activation)

    def _annotate_same_scale(self, node: Node) -> None:
        data = node.args[0]
        if is_float(data):
            _mark(node, {data: self._activation}, SharedQuantizationSpec((data, node)))


def _operands(node: Node) -> tuple[Any, Any, Any]:
    """Data, weight and bias (or None) of a layer."""
    data, weight, *rest = node.args
    return data, weight, rest[0] if rest else None


def _mark(node: Node, inputs: dict[Any, Any], output: Any) -> None:
    node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(
        input_qspec_map=inputs, output_qspec=output, _annotated=True
    )
