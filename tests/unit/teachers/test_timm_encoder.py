"""Timm encoders as teachers: they answer as timm's own model does, and what does not fit is refused in a sentence."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import Tensor, nn

from histill.config.common import Storage
from histill.config.common import Teacher as TeacherConfig
from histill.config.encoder import EncoderTeacher
from histill.config.load import validate
from histill.errors import InputError
from histill.licenses import License
from histill.teachers.teacher import load_teacher
from histill.teachers.timm_encoder import TimmEncoder
from histill.testing.teachers import check_teacher

pytestmark = pytest.mark.unit

STORAGE = Storage()
MEAN, STD = (0.7, 0.5, 0.6), (0.2, 0.25, 0.3)
TINY: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 2,
    "init_values": 1.0,
}
VIT = {**TINY, "reg_tokens": 4, "no_embed_class": True, "dynamic_img_size": True}
NO_JSON = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": nn.SiLU}
SWIGLU = {"mlp_layer": "swiglu_packed", "act_layer": "silu"}


def tiles(side: int, count: int = 3) -> Tensor:
    return torch.randint(256, (count, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., tuple[str, nn.Module]]:
    """`write(architecture, **arguments)`: a hub folder as timm saves it, its weights random, and the model in it."""

    def make(architecture: str = "vit_tiny_patch16_224", **arguments: Any) -> tuple[str, nn.Module]:
        torch.manual_seed(0)
        arguments = arguments or {**VIT, "num_classes": 0}
        model = timm.create_model(architecture, **arguments).eval()
        for name, tensor in model.named_parameters():
            if "token" in name or "pos_embed" in name or tensor.ndim == 1:
                nn.init.normal_(tensor, 0.5)
        named = {name: "a layer" for name, value in arguments.items() if callable(value)}
        save_for_hf(model, tmp_path / "encoder", model_args=named, safe_serialization=True)
        change_config(tmp_path / "encoder", pretrained_cfg={"mean": MEAN, "std": STD, "license": "apache-2.0"})
        return str(tmp_path / "encoder"), model

    return make


def change_config(folder: Path | str, **changes: Any) -> None:
    """Replace values in sections of the folder's config; None removes one."""
    path = Path(folder, "config.json")
    config = json.loads(path.read_text())
    for section, values in changes.items():
        both = {**config.get(section, {}), **values}
        config[section] = {key: value for key, value in both.items() if value is not None}
    path.write_text(json.dumps(config))


def load(folder: str, **keys: Any) -> TimmEncoder:
    return TimmEncoder.load(validate(EncoderTeacher, {"folder": folder, **keys}, "the test"), STORAGE)


def refused(folder: str, **keys: Any) -> str:
    with pytest.raises(InputError) as caught:
        load(folder, **keys)
    message = str(caught.value)
    assert "\n" not in message
    return message


def normalized(pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (MEAN, STD))
    return (pixels / 255 - mean) / std


@torch.no_grad()
def tokens_of(model: Any, pixels: Tensor) -> Tensor:
    found: Tensor = model.forward_features(normalized(pixels))
    return found


