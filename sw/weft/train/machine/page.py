"""A training step's cycles and memory as one self-contained HTML page."""

from itertools import accumulate
from typing import Any

from weft.observation.page import page_environment

__all__ = ["step_page"]

WIDTH, HEIGHT = 1000.0, 360.0
CHARACTER = 6.3  # width of one in a label
PURPOSES = (
    "weights",
    "optimizer",
    "scalars",
    "constants",
    "inputs",
    "kept activations",
    "gradients",
    "sums",
    "instructions",
)
PASSES = {
    "Convolution": "forward",
    "MaxPool": "forward",
    "AveragePool": "forward",
    "WeightGradient": "weight gradient and update",
    "BiasGradient": "weight gradient and update",
    "CompensationGradient": "weight gradient and update",
}


def step_page(result: dict[str, Any]) -> str:
    """The page's text.

    Parameters
    ----------
    result : dict
        What `weft bench train-step --json` prints of a network.
    """
    operations = [{**entry, "pass": _pass(entry)} for entry in result["operations"]]
    passes: dict[str, int] = {}
    if result["cycles"]:
        for entry in operations:
            passes[entry["pass"]] = passes.get(entry["pass"], 0) + entry["cycles"]
    return (
        page_environment("weft.train.machine")
        .get_template("step.html.jinja")
        .render(
            result=result,
            operations=operations,
            passes=passes,
            blocks=_blocks(result),
            purposes=[name for name in PURPOSES if name in result["memory"]],
            all_purposes=PURPOSES,
            width=WIDTH,
            height=HEIGHT,
        )
    )


def _pass(entry: dict[str, Any]) -> str:
    if entry["forward"]:
        return "forward"
    return PASSES.get(entry["kind"], "data gradient")


def _blocks(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Rectangles of the memory plan: addresses upwards, time (or operations) to the right."""
    spans = [entry["cycles"] or 1 for entry in result["operations"]]
    times = [0, *accumulate(spans)]
    blocks = []
    for area in result["areas"]:
        start, end = times[area["first"]], times[area["last"] + 1]
        x, width = WIDTH * start / times[-1], WIDTH * (end - start) / times[-1]
        height = HEIGHT * area["size"] / result["peak_bytes"]
        top = HEIGHT - HEIGHT * (area["address"] + area["size"]) / result["peak_bytes"]
        fits = width > CHARACTER * len(area["name"]) + 6 and height > 12
        blocks.append(
            {
                "x": round(x, 1),
                "y": round(top, 1),
                "width": round(width, 1),
                "height": round(max(height, 0.5), 1),
                "shade": PURPOSES.index(area["purpose"]),
                "label": area["name"] if fits else "",
                "text": f"{area['name']} ({area['purpose']}): {area['size']:,} bytes at "
                f"{area['address']:#x}, operations {area['first']} to {area['last']}",
            }
        )
    return blocks
