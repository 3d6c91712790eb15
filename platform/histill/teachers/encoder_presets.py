"""What is publicly known of pathology encoders: how to build and feed them, and what their terms allow.

Each fact has its source in `sources`. A preset holds what must be said beside the `config.json` that the authors
publish (their own cards pass it to timm), so that some architectures are complete with that file alone. TRIDENT is
cited where a card could not be read: its table of encoders gives magnification (20x is 0.5 um/px there) and width, its
loaders the rest. What is not known is left out: `mpp` where an encoder was trained at several, or sources differ, and
whether models trained on its outputs may be used commercially where the terms were not found, or do not tell.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from histill.config.encoder import Color, EncoderOptions, Pooling, Precision
from histill.errors import InputError
from histill.licenses import License

_HUB = "https://huggingface.co"
_TRIDENT = "https://github.com/mahmoodlab/TRIDENT/blob/main"
_TABLE, _LOADERS = f"{_TRIDENT}/README.md", f"{_TRIDENT}/trident/patch_encoder_models/load.py"
_UNI = "https://github.com/mahmoodlab/UNI/blob/main/README.md"
_KAIKO = "https://github.com/kaiko-ai/towards_large_pathology_fms/blob/main"
_HIBOU = "https://github.com/HistAI/hibou/blob/main"
_GPFM = "https://github.com/birkhoffkiki/GPFM/blob/main"
_GIGAPATH = "https://github.com/prov-gigapath/prov-gigapath/blob/main"
_OWKIN = "https://github.com/owkin/HistoSSLscaling/blob/main"
_H_OPTIMUS = "https://github.com/bioptimus/releases/blob/main/models/h-optimus/v0"

_IMAGENET: tuple[Color, Color] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HALVES: tuple[Color, Color] = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
_BIOPTIMUS: tuple[Color, Color] = (0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517)
_HISTAI: tuple[Color, Color] = (0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816)
_KAIKO_TERMS = License(name="Kaiko Non-Commercial Public License 1", commercial=False, source=f"{_KAIKO}/LICENSE")


def _nc_nd(source: str) -> License:
    """CC BY-NC-ND 4.0 with a clause that prohibits commercial use of "models trained on outputs"."""
    return License(name="CC-BY-NC-ND-4.0", commercial=False, source=source)


def _free(name: str, source: str) -> License:
    return License(name=name, commercial=True, source=source)


def _vit(**options: object) -> EncoderOptions:
    """Options of a vision transformer that takes tiles of any side."""
    return EncoderOptions.model_validate({"dynamic_img_size": True, **options})


@dataclass(frozen=True)
class EncoderPreset:
    """The facts of one public encoder. Its weights are its authors' to give."""

    architecture: str  # timm's name
    options: EncoderOptions  # beside those of its config.json
    color: tuple[Color, Color]  # mean and deviation of RGB in 0..1
    width: int  # of the embedding
    license: License
    sources: Mapping[str, str]  # URL of each fact
    mpp: float | None = None  # of the tiles that it was made for
    pooling: Pooling = "cls"
    precision: Precision = "fp16"  # at which its users run it
    size_px: int = 224  # side of these tiles
    parameters: int | None = None  # in all, as stated there to three digits or better


def _sources(**facts: str) -> dict[str, str]:
    """TRIDENT's table and loaders, but for the `facts` with a better source."""
    loaded = dict.fromkeys(("architecture", "options", "color", "pooling", "precision", "size_px"), _LOADERS)
    return {**loaded, "width": _TABLE, "mpp": _TABLE, **facts}


