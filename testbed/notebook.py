"""Run a notebook and keep what its cells print, return and draw: for tests, and for `make tutorial`."""

import base64
import io
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image
from traitlets.config import Config


def run_notebook(path: Path, folder: Path) -> NotebookNode:
    """The notebook at `path` with the outputs of a run in `folder`, but for what went to stderr.

    Raises nbclient's CellExecutionError for the first cell that fails.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as sockets:  # of files, as what goes over a port can be read by others
        kernel = Config(KernelManager={"transport": "ipc", "connection_file": f"{sockets}/kernel.json"})
        resources = {"metadata": {"path": str(folder)}}
        NotebookClient(notebook, kernel_name="python3", config=kernel, resources=resources).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day
        if cell.cell_type == "code":
            cell.outputs = [_shrink(output) for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata.language_info = {"name": "python"}
    return notebook


def _shrink(output: NotebookNode) -> NotebookNode:
    """`output` with its picture in 128 colors: a third of the bytes."""
    if picture := output.get("data", {}).get("image/png"):
        drawn = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
        drawn.quantize(128, dither=Image.Dither.NONE).save(file := io.BytesIO(), "PNG", optimize=True)
        output.data["image/png"] = base64.b64encode(file.getvalue()).decode()
    return output


def main(path: Path, pictures: Path) -> None:
    """Run the notebook at `path` in a temporary folder and write its outputs into it; what a cell with a tag draws also
    goes to <pictures>/<tag>.png."""
    with tempfile.TemporaryDirectory() as folder:
        done = run_notebook(path, Path(folder))
    nbformat.write(done, path)
    for cell in done.cells:
        for tag in cell.metadata.get("tags", []):
            picture = next(output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {}))
            (pictures / f"{tag}.png").write_bytes(base64.b64decode(picture))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
