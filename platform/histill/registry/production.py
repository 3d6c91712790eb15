"""Mirror the champion to the production registry, and roll it back with its source."""

import dataclasses
import json
from pathlib import Path

from histill.config.common import Storage, Tracking
from histill.config.promote_model import PromoteConfig
from histill.errors import HistillError, InputError
from histill.registry.champions import ROLLED_BACK, append_champion, read_history
from histill.registry.decision import Promotion
from histill.registry.fetch import download_version, read_evidence
from histill.registry.mlflow_client import connect, require_server_uri, server_errors
from histill.registry.versions import register
from histill.storage.scratch import scratch_folder
from histill.train.tracker import DataUse


def copy_champion(promotion: Promotion, config: PromoteConfig) -> Promotion:
    """Copy the champion to the production registry, if one is configured.

    Raises InputError when that fails: the champion remains in its own registry, and the message says how to copy it
    later.
    """
    if config.copy_to is None or not promotion.ok:
        return promotion
    name, version = promotion.registered_name, promotion.version
    assert version is not None
    back = promotion.decision == ROLLED_BACK
    try:
        copied = copy_version(name, version, config.tracking, Tracking(uri=config.copy_to), rollback=back)
    except HistillError as error:
        raise InputError(
            f"version {version} of {name!r} is champion, and could not be copied to {config.copy_to} "
            f"({str(error).rstrip('.')}); promote models:/{name}/{version} with the same copy_to to try again.",
            code="copy-failed",
        ) from None
    return dataclasses.replace(promotion, copied=copied)


def copy_version(name: str, version: str, source: Tracking, target: Tracking, *, rollback: bool = False) -> str:
    """Copy a version and its evidence files to another server, make it champion there, and return its number there.

    With `rollback` the version is a former champion being restored. Both servers get the credentials in
    MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.
    """
    uri, storage = require_server_uri(target), Storage()
    with scratch_folder() as folder:
        model, beside = Path(folder, "model"), Path(folder, "evidence")
        model.mkdir()
        beside.mkdir()
        evidence = read_evidence(name, version, beside, source)
        source_model = download_version(name, version, model, source)
        copied = register(
            source_model, name, evidence, target, storage, origin=f"models:/{name}/{version}",
            scored_on=_find_held_out(name, version, source),
        )  # fmt: skip
    client = connect(uri)
    with server_errors(uri):
        client.set_model_version_tag(name, copied, "copied_from", f"version {version} of {require_server_uri(source)}")
        ledger = read_history(client, name)
        if not (ledger.crowned and copied == ledger.champion):
            append_champion(client, name, ledger, copied, rollback=rollback)
    return copied


def _find_held_out(name: str, version: str, tracking: Tracking) -> DataUse | None:
    """The tiles that a version was last scored on; None if they are not on record, as of older versions."""
    client = connect(require_server_uri(tracking))
    found = client.get_model_version(name, version)
    digest = found.tags.get("scored.tiles_digest", "")
    for each in client.get_run(found.run_id).inputs.dataset_inputs:
        if digest.startswith(each.dataset.digest):
            return DataUse(json.loads(each.dataset.source)["uri"], digest, "evaluation")
    return None
