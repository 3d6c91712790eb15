"""What a run is made from, by content: a run goes on only from what it was started with."""

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

from histill.artifacts.model_folder import ModelCard, read_digest, resolve
from histill.config.distill import DistillConfig
from histill.config.finetune import FinetuneConfig
from histill.config.runs import Network, PretrainConfig, RunConfig, TeacherConfig
from histill.errors import InputError
from histill.storage.control import read_bytes
from histill.teachers.cache import read_header
from histill.train.run_folder import RunRecord, open_record, run_uri

if TYPE_CHECKING:
    from histill.train.prepare import Prepared


def with_inputs(prepared: "Prepared") -> "Prepared":
    """`prepared` with the digests of what it is made from. Raises InputError when the run was started from others."""
    config = prepared.config
    inputs = _inputs_of(config, prepared.card, prepared.network)
    check_inputs(config, open_record(config, prepared.kind), inputs)
    return replace(prepared, inputs=inputs)


def check_inputs(config: RunConfig, record: RunRecord, inputs: dict[str, str]) -> None:
    """Raises InputError when the run of `record` was started from others than `inputs`, naming the key."""
    for key, digest in record.inputs.items():
        if inputs.get(key, digest) != digest:
            raise InputError(
                f"run {run_uri(config)} was started when {key} held {digest[:12]}, and under the same name it holds "
                f"{inputs[key][:12]} now; put back what it was, or choose another name."
            )


def _inputs_of(config: RunConfig, card: ModelCard, network: Network) -> dict[str, str]:
    """SHA-256 by the configuration's key."""
    storage = config.storage
    inputs = {"data.tiles": card.tiles_digest}
    if card.teacher_digest is not None:
        inputs["teacher.model"] = card.teacher_digest
    if isinstance(config, PretrainConfig | DistillConfig) and config.responses is not None:
        header = read_header(config.responses, storage).model_dump_json()
        inputs["responses"] = hashlib.sha256(header.encode()).hexdigest()
    if isinstance(config, FinetuneConfig | DistillConfig) and config.encoder is not None:
        inputs["encoder"] = read_digest(resolve(config.encoder, storage), storage)
    if network.weights is not None:
        key = "network" if isinstance(config, TeacherConfig) else "student"
        inputs[f"{key}.weights"] = hashlib.sha256(read_bytes(network.weights, storage)).hexdigest()
    return inputs
