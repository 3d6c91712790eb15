"""A model folder that has been loaded, and the ONNX file of it."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from histill.artifacts.formats.subject import Subject
from histill.artifacts.model_folder import ONNX_NAME, ModelCard
from histill.config.common import Storage
from histill.models.transfer import Model
from histill.storage.control import read_bytes
from histill.storage.node_copy import find_node_copy, open_node_copy
from histill.storage.uris import join

_FORM = 1  # of the files that nodes keep: raised when an export changes


@dataclass(frozen=True)
class LoadedModel:
    """A model with the folder that it was loaded from."""

    uri: str  # the folder
    network: Model
    card: ModelCard
    digest: str  # SHA-256 over card and weights
    storage: Storage
    onnx: bytes | None = None  # an ONNX file of it that has been read already
    name: str = ""  # in messages, if not the folder

    @property
    def title(self) -> str:
        """What messages call it."""
        return self.name or self.uri

    def find_onnx(self) -> bytes | None:
        """The ONNX file in the model's folder, or the one that this node has made of it earlier; None without one."""
        if self.onnx is not None:
            return self.onnx
        try:
            return read_bytes(join(self.uri, ONNX_NAME), self.storage)
        except FileNotFoundError:
            folder = find_node_copy(self._copy_name, self.storage)
            return None if folder is None else (folder / ONNX_NAME).read_bytes()

    def make_onnx(self) -> bytes:
        """Export the model, which takes half a minute, or wait until another process of this node has."""
        folder = open_node_copy(self._copy_name, self.storage, self._export)
        return self._export_bytes() if folder is None else (folder / ONNX_NAME).read_bytes()

    @property
    def _copy_name(self) -> str:
        return f"engine-{_FORM}-{torch.__version__}-{self.digest[:40]}"

    def _export(self, folder: Path) -> None:
        (folder / ONNX_NAME).write_bytes(self._export_bytes())

    def _export_bytes(self) -> bytes:
        print("exporting the model to ONNX, once on this machine, which takes about half a minute", file=sys.stderr)
        return Subject.copy_of(self.network, self.card).onnx
