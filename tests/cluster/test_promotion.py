"""Promotion against a real MLflow server: real models, scored on real tiles, and the ledger of champions."""

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnxruntime
import pytest
import torch
from mlflow import MlflowClient

from histill.artifacts import model_folder
from histill.artifacts.formats.made import Made, Rounding
from histill.artifacts.formats.onnx import make_onnx
from histill.artifacts.formats.subject import Subject
from histill.artifacts.formats.table import FORMATS, Format
from histill.artifacts.interface import PREPARE_NAME, read_preparation
from histill.artifacts.model_folder import ONNX_NAME, ModelCard, build
from histill.artifacts.readme import README_NAME
from histill.cli.main import main
from histill.config.common import Storage, Tracking
from histill.config.load import validate
from histill.config.promote_model import PromoteConfig
from histill.errors import HistillError, InputError
from histill.local.tracking import mlflow_server
from histill.registry import champions, promotion, versions
from histill.registry.fetch import download_version
from histill.registry.promotion import Promotion, promote
from histill.stream.read import TileSource
from histill.stream.tile_stream import TileStream
from histill.stream.views import Views
from histill.tiles.manifest import Manifest, case_digests

pytestmark = pytest.mark.cluster

STORAGE = Storage()
CARD = ModelCard(
    kind="classification", encoder="resnet_gn", decoder_channels=(), classes=("stroma", "tumour"), mean=(0.7, 0.5, 0.7),
    std=(0.2, 0.2, 0.2), tile_px=64, tile_mpp=0.5, size_px=64, tiles_digest="cd" * 32, train_cases=("0123456789ab",),
    histill="0.1.0",
)  # fmt: skip


SECRETS = {"AWS_SECRET_ACCESS_KEY": "planted-secret-of-s3", "MLFLOW_TRACKING_PASSWORD": "planted-password"}


@pytest.fixture(autouse=True)
def planted_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in (SECRETS | {"MLFLOW_TRACKING_USERNAME": "someone"}).items():
        monkeypatch.setenv(variable, value)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory, tile_set: Callable[..., Manifest]) -> Manifest:
    """48 tiles, every second one without nuclei; 40 of ten cases to be scored."""
    return tile_set(tmp_path_factory.mktemp("tiles"), tiles=48, cases=12, labels=True)


