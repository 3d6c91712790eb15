"""The job on the cluster: runs all workloads on worker groups of each size in turn; a JSON line for each."""

import argparse
import json
import os
from typing import Any

from histill.cluster.connect import connect_cluster

MARKED = "measured"  # the first key of each line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bucket", required=True)
    parser.add_argument("--workloads", nargs="+", required=True)
    parser.add_argument("--responses", nargs="+", required=True, help="folder of each workload's")
    parser.add_argument("--nodes", type=int, nargs="+", required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--quick", action="store_true")
    chosen = parser.parse_args()
    with connect_cluster():
        for number in range(chosen.rounds):
            for nodes in chosen.nodes:
                for line in measured(chosen.bucket, chosen.workloads, chosen.responses, nodes, number, chosen.quick):
                    print(json.dumps(line), flush=True)


def measured(
    bucket: str, names: list[str], responses: list[str], nodes: int, number: int, quick: bool
) -> list[dict[str, Any]]:
    """The figures of each workload on `nodes` nodes."""
    import ray.train
    from ray.train.torch import TorchTrainer

    from benchmarks.scaling_runs.shares import figures_of
    from benchmarks.scaling_runs.workloads import FED, WORKLOADS, prepared_run, shortened
    from histill.storage.retrying import retrying_filesystem

    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "300")
    by_name = {each.name: each for each in (*WORKLOADS, FED)}
    workloads = [shortened(by_name[name]) if quick else by_name[name] for name in names]
    runs = []
    for workload, answers in zip(workloads, responses, strict=True):
        name = f"{workload.name}-{nodes}-{number}"
        runs.append((prepared_run(workload, bucket, answers, nodes, name), workload))
    filesystem, path = retrying_filesystem(f"s3://{bucket}/runs", runs[0][0].config.storage)
    result = TorchTrainer(
        work,
        train_loop_config={"runs": [(prepared, workload.warm + workload.steps) for prepared, workload in runs]},
        scaling_config=ray.train.ScalingConfig(num_workers=nodes, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(
            name=f"group-{nodes}-{number}",
            storage_path=path,
            storage_filesystem=filesystem,
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    ).fit()
    lines = []
    for workers, (prepared, workload) in zip(result.return_value, runs, strict=True):
        saves = workload.steps // workload.checkpoint_every
        figures = figures_of(workers, warm=workload.warm, batch=workload.batch, saves=saves)
        learned = [parameter for parameter in prepared.build_model().parameters() if parameter.requires_grad]
        figures["gradient_bytes"] = float(sum(parameter.numel() * parameter.element_size() for parameter in learned))
        lines.append({MARKED: workload.name, "nodes": nodes, "round": number, **figures})
    return lines


def work(settings: dict[str, Any]) -> list[Any]:
    """Runs in each worker; it imports here because that takes seconds, which Ray Train's controller need not spend."""
    from benchmarks.scaling_runs.worker import measured_marks

    return [measured_marks(prepared, steps) for prepared, steps in settings["runs"]]


if __name__ == "__main__":
    main()
