"""What is done to runs: each kind of fault, and the runs that it is done to."""

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
READ_BY_TASKS = {"data.reader": "ray_data", "workers.cpus": "0.5"}  # who leave CPUs for the tasks
CUT_S, S3_AWAY_S, TRACKING_AWAY_S = 25.0, 6.0, 120.0
NOTICE_S = 15
FIRST_AT = 16  # steps: by then Ray has a checkpoint for certain; the newest that is seen may not be in its books


@dataclass(frozen=True)
class FaultContext:
    """Where faults are made."""

    site: Site
    setting: Setting
    # the metrics of an undisturbed run with these changes
    reference: Callable[[Mapping[str, str]], Mapping[str, float]]

    def run(self, name: str, changes: Mapping[str, str] | None = None) -> Run:
        """A run of its own."""
        return Run(self.site, self.setting, name, dict(changes or {}))

    def verdict(self, run: Run) -> Verdict:
        """Of a run that is left to its end."""
        same = {key: value for key, value in run.changes.items() if key in LONG}  # the rest must change nothing
        return run.verdict(self.reference(same))

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Those that work."""
        return self.site.cluster.nodes

    def processes(self, name: str) -> list[int]:
        """Of all working nodes."""
        return [pid for node in self.nodes for pid in node.named(name)]

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """All nodes are up again when the block is left."""
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
"""Does its harm, the how manieth of its run, at the block's beginning; the run must get over it within the block."""


@contextlib.contextmanager
def worker_killed(context: FaultContext, run: Run, number: int) -> Iterator[None]:
    """SIGKILL to a process that trains, now one, now the other."""
    kill(run, lambda: context.processes(WORKER)[number % 2 :][:1])
    yield


@contextlib.contextmanager
def raylet_killed(context: FaultContext, run: Run, number: int) -> Iterator[None]:
    """SIGKILL to a node's raylet, which takes the node's workers along; then the node is started again."""
    node = context.nodes[number % 2]
    kill(run, lambda: node.named("raylet/raylet"))
    context.site.cluster.wait_for(node, alive=False)
    node.kill()
    node.start()
    yield


@contextlib.contextmanager
def link_cut(context: FaultContext, run: Run, number: int) -> Iterator[None]:
    """A node's cable is out for longer than the health check waits; what runs there then ends by itself."""
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
    """A node is gone; the run shrinks, goes on, and grows when the node is back."""
    node = context.nodes[number % 2]
    node.kill()
    yield
    shrunk_and_grown(context, run, node)


@contextlib.contextmanager
def preempted(context: FaultContext, run: Run, number: int) -> Iterator[None]:
    """A node takes leave and is gone, at SIGTERM as in a pod or at a cloud's notice: a checkpoint is written first."""
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
    """A run whose node is gone has gone on with one worker; now the node comes back, and the run takes it in."""
    shrunk = run.resumptions()
    node.start()
    context.site.cluster.wait_for(node)
    grown = run.wait_until(lambda: len(run.resumptions()) > len(shrunk) and run.resumptions()[-1][1] == 2, 120)
    if [workers for _, workers in shrunk[-1:]] != [1] or not grown:
        run.notes.append(f"did not shrink and grow: {run.resumptions()} after {shrunk}")


@contextlib.contextmanager
def driver_killed(context: FaultContext, run: Run, number: int) -> Iterator[None]:
    """SIGKILL to the job's driver; the same command is given again."""
    kill(run, lambda: context.site.cluster.head_node.named(JOB))
    run.finish(120)
    run.start()
    yield


@contextlib.contextmanager
def s3_restarted(context: FaultContext, run: Run, number: int) -> Iterator[None]:
    """The S3 server is ended and started again; tiles and checkpoints wait."""
    context.site.s3_process.stop()
    time.sleep(S3_AWAY_S)
    context.site.s3_process.start()
    yield


@contextlib.contextmanager
def disk_full(context: FaultContext, run: Run, number: int) -> Iterator[None]:
    """The disk of each node is full when a checkpoint is to be written: one sentence; freed, the command goes on."""
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
    """What the kernel does when memory is out: SIGKILL to the tasks that read and decode."""
    kill(run, lambda: context.processes(READER))
    yield


STEPS_GO_ON = (s3_restarted, out_of_memory)  # faults that end no worker


def on_both_nodes(context: FaultContext, run: Run) -> bool:
    """Whether a run trains on both nodes, as one of a fixed size does; another may begin with one worker."""
    if not ELASTIC.items() <= run.changes.items():
        return True
    grown = run.wait_until(lambda: all(node.named(WORKER) for node in context.nodes))
    if not grown:
        run.notes.append("did not train on both nodes")
    return grown


def suffered(context: FaultContext, run: Run, faults: Sequence[Fault], steps_between: int) -> Verdict:
    """Of a run that gets one fault after the other, each after a checkpoint and some new steps."""
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
    """A run that needs two nodes begins while there is one."""
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
    """The MLflow server is away for two minutes."""
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
    """A weight decay that makes the weights grow without bound: the run stops, and says which checkpoint is good."""
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
    """One run that gets different faults."""
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
"""Each kind, and how often it is done."""


def kill(run: Run, victims: Callable[[], Sequence[int]]) -> None:
    """SIGKILL to the `victims`, as soon as one of them is there to be hit."""

    def hit() -> bool:
        return bool([pid for pid in victims() if is_hit(pid)])

    if not run.wait_until(hit, 60):
        run.notes.append("there was nothing to kill")


def is_hit(pid: int) -> bool:
    """SIGKILL to a process; whether there was one."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def is_within_epoch(run: Run, name: str) -> bool:
    """Whether a checkpoint is none that an epoch ends with."""
    return int(run.observer.seen[name].position["step"]) > 0


def all_finite(run: Run, name: str) -> bool:
    """Whether the weights of a checkpoint are numbers."""
    import torch
    from safetensors.torch import load

    with run.observer.files().open_input_file(f"{run.observer.folder}/{name}/model.safetensors") as file:
        return all(bool(torch.isfinite(tensor).all()) for tensor in load(file.read()).values())
