"""The tensors of published vision transformers by the names and in the forms that timm has.

Known are timm's own names; those of DINOv2 (https://github.com/facebookresearch/dinov2), as they are or inside a
training checkpoint; and those of transformers' `ViTModel`, `Dinov2Model` and `Dinov2WithRegistersModel`.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_WRAPPERS = ("state_dict", "model", "teacher", "module")  # keys below which checkpoints keep their tensors
_HEADS = re.compile(r"(dino|ibot)_head\.|pooler\.|mask_token$|embeddings\.mask_token$")  # of pretraining, or unused
_PREFIXES = re.compile(r"^(?:module\.|backbone\.|vit\.|dinov2\.|dinov2_with_registers\.)+")
_RENAMED = (  # in this order
    (re.compile(r"^blocks\.\d+\.(?=\d+\.(?:norm|attn|ls|mlp))"), "blocks."),  # DINOv2 keeps blocks in chunks
    (re.compile(r"mlp\.w12\."), "mlp.fc1."),
    (re.compile(r"mlp\.w3\."), "mlp.fc2."),
    (re.compile(r"^register_tokens$"), "reg_token"),
    (re.compile(r"^embeddings\.patch_embeddings\.projection\."), "patch_embed.proj."),
    (re.compile(r"^embeddings\.cls_token$"), "cls_token"),
    (re.compile(r"^embeddings\.register_tokens$"), "reg_token"),
    (re.compile(r"^embeddings\.position_embeddings$"), "pos_embed"),
    (re.compile(r"^(?:encoder\.)?layers?\.(?=\d)"), "blocks."),
    (re.compile(r"(?:\.attention)+\.(query|key|value)\."), r".attn.\1."),
    (re.compile(r"\.attention\.output\.dense\."), ".attn.proj."),
    (re.compile(r"\.attention\.(q|k|v)_proj\."), r".attn.\1."),
    (re.compile(r"\.attention\.o_proj\."), ".attn.proj."),
    (re.compile(r"\.(?:intermediate\.dense|mlp\.weights_in)\."), ".mlp.fc1."),
    (re.compile(r"\.(?:output\.dense|mlp\.weights_out)\."), ".mlp.fc2."),
    (re.compile(r"\.layernorm_before\."), ".norm1."),
    (re.compile(r"\.layernorm_after\."), ".norm2."),
    (re.compile(r"\.layer_scale(\d)\.lambda1$"), r".ls\1.gamma"),
    (re.compile(r"^layernorm\."), "norm."),
)
_PARTS = (("query", "q"), ("key", "k"), ("value", "v"))  # of attention, which timm keeps as one


def name_as_timm(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a published encoder by timm's names. Those whose names are not known stay as they are.

    Where DINOv2 has registers, timm's position embeddings are of the patches alone, and the class token has its own
    added to it.
    """
    tensors = {_PREFIXES.sub("", name): tensor for name, tensor in _unwrap(checkpoint).items()}
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if _HEADS.search(name):
            continue
        for pattern, replacement in _RENAMED:
            name = pattern.sub(replacement, name)
        named[name] = tensor
    named = _join_attention(named)
    if any(name.endswith("register_tokens") for name in tensors) and {"cls_token", "pos_embed"} <= named.keys():
        named["cls_token"] = named["cls_token"] + named["pos_embed"][:, :1]
        named["pos_embed"] = named["pos_embed"][:, 1:]
    return named


def _unwrap(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    inner = next((checkpoint[key] for key in _WRAPPERS if isinstance(checkpoint.get(key), Mapping)), None)
    if inner is not None:
        return _unwrap(inner)
    return {name: value for name, value in checkpoint.items() if isinstance(value, Tensor)}


def _join_attention(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Query, key and value of each block as one tensor."""
    joined = dict(tensors)
    for name in tensors:
        found = re.fullmatch(r"(blocks\.\d+\.attn)\.(?:query|q)\.(weight|bias)", name)
        if found is None:
            continue
        parts = [
            next((f"{found[1]}.{each}.{found[2]}" for each in names if f"{found[1]}.{each}.{found[2]}" in joined), None)
            for names in _PARTS
        ]
        if None not in parts:
            joined[f"{found[1]}.qkv.{found[2]}"] = torch.cat([joined.pop(str(part)) for part in parts])
    return joined