@pytest.mark.parametrize("pooling", ["cls", "mean", "cls_mean", None])
def test_it_pools_the_tokens_of_timms_own_model(write: Callable[..., Any], pooling: str | None) -> None:
    folder, model = write()
    tokens = tokens_of(model, tiles(32))
    patches = tokens[:, 5:]  # after the class token and four registers
    expected = {
        "cls": tokens[:, 0],
        "mean": patches.sum(1) / 16,
        "cls_mean": torch.cat([tokens[:, 0], patches.sum(1) / 16], 1),
        None: tokens[:, 0],  # of the model's own
    }[pooling]
    teacher = load(folder, pooling=pooling)
    check_teacher(teacher, tiles(32))
    assert (teacher.outputs.kind, teacher.outputs.classes, teacher.outputs.width) == ("encoder", (), expected.shape[1])
    torch.testing.assert_close(teacher.respond(tiles(32)), expected, atol=1e-5, rtol=0)
    embeddings, maps = teacher.respond_with_maps(tiles(32), ("tokens",))
    torch.testing.assert_close(embeddings, expected, atol=1e-5, rtol=0)
    assert teacher.layers == {"tokens": 24}
    assert maps["tokens"].shape == (3, *teacher.map_shape("tokens", 32)) == (3, 24, 4, 4)
    row, column = 2, 1
    torch.testing.assert_close(maps["tokens"][:, :, row, column], patches[:, 4 * row + column], atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", [16, 48])
def test_tiles_and_windows_are_seen_at_their_own_side(write: Callable[..., Any], side: int) -> None:
    folder, model = write()
    teacher = load(folder)
    assert teacher.sees(side) == side
    torch.testing.assert_close(teacher.respond(tiles(side)), tokens_of(model, tiles(side))[:, 0], atol=1e-5, rtol=0)
    assert teacher.map_shape("tokens", side) == (24, side // 8, side // 8)


def test_tiles_are_resized_only_where_that_is_asked_for(write: Callable[..., Any]) -> None:
    folder, model = write()
    teacher = load(folder, tile_px=64)
    assert (teacher.sees(64), teacher.sees(32)) == (32, 16)
    means = tiles(64).numpy().astype(float).reshape(3, 3, 32, 2, 32, 2).mean(axis=(3, 5))
    expected = tokens_of(model, torch.from_numpy(means.astype(np.float32)))[:, 0]
    torch.testing.assert_close(teacher.respond(tiles(64)), expected, atol=1e-5, rtol=0)
    with pytest.raises(InputError, match=r"sees tiles of 64 px at 32 px, .* of 33 px would have 16\.50 px"):
        teacher.sees(33)


def test_a_side_that_is_no_whole_number_of_patches_is_refused(write: Callable[..., Any]) -> None:
    teacher = load(write()[0])
    with pytest.raises(
        InputError, match=r"cannot see tiles of 36 px \(.*36.*8.*\); cut tiles of 32 px, or set encoder"
    ):
        teacher.sees(36)


def test_a_network_of_one_side_takes_no_other(write: Callable[..., Any]) -> None:
    folder, _ = write(**{**TINY, "num_classes": 0})
    teacher = load(folder)
    assert teacher.sees(32) == 32
    with pytest.raises(InputError, match=r"cannot see tiles of 48 px \(.*\); cut tiles of 32 px"):
        teacher.respond(tiles(48))


@pytest.mark.parametrize(
    ("architecture", "width", "channels"),
    [("tf_efficientnet_lite0", 1280, 320), ("resnet10t", 512, 512)],
)
def test_a_convolutional_network_answers_what_is_before_its_classifier(
    write: Callable[..., Any], architecture: str, width: int, channels: int
) -> None:
    folder, model = write(architecture, num_classes=7)
    change_config(folder, model_args={"num_classes": 7})
    teacher = load(folder)
    check_teacher(teacher, tiles(64, 2))
    with torch.no_grad():
        features = model.forward_features(normalized(tiles(64, 2)))
        expected = model.forward_head(features, pre_logits=True)
    answer, maps = teacher.respond_with_maps(tiles(64, 2), ("tokens",))
    torch.testing.assert_close(answer, expected, atol=1e-4, rtol=1e-4)
    assert answer.shape[1] == teacher.outputs.width == width
    assert maps["tokens"].shape[1:] == (channels, 2, 2)


def test_what_a_model_computes_for_itself_is_no_weight(write: Callable[..., Any]) -> None:
    """Rotary position embeddings are made with the model, and no file has them."""
    folder, model = write("eva02_tiny_patch14_224", img_size=28, depth=1, num_classes=0)
    teacher = load(folder)
    with torch.no_grad():
        expected = model(normalized(tiles(28)))
    torch.testing.assert_close(teacher.respond(tiles(28)), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("precision", "error"), [("bf16", 2**-8), ("fp16", 2**-11)])
def test_half_precision_is_off_by_its_rounding(write: Callable[..., Any], precision: str, error: float) -> None:
    folder, _ = write()
    full = load(folder, pooling="cls_mean").respond(tiles(32))
    half = load(folder, pooling="cls_mean", precision=precision).respond(tiles(32))
    assert half.dtype == torch.float32
    assert 0 < (half - full).norm() / full.norm() < 4 * error


def test_options_say_what_the_config_cannot(write: Callable[..., Any]) -> None:
    """The layers that UNI2-h, Virchow and H0-mini have, and whatever else their cards pass to timm."""
    folder, model = write(**VIT, **NO_JSON, num_classes=0)
    said = {key: VIT[key] for key in ("depth", "num_heads", "init_values", "reg_tokens", "no_embed_class")}
    change_config(folder, model_args=dict.fromkeys([*said, *NO_JSON, "dynamic_img_size"]))
    teacher = load(folder, options={**said, **SWIGLU, "dynamic_img_size": True})
    torch.testing.assert_close(teacher.respond(tiles(48)), tokens_of(model, tiles(48))[:, 0], atol=1e-5, rtol=0)
    assert teacher.sees(16) == 16


def test_keys_are_above_the_folder(write: Callable[..., Any]) -> None:
    folder, model = write()
    teacher = load(folder, mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0])
    with torch.no_grad():
        expected = model.forward_features(tiles(32) / 255)[:, 0]  # type: ignore[operator]
    torch.testing.assert_close(teacher.respond(tiles(32)), expected, atol=1e-5, rtol=0)
    assert (load(folder).mpp, load(folder, mpp=0.25).mpp) == (None, 0.25)
    config = validate(TeacherConfig, {"encoder": {"folder": folder, "mpp": 0.25}}, "the test")
    with pytest.raises(InputError, match=r"encoder was trained on tiles of 0\.25 um/px and the tile set has 0\.5;"):
        load_teacher(config, 0.5, STORAGE)
    assert load_teacher(config, 0.25, STORAGE).digest == load(folder, mpp=0.25).digest


def test_the_digest_is_of_weights_config_and_keys(write: Callable[..., Any]) -> None:
    folder, _ = write()
    first = load(folder).digest
    assert load(folder).digest == first
    changed = [load(folder, **keys).digest for keys in ({"pooling": "mean"}, {"precision": "bf16"}, {"mpp": 1.0})]
    change_config(folder, pretrained_cfg={"mean": (0, 0, 0)})
    changed.append(load(folder).digest)
    change_config(folder, pretrained_cfg={"mean": MEAN})
    assert load(folder).digest == first
    weights = load_file(f"{folder}/model.safetensors")
    save_file({**weights, "norm.bias": weights["norm.bias"] + 1}, f"{folder}/model.safetensors")
    changed.append(load(folder).digest)
    assert len({first, *changed}) == 6


def test_a_license_in_the_folder_is_believed_where_it_forbids(write: Callable[..., Any]) -> None:
    """timm saves that of its own weights with those of anybody."""
    folder, _ = write()
    source = "config.json of the teacher's folder"
    unsure = License(name="apache-2.0, says config.json", commercial=None, source=source)
    assert load(folder).license == unsure
    change_config(folder, pretrained_cfg={"license": "cc-by-nc-4.0"})
    assert load(folder).license == License(name="cc-by-nc-4.0", commercial=False, source=source)
    own = {"name": "CC-BY-4.0", "commercial": True, "source": "https://creativecommons.org/licenses/by/4.0/legalcode"}
    assert load(folder, license=own).license == License(**own)
    change_config(folder, pretrained_cfg={"license": None})
    assert load(folder).license is None
    for source in ("https://user:secret@host/terms", "https://host/terms?token=x"):
        with pytest.raises(InputError, match=r"license\.source"):
            load(folder, license=own | {"source": source})


def test_a_preset_brings_its_license_and_is_held_to_its_facts(write: Callable[..., Any]) -> None:
    folder, _ = write()
    assert refused(folder, preset="uni") == (
        f"{folder} holds vit_tiny_patch16_224, and preset uni is vit_large_patch16_224; name its folder, or leave "
        "encoder.preset out."
    )
    assert refused(folder, preset="UNI2h") == "preset 'UNI2h' is not known; did you mean uni2-h?"
    folder, _ = write("vit_small_patch16_224", **{**TINY, "patch_size": 16, "num_classes": 0})
    keys = {"img_size": 32, "init_values": 1.0}
    assert "width 24, and preset kaiko-vits16 has 384" in refused(
        folder, preset="kaiko-vits16", options=keys, size_px=32
    )
    teacher = load(folder, preset="kaiko-vits16", options=keys, size_px=32, pooling="mean")
    assert teacher.license is not None
    assert (teacher.license.commercial, teacher.frame.precision) == (False, "fp32")
    assert teacher.frame.mean == (0.5, 0.5, 0.5)


def test_a_folder_without_a_config_is_refused(write: Callable[..., Any], tmp_path: Path) -> None:
    folder, _ = write()
    Path(folder, "config.json").unlink()
    assert refused(folder) == (
        f"{folder} holds no timm model (config.json is missing); name a folder with config.json and model.safetensors, "
        "as the Hugging Face hub has them."
    )
    for text in ("", "[]", '{"architectures": ["ViTModel"]}', '{"architecture": 3}', "\x00"):
        Path(folder, "config.json").write_text(text)
        assert "config.json is not the config of a timm model of this version (" in refused(folder)
    Path(folder, "config.json").write_text('{"architecture": "vit_tiny_patch16"}')
    assert "did you mean vit_tiny_patch16" in refused(folder)


def test_missing_and_pickled_weights_are_refused(write: Callable[..., Any]) -> None:
    folder, model = write()
    weights = Path(folder, "model.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4])
    assert "model.safetensors is not a safetensors file, or was cut short; " in refused(folder)
    weights.unlink()
    assert refused(folder) == f"{folder}/model.safetensors is missing; copy the weights there, as safetensors."
    torch.save(model.state_dict(), Path(folder, "pytorch_model.bin"))
    assert "pytorch_model.bin, a pickle, which is not loaded; convert it" in refused(folder)
    torch.save(model.state_dict(), weights)
    assert "model.safetensors is not a safetensors file" in refused(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"reg_tokens": 0}, r"\(reg_token has no place in it; 1 tensors are like it\)"),
        ({"init_values": None}, r"\(blocks\.0\.ls1\.gamma has no place in it; 4 "),
        ({"depth": 3}, r"\(blocks\.2\.attn\.proj\.bias is missing; 14 "),
        ({"img_size": 64}, r"\(pos_embed is of shape \(1, 16, 24\), and \(1, 64, 24\) was expected; 1 "),
    ],
    ids=str,
)
def test_weights_of_other_options_are_refused(write: Callable[..., Any], change: dict[str, Any], said: str) -> None:
    folder, _ = write()
    change_config(folder, model_args=change)
    message = refused(folder)
    assert message.startswith(f"the weights in {folder} do not fit vit_tiny_patch16_224 (")
    assert "; set the preset that they are of, or the options that they were trained with." in message
    assert re.search(said, message), message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"windows": 3}, "timm builds no vit_tiny_patch16_224 with the options "),
        ({"num_heads": 5}, "timm builds no vit_tiny_patch16_224 with the options "),
        ({"checkpoint_path": "/etc/passwd"}, "sets 'checkpoint_path' in model_args, which is no argument of a model"),
        ({"pretrained_cfg": {"file": "x"}}, "sets 'pretrained_cfg' in model_args, which is no argument of a model"),
        ({"global_pool": ""}, "does not pool its tokens itself; set encoder.pooling to cls, mean or cls_mean"),
    ],
    ids=str,
)
def test_a_config_that_builds_nothing_is_refused(write: Callable[..., Any], change: dict[str, Any], said: str) -> None:
    folder, _ = write()
    change_config(folder, model_args=change)
    assert said in refused(folder)


def test_what_cannot_be_pooled_is_refused(write: Callable[..., Any]) -> None:
    folder, _ = write("resnet10t", num_classes=0)
    assert "has no tokens to pool by 'cls', as transformers have; leave encoder.pooling out" in refused(
        folder, pooling="cls"
    )
    folder, _ = write(**TINY, num_classes=0, class_token=False, global_pool="avg", fc_norm=False)
    assert "has no class token; set encoder.pooling to mean" in refused(folder, pooling="cls_mean")
    assert load(folder, pooling="mean").outputs.width == 24
    folder, model = write(**TINY, num_classes=0, global_pool="avg")
    assert "normalizes tokens after it has pooled them; leave encoder.pooling out" in refused(folder, pooling="mean")
    with torch.no_grad():
        expected = model(normalized(tiles(32)))
    torch.testing.assert_close(load(folder).respond(tiles(32)), expected, atol=1e-5, rtol=0)


def test_it_has_one_layer(write: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match=r"encoder has no layer 'blocks\.1'; its only one is tokens\.$"):
        load(write()[0]).map_shape("blocks.1", 32)
