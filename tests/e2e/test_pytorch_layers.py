"""Every layer, on equal inputs, equals the converted PyTorch graph, but where floats round.

Each layer of the converted graph is evaluated in float32 on the codes that the integer reference
has for its inputs. Where the codes of its result differ, the exact rational value must be so near
to a tie, or its sum so large, that float32 cannot tell; see `float_rounding` for the bound. The
integer code must be the correctly rounded one there. The reference takes its scales from the graph,
never from a Program.

The compiled program, on the functional engine, must equal the integer reference in every code.
"""

import dataclasses
from collections import Counter

import numpy as np
import pytest

pytest.importorskip("torch")

import weft
from float_rounding import explain
from pytorch_models import MODELS, Dense, LargeSums, layers_beside_pytorch, prepared
from weft.frontends.pytorch import graph_from_torch
from weft.quantize.integer_reference import IntegerReference

pytestmark = [
    pytest.mark.torch,
    # PyTorch's advice on speed, at the even kernel below.
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning"),
]


@pytest.mark.parametrize("kind", MODELS, ids=lambda kind: kind.__name__)
def test_every_layer_equals_pytorch_but_for_float_rounding(kind, seed, capsys) -> None:
    model, samples = prepared(kind, seed)
    lines, kinds = [], Counter()
    for layer in layers_beside_pytorch(model, samples):
        ours = layer.integer
        if layer.exact is None:  # inputs are quantized in float32 by both
            np.testing.assert_array_equal(ours, layer.floating)
            continue
        found = list(explain(layer.exact, ours, layer.floating, layer.name))
        kinds.update(each.kind for each in found)
        # A bound of half a step and more would explain anything.
        assert all(each.error < 0.5 for each in found if each.kind == "near tie")
        assert len(np.unique(ours)) > 10
        farthest = float(max((each.distance for each in found), default=0))
        lines.append(
            f"  {layer.name:24}{len(found):6} of {ours.size:6} codes differ "
            f"({len(found) / ours.size:.4%}), at most {farthest:.2e} steps from a tie"
        )
    if kind is LargeSums:
        assert np.abs(layer.exact.terms[0][0]).max() > 2**24
    with capsys.disabled():
        print(f"\n{kind.__name__}: {dict(kinds)}", *lines, sep="\n")


def test_a_wrong_code_is_not_explained(seed) -> None:
    model, samples = prepared(Dense, seed)
    (layer, *_) = (
        each for each in layers_beside_pytorch(model, samples) if each.operator == "linear"
    )
    inside = np.argwhere(
        (layer.floating == layer.integer) & (abs(layer.floating.astype(int)) < 100)
    )
    for index in map(tuple, inside[:20]):
        value, error, _ = layer.exact.value(index)
        if abs(value - np.floor(float(value)) - 0.5) <= 2 * error:
            continue
        for change in (-1, 1):
            wrong = layer.floating.copy()
            wrong[index] += change
            with pytest.raises(AssertionError, match="beyond the float error"):
                list(explain(layer.exact, layer.integer, wrong, "layer"))
            with pytest.raises(AssertionError, match="not the rounded exact value"):
                list(explain(layer.exact, wrong, layer.floating, "layer"))


@pytest.mark.parametrize("config", ["base16", "edge8"])
@pytest.mark.parametrize("kind", MODELS, ids=lambda kind: kind.__name__)
def test_every_compiled_layer_equals_the_integer_reference(kind, config, seed) -> None:
    model, samples = prepared(kind, seed)
    samples = samples[:2]
    codes = IntegerReference(model).layers(samples)
    graph = graph_from_torch(model, name=kind.__name__)
    # Every value that the reference has becomes an output of the program.
    shown = tuple(tensor.name for tensor in graph.tensors if tensor.name in codes)
    assert set(graph.outputs) <= set(shown)
    # (A flattening of its own is no value of its own on the machine.)
    computed = {operation.output for operation in graph.operations if operation.kind != "Flatten"}
    outputs = tuple(name for name in shown if name in {*computed, *graph.outputs})
    graph = dataclasses.replace(graph, outputs=outputs)
    with weft.Session(weft.compile(graph, config), engine="functional") as session:
        results = session.run(samples)
    if len(graph.outputs) == 1:
        results = {graph.outputs[0]: results}
    assert set(results) == set(graph.outputs)
    for name, result in results.items():
        np.testing.assert_array_equal(result, codes[name], err_msg=name)


@pytest.mark.parametrize("kind", MODELS, ids=lambda kind: kind.__name__)
def test_a_compiled_network_answers_as_the_integer_reference(kind, seed) -> None:
    model, samples = prepared(kind, seed)
    expected = IntegerReference(model)(samples[:3])
    with weft.Session(weft.compile(model, "base16"), engine="functional") as session:
        results = session.run(samples[:3])
    if not isinstance(expected, tuple):
        expected, results = (expected,), {"": results}
    for result, codes in zip(results.values(), expected, strict=True):
        np.testing.assert_array_equal(result, codes)