_SWIGLU = {"mlp_layer": "swiglu_packed", "act_layer": "silu"}
_UNI2 = _vit(
    img_size=224, patch_size=14, depth=24, num_heads=24, init_values=1e-5, embed_dim=1536, mlp_ratio=2.66667 * 2,
    no_embed_class=True, reg_tokens=8, **_SWIGLU,
)  # fmt: skip
_VIRCHOW = {"img_size": 224, "init_values": 1e-5, "mlp_ratio": 5.3375, **_SWIGLU}
_OPTIMUS = _vit(img_size=224, init_values=1e-5)
_HIBOU_OPTIONS = {"img_size": 224, "init_values": 1e-5, **_SWIGLU}
_HIBOU_L = 2 * 2736 / 1024  # its hidden width is two thirds of 4 x 1024, rounded up to a multiple of 8, and doubled
_HIBOU_SOURCES = _sources(
    options=f"{_HIBOU}/hibou/models/__init__.py", architecture=f"{_HIBOU}/hibou/models/vision_transformer.py",
    color=f"{_HIBOU}/example.ipynb", width=f"{_HIBOU}/hibou/models/vision_transformer.py",
)  # fmt: skip


def _kaiko(architecture: str, width: int, *, img_size: int = 224) -> EncoderPreset:
    return EncoderPreset(
        architecture, _vit(img_size=img_size), _HALVES, width, _KAIKO_TERMS,
        _sources(architecture=f"{_KAIKO}/hubconf.py", options=f"{_KAIKO}/hubconf.py", color=f"{_KAIKO}/README.md"),
        precision="fp32",
    )  # fmt: skip


