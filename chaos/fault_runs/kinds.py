"""The kinds of faults, and the runs that they are injected into."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from chaos.fault_runs.checkpoint_observer import against_plan
from chaos.fault_runs.run import JOB, Run, Verdict
from chaos.fault_runs.tiles import Setting
from histill.errors import HistillError
from testbed.ray_cluster import Node
from testbed.site import Site

WORKER = "ray::RayTrainWorker"
READER = "ray::MapBatches"
LONG = {  # a run of minutes: a student that takes its time, saved when an epoch ends, or when there is a reason
    "optimizer.epochs": "80",
    "student.decoder_channels": "[256, 256, 128, 128, 128]",
    "checkpoint_every": "1000",
}
ELASTIC = {"workers.count": "{min: 1, max: 2}"}
READ_BY_TASKS = {"data.decode": "cluster", "workers.cpus": "0.5"}  # who leave CPUs for the tasks
CUT_S, S3_AWAY_S, TRACKING_AWAY_S = 25.0, 6.0, 120.0
NOTICE_S = 15
FIRST_AT = 16  # steps: by then Ray has a checkpoint for certain; the newest that is seen may not be in its books


@dataclass(frozen=True)
class FaultContext:
    """The site and helpers for injecting faults."""

    site: Site
    setting: Setting
    # the metrics of an undisturbed run with these changes
    reference: Callable[[Mapping[str, str]], Mapping[str, float]]

    def run(self, name: str, changes: Mapping[str, str] | None = None) -> Run:
        """A new run."""
        return Run(self.site, self.setting, name, dict(changes or {}))

    def verdict(self, run: Run) -> Verdict:
        """Let a run finish, and return its verdict."""
        same = {key: value for key, value in run.changes.items() if key in LONG}  # the rest must change nothing
        return run.verdict(self.reference(same))

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The worker nodes."""
        return self.site.cluster.nodes

    def processes(self, name: str) -> list[int]:
        """Matching processes of all worker nodes."""
        return [pid for node in self.nodes for pid in node.named(name)]

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Bring all nodes up again when the block is left."""
        try:
            yield
        finally:
            for node in self.nodes:
                try:
                    self.site.cluster.wait_for(node, timeout_s=10)
                except HistillError:
                    node.kill()
                    node.start()
            self.site.cluster.wait_for(*self.nodes)


Fault = Callable[[FaultContext, Run, int], AbstractContextManager[None]]
"""Injects a fault (numbered within its run) when the block is entered; the run must recover within the block."""


@contextlib.contextmanager
def worker_killed(context: FaultContext, run: Run, number: int) -> Iterator[None]:
    """SIGKILL a training process, alternating between the two."""
    kill(run, lambda: context.processes(WORKER)[number % 2 :][:1])
    yield


@contextlib.contextmanager
def raylet_killed(context: FaultContext, run: Run, number: int) -> Iterator[None]:
    """SIGKILL a node's raylet, which ends the node's workers; then restart the node."""
    node = context.nodes[number % 2]
    kill(run, lambda: node.named("raylet/raylet"))
    context.site.cluster.wait_for(node, alive=False)
    node.kill()
    node.start()
    yield


@contextlib.contextmanager
def link_cut(context: FaultContext, run: Run, number: int) -> Iterator[None]:
    """Disconnect a node for longer than the health check waits; its processes then end by themselves."""
    node = context.nodes[number % 2]
    node.host.cut()
    time.sleep(CUT_S)
    node.host.mend()
    context.site.cluster.wait_for(node, alive=False)
    node.kill()
    node.start()
    yield


@contextlib.contextmanager
def node_lost_elastic(context: FaultContext, run: Run, number: int) -> Iterator[None]:
    """Lose a node; the run shrinks, continues, and grows when the node is back."""
    node = context.nodes[number % 2]
    node.kill()
    yield
    shrunk_and_grown(context, run, node)


@contextlib.contextmanager
def preempted(context: FaultContext, run: Run, number: int) -> Iterator[None]:
    """Drain and lose a node, on SIGTERM as in a pod or on a cloud's notice: a checkpoint is written first."""
    node, done = context.nodes[number % 2], set(run.observer.seen)
    at_notice = node.take_leave(NOTICE_S) if number % 2 else node.terminate()
    if not run.wait_until(lambda: any(is_within_epoch(run, name) for name in set(run.observer.seen) - done), 60):
        run.notes.append("no checkpoint was written at the notice")
    if at_notice is not None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            at_notice.wait(4 * NOTICE_S)
        node.kill()
    context.site.cluster.wait_for(node, alive=False, timeout_s=180)
    yield
    node.kill()
    shrunk_and_grown(context, run, node)


