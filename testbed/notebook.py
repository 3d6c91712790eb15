"""Run a notebook in this process and keep what its cells print, return and draw: for tests, and for `make tutorial`.

Jupyter's own runners start a kernel, and bring twenty packages for it.
"""

import ast
import base64
import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image


def run_notebook(notebook: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The notebook (nbformat 4) with the outputs of a run in `folder`; the first cell that fails raises its error."""
    import matplotlib

    matplotlib.use("Agg")
    names: dict[str, Any] = {"__name__": "__main__"}
    count, cells = 0, []
    with contextlib.chdir(folder):
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                count += 1
                cell = {**cell, "execution_count": count, "outputs": _run_cell("".join(cell["source"]), names, count)}
            cells.append(cell)
    return {**notebook, "cells": cells}


def _run_cell(source: str, names: dict[str, Any], count: int) -> list[dict[str, Any]]:
    tree = ast.parse(source)
    last = tree.body[-1] if tree.body else None
    if isinstance(last, ast.Expr):
        tree.body.pop()
    value = None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(tree, f"cell {count}", "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), f"cell {count}", "eval"), names)
    outputs: list[dict[str, Any]] = []
    if text := printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)})
    if value is not None:
        result = {"text/plain": repr(value).splitlines(keepends=True)}
        outputs.append({"output_type": "execute_result", "execution_count": count, "metadata": {}, "data": result})
    return outputs + [
        {"output_type": "display_data", "metadata": {}, "data": {"image/png": picture}} for picture in _take_figures()
    ]


def _take_figures() -> list[str]:
    """The figures drawn since the last call, as PNG of 128 colors in base64: a third of the bytes."""
    from matplotlib import pyplot

    pictures = []
    for number in pyplot.get_fignums():
        pyplot.figure(number).savefig(drawn := io.BytesIO(), format="png", dpi="figure")
        few = Image.open(drawn).convert("RGB").quantize(128, dither=Image.Dither.NONE)
        few.save(file := io.BytesIO(), "PNG", optimize=True)
        pictures.append(base64.b64encode(file.getvalue()).decode())
    pyplot.close("all")
    return pictures


def main(notebook: Path, pictures: Path) -> None:
    """Run `notebook` in a temporary folder and write its outputs into it; what a cell with a tag draws also goes to
    <pictures>/<tag>.png."""
    with tempfile.TemporaryDirectory() as folder:
        done = run_notebook(json.loads(notebook.read_text()), Path(folder))
    notebook.write_text(json.dumps(done, indent=1, ensure_ascii=False) + "\n")
    for cell in done["cells"]:
        for tag in cell["metadata"].get("tags", []):
            picture = next(output["data"]["image/png"] for output in cell["outputs"] if "image/png" in output["data"])
            (pictures / f"{tag}.png").write_bytes(base64.b64decode(picture))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
