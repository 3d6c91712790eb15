"""The figures that `benchmarks/predict_tiles.py` ends with."""

from typing import Any

import pytest

from benchmarks.predict_tiles import draw_table, summarize

pytestmark = pytest.mark.unit

CPU_MS = {
    "tiles": {"bare": 4.0, "eager": 10.0, "histill": 5.0},
    "slide": {"bare": 9.0, "by tile set": 12.0, "histill": 6.0},
}


def rows(*loads: float) -> list[dict[str, Any]]:
    """Rounds under other load each, which affects all contenders alike; at 224 px all take three times as long."""
    return [
        {"kind": kind, "side": side, "contender": name, "round": number, "tiles": 100, "tiles_per_s": 1.0,
         "cpu_ms": load * cpu_ms * (3 if side == 224 else 1)}
        for number, load in enumerate(loads)
        for side in (112, 224)
        for kind, contenders in CPU_MS.items()
        for name, cpu_ms in contenders.items()
    ]  # fmt: skip


def test_ratios_are_those_of_a_round() -> None:
    found = summarize(rows(1.0, 5.0, 2.0), 112, {"float": 3.0, "int8": 2.0, "int8_over_float": 1.5, "int8_mb": 4.0})
    assert (found["over_bare"], found["over_eager"], found["int8_over_float"]) == (1.5, 2.0, 1.5)
    ratios = {"tiles_over_bare": 0.8, "tiles_over_eager": 2.0, "slide_over_bare": 1.5, "slide_over_tile_set": 2.0}
    assert found["at_112_px"] == found["at_224_px"] == ratios
    assert "by tile set" in draw_table(rows(1.0))


def test_why_there_is_no_figure_of_int8_is_said() -> None:
    found = summarize(rows(1.0), 112, "no layer can be rounded")
    assert (found["int8_over_float"], found["int8"]) == (None, "no layer can be rounded")