def shrunk_and_grown(context: FaultContext, run: Run, node: Node) -> None:
    """Bring back the node of a run that has continued with one worker, and check that the run grows."""
    shrunk = run.resumptions()
    node.start()
    context.site.cluster.wait_for(node)
    grown = run.wait_until(lambda: len(run.resumptions()) > len(shrunk) and run.resumptions()[-1][1] == 2, 120)
    if [workers for _, workers in shrunk[-1:]] != [1] or not grown:
        run.notes.append(f"did not shrink and grow: {run.resumptions()} after {shrunk}")


@contextlib.contextmanager
def driver_killed(context: FaultContext, run: Run, number: int) -> Iterator[None]:
    """SIGKILL the job's driver; then run the same command again."""
    kill(run, lambda: context.site.cluster.head_node.named(JOB))
    run.finish(120)
    run.start()
    yield


@contextlib.contextmanager
def s3_restarted(context: FaultContext, run: Run, number: int) -> Iterator[None]:
    """Restart the S3 server; reads and checkpoints wait for it."""
    context.site.s3_process.stop()
    time.sleep(S3_AWAY_S)
    context.site.s3_process.start()
    yield


@contextlib.contextmanager
def disk_full(context: FaultContext, run: Run, number: int) -> Iterator[None]:
    """Fill each node's disk before a checkpoint: the run ends with one sentence; once freed, the command resumes."""
    for node in context.nodes:
        node.fill_disk()
    said = run.finish(180)
    for node in context.nodes:
        node.free_disk()
    if run.process.returncode != 1 or "is full, and checkpoints are written there" not in said or "Traceback" in said:
        run.notes.append(f"said: {run.last_words()[-400:]}")
    run.start()
    yield


@contextlib.contextmanager
def out_of_memory(context: FaultContext, run: Run, number: int) -> Iterator[None]:
    """SIGKILL the tasks that read and decode, as the kernel does when memory runs out."""
    kill(run, lambda: context.processes(READER))
    yield


STEPS_GO_ON = (s3_restarted, out_of_memory)  # faults that end no worker


def on_both_nodes(context: FaultContext, run: Run) -> bool:
    """Whether a run trains on both nodes, as a run of fixed size does; an elastic one may start with one worker."""
    if not ELASTIC.items() <= run.changes.items():
        return True
    grown = run.wait_until(lambda: all(node.named(WORKER) for node in context.nodes))
    if not grown:
        run.notes.append("did not train on both nodes")
    return grown


def suffered(context: FaultContext, run: Run, faults: Sequence[Fault], steps_between: int) -> Verdict:
    """Inject faults into a run one after the other, each after a checkpoint and some new steps; its verdict."""
    numbers: dict[Fault, int] = {}
    with context.whole():
        for fault in faults:
            if not on_both_nodes(context, run) or not run.wait_for_steps(max(FIRST_AT, run.steps() + steps_between)):
                break
            then, number = run.now(), numbers.get(fault, 0)
            numbers[fault] = number + 1
            run.injected += 1
            with fault(context, run, number):
                went_on = run.wait_for_steps(then.steps + 8) if fault in STEPS_GO_ON else run.resumed_after(then)
                if not went_on:
                    break
        return context.verdict(run)


@dataclass(frozen=True)
class Faults:
    """One run that gets the same fault several times."""

    fault: Fault
    steps_between: int = 4
    changes: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, context: FaultContext, times: int) -> list[Verdict]:
        name = self.fault.__name__.replace("_", "-")
        with context.run(name, self.changes) as run:
            return [suffered(context, run, [self.fault] * times, self.steps_between)]


