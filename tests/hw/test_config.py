"""Configurations: what is allowed, what the errors say, what is derived, JSON and hash."""

import dataclasses
import json
from pathlib import Path

import pytest

from weft_hw.config import PRESETS, AcceleratorConfig, load_config
from weft_hw.errors import ConfigError

TINY = PRESETS["tiny"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rows": 0}, "`rows` must be a positive integer, not 0"),
        ({"rows": 3}, "`rows` must be a power of two from 2 to 64, not 3"),
        ({"rows": 128}, "`rows` must be a power of two from 2 to 64, not 128"),
        ({"columns": "8"}, "`columns` must be a positive integer, not '8'"),
        ({"columns": True}, "`columns` must be a positive integer, not True"),
        ({"name": ""}, "`name` must be a non-empty string, not ''"),
        (
            {"weight_modes": (4,)},
            r"`weight_modes` must be \(8,\), \(8, 4\) or \(8, 4, 2\), not \(4,\)",
        ),
        ({"bus_width": 16}, "`bus_width` must be a power of two from 32 to 512, not 16"),
        ({"burst_beats": 3}, "`burst_beats` must be a power of two from 1 to 256, not 3"),
        (
            {"bus_width": 256, "burst_beats": 256},
            r"`burst_beats` must be at most 128 \(a burst spans <= 4 KiB\), not 256",
        ),
        ({"address_width": 41}, "`address_width` must be from 16 to 40, not 41"),
        (
            {"vector_lanes": 8},
            r"`vector_lanes` must be a power of two, at most `columns` \(4\), not 8",
        ),
        (
            {"vector_lanes": 3},
            r"`vector_lanes` must be a power of two, at most `columns` \(4\), not 3",
        ),
        ({"depthwise_taps": 2}, "`depthwise_taps` must be 1 or 3, not 2"),
        (
            {"semaphores": 17},
            r"`semaphores` must be from 8 to 16 \(the width of the instructions' masks\), not 17",
        ),
        ({"semaphore_bits": 1}, "`semaphore_bits` must be from 2 to 16, not 1"),
        ({"queue_depth": 5}, "`queue_depth` must be a power of two from 1 to 16, not 5"),
        (
            {"activation_bytes": 1000},
            "`activation_bytes` must be a power of two from 32 to 524288, not 1000",
        ),
        (
            {"weight_bytes": 1 << 20},
            "`weight_bytes` must be a power of two from 32 to 524288, not 1048576",
        ),
        (
            {"accumulator_rows": 8192},
            "`accumulator_rows` must be a power of two from 4 to 4096, not 8192",
        ),
        (
            {"accumulator_banks": 1},
            "`accumulator_banks` must be a power of two from 2 to 8, not 1",
        ),
    ],
)
def test_wrong_values_are_named(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$"):
        dataclasses.replace(TINY, **values)


def test_presets_are_what_the_design_says() -> None:
    assert list(PRESETS) == ["base16", "flex16", "edge8", "tiny"]
    assert all(config.name == name for name, config in PRESETS.items())
    base, flex, edge = PRESETS["base16"], PRESETS["flex16"], PRESETS["edge8"]
    assert (base.rows, base.columns, base.bus_width) == (16, 16, 128)
    assert (base.activation_bytes, base.activation_banks) == (128 * 1024, 8)
    assert (base.weight_bytes, base.accumulator_rows) == (64 * 1024, 512)
    assert flex.weight_modes == (8, 4, 2)
    assert dataclasses.replace(flex, name="base16", weight_modes=(8,)) == base
    assert (edge.rows, edge.columns, edge.bus_width) == (8, 8, 64)


def test_derived_sizes() -> None:
    base, tiny = PRESETS["base16"], TINY
    assert (base.bus_bytes, base.line_bytes, base.tile_bytes) == (16, 16, 256)
    assert (base.activation_bank_bytes, base.weight_bank_bytes) == (16 * 1024, 16 * 1024)
    assert base.accumulator_total_rows == 1024
    assert (base.parameter_row_bytes, base.parameter_row_pitch) == (144, 256)
    assert base.parameter_bytes == 64 * 256
    assert (base.activation_address_bits, base.weight_address_bits) == (17, 16)
    assert base.accumulator_address_bits == 10
    assert (tiny.parameter_row_bytes, tiny.parameter_row_pitch) == (36, 64)
    assert dataclasses.replace(tiny, bus_width=128).parameter_row_bytes == 48
    assert dataclasses.replace(tiny, bus_width=64).line_bytes == 8


@pytest.mark.parametrize("name", PRESETS)
def test_json_round_trip(name: str) -> None:
    config = PRESETS[name]
    assert AcceleratorConfig.from_json(config.to_json()) == config
    assert json.loads(config.to_json())["rows"] == config.rows


def test_hash_depends_on_everything_but_the_name() -> None:
    assert dataclasses.replace(TINY, name="other").content_hash == TINY.content_hash
    changes = {
        "rows": 8,
        "weight_modes": (8, 4),
        "bus_width": 64,
        "address_width": 40,
        "queue_depth": 4,
        "semaphore_bits": 9,
        "depthwise_taps": 3,
    }
    hashes = {dataclasses.replace(TINY, **{k: v}).content_hash for k, v in changes.items()}
    hashes |= {config.content_hash for config in PRESETS.values()}
    assert len(hashes) == len(changes) + len(PRESETS)
    assert 0 <= min(hashes) <= max(hashes) < 1 << 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"colums": 4},
            "`colums` is not a field of the configuration; did you mean `columns`?",
        ),
        ({"zzz": 1}, "`zzz` is not a field of the configuration; known: name, rows,"),
        ({"weight_modes": 8}, "`weight_modes` must be a list such as [8, 4, 2], not 8"),
    ],
)
def test_wrong_fields_are_named(change: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        AcceleratorConfig.from_dict(TINY.to_dict() | change)
    assert str(caught.value).startswith(message)


def test_missing_fields_are_named() -> None:
    values = TINY.to_dict()
    del values["rows"], values["bus_width"], values["queue_depth"]  # the last has a default
    with pytest.raises(ConfigError, match="^the configuration lacks `rows`, `bus_width`$"):
        AcceleratorConfig.from_dict(values)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "the configuration is not valid JSON"), ("[]", "must be a JSON object of fields")],
)
def test_text_that_is_no_configuration(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AcceleratorConfig.from_json(text)


def test_load_by_name_or_path(tmp_path: Path) -> None:
    assert load_config("edge8") is PRESETS["edge8"]
    path = tmp_path / "mine.json"
    path.write_text(TINY.to_json())
    assert load_config(path) == TINY
    assert load_config(str(path)) == TINY
    path.write_text(TINY.to_json().replace('"rows": 4', '"rows": 5'))
    with pytest.raises(ConfigError, match="mine.json: `rows` must be a power of two"):
        load_config(path)
    with pytest.raises(ConfigError, match="did you mean `base16`"):
        load_config("bas16")
    with pytest.raises(ConfigError, match="neither a preset"):
        load_config("no such thing")
