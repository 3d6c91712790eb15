"""The key `engine`: what runs a model."""

import importlib.util
from typing import Annotated, Literal

from pydantic import Field

from histill.errors import InputError

EngineName = Literal["torch", "onnxruntime", "openvino"]
"""What can run a model."""
ON_CPUS: tuple[EngineName, ...] = ("openvino", "onnxruntime")
"""Those that run an exported file on CPUs, the quicker one first."""

EngineOption = Annotated[
    Literal["auto", "torch", "onnxruntime", "openvino"],
    Field(
        description="what runs the model: torch, or on CPUs openvino or onnxruntime, once it has answered the first "
        "tiles as the model does to 0.001; auto: torch on GPUs and for few tiles, else the first of openvino and "
        "onnxruntime that is installed and quicker than torch"
    ),
]


def check_installed(asked: EngineOption) -> None:
    """Raise InputError if the engine that was asked for is not installed."""
    if asked != "auto" and not is_installed(asked):
        raise InputError(
            f"engine={asked} needs the package {asked}, which is not installed; `pip install 'histill[{asked}]'` "
            "everywhere, or leave engine out.",
            code="package-missing",
        )


def is_installed(name: EngineName) -> bool:
    """Whether the engine's package, which has its name, is installed here."""
    return importlib.util.find_spec(name) is not None