def node_late(context: FaultContext, times: int) -> list[Verdict]:
    """Start a run that needs two nodes while there is only one."""
    verdicts = []
    for number in range(times):
        with context.whole():
            late = context.nodes[number % 2]
            late.kill()
            context.site.cluster.wait_for(late, alive=False)
            with context.run(f"node-late-{number}") as run:
                time.sleep(20)
                late.start()
                run.injected += 1
                verdicts.append(context.verdict(run))
    return verdicts


def tracking_away(context: FaultContext, times: int) -> list[Verdict]:
    """Stop the MLflow server for two minutes."""
    verdicts = []
    for number in range(times):
        with context.run(f"tracking-away-{number}", LONG) as run:
            run.wait_for_steps(8)
            context.site.tracking_process.stop()
            run.injected += 1
            time.sleep(TRACKING_AWAY_S)
            context.site.tracking_process.start()
            if run.ended:
                run.notes.append("the run ended before the server was back")
            verdicts.append(context.verdict(run))
    return verdicts


def loss_not_a_number(context: FaultContext, times: int) -> list[Verdict]:
    """Make the weights diverge by weight decay: the run stops, and names the last good checkpoint."""
    verdicts = []
    for number in range(times):
        name = f"not-a-number-{number}"
        with context.run(name, {"optimizer.weight_decay": "3e4", "seed": str(number)}) as run:
            said = run.finish(300)
            run.injected += 1
            left = run.observer.left()
            good = f"{left[-1] if left else 'no checkpoint'} in the run's folder is the last good checkpoint"
            faults = []
            if run.process.returncode != 1 or good not in said or "Traceback" in said or not left:
                faults.append(f"{left} left; said: {run.last_words()[-400:]}")
            elif not all_finite(run, left[-1]):
                faults.append(f"{left[-1]} is not finite")
            lost, repeated, ledgers = against_plan(run.observer.seen, context.setting.batches, finished=False)
            verdicts.append(Verdict(name, 1, faults, lost, repeated, ledgers))
    return verdicts


def one_of_each(context: FaultContext, times: int) -> list[Verdict]:
    """Inject different faults into one run."""
    with context.run("one-of-each", {"optimizer.epochs": "16"}) as run:
        return [suffered(context, run, [worker_killed, driver_killed, s3_restarted, raylet_killed] * times, 4)]


KINDS: dict[str, tuple[Callable[[FaultContext, int], list[Verdict]], int]] = {
    "worker_killed": (Faults(worker_killed), 16),
    "raylet_killed": (Faults(raylet_killed), 6),
    "link_cut": (Faults(link_cut), 4),
    "node_late": (node_late, 2),
    "node_lost_elastic": (Faults(node_lost_elastic, 8, LONG | ELASTIC), 2),
    "preempted": (Faults(preempted, 8, LONG | ELASTIC), 2),
    "driver_killed": (Faults(driver_killed, 8), 6),
    "s3_restarted": (Faults(s3_restarted, 8), 9),
    "tracking_away": (tracking_away, 1),
    "disk_full": (Faults(disk_full, 8), 3),
    "loss_not_a_number": (loss_not_a_number, 3),
    "out_of_memory": (Faults(out_of_memory, changes=READ_BY_TASKS), 8),
}
"""Each kind, and how often it is injected."""


def kill(run: Run, victims: Callable[[], Sequence[int]]) -> None:
    """SIGKILL the `victims` as soon as one of them exists."""

    def hit() -> bool:
        return bool([pid for pid in victims() if is_hit(pid)])

    if not run.wait_until(hit, 60):
        run.notes.append("there was nothing to kill")


def is_hit(pid: int) -> bool:
    """SIGKILL a process; return whether it existed."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def is_within_epoch(run: Run, name: str) -> bool:
    """Whether a checkpoint is not at the end of an epoch."""
    return int(run.observer.seen[name].position["step"]) > 0


def all_finite(run: Run, name: str) -> bool:
    """Whether the weights of a checkpoint are finite."""
    import torch
    from safetensors.torch import load

    with run.observer.files().open_input_file(f"{run.observer.folder}/{name}/model.safetensors") as file:
        return all(bool(torch.isfinite(tensor).all()) for tensor in load(file.read()).values())