PRESETS: Mapping[str, EncoderPreset] = {
    "uni": EncoderPreset(
        "vit_large_patch16_224", _vit(img_size=224, init_values=1e-5), _IMAGENET, 1024,
        _nc_nd(f"{_HUB}/MahmoodLab/UNI"), _sources(), mpp=0.5,
    ),
    "uni2-h": EncoderPreset(
        "vit_giant_patch14_224", _UNI2, _IMAGENET, 1536, _nc_nd(f"{_HUB}/MahmoodLab/UNI2-h"),
        _sources(architecture=_UNI, options=_UNI, color=_UNI, width=_UNI), mpp=0.5, precision="bf16",
    ),
    "virchow": EncoderPreset(
        "vit_huge_patch14_224", _vit(**_VIRCHOW), _IMAGENET, 2560, _free("Apache-2.0", f"{_HUB}/paige-ai/Virchow"),
        _sources(), mpp=0.5, pooling="cls_mean",
    ),
    "virchow2": EncoderPreset(  # trained at several magnifications
        "vit_huge_patch14_224", _vit(**_VIRCHOW, reg_tokens=4), _IMAGENET, 2560, _nc_nd(f"{_HUB}/paige-ai/Virchow2"),
        _sources(parameters="https://arxiv.org/abs/2408.00738"), pooling="cls_mean", parameters=632_000_000,
    ),
    "h-optimus-0": EncoderPreset(
        "vit_giant_patch14_reg4_dinov2", _OPTIMUS, _BIOPTIMUS, 1536, _free("Apache-2.0", f"{_H_OPTIMUS}/LICENSE.md"),
        _sources(
            architecture=f"{_HUB}/bioptimus/H-optimus-0/blob/main/config.json", width=f"{_H_OPTIMUS}/README.md",
            color=f"{_HUB}/bioptimus/H-optimus-0/blob/main/config.json",
            parameters=f"{_HUB}/1aurent/vit_giant_patch14_reg4_224.h-optimus-v0",
        ),
        mpp=0.5, parameters=1_130_000_000,
    ),
    "h-optimus-1": EncoderPreset(
        "vit_giant_patch14_reg4_dinov2", _OPTIMUS, _BIOPTIMUS, 1536,
        License(name="terms of H-optimus-1", source=f"{_HUB}/bioptimus/H-optimus-1"), _sources(), mpp=0.5,
    ),
    "h0-mini": EncoderPreset(
        "vit_base_patch14_reg4_dinov2", _vit(**_SWIGLU), _BIOPTIMUS, 768,
        License(name="terms of H0-mini", source=f"{_HUB}/bioptimus/H0-mini"), _sources(), mpp=0.5,
    ),
    "prov-gigapath": EncoderPreset(  # under Apache-2.0, and "any deployed use case ... is out of scope"
        "vit_giant_patch14_dinov2",
        _vit(img_size=224, patch_size=16, embed_dim=1536, depth=40, num_heads=24, init_values=1e-5, mlp_ratio=5.33334),
        _IMAGENET, 1536, License(name="Apache-2.0, for research", source=f"{_GIGAPATH}/README.md#out-of-scope-use"),
        _sources(color=f"{_GIGAPATH}/README.md", parameters=f"{_GIGAPATH}/demo/run_gigapath.ipynb"),
        mpp=0.5, parameters=1_134_953_984,
    ),
    "midnight-12k": EncoderPreset(  # trained at several magnifications
        "vit_giant_patch14_dinov2", _vit(img_size=224), _HALVES, 3072, _free("MIT", f"{_HUB}/kaiko-ai/midnight"),
        _sources(architecture=f"{_HUB}/kaiko-ai/midnight", color=f"{_HUB}/kaiko-ai/midnight",
                 pooling=f"{_HUB}/kaiko-ai/midnight"),
        pooling="cls_mean",
    ),
    "phikon": EncoderPreset(
        "vit_base_patch16_224", _vit(img_size=224), _IMAGENET, 768,
        License(name="Owkin non-commercial license", commercial=False, source=f"{_OWKIN}/LICENSE.txt"),
        _sources(
            architecture=f"{_HUB}/owkin/phikon/blob/main/config.json", mpp=f"{_OWKIN}/README.md",
            parameters=f"{_HUB}/1aurent/vit_base_patch16_224.owkin_pancancer",
        ),
        mpp=0.5, precision="fp32", parameters=85_800_000,
    ),
    "phikon-v2": EncoderPreset(
        "vit_large_patch16_224", _vit(img_size=224, init_values=1e-5), _IMAGENET, 1024,
        License(
            name="Owkin non-commercial license", commercial=False,
            source=f"{_HUB}/owkin/phikon-v2/blob/main/LICENSE.pdf",
        ),
        _sources(architecture=f"{_HUB}/owkin/phikon-v2"), mpp=0.5, precision="fp32",
    ),
    "gpfm": EncoderPreset(  # its authors resize tiles of 512 px at 40x to 224, TRIDENT cuts them at 20x
        "vit_large_patch14_dinov2", _vit(img_size=224, init_values=1e-5), _IMAGENET, 1024,
        License(name="CC-BY-NC-ND-4.0", commercial=False, source=f"{_GPFM}/LICENSE"), _sources(),
    ),
    "hibou-b": EncoderPreset(
        "vit_base_patch14_reg4_dinov2", _vit(**_HIBOU_OPTIONS, mlp_ratio=5.33334), _HISTAI, 768,
        _free("Apache-2.0", f"{_HUB}/histai/hibou-b"),
        {**_HIBOU_SOURCES, "parameters": f"{_HUB}/collections/histai/hibou-foundation-models"},
        precision="fp32", parameters=85_700_000,
    ),
    "hibou-l": EncoderPreset(
        "vit_large_patch14_reg4_dinov2", _vit(**_HIBOU_OPTIONS, mlp_ratio=_HIBOU_L), _HISTAI, 1024,
        _free("Apache-2.0", f"{_HIBOU}/README.md"),
        {**_HIBOU_SOURCES, "parameters": f"{_HUB}/histai/hibou-L"}, precision="fp32", parameters=304_000_000,
    ),
    "kaiko-vits8": _kaiko("vit_small_patch8_224", 384),
    "kaiko-vits16": _kaiko("vit_small_patch16_224", 384),
    "kaiko-vitb8": _kaiko("vit_base_patch8_224", 768),
    "kaiko-vitb16": _kaiko("vit_base_patch16_224", 768),
    "kaiko-vitl14": _kaiko("vit_large_patch14_reg4_dinov2", 1024, img_size=518),
}  # fmt: skip


def find_preset(name: str) -> EncoderPreset:
    """The preset called `name`. Raises InputError, with the one that was likely meant, when there is none."""
    if name in PRESETS:
        return PRESETS[name]
    near = difflib.get_close_matches(name.lower(), PRESETS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(PRESETS)}."
    raise InputError(f"preset {name!r} is not known; {hint}", code="encoder-unknown")
