"""Judge the nodes' facts with pure functions; `answers` holds the driver's facts under DRIVER."""

import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from histill.cluster.capacity import workers_per_node
from histill.config.common import WorkerGroup
from histill.preflight.node_probe import Disk, Facts
from histill.preflight.nodes import Node
from histill.preflight.results import DRIVER, Row, Verdict, gather_rows, judge_places

RAY_SESSION = "Ray's session"  # purpose of a folder
RAY_STOPS_AT = 0.95  # of a disk: Ray does not spill objects to a disk that is fuller
_INSTALL = "`pip install -c constraints.txt -e .` there, in the Python that Ray runs in"
_BRING_ALONG = (
    'install this one there, or submit the job with --runtime-env-json \'{"py_modules": ["platform/histill"]}\''
)


@dataclass(frozen=True)
class Offset:
    """A clock's offset from the driver's: seconds ahead, and the error bound of that in seconds."""

    ahead_s: float
    within_s: float


def estimate_offset(samples: Sequence[tuple[float, float, float]]) -> Offset:
    """Estimate a node's clock offset from samples (driver before, node, driver after), each in seconds.

    The node reads its clock between the driver's two readings, so the shortest round trip gives the tightest bound.
    """
    before, there, after = min(samples, key=lambda sample: sample[2] - sample[0])
    return Offset(there - (before + after) / 2, max(0.0, after - before) / 2)


def check_node_count(nodes: Sequence[Node], least: int) -> Verdict:
    """Whether at least `least` nodes are alive."""
    if len(nodes) >= least:
        return Verdict("ok", f"{_count(len(nodes), 'node')} alive")
    fix = "start Ray on the others (`ray start --address=...`), or wait until they have joined"
    return Verdict("failed", f"{_count(len(nodes), 'node')} alive, and {least} expected", fix)


def check_token_auth(asked_for: bool | None, address: str, nodes: Sequence[Node]) -> Verdict:
    """Whether the cluster requires a token; `asked_for` None: it did not say."""
    if asked_for is None:
        return Verdict("warning", f"{address} did not say whether it asks for a token", "run the same command again")
    if asked_for:
        return Verdict("ok", "clients without the token are refused")
    open_to_others = any(not node.address.startswith("127.") for node in nodes)
    return Verdict(
        "failed" if open_to_others else "warning",
        f"{address} asks for no token: anyone {'who reaches it' if open_to_others else 'on this machine'} may run code",
        "start it with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH, set for every node and client "
        "(`ray get-auth-token --generate` makes a token)",
    )


def check_token_files(answers: Mapping[str, Facts]) -> list[Row]:
    """Whether Ray's token is readable by its owner only."""
    verdicts = {}
    for place, facts in answers.items():
        token = facts["token"]
        if token is None:
            continue
        path, mode = token["path"], token["mode"]
        if path is None or mode is None:
            verdicts[place] = Verdict("ok", "in the environment")
        elif mode & (stat.S_IRWXG | stat.S_IRWXO):
            verdicts[place] = Verdict("failed", f"others may read {path} (mode {mode:04o})", f"chmod 600 {path}")
        else:
            verdicts[place] = Verdict("ok", f"{path}, for its owner only")
    return gather_rows("token file", verdicts, _nodes(answers))


def check_versions(answers: Mapping[str, Facts]) -> list[Row]:
    """Whether Python and the packages match the driver's everywhere; local version labels (`+cu130`) may differ."""
    ours = answers[DRIVER]["versions"]
    bad = {}
    for place, facts in answers.items():
        faults = [
            f"{package} {version or 'is missing'}"
            + ("" if place == DRIVER else f" (driver: {ours[package] or 'none'})")
            for package, version in facts["versions"].items()
            if version is None or _public(version) != _public(ours[package])
        ]
        if faults:
            bad[place] = Verdict("failed", ", ".join(faults), _INSTALL)
    first = ("Python", "ray", "torch")
    same = ", ".join(f"{package} {ours[package]}" for package in first if package in ours)
    others = len(ours.keys() - set(first))
    well = Verdict("ok", same + (f", and {_count(others, 'other package')} alike" if others else ""))
    return gather_rows("versions", judge_places(list(answers), bad, lambda _: well), _nodes(answers))


def check_code(answers: Mapping[str, Facts]) -> list[Row]:
    """Whether histill can be imported everywhere and is identical to the driver's, file by file."""
    ours = answers[DRIVER]["code"]
    bad = {}
    for place, facts in answers.items():
        if facts["code"] is None:
            bad[place] = Verdict("failed", f"histill cannot be imported ({facts['code_at']})", _BRING_ALONG)
        elif facts["code"] != ours:
            bad[place] = Verdict("failed", f"{facts['code_at']} differs from the driver's histill", _BRING_ALONG)
    well = Verdict("ok", f"the same code ({(ours or '')[:8]})")
    return gather_rows("histill", judge_places(list(answers), bad, lambda _: well), _nodes(answers))


def check_clocks(offsets: Mapping[str, Offset], max_skew_s: float) -> list[Row]:
    """Whether the nodes' clocks agree with the driver's."""
    bad = {}
    for place, each in offsets.items():
        if abs(each.ahead_s) - each.within_s > max_skew_s:
            side = "ahead of" if each.ahead_s > 0 else "behind"
            found = f"{abs(each.ahead_s):.3g} s {side} the driver's (known within {each.within_s:.2g} s)"
            bad[place] = Verdict("failed", found, "keep both machines' time by NTP (chronyd, systemd-timesyncd)")
        elif each.within_s > max_skew_s:
            found = f"round trips take {2 * each.within_s:.2g} s, too long to tell a difference of {max_skew_s:g} s"
            bad[place] = Verdict("warning", found, "run it again when the node is less busy")

    def well(good: list[str]) -> Verdict:
        most = max(abs(offsets[place].ahead_s) + offsets[place].within_s for place in good)
        return Verdict("ok", f"within {most:.1g} s of the driver's")

    return gather_rows("clock", judge_places(list(offsets), bad, well), len(offsets))