@pytest.fixture(scope="module")
def models(tiles: Manifest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Model folders: two that know nothing, two that know nuclei, and one that does for a quarter of the cost."""
    made = {
        "poor": model(CARD, None, 0), "poorer": model(CARD, None, 1), "good": model(CARD, tiles, 2),
        "as good": model(CARD, tiles, 3), "cheap": model(CARD.model_copy(update={"size_px": 32}), tiles, 4),
    }  # fmt: skip
    seen = CARD.model_copy(update={"train_cases": case_digests(tiles, "train")})
    folders = {name: str(tmp_path_factory.mktemp("model")) for name in (*made, "seen")}
    for name, network in made.items():
        card = CARD.model_copy(update={"size_px": 32}) if name == "cheap" else CARD
        model_folder.save(folders[name], network, card)
    model_folder.save(folders["seen"], made["good"], seen)
    return folders


def model(card: ModelCard, tiles: Manifest | None, seed: int) -> torch.nn.Module:
    """A network, trained on `tiles` until it knows them."""
    torch.manual_seed(seed)
    network = build(card)
    if tiles is None:
        return network
    labels = tiles.labels_among(card.classes, tiles.rows_of("train"))
    stream = TileStream(
        tiles, TileSource(tiles.uri, tiles.header.digest, STORAGE), "train", Views(card.size_px), 8, 0, 1, labels=labels
    )
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    for epoch in range(40):
        right = 0
        for batch in stream.training_epoch(epoch, seed=seed):
            assert batch.label is not None
            logits = network(batch.student.float())
            right += int((logits.argmax(1) == batch.label).sum())
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits, batch.label).backward()
            optimizer.step()
        if right == 40 and epoch > 2:
            break
    return network


@pytest.fixture(scope="module", autouse=True)
def exported_once() -> Iterator[None]:
    """A model that is promoted by several tests is exported, which takes seconds, by the first of them."""
    made: dict[tuple[bytes, str], Made] = {}

    def make_once(subject: Subject) -> Made:
        weights = b"".join(tensor.numpy().tobytes() for tensor in subject.model.state_dict().values())
        key = (hashlib.sha256(weights).digest(), subject.card.model_dump_json())
        if key not in made:
            made[key] = make_onnx(subject)
        return made[key]

    with patch.dict(FORMATS, {"onnx": Format(make_once)}):
        yield


@pytest.fixture
def promoting(models: dict[str, str], tiles: Manifest, config: Tracking, name: str) -> Callable[..., Promotion]:
    """`promoting(model, **keys)`: promotes a model of `models`, of which the poor ones know nothing at all."""

    def run(model: str | None, gates: dict[str, Any] | None = None, **keys: Any) -> Promotion:
        data = {"registered_name": name, "tracking": config.model_dump()} | keys
        data["gates"] = {"bootstrap_samples": 200, "beat_constant": False} | (gates or {})
        if model is not None:
            data |= {"model": models[model], "held_out": {"tiles": tiles.uri, "split": "train"}}
        return promote(validate(PromoteConfig, data, "the test"))

    return run


def aliases(client: MlflowClient, name: str) -> dict[str, str]:
    return dict(client.get_registered_model(name).aliases)


def failed(promotion: Promotion) -> list[str]:
    return [gate.name for gate in promotion.gates if not gate.passed]


def test_the_champion_moves_only_past_the_gates(
    promoting: Callable[..., Promotion], models: dict[str, str], config: Tracking, client: MlflowClient, name: str,
    tiles: Manifest, tmp_path: Path,
) -> None:  # fmt: skip
    refused = promoting("poor", gates={"floors": {"balanced_accuracy": 0.9}})
    assert (refused.ok, refused.decision, refused.version) == (False, "refused", "1")
    assert failed(refused) == ["balanced_accuracy"]
    assert aliases(client, name) == {}
    tags = client.get_model_version(name, "1").tags
    assert tags["decision"] == "refused"
    assert tags["gate.balanced_accuracy"].startswith("failed: ")

    first = promoting("poor")
    assert (first.decision, first.version, first.former, first.rivalry) == ("promoted", "1", None, None)
    assert aliases(client, name) == {"champion": "1"}
    again = promoting("poor", gates={"floors": {"balanced_accuracy": 0.9}})
    assert (again.ok, again.decision, again.version) == (True, "already champion", "1")

    better = promoting("good")
    assert (better.decision, better.former) == ("promoted", "1")
    assert better.rivalry is not None
    assert better.rivalry.low > 0
    assert aliases(client, name) == {"champion": "2", "previous": "1"}

    for worse in ("poorer", "as good"):
        found = promoting(worse)
        assert (found.decision, found.former) == ("refused", "2")
        assert failed(found) == (["not worse", "better or cheaper"] if worse == "poorer" else ["better or cheaper"])
        assert aliases(client, name) == {"champion": "2", "previous": "1"}

    cheaper = promoting("cheap")
    assert cheaper.decision == "promoted"
    assert aliases(client, name) == {"champion": "5", "previous": "2"}
    version = client.get_model_version(name, "5")
    saved = Path(client.download_artifacts(version.run_id, "", str(tmp_path)))
    record = json.loads((saved / "decision.json").read_text())
    assert (record["decision"], record["former"]) == ("promoted", "2")
    assert record["score"]["figures"]["balanced_accuracy"] == 1.0
    assert record["rivalry"]["champion"] == "2"
    assert record["config"]["registered_name"] == name
    downloaded = tmp_path / "version"
    downloaded.mkdir()
    check_exports(saved, download_version(name, "5", downloaded, config), tiles)
    logged = client.get_logged_model(version.tags["logged_model"])
    assert logged.tags["gate.not_worse"] == version.tags["gate.not_worse"]
    assert logged.tags["mlflow.note.content"] == version.description
    about, judged, table = version.description.split("\n\n")
    assert about.endswith(f"registered from `{models['cheap']}`.")
    assert f"40 tiles of 10 cases of `{tiles.uri}` ({tiles.header.digest[:12]}, train), beside version 2:" in judged
    assert re.search(r"\| not worse +\| .* \| passed ", table)
    figures = {(each.key, each.dataset_name, each.dataset_digest): each.value for each in logged.metrics}
    held_out = (Path(tiles.uri).name, tiles.header.digest[:36])
    assert figures["train/balanced_accuracy", *held_out] == 1.0
    artifacts = [path.read_bytes() for path in saved.rglob("*") if path.is_file()]
    assert len(artifacts) >= 9
    assert not [data for data in artifacts if any(secret.encode() in data for secret in SECRETS.values())]


def check_exports(saved: Path, model: str, tiles: Manifest) -> None:
    """What was registered answers like the model, for one tile and for many, and its card says how."""
    network, card, digest = model_folder.load(model, STORAGE)
    told = json.loads((saved / "exports" / "interface.json").read_text())
    assert told["input"]["shape"] == ["batch", 3, 32, 32]
    assert (told["output"]["classes"], told["model_digest"]) == (["stroma", "tumour"], digest)
    assert max(told["largest_difference"].values()) < 1e-3
    program = (saved / "exports" / told["input"]["prepared_by"]["program"]).read_bytes()
    assert program == read_preparation()[PREPARE_NAME]
    readme = (saved / "exports" / "README.md").read_text()
    assert all(text in readme for text in (digest, tiles.header.digest[:12], "license: not stated", "1 um/px"))
    session = onnxruntime.InferenceSession((saved / "exports" / "model.onnx").read_bytes())
    assert not (saved / "exports" / "model.pt2").exists()  # only on request
    for count in (1, 5):
        pixels = torch.rand(count, 3, card.size_px, card.size_px) * 255
        expected = network(pixels).detach().numpy()
        (said,) = session.run(None, {told["input"]["name"]: pixels.numpy()})
        np.testing.assert_allclose(said, expected, atol=1e-3)


def test_a_refused_int8_file_is_not_stored_and_the_float_formats_are_promoted(
    promoting: Callable[..., Promotion], client: MlflowClient, name: str, tmp_path: Path
) -> None:
    def make_useless(subject: Subject) -> Made:
        answer = make_onnx(subject).answer
        return Made(
            {"useless.onnx": b"weights"}, lambda tiles: -answer(tiles), Rounding(answer, ("stem",), {"stem": 1.0})
        )

    with patch.dict(FORMATS, {"onnx_int8": Format(make_useless)}):
        promoted = promoting("good", formats=["onnx", "onnx_int8"])
    assert promoted.decision == "promoted"
    assert aliases(client, name) == {"champion": "1"}
    version = client.get_model_version(name, "1")
    assert version.tags["quantized.onnx_int8"].startswith("REFUSED by 0.98: balanced_accuracy -1 (-1 to -1)")
    assert re.search(r"\n\| onnx_int8 +\| .* \| REFUSED by 0.98 +\|", version.description)
    saved = Path(client.download_artifacts(version.run_id, "", str(tmp_path)))
    assert (saved / "exports" / "model.onnx").exists()
    assert not (saved / "exports" / "useless.onnx").exists()
    record = json.loads((saved / "decision.json").read_text())
    assert record["formats"][1]["rounded"]["layer_errors"] == {"stem": 1.0}


def test_a_model_that_has_seen_the_cases_is_refused(promoting: Callable[..., Promotion]) -> None:
    found = promoting("seen")
    assert failed(found) == ["unseen cases"]
    (gate,) = [gate for gate in found.gates if not gate.passed]
    assert gate.value == 10


def test_a_dry_run_changes_nothing(promoting: Callable[..., Promotion], client: MlflowClient, name: str) -> None:
    found = promoting("good", dry_run=True)
    assert (found.ok, found.decision, found.version) == (True, "would be promoted", None)
    assert not versions.has_versions(client, name)
    refused = promoting("good", dry_run=True, gates={"floors": {"accuracy": 1.1}})
    assert (refused.ok, refused.decision) == (False, "would be refused")


def test_a_rollback_brings_the_former_champion_back(
    promoting: Callable[..., Promotion], client: MlflowClient, name: str
) -> None:
    with pytest.raises(InputError, match=f"'{name}' has no former champion"):
        promoting(None, rollback=True)
    promoting("poor")
    with pytest.raises(InputError, match="no former champion"):
        promoting(None, rollback=True)
    promoting("good")
    back = promoting(None, rollback=True)
    assert (back.decision, back.version, back.former) == ("rolled back", "1", "2")
    assert aliases(client, name) == {"champion": "1"}  # there was nobody before it
    assert client.get_model_version(name, "1").tags["decision"] == "rolled back"
    with pytest.raises(InputError, match="no former champion"):
        promoting(None, rollback=True)
    assert promoting("good").decision == "promoted"
    assert aliases(client, name) == {"champion": "2", "previous": "1"}


def test_the_job_prints_the_table_and_ends_with_1_when_a_gate_refuses(
    promoting: Callable[..., Promotion], models: dict[str, str], tiles: Manifest, config: Tracking, name: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    promoting("good")
    command = [f"model={models['poor']}", f"registered_name={name}", f"held_out.tiles={tiles.uri}"]
    command += [
        "held_out.split=train",
        f"tracking.uri={config.uri}",
        f"tracking.experiment={config.experiment}",
        "--dry-run",
    ]
    capsys.readouterr()
    assert main(["promote", *command]) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["decision"] == "would be refused"  # nothing else on stdout
    (line,) = [line for line in printed.err.splitlines() if line.startswith("not worse")]
    assert "FAILED by 0." in line


def registered(models: dict[str, str], config: Tracking, name: str) -> tuple[str, str, str]:
    numbers = [versions.register(models[each], name, {}, config, STORAGE) for each in ("poor", "good", "as good")]
    return numbers[0], numbers[1], numbers[2]


def test_two_promotions_at_once_cannot_both_win(
    models: dict[str, str], config: Tracking, client: MlflowClient, name: str
) -> None:
    first, *rivals = registered(models, config, name)
    champions.append_champion(client, name, champions.read_history(client, name), first)
    for _ in range(5):
        seen, start = champions.read_history(client, name), threading.Barrier(2)
        outcomes: list[str] = []

        def run(version: str, seen: champions.ChampionHistory = seen, start: threading.Barrier = start) -> None:
            start.wait()
            try:
                champions.append_champion(client, name, seen, version)
                outcomes.append(version)  # noqa: B023 - joined below
            except HistillError:
                return

        threads = [threading.Thread(target=run, args=(version,)) for version in rivals]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (winner,) = outcomes
        now = champions.read_history(client, name)
        assert (now.champion, len(now.terms)) == (winner, len(seen.terms) + 1)
        assert aliases(client, name)["champion"] == winner
        champions.append_champion(client, name, now, first)


def test_a_promotion_that_died_before_the_alias_moved_is_ended_by_the_next(
    models: dict[str, str], config: Tracking, client: MlflowClient, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = registered(models, config, name)
    champions.append_champion(client, name, champions.read_history(client, name), first)
    with monkeypatch.context() as patch:
        patch.setattr(champions, "_settle", lambda *_: pytest.fail("killed here"))
        with pytest.raises(pytest.fail.Exception):
            champions.append_champion(client, name, champions.read_history(client, name), second)
    assert aliases(client, name) == {"champion": first}
    now = champions.read_history(client, name)
    assert now.champion == second
    assert aliases(client, name) == {"champion": second, "previous": first}
    with pytest.raises(HistillError, match="meanwhile"):
        champions.append_champion(client, name, replace(now, champion=first), third)


def test_an_alias_that_was_moved_by_hand_is_believed(
    models: dict[str, str], config: Tracking, client: MlflowClient, name: str
) -> None:
    first, second, third = registered(models, config, name)
    champions.append_champion(client, name, champions.read_history(client, name), first)
    client.set_registered_model_alias(name, versions.CHAMPION, second)
    now = champions.read_history(client, name)
    assert now.champion == second
    champions.append_champion(client, name, now, third)
    assert aliases(client, name) == {"champion": third, "previous": second}


@pytest.mark.parametrize(
    ("deleted", "judged_against", "way_back"),
    [
        ((1,), 3, 2), ((2,), 3, 1), ((3,), 2, 2), ((2, 3), 1, 1), ((1, 3), 2, 2), ((1, 2), 3, None),
        ((1, 2, 3), None, None),
    ],
)  # fmt: skip
def test_versions_that_were_deleted_are_stepped_over_in_both_directions(
    models: dict[str, str], config: Tracking, client: MlflowClient, name: str,
    deleted: tuple[int, ...], judged_against: int | None, way_back: int | None,
) -> None:  # fmt: skip
    name = f"{name}-{'-'.join(map(str, deleted))}"
    for version in registered(models, config, name):
        champions.append_champion(client, name, champions.read_history(client, name), version)
    for version in deleted:
        client.delete_model_version(name, str(version))
    fourth = versions.register(models["cheap"], name, {}, config, STORAGE)
    now = champions.read_history(client, name)
    assert [term.version for term in now.terms] == ["1", "2", "3"]
    assert now.champion == (str(judged_against) if judged_against else None)
    back = validate(PromoteConfig, {"registered_name": name, "rollback": True, "tracking": config.model_dump()}, "")
    if way_back is None:
        with pytest.raises(InputError, match="no former champion"):
            promote(back)
    else:
        assert promote(back).version == str(way_back)
        assert aliases(client, name)["champion"] == str(way_back)
    champions.append_champion(client, name, champions.read_history(client, name), fourth)
    assert aliases(client, name)["champion"] == fourth
    if way_back is not None:
        assert aliases(client, name)["previous"] == str(way_back)
        assert promote(back).version == str(way_back)


def test_a_term_of_a_version_that_was_deleted_meanwhile_stops_nobody(
    models: dict[str, str], config: Tracking, client: MlflowClient, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = registered(models, config, name)
    for version in (first, second):
        champions.append_champion(client, name, champions.read_history(client, name), version)
    seen, really = champions.read_history(client, name), champions._settle
    with monkeypatch.context() as patch:
        patch.setattr(champions, "_settle", lambda *_: (client.delete_model_version(name, third), really(*_)))
        with pytest.raises(HistillError, match=f"version {third} of '{name}' was deleted while"):
            champions.append_champion(client, name, seen, third)
    now = champions.read_history(client, name)
    assert (now.champion, now.way_back, aliases(client, name)) == (second, first, {"champion": "2", "previous": "1"})
    with pytest.raises(InputError, match=f"version {third} of '{name}' was deleted;"):
        champions.append_champion(client, name, now, third)
    assert len(champions.read_history(client, name).terms) == 3


def test_the_ledger_follows_a_renamed_model_outlives_its_run_and_ends_with_the_model(
    models: dict[str, str], config: Tracking, client: MlflowClient, name: str
) -> None:
    for version in registered(models, config, name):
        champions.append_champion(client, name, champions.read_history(client, name), version)
    client.delete_model_version(name, "1")
    client.rename_registered_model(name, f"{name}-new")
    renamed = champions.read_history(client, f"{name}-new")
    assert (renamed.champion, renamed.way_back) == ("3", "2")
    client.delete_run(renamed.run_id)
    again = champions.read_history(client, f"{name}-new")
    champions.append_champion(client, f"{name}-new", again, "2", rollback=True)
    assert len(champions.read_history(client, f"{name}-new").terms) == 4
    client.delete_registered_model(f"{name}-new")
    assert versions.register(models["cheap"], f"{name}-new", {}, config, STORAGE) == "1"
    anew = champions.read_history(client, f"{name}-new")
    assert (anew.terms, anew.champion, anew.way_back) == ((), None, None)


def test_a_ledger_from_before_the_tag_is_found_when_version_1_is_gone(
    models: dict[str, str], config: Tracking, client: MlflowClient, name: str
) -> None:
    for version in registered(models, config, name):
        champions.append_champion(client, name, champions.read_history(client, name), version)
    client.delete_registered_model_tag(name, "ledger_run")
    client.delete_model_version(name, "1")
    assert champions.read_history(client, name).way_back == "2"


def test_without_its_alias_the_champion_is_still_who_is_judged_against(
    promoting: Callable[..., Promotion], client: MlflowClient, name: str
) -> None:
    promoting("good")
    client.delete_registered_model_alias(name, "champion")
    for run in ({"dry_run": True}, {}):
        found = promoting("poor", **run)
        assert failed(found) == ["not worse", "better or cheaper"]
        assert found.former == "1"
        (gate,) = [gate for gate in found.gates if gate.name == "not worse"]
        assert "its alias was deleted" in gate.note
    (tries,) = [gate for gate in found.gates if gate.name == "tries"]
    assert (tries.value, tries.warning) == (2.0, True)
    assert aliases(client, name) == {}
    assert promoting("good").decision == "already champion"
    assert aliases(client, name) == {"champion": "1"}


def test_a_promotion_that_came_too_late_does_not_say_promoted(
    promoting: Callable[..., Promotion], models: dict[str, str], config: Tracking, client: MlflowClient, name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    promoting("poor")
    rival = versions.register(models["as good"], name, {}, config, STORAGE)

    def too_late(
        client: MlflowClient, name: str, seen: champions.ChampionHistory, version: str
    ) -> champions.ChampionEntry:
        assert client.get_model_version(name, version).tags["decision"] == "passed the gates"
        champions.append_champion(client, name, champions.read_history(client, name), rival)
        return champions.append_champion(client, name, seen, version)

    monkeypatch.setattr(promotion, "append_champion", too_late)
    with pytest.raises(HistillError, match="another promotion gave"):
        promoting("good")
    said = {version: client.get_model_version(name, version).tags.get("decision") for version in "123"}
    assert said == {"1": "promoted", rival: "promoted", "3": "rejected: another promotion was faster"}
    assert aliases(client, name) == {"champion": rival, "previous": "1"}


def test_a_model_that_two_jobs_promote_at_once_is_not_called_late(
    promoting: Callable[..., Promotion], client: MlflowClient, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    promoting("poor")

    def second(
        client: MlflowClient, name: str, seen: champions.ChampionHistory, version: str
    ) -> champions.ChampionEntry:
        champions.append_champion(client, name, champions.read_history(client, name), version)
        return champions.append_champion(client, name, seen, version)

    monkeypatch.setattr(promotion, "append_champion", second)
    assert promoting("good").decision == "promoted"
    assert client.get_model_version(name, "2").tags["decision"] == "promoted"
    assert aliases(client, name) == {"champion": "2", "previous": "1"}


def test_a_model_that_knows_nothing_is_no_first_champion(
    promoting: Callable[..., Promotion], client: MlflowClient, name: str
) -> None:
    found = promoting("poor", gates={"beat_constant": True})
    assert failed(found) == ["beats a constant"]
    (gate,) = [gate for gate in found.gates if not gate.passed]
    assert gate.required == "more than 0.5000"  # of two classes
    assert aliases(client, name) == {}
    assert promoting("good", gates={"beat_constant": True}).decision == "promoted"


def test_small_losses_do_not_add_up(promoting: Callable[..., Promotion], client: MlflowClient, name: str) -> None:
    """A poor champion follows a good one, as after many small losses: the next is held against the good one as well."""
    promoting("good")
    promoting("poor", gates={"max_regression": 1.0, "max_cost_ratio": None})
    assert aliases(client, name) == {"champion": "2", "previous": "1"}
    found = promoting("poorer", gates={"max_cost_ratio": None})
    (gate,) = [gate for gate in found.gates if gate.name == "not worse than the best"]
    assert not gate.passed
    assert "of version 1" in gate.note
    assert promoting("cheap", gates={"max_cost_ratio": None}).decision == "promoted"


def test_one_model_that_is_registered_by_several_jobs_at_once_is_one_version(
    models: dict[str, str], config: Tracking, client: MlflowClient, name: str
) -> None:
    start = threading.Barrier(3)
    found: list[str] = []

    def register() -> None:
        start.wait()
        found.append(versions.register(models["good"], name, {"score.json": b"{}"}, config, STORAGE))

    threads = [threading.Thread(target=register) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["1", "1", "1"]
    assert list(versions.list_living_versions(client, name)) == ["1"]


def test_the_champion_is_copied_to_production(
    promoting: Callable[..., Promotion], config: Tracking, client: MlflowClient, name: str, tiles: Manifest,
    tmp_path: Path,
) -> None:  # fmt: skip
    with mlflow_server(tmp_path / "production") as server:
        promoting("poor")
        found = promoting("good", copy_to=server.uri)
        assert found.copied == "1"
        there = MlflowClient(server.uri, server.uri)
        assert aliases(there, name) == {"champion": "1"}
        version = there.get_model_version(name, "1")
        assert version.tags["copied_from"] == f"version 2 of {config.uri}"
        assert version.tags["model_digest"] == client.get_model_version(name, "2").tags["model_digest"]
        saved = Path(there.download_artifacts(version.run_id, "", str(tmp_path)))
        kept = {path.relative_to(saved).as_posix() for path in saved.rglob("*") if path.is_file()}
        formats = {f"exports/{file}" for file in (ONNX_NAME, README_NAME)}
        assert formats | {"decision.json", "score.json"} <= kept
        logged = there.get_logged_model(version.tags["logged_model"])
        assert {each.dataset_digest for each in logged.metrics} == {tiles.header.digest[:36]}
        back = promoting(None, rollback=True, copy_to=server.uri)
        assert (back.version, back.copied) == ("1", "2")
        assert aliases(there, name) == {"champion": "2"}  # as at home, where nobody was before it
        assert promoting("good", copy_to=server.uri).copied == "1"
        assert aliases(there, name) == {"champion": "1", "previous": "2"}
        alone = validate(
            PromoteConfig, {"registered_name": name, "rollback": True, "tracking": {"uri": server.uri}}, ""
        )
        assert promote(alone).version == "2"
        with pytest.raises(InputError, match="no former champion"):
            promote(alone)
        assert aliases(client, name) == {"champion": "2", "previous": "1"}
