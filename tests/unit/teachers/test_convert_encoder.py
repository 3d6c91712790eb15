"""Published weights become a folder of timm's form that answers the same; what could run is not loaded."""

import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from histill.config.common import Storage
from histill.config.convert_encoder import ConvertConfig
from histill.config.encoder import EncoderTeacher
from histill.config.load import validate
from histill.errors import InputError
from histill.teachers.convert_encoder import convert_encoder
from histill.teachers.encoder_names import name_as_timm
from histill.teachers.timm_encoder import TimmEncoder

pytestmark = pytest.mark.unit

STORAGE = Storage()
NAME = "vit_tiny_patch16_224"
SHAPE: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
OPTIONS = {**SHAPE, "init_values": 1.0, "dynamic_img_size": True}
REGISTERS = {"reg_tokens": 4, "no_embed_class": True}
SWIGLU = {"mlp_layer": "swiglu_packed", "act_layer": "silu", "mlp_ratio": 4.0}
PIXELS = torch.randint(256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def network(**options: Any) -> Any:
    torch.manual_seed(0)
    layers = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": nn.SiLU} if "mlp_layer" in options else {}
    model = timm.create_model(NAME, num_classes=0, **{**OPTIONS, **options, **layers}).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.1, 0.3)
    return model


def expected(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model((PIXELS / 255 - 0.5) / 0.5)
    return found


def convert(weights: Path, **keys: Any) -> str:
    output = str(weights.parent / "out")
    keys = {"architecture": NAME, "weights": str(weights), "output": output, **keys}
    convert_encoder(validate(ConvertConfig, keys, "the test"))
    assert sorted(os.listdir(output)) == ["config.json", "model.safetensors"]
    return output


def answer(folder: str) -> Tensor:
    frame = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    return TimmEncoder.load(validate(EncoderTeacher, {"folder": folder, **frame}, "the test"), STORAGE).respond(PIXELS)


def as_dinov2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By the names of facebookresearch/dinov2, with registers and SwiGLU; blocks in chunks, as in its checkpoints."""
    state = dict(state)
    of_class = torch.full((1, 1, 24), 0.25)
    registers = state.pop("reg_token")
    positions = torch.cat([of_class, state.pop("pos_embed")], 1)
    kept = {"cls_token": state.pop("cls_token") - of_class, "pos_embed": positions, "register_tokens": registers}
    kept["mask_token"] = torch.zeros(1, 24)
    for name, tensor in state.items():
        name = name.replace("fc1", "w12").replace("fc2", "w3").replace("blocks.1.", "blocks.1.1.")
        kept[name.replace("blocks.0.", "blocks.0.0.")] = tensor
    return kept


def as_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By the names of transformers' ViTModel: query, key and value apart."""
    renamed = {
        "cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj": "embeddings.patch_embeddings.projection", "blocks": "encoder.layer", "norm1":
        "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
    }  # fmt: skip
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        new = name
        for timms, other in renamed.items():
            new = new.replace(timms, other)
        if new.startswith("norm."):
            new = f"layernorm.{new.removeprefix('norm.')}"
        if ".attn.qkv." in new:
            for part, value in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                found[new.replace("attn.qkv", f"attention.attention.{part}")] = value.contiguous()
        else:
            found[new] = tensor
    found["pooler.dense.weight"] = torch.zeros(24, 24)
    return found


def test_timms_own_file_keeps_the_config_beside_it(tmp_path: Path) -> None:
    """Such as UNI's, which is published as a pickle and whose config says too little."""
    model = network(**REGISTERS)
    torch.save({**model.state_dict(), "head.weight": torch.zeros(7, 24)}, tmp_path / "pytorch_model.bin")
    said = {"architecture": NAME, "model_args": {"img_size": 32}, "pretrained_cfg": {"mean": [0.1, 0.2, 0.3]}}
    (tmp_path / "config.json").write_text(json.dumps(said))
    options = {name: value for name, value in {**OPTIONS, **REGISTERS}.items() if name != "img_size"}
    folder = convert(tmp_path / "pytorch_model.bin", architecture=None, options=options)
    torch.testing.assert_close(answer(folder), expected(model), atol=1e-5, rtol=0)
    written = json.loads(Path(folder, "config.json").read_text())
    assert written["pretrained_cfg"]["mean"] == [0.1, 0.2, 0.3]
    assert written["model_args"] == {**OPTIONS, **REGISTERS}


@pytest.mark.parametrize("training", [False, True])
def test_names_of_dinov2_are_known(tmp_path: Path, training: bool) -> None:
    model = network(**REGISTERS, **SWIGLU)
    state = as_dinov2(model.state_dict())
    inside = {f"backbone.{name}": tensor for name, tensor in state.items()} | {"dino_head.mlp.0.weight": torch.zeros(1)}
    torch.save({"teacher": inside, "iteration": 7} if training else state, tmp_path / "encoder.pth")
    folder = convert(tmp_path / "encoder.pth", options={**OPTIONS, **REGISTERS, **SWIGLU})
    torch.testing.assert_close(answer(folder), expected(model), atol=1e-5, rtol=0)


def test_names_of_transformers_are_known(tmp_path: Path) -> None:
    model = network(init_values=None)
    save_file(as_transformers(model.state_dict()), tmp_path / "model.safetensors")
    options = {**OPTIONS, "init_values": None}
    folder = convert(tmp_path / "model.safetensors", options=options)
    torch.testing.assert_close(answer(folder), expected(model), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("kind", "swiglu"),
    [("ViT", False), *((kind, swiglu) for kind in ("Dinov2", "Dinov2WithRegisters") for swiglu in (False, True))],
)
def test_models_of_transformers_answer_the_same(tmp_path: Path, kind: str, swiglu: bool) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    shape = {"image_size": 32, "patch_size": 8, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    options: dict[str, Any] = {**OPTIONS, "init_values": None if kind == "ViT" else 1.0}
    if kind == "ViT":
        shape["intermediate_size"] = 96
    else:
        shape["use_swiglu_ffn"] = swiglu
        options |= {**SWIGLU, "mlp_ratio": 128 / 24} if swiglu else {}
    if kind == "Dinov2WithRegisters":
        shape["num_register_tokens"] = 4
        options |= REGISTERS
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**shape)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.1, 0.3)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        wanted = model(pixel_values=(PIXELS / 255 - 0.5) / 0.5).last_hidden_state[:, 0]
    folder = convert(tmp_path / "model.safetensors", options=options)
    torch.testing.assert_close(answer(folder), wanted, atol=1e-4, rtol=0)


