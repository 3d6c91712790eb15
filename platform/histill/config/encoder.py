"""Configuration of the teachers that answer tiles with embeddings."""

from typing import Annotated, Literal

from pydantic import Field

from histill.config.base import Strict, Uri
from histill.licenses import License

Pooling = Literal["cls", "mean", "cls_mean"]
Precision = Literal["fp32", "bf16", "fp16"]
Color = tuple[float, float, float]
_Above0 = Annotated[float, Field(gt=0)]


class EncoderOptions(Strict):
    """Arguments of a timm model, for those that its `config.json` does not hold. Null: as the folder or preset says."""

    img_size: int | None = Field(None, ge=1, description="side in pixels of the tiles that it was trained on")
    patch_size: int | None = Field(None, ge=1, description="side in pixels of a patch")
    dynamic_img_size: bool | None = Field(None, description="whether it also takes tiles of other sides")
    embed_dim: int | None = Field(None, ge=1, description="width of a token")
    depth: int | None = Field(None, ge=1, description="number of transformer blocks")
    num_heads: int | None = Field(None, ge=1, description="attention heads of a block")
    mlp_ratio: float | None = Field(None, gt=0, description="hidden width of a block's MLP, in widths of a token")
    mlp_layer: Literal["mlp", "swiglu", "swiglu_packed"] | None = Field(None, description="kind of a block's MLP")
    act_layer: Literal["gelu", "silu"] | None = Field(None, description="activation of a block's MLP")
    init_values: float | None = Field(None, description="initial LayerScale; set: the weights have LayerScale")
    reg_tokens: int | None = Field(None, ge=0, description="number of register tokens")
    no_embed_class: bool | None = Field(None, description="whether only patches have position embeddings")

    def arguments(self) -> dict[str, object]:
        """Those that are set."""
        return {name: value for name, value in self if value is not None}


class EncoderFacts(Strict):
    """How a timm model is fed and pooled. What is null is as the preset says, else as its folder does."""

    preset: str | None = Field(
        None, description="a public pathology encoder whose facts are known, such as uni2-h or virchow2"
    )
    pooling: Pooling | None = Field(
        None, description="what of a transformer's tokens is the embedding: class token, mean of the patches, or both"
    )
    mpp: float | None = Field(
        None, gt=0, description="microns per pixel of the tiles that it was made for; null, with no preset: any"
    )
    size_px: int | None = Field(None, ge=1, description="side at which it sees tiles of tile_px")
    tile_px: int | None = Field(
        None, ge=1, description="side of the tiles that it sees at size_px; null: size_px, so that none is resized"
    )
    mean: Color | None = Field(None, description="of RGB in 0..1; subtracted before the network")
    std: tuple[_Above0, _Above0, _Above0] | None = Field(None, description="of RGB in 0..1; above 0")
    precision: Precision | None = Field(None, description="of the matrix products; null, with no preset: fp32")
    options: EncoderOptions = EncoderOptions()
    license: License | None = Field(None, description="its terms, where they are others than those of the preset")


class EncoderTeacher(EncoderFacts):
    """A timm model in the form of the Hugging Face hub."""

    folder: Uri = Field(description="folder with config.json and model.safetensors")

    def __str__(self) -> str:
        return self.folder


class FeaturesTeacher(Strict):
    """Features that were extracted elsewhere: a TRIDENT H5 file for each slide."""

    folder: Uri = Field(description="folder with <slide>.h5, each with features and coords")
    preset: str | None = Field(None, description="the encoder that made them, by the name of its preset")
    license: License | None = Field(None, description="its terms, where they are others than those of the preset")

    def __str__(self) -> str:
        return self.folder
