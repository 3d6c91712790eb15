"""Quantized formats as candidates: what loses too much against the float model is refused, and the rest is kept."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from histill.artifacts import model_folder
from histill.artifacts.formats.made import ListedFormat, Made, RoundedScore, Rounding
from histill.artifacts.formats.onnx_int8 import ONNX_INT8_NAME
from histill.artifacts.formats.run_onnxruntime import run_onnxruntime
from histill.artifacts.formats.subject import Subject
from histill.artifacts.formats.table import FORMATS, Format
from histill.artifacts.model_folder import ModelCard, build
from histill.config.common import Storage
from histill.config.load import validate
from histill.config.promote_model import PromoteConfig
from histill.errors import InputError
from histill.evaluate.bootstrap import paired_difference
from histill.evaluate.evaluator import Evaluator, predict_split
from histill.registry.candidate import Candidate, collect_evidence, examine_candidate, trace_provenance
from histill.registry.decision import format_files, format_quantized
from histill.storage.scratch import scratch_folder
from histill.stream.read import TileSource
from histill.stream.tile_stream import TileStream
from histill.stream.views import Views
from histill.tiles.manifest import Manifest, case_digests

pytestmark = pytest.mark.unit

STORAGE = Storage()


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory, tile_set: Callable[..., Manifest]) -> Manifest:
    """48 tiles with labels, 40 of ten cases to be scored and 8 of two others that the card says it was trained on."""
    return tile_set(tmp_path_factory.mktemp("tiles"), tiles=48, cases=12, labels=True)


@pytest.fixture(scope="module")
def folder(tiles: Manifest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that knows nuclei, with an outlier in each second convolution: a huge weight on a unit that is always 0,
    which changes nothing unless it sets the scale of the whole layer.
    """
    card = ModelCard(
        kind="classification", encoder="resnet_gn", decoder_channels=(), classes=("stroma", "tumour"),
        mean=(0.7, 0.5, 0.7), std=(0.2, 0.2, 0.2), tile_px=64, tile_mpp=0.5, size_px=32,
        tiles_digest=tiles.header.digest, train_cases=case_digests(tiles, "val") + case_digests(tiles, "test"),
        histill="0",
    )  # fmt: skip
    torch.manual_seed(1)
    network: Any = build(card)
    labels = tiles.labels_among(card.classes, tiles.rows_of("train"))
    source = TileSource(tiles.uri, tiles.header.digest, STORAGE)
    stream = TileStream(tiles, source, "train", Views(card.size_px), 8, 0, 1, labels=labels)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    for epoch in range(40):
        right = 0
        for batch in stream.training_epoch(epoch, seed=1):
            assert batch.label is not None
            logits = network(batch.student.float())
            right += int((logits.argmax(1) == batch.label).sum())
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits, batch.label).backward()
            optimizer.step()
            spoil(network)
        if right == 40 and epoch > 3:
            break
    path = str(tmp_path_factory.mktemp("model"))
    model_folder.save(path, network, card)
    return path


@torch.no_grad()
def spoil(network: Any) -> None:
    """Let unit 3 after the first norm of each block be 0 for every tile, and give one weight on it a huge value; the
    same for the blocks' outputs."""
    blocks = [layer[0] for layer in (network.network.layer1, network.network.layer2, network.network.layer3)]
    for block, after in zip(blocks, [*blocks[1:], network.network.layer4[0]], strict=True):
        for norm, convolutions in ((block.bn1, [block.conv2]), (block.bn2, [after.conv1, after.downsample[0]])):
            norm.weight[3], norm.bias[3] = 0.0, -1e3
            for convolution in convolutions:
                convolution.weight[0, 3] = 1e3


def make_collapsed(subject: Subject) -> Made:
    """Dynamic quantization with one scale for each layer's weights."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with scratch_folder() as where:
        before, after = Path(where, "float.onnx"), Path(where, "rounded.onnx")
        before.write_bytes(subject.onnx)
        quantize_dynamic(before, after, per_channel=False, weight_type=QuantType.QUInt8)
        data = after.read_bytes()
    return Made({"collapsed.onnx": data}, run_onnxruntime(data, 1), Rounding(run_onnxruntime(subject.onnx, 1), (), {}))


def configure(folder: str, tiles: Manifest, *formats: str, **gates: Any) -> PromoteConfig:
    held_out = {"tiles": tiles.uri, "split": "train"}
    data = {"model": folder, "registered_name": "n", "held_out": held_out, "formats": formats, "calibration_tiles": 8}
    return validate(PromoteConfig, data | {"gates": {"bootstrap_samples": 200} | gates}, "the test")


@pytest.fixture(scope="module")
def candidate(folder: str, tiles: Manifest) -> Candidate:
    """The float format, a good quantized one, and one that collapses."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FORMATS, "openvino_int8", Format(make_collapsed, calibrated=True))
        config = configure(folder, tiles, "onnx", "onnx_int8", "openvino_int8")
        return examine_candidate(folder, config.held_out, config)  # type: ignore[arg-type]


