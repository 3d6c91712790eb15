"""Show each notebook of the documentation as a page: its text, its code, and what that printed and drew."""

import base64
import json
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        stem = notebook.src_uri.removesuffix(".ipynb")
        cells = json.loads(Path(str(notebook.abs_src_path)).read_text())["cells"]
        download = f'<a href="../{notebook.src_uri.rpartition("/")[2]}" download>Download this notebook</a>'
        parts = ["---\nhide: [navigation]\n---"]
        for number, cell in enumerate(cells):
            parts += _show(cell, f"{stem}-{number}", config, files)
        parts.insert(2, download)  # behind the first cell
        files.append(File.generated(config, f"{stem}.md", content="\n\n".join(parts) + "\n"))
    return files


def _show(cell: dict[str, Any], name: str, config: MkDocsConfig, files: Files) -> list[str]:
    """The Markdown of a cell; pictures become files called `name`."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return [source]
    parts = [f"```python\n{source}\n```"]
    for output in cell["outputs"]:
        if output.get("name") == "stderr":  # progress
            continue
        data = output.get("data", {})
        if "image/png" in data:
            picture = f"{name}.png"
            files.append(File.generated(config, picture, content=base64.b64decode("".join(data["image/png"]))))
            parts.append(f"![what the code draws]({picture.rpartition('/')[2]})")
        elif text := "".join(output.get("text", data.get("text/plain", []))):
            parts.append(f'<div class="cell-output" markdown>\n\n```text\n{text.rstrip()}\n```\n\n</div>')
    return parts