def test_a_preset_names_the_architecture_and_what_is_usual_for_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    keys = {"img_size": 32, "patch_size": 8, "embed_dim": 384, "depth": 1}
    model = timm.create_model("vit_small_patch16_224", num_classes=0, **keys).eval()
    torch.save(model.state_dict(), tmp_path / "vits16.pth")
    folder = convert(tmp_path / "vits16.pth", preset="kaiko-vits16", architecture=None, options=keys)
    again = {"folder": folder, "preset": "kaiko-vits16", "size_px": 32, "options": keys}
    teacher = TimmEncoder.load(validate(EncoderTeacher, again, "the test"), STORAGE)
    torch.testing.assert_close(teacher.respond(PIXELS), expected(model), atol=1e-5, rtol=0)
    assert teacher.license is not None
    assert teacher.license.commercial is False
    alone = TimmEncoder.load(EncoderTeacher(folder=folder), STORAGE)  # its name is kept
    assert alone.license is not None
    assert (alone.license.name, alone.license.commercial) == ("Kaiko Non-Commercial Public License 1", False)
    assert alone.frame.mean == (0.5, 0.5, 0.5)


class Code:
    """What a pickle may hold."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


def refused(weights: Path, **keys: Any) -> str:
    with pytest.raises(InputError) as caught:
        convert(weights, **keys)
    message = str(caught.value)
    assert "\n" not in message
    assert not (weights.parent / "out" / "config.json").exists()
    return message


def test_what_could_run_is_refused_and_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "encoder.bin"
    torch.save({"state": Code()}, path)
    assert "hold more than tensors, or were cut short, and are not loaded, since a pickle may run any code" in refused(
        path
    )
    path.write_bytes(pickle.dumps(Code()))
    assert "have their authors publish safetensors" in refused(path)
    torch.save(network(), path)
    assert "VisionTransformer" in refused(path)
    assert not (tmp_path / "ran").exists()


def test_damaged_and_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "encoder.bin"
    torch.save(network().state_dict(), path)
    whole = path.read_bytes()
    for data in (b"", b"x", whole[: len(whole) // 2]):
        path.write_bytes(data)
        message = refused(path)
        assert message.startswith(f"weights {path} ")
        assert message.endswith(("copy the file again.", "have their authors publish safetensors."))
    torch.save([torch.zeros(3)], path)
    assert "hold a list, and tensors by their names were expected" in refused(path)
    (tmp_path / "model.safetensors").write_bytes(b"{}")
    assert "cannot be read (" in refused(tmp_path / "model.safetensors")
    assert "end in none of .bin, .pt, .pth, .safetensors; name the file" in refused(tmp_path)
    assert "are missing; name the file that the encoder's authors publish" in refused(tmp_path / "other.bin")


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "encoder.pt"
    torch.save(network().state_dict(), path)
    assert "do not fit vit_tiny_patch16_224 (blocks.0.ls1.gamma has no place in it; " in refused(path, options=SHAPE)
    assert "has no config.json beside it, which would name the architecture; set preset" in refused(
        path, architecture=None
    )
    assert "did you mean vit_tiny_patch16_224" in refused(path, architecture="vit_tiny_patch16_22")
    (tmp_path / "config.json").write_text('{"architectures": ["ViTModel"]}')
    assert "config.json is not the config of a timm model" in refused(path, architecture=None)


def test_names_that_are_not_known_stay() -> None:
    tensors = {"conv_stem.weight": torch.zeros(1), "blocks.0.0.conv_pw.weight": torch.ones(1)}
    assert name_as_timm({"state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}}) == tensors
