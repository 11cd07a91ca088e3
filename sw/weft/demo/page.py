"""The demonstration's picture page: a self-contained HTML file."""

import base64
import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from weft.observation.page import page_environment

__all__ = ["write_page"]

SHOWN = 60


def write_page(
    path: Path,
    config_name: str,
    images: np.ndarray,
    labels: np.ndarray,
    predicted: np.ndarray,
    figures: dict[str, Any],
) -> None:
    """Images with predictions (wrong ones first), cycles and utilization by layer."""
    wrong_first = np.argsort(predicted == labels[: len(predicted)], kind="stable")[:SHOWN]
    pictures = [
        {
            "data": _png(images[index, 0]),
            "predicted": int(predicted[index]),
            "label": int(labels[index]),
        }
        for index in wrong_first
    ]
    text = (
        page_environment("weft.demo")
        .get_template("page.html.jinja")
        .render(
            config_name=config_name,
            figures=figures,
            pictures=pictures,
        )
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(text)
    os.replace(temporary, path)


def _png(image: np.ndarray) -> str:
    """An 8x8 image in [0, 1] as a base64 PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray((255 * (1 - image)).astype(np.uint8)).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()