def test_a_per_tensor_dynamic_quantization_that_collapses_is_refused(
    candidate: Candidate, folder: str, tiles: Manifest
) -> None:
    plain, good, collapsed = candidate.exports
    assert collapsed.listed.refused
    assert collapsed.listed.rounded is not None
    assert collapsed.listed.rounded.value < 0.7 < 0.95 < candidate.score.figures["balanced_accuracy"]
    assert collapsed.listed.rounded.low < -0.02
    assert (collapsed.contents, collapsed.listed.files) == ({}, {})
    assert good.listed.rounded is not None
    assert good.listed.rounded.passed
    assert ONNX_INT8_NAME in good.contents
    assert (plain.listed.rounded, plain.listed.refused) == (None, False)
    # the float formats are promoted: what was refused is no gate of the candidate's, and is not stored
    differences = [each.difference for each in candidate.formats]
    assert trace_provenance(candidate.examiner, candidate.formats).difference == differences[0] < 1e-3
    assert max(differences) > 0.01  # type: ignore[type-var]
    stored = collect_evidence(candidate, configure(folder, tiles, "onnx"))
    assert {"exports/model.onnx", "exports/model_int8.onnx"} <= stored.keys()
    assert "exports/collapsed.onnx" not in stored
    told = stored["exports/interface.json"].decode()
    assert "collapsed.onnx" not in told
    assert '"it loses more than the margin' in told


def test_the_table_says_what_was_refused_and_by_how_much(candidate: Candidate) -> None:
    lines = format_quantized(candidate.formats).splitlines()
    (kept,) = [line for line in lines if line.startswith("onnx_int8")]
    (refused,) = [line for line in lines if line.startswith("openvino_int8")]
    assert "at least -0.02" in kept
    assert kept.rstrip().endswith("kept")
    score = candidate.formats[2].rounded
    assert score is not None
    assert (
        f"balanced accuracy {score.value:.4f}, {score.difference:+.4f} ({score.low:+.4f} to {score.high:+.4f})"
        in refused
    )
    assert f"REFUSED by {-0.02 - score.low:.3g}" in refused
    assert "collapsed" not in format_files(candidate.formats)
    assert format_quantized(candidate.formats[:1]) == ""


def test_the_comparison_is_the_paired_one_over_cases(candidate: Candidate) -> None:
    export = candidate.exports[2]
    assert export.made is not None
    rounded = predict_split(dataclasses.replace(candidate.examiner, answer=export.made.answer), "", None)
    cases = candidate.examiner.manifest.column("case", rounded.rows)
    expected = paired_difference(rounded, candidate.answers, cases, "balanced_accuracy", 200)
    score = export.listed.rounded
    assert score is not None
    assert (score.difference, (score.low, score.high)) == expected
    assert score.ms_per_tile > 0 < score.float_ms_per_tile


@pytest.mark.parametrize(
    ("low", "margin", "passed"),
    [(-0.02, 0.02, True), (-0.0201, 0.02, False), (0.1, 0.0, True), (math.nan, 0.5, False), (math.nan, 1.0, True)],
)
def test_a_format_without_an_interval_is_kept_only_if_any_loss_is_allowed(
    low: float, margin: float, passed: bool
) -> None:
    score = RoundedScore("dice", 0.8, low, low, 0.1, margin, 1.0, 2.0, (), {})
    assert score.passed is passed
    listed = ListedFormat("onnx_int8", rounded=score)
    assert listed.refused is not passed
    if math.isnan(low) and not passed:
        assert "needs 6 held-out cases" in format_quantized([listed])


def test_embeddings_of_a_model_that_has_others_outputs_are_not_scored_through_a_quantized_file(
    folder: str, tiles: Manifest
) -> None:
    config = configure(folder, tiles, "onnx_int8")
    assert config.held_out is not None
    held_out = config.held_out.model_validate({**config.held_out.model_dump(), "probe": {}})
    with pytest.raises(InputError, match=r"held_out\.probe scores embeddings"):
        examine_candidate(folder, held_out, config)


def test_an_export_answers_in_place_of_the_model(folder: str, tiles: Manifest) -> None:
    held_out = configure(folder, tiles, "onnx").held_out
    assert held_out is not None
    examiner = Evaluator.load(folder, held_out, STORAGE, gpu=False)
    seen = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    replaced = dataclasses.replace(examiner, answer=lambda tiles: tiles.mean((2, 3))[:, :2])
    torch.testing.assert_close(replaced.logits(seen), seen.float().mean((2, 3))[:, :2])
