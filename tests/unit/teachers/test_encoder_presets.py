"""Presets of public encoders: timm builds each, as large as its authors say, and every fact has a source."""

from dataclasses import fields
from pathlib import Path

import pytest
import torch

from histill.errors import InputError
from histill.teachers.encoder_folder import HubConfig, outline
from histill.teachers.encoder_presets import PRESETS, EncoderPreset, find_preset
from histill.teachers.timm_encoder import _forward

pytestmark = pytest.mark.unit

FAST = {"weight_init": "skip"}  # of weights that there are none of
OF_ITS_CONFIG = {  # what is left to the folder's own file, as far as it shapes the answer
    "h0-mini": {"img_size": 224, "init_values": 1e-5}
}


@pytest.mark.parametrize("name", PRESETS)
def test_timm_builds_it_as_its_authors_describe_it(name: str) -> None:
    preset = PRESETS[name]
    hub = HubConfig(architecture=preset.architecture, model_args=OF_ITS_CONFIG.get(name, {}))
    network = outline(hub, preset.options.arguments(), FAST)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    if preset.parameters is not None:
        assert parameters == pytest.approx(preset.parameters, rel=5e-3)
    pixels = torch.empty(1, 3, preset.size_px, preset.size_px, device="meta")
    network.blocks = network.blocks[:1]  # each has the same shapes
    embedding, _ = _forward(network, pixels, preset.pooling, tokens=False)
    assert embedding.shape == (1, preset.width)


def test_the_one_count_that_is_stated_to_the_last_digit_is_met() -> None:
    preset = PRESETS["prov-gigapath"]
    network = outline(HubConfig(architecture=preset.architecture), preset.options.arguments(), FAST)
    assert sum(parameter.numel() for parameter in network.parameters()) == preset.parameters == 1_134_953_984


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_each_fact_has_its_source(preset: EncoderPreset) -> None:
    facts = {field.name for field in fields(preset)} - {"license", "sources", "mpp", "parameters"}
    facts |= {name for name in ("mpp", "parameters") if getattr(preset, name) is not None}
    assert facts <= preset.sources.keys()
    assert all(source.startswith("https://") for source in [*preset.sources.values(), preset.license.source])


def test_what_may_not_be_used_commercially_is_on_record() -> None:
    """Read from the terms themselves; where they were not found, or say nothing of models trained on outputs: None."""
    allowed = {name: preset.license.commercial for name, preset in PRESETS.items()}
    assert {name for name, commercial in allowed.items() if commercial} == {
        "virchow", "h-optimus-0", "midnight-12k", "hibou-b", "hibou-l",
    }  # fmt: skip
    assert {name for name, commercial in allowed.items() if commercial is None} == {
        "h-optimus-1", "h0-mini", "prov-gigapath",
    }  # fmt: skip


def test_the_documentation_has_the_same_facts() -> None:
    page = Path(__file__).parents[3] / "docs" / "encoders.md"
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in page.read_text().splitlines()
        if line.startswith("| `") and line.count("|") == 9
    ]
    allowed = {True: "yes", False: "no", None: "not on record"}
    assert rows == [
        [f"`{name}`", preset.architecture, str(preset.width), "any" if preset.mpp is None else f"{preset.mpp:g}",
         preset.pooling, preset.precision, allowed[preset.license.commercial],
         f"[{preset.license.name}]({preset.license.source})"]
        for name, preset in PRESETS.items()
    ]  # fmt: skip


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"^preset 'Virchow-2' is not known; did you mean virchow2\?$"):
        find_preset("Virchow-2")
    with pytest.raises(InputError, match=r"^preset 'resnet' is not known; there are uni, uni2-h, "):
        find_preset("resnet")