def check_disks(answers: Mapping[str, Facts], min_free_gb: float) -> list[Row]:
    """Whether disks have free space and folders are writable."""
    bad = {}
    for place, facts in answers.items():
        faults = [fault for use, disk in facts["disks"].items() if (fault := _fault_of_disk(use, disk, min_free_gb))]
        if faults:
            bad[place] = min(faults, key=lambda fault: fault.state)  # "failed" sorts before "warning"

    def well(good: list[str]) -> Verdict:
        least = min(disk["free"] for place in good for disk in answers[place]["disks"].values())
        return Verdict("ok", f"{_gb(least)} or more")

    return gather_rows("free disk", judge_places(list(answers), bad, well), _nodes(answers))


def _fault_of_disk(use: str, disk: Disk, min_free_gb: float) -> Verdict | None:
    folder = f"{disk['folder']} ({use})"
    fix = "make room there, or choose a folder on a larger disk (TMPDIR, `ray start --temp-dir`, storage.cache.folder)"
    if not disk["writable"]:
        return Verdict("failed", f"{folder} cannot be written", "let the user that Ray runs as write there")
    if disk["free"] < min_free_gb * 1e9:
        return Verdict("failed", f"{_gb(disk['free'])} free at {folder}, and {min_free_gb:g} GB expected", fix)
    full = 1 - disk["free"] / disk["total"] if disk["total"] else 0.0
    if use == RAY_SESSION and full > RAY_STOPS_AT:
        found = f"the disk of {folder} is {full:.0%} full, and Ray writes no objects to it beyond {RAY_STOPS_AT:.0%}"
        return Verdict("warning", found, fix)
    return None


def check_shared_memory(answers: Mapping[str, Facts], nodes: Sequence[Node]) -> list[Row]:
    """Whether Ray's object store fits into /dev/shm; otherwise Ray keeps objects on disk."""
    verdicts = {}
    for node in nodes:
        held = answers[node.name]["shm_bytes"] if node.name in answers else None
        store = node.resources.get("object_store_memory", 0.0)
        if held is None:
            continue
        found = f"holds {_gb(held)}, and Ray's object store {_gb(store)}"
        verdicts[node.name] = Verdict("ok", "holds Ray's object store")
        if held < store:
            verdicts[node.name] = Verdict(
                "warning",
                f"{found}: objects lie on the disk, which is slow",
                "start containers with a larger --shm-size",
            )
    return gather_rows("/dev/shm", verdicts, len(nodes))


def check_gpus(answers: Mapping[str, Facts], nodes: Sequence[Node]) -> list[Row]:
    """Whether the GPUs that Ray offers exist and torch can use them."""
    asked = [node for node in nodes if node.name in answers]
    bad = {node.name: fault for node in asked if (fault := _fault_of_gpus(node, answers[node.name]))}
    handed = {node.name: int(node.resources.get("GPU", 0)) for node in asked}

    def well(good: list[str]) -> Verdict:
        total = sum(handed[name] for name in good)
        return Verdict("ok", f"{total} in all, which torch can use" if total else "none")

    return gather_rows("GPUs", judge_places(list(handed), bad, well), len(nodes))


def _fault_of_gpus(node: Node, facts: Facts) -> Verdict | None:
    handed, listed, usable = int(node.resources.get("GPU", 0)), facts["gpus_listed"], facts["gpus_usable"]
    if not handed:
        if not listed:
            return None
        fix = f"start Ray there with --num-gpus={listed}, if they are for this cluster"
        return Verdict("warning", f"nvidia-smi lists {listed}, and Ray hands out none", fix)
    if usable is None:
        fix = "run `python -c 'import torch; print(torch.cuda.device_count())'` there"
        return Verdict("failed", f"Ray hands out {handed}, and torch did not say how many it can use", fix)
    if usable < handed:
        torch = facts["versions"].get("torch") or "none"
        sees = "there is no nvidia-smi" if listed is None else f"nvidia-smi lists {listed}"
        return Verdict(
            "failed",
            f"Ray hands out {handed}, torch {torch} can use {usable}, and {sees}",
            f"install the driver (docker: --gpus all) and a torch for its CUDA; or start Ray with --num-gpus={usable}",
        )
    return None


def check_capacity(nodes: Sequence[Node], workers: WorkerGroup) -> Verdict:
    """Whether a training run's workers would fit into the idle cluster."""
    fitting = min(workers.most, sum(workers_per_node(node.resources, workers) for node in nodes))
    each = _count(workers.cpus, "CPU") + (f" and {_count(workers.gpus, 'GPU')}" if workers.gpus else "")
    found = f"room for {fitting} of {workers.most} workers of {each}"
    if fitting == workers.most:
        return Verdict("ok", found)
    if fitting >= workers.fewest:
        return Verdict("ok", f"{found}, and {workers.fewest} are enough")
    return Verdict(
        "failed",
        found + (f", and {workers.fewest} needed" if workers.fewest < workers.most else ""),
        "add nodes, or ask for fewer or smaller workers (workers.count, workers.cpus, workers.gpus)",
    )


def _nodes(answers: Mapping[str, object]) -> int:
    return len(answers.keys() - {DRIVER})


def _public(version: str | None) -> str | None:
    return version and version.partition("+")[0]


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


def _count(number: float, what: str) -> str:
    return f"{number:g} {what}{'' if number == 1 else 's'}"
