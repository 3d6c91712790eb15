"""Run every check in order: the cluster, its nodes, and what driver and nodes can reach."""

import contextlib
import os
import sys
import time
from collections.abc import Mapping, Sequence

from histill.cluster.connect import LOCAL, asks_for_token, connect_cluster
from histill.config.check_cluster import CheckConfig
from histill.preflight import node_probe, rules
from histill.preflight.connectivity import CHECKS, READ, TRACKING, WRITE, check_connectivity, probe_marker
from histill.preflight.node_probe import Facts
from histill.preflight.nodes import Node, ask_nodes, list_alive_nodes, pickle_by_value
from histill.preflight.results import DRIVER, Row, Verdict, gather_rows, row, run_isolated, verdict_of
from histill.registry.mlflow_client import server_uri

# Versions must agree: processes unpickle each other's messages and read each other's files.
PACKAGES = ("ray", "torch", "torchvision", "timm", "numpy", "pyarrow", "pydantic", "safetensors", "s3fs", "mlflow")
CLUSTER = "cluster"  # place of a verdict on the whole cluster
_CLOCK_SAMPLES = 5
_SHARE_OF_A_PROGRAM = 0.3  # of the timeout, in which a node may run two programs
_NOT_NAMED = {
    READ: "read=<folder> names what jobs will read, such as a tile set",
    WRITE: "write=<folder> names where jobs will write, such as runs",
    TRACKING: "no tracking: neither tracking.uri nor MLFLOW_TRACKING_URI is set",
}


def check_cluster(config: CheckConfig) -> list[Row]:
    """Run all checks and return their rows. Joins the cluster at $RAY_ADDRESS, or starts a temporary local Ray.

    Takes seconds; a node has `config.timeout_s` to answer each request. Failures become rows and are not raised.
    """
    if os.environ.get("RAY_ADDRESS", "") in ("", LOCAL):
        print("RAY_ADDRESS is not set: starting Ray on this machine to check it.", file=sys.stderr)
    nodes: list[Node] = []
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(connect_cluster(hook=False))
            nodes = list_alive_nodes()
            rows += _of_the_cluster(config, nodes)
        except Exception as error:
            rows.append(row("Ray", DRIVER, verdict_of(error)))
        answers, silent = _facts(config, nodes)
        rows += gather_rows("nodes", {place: verdict_of(error) for place, error in silent.items()}, len(nodes))
        rows += _of_the_places(config, nodes, answers)
        rows += run_isolated("storage", DRIVER, lambda: _of_the_reach(config, nodes, answers))
    return rows


def _of_the_cluster(config: CheckConfig, nodes: Sequence[Node]) -> list[Row]:
    import ray

    address = ray.get_runtime_context().gcs_address
    rows = [
        Row("Ray", DRIVER, "ok", f"{ray.__version__} at {address}"),
        row("nodes", CLUSTER, rules.check_node_count(nodes, config.nodes)),
        row("token auth", CLUSTER, rules.check_token_auth(asks_for_token(address), address, nodes)),
    ]
    if config.workers is not None:
        rows.append(row("room", CLUSTER, rules.check_capacity(nodes, config.workers)))
    return rows


def _facts(config: CheckConfig, nodes: Sequence[Node]) -> tuple[dict[str, Facts], dict[str, Exception]]:
    """The facts of the driver and the nodes, and the errors of nodes without them."""
    patience_s = config.timeout_s * _SHARE_OF_A_PROGRAM
    cache = {} if config.storage.cache is None else {"storage.cache": config.storage.cache.folder}

    def arguments(each: Node) -> tuple[object, ...]:
        folders = {rules.RAY_SESSION: each.session, **cache}
        return PACKAGES, folders, each.resources.get("GPU", 0.0), patience_s

    pickle_by_value(node_probe)
    try:
        answers, silent = ask_nodes(nodes, node_probe.gather_facts, arguments, config.timeout_s)
    except Exception as error:  # Ray itself went down meanwhile
        answers, silent = {}, {each.name: error for each in nodes}
    return {DRIVER: node_probe.gather_facts(PACKAGES, {}, 0, patience_s)} | answers, silent


def _of_the_places(config: CheckConfig, nodes: Sequence[Node], answers: Mapping[str, Facts]) -> list[Row]:
    looks = {
        "token file": lambda: rules.check_token_files(answers),
        "versions": lambda: rules.check_versions(answers),
        "histill": lambda: rules.check_code(answers),
        "clock": lambda: _clocks(config, [each for each in nodes if each.name in answers]),
        "free disk": lambda: rules.check_disks(answers, config.min_free_gb),
        "/dev/shm": lambda: rules.check_shared_memory(answers, nodes),
        "GPUs": lambda: rules.check_gpus(answers, nodes),
    }
    return [each for check, look in looks.items() for each in run_isolated(check, CLUSTER, look)]


def _clocks(config: CheckConfig, nodes: Sequence[Node]) -> list[Row]:
    offsets: dict[str, rules.Offset] = {}
    failed: dict[str, Verdict] = {}
    for each in nodes:  # one at a time: a round trip delayed by another says little
        samples = []
        for _ in range(_CLOCK_SAMPLES):
            before = time.time()
            there, errors = ask_nodes([each], node_probe.read_clock, lambda _: (), config.timeout_s)
            if errors:
                failed[each.name] = verdict_of(errors[each.name])
                break
            samples.append((before, there[each.name], time.time()))
        else:
            offsets[each.name] = rules.estimate_offset(samples)
    return rules.check_clocks(offsets, config.max_skew_s) + gather_rows("clock", failed, len(nodes))


def _of_the_reach(config: CheckConfig, nodes: Sequence[Node], answers: Mapping[str, Facts]) -> list[Row]:
    verdicts: dict[str, dict[str, Verdict]] = {check: {} for check in CHECKS}
    try:
        uri = server_uri(config.tracking)
    except Exception as error:
        uri = None
        verdicts[TRACKING][DRIVER] = verdict_of(error)
    # As in a run, nodes get the server's address from the driver and the credentials from their own environment.
    config = config.model_copy(update={"tracking": config.tracking.model_copy(update={"uri": uri})})
    found = {DRIVER: check_connectivity(config)}
    rows: list[Row] = []
    if nodes and found[DRIVER]:
        same = [
            each for each in nodes if each.name in answers and answers[each.name]["code"] == answers[DRIVER]["code"]
        ]
        with contextlib.ExitStack() as stack:
            name = None
            if config.write is not None and found[DRIVER][WRITE].state == "ok":
                try:
                    name = stack.enter_context(probe_marker(config.write, config.storage))
                except Exception as error:
                    found[DRIVER][WRITE] = verdict_of(error)
            theirs, silent = ask_nodes(same, check_connectivity, lambda _: (config, name), config.timeout_s)
        found |= theirs
        wrong = {place: verdict_of(error) for place, error in silent.items()}
        rows += gather_rows("storage", {**wrong, **_left_out(nodes, same)}, len(nodes))
    for place, each in found.items():
        for check, verdict in each.items():
            verdicts[check][place] = verdict
    for check, by_place in verdicts.items():
        if not by_place and check in _NOT_NAMED:
            by_place = {DRIVER: Verdict("skipped", _NOT_NAMED[check])}
        rows += gather_rows(check, by_place, len(nodes))
    return rows


def _left_out(nodes: Sequence[Node], asked: Sequence[Node]) -> dict[str, Verdict]:
    verdict = Verdict("skipped", "not checked: histill is missing here or differs from the driver's")
    return {each.name: verdict for each in nodes if each not in asked}
