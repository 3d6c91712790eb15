"""Configuration of `histill convert`."""

from pydantic import Field

from histill.config.base import Strict, Uri
from histill.config.common import Storage
from histill.config.encoder import EncoderOptions


class ConvertConfig(Strict):
    """Published weights of an encoder, to be written as safetensors by timm's names."""

    weights: Uri = Field(description="file of tensors: .bin, .pt or .pth of torch, or .safetensors")
    output: Uri = Field(description="folder to write config.json and model.safetensors into")
    preset: str | None = Field(None, description="the public pathology encoder that it is, such as midnight-12k")
    architecture: str | None = Field(
        None, description="timm's name of the model; null: the preset's, or that of a config.json beside the weights"
    )
    options: EncoderOptions = EncoderOptions()
    storage: Storage = Storage()
