"""One chain: a command that is killed and run again several times until it may end, and the checks afterwards."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from chaos.kill_runs.jobs import Job
from chaos.kill_runs.objects import PART, torn
from chaos.kill_runs.place import ROOT, Place
from chaos.kill_runs.result import Result, differences, differing
from chaos.kill_runs.writes import watched
from histill.storage.scratch import LOCK

ALONE_WITHIN_S = 60.0
END_WITHIN_S = 600.0
_SIGNALS = (signal.SIGKILL,) * 8 + (signal.SIGTERM, signal.SIGINT)
_AT_WRITES = 0.7  # share of kills in the midst of a write; the others come at any time
_AT_ONCE = 0.5  # share of kills after which the command is given again before the dead job's workers are gone
_FINISHED = "is finished"  # what a training says when its name is given again after its end


@dataclass(frozen=True)
class Reference:
    """An undisturbed run: its results, each command's exit status, its duration and number of writes."""

    result: Result
    statuses: Sequence[int]
    seconds: Sequence[float]
    writes: Sequence[int]


@dataclass(frozen=True)
class Strike:
    """A signal, at the n-th write or after a number of seconds."""

    number: signal.Signals
    at_write: int | None
    after_s: float | None


@dataclass
class Verdict:
    """The outcome of a chain; `faults` is empty if it ended like the undisturbed run."""

    job: str
    chain: str
    own_ray: bool
    kills: dict[str, int] = field(default_factory=dict)
    in_writes: int = 0
    faults: list[str] = field(default_factory=list)
    partial: int = 0
    orphans: int = 0
    running: int = 0
    alone_s: float = 0.0  # the longest time until a killed job's last process was gone
    seconds: float = 0.0

    @property
    def killed(self) -> int:
        """The number of kills."""
        return sum(self.kills.values())


@dataclass(frozen=True)
class Attempt:
    """The end of a command: its status, its last output, and whether the strike hit it."""

    status: int
    said: str
    seconds: float
    writes: int
    struck: bool


def undisturbed(place: Place, name: str, job: Job) -> Reference:
    """Run the job once without disturbance. Raises RuntimeError when it fails."""
    chain = f"reference-{name}"
    attempts = []
    for command in job.commands(place, chain):
        attempt = give(place, chain, command, None, own_ray=False)
        if attempt.status not in (0, 1):
            raise RuntimeError(f"the undisturbed {name} ended with {attempt.status}: {attempt.said}")
        attempts.append(attempt)
    left = place.family.wait_until_alone(ALONE_WITHIN_S)[1]
    if left:
        raise RuntimeError(f"the undisturbed {name} has left {sorted(left.values())}")
    return Reference(
        job.result(place, chain),
        [each.status for each in attempts],
        [each.seconds for each in attempts],
        [each.writes for each in attempts],
    )


def run_chain(
    place: Place, name: str, job: Job, chain: str, kills: int, reference: Reference, chance: random.Random
) -> Verdict:
    """Kill the job at most `kills` times, then let it end, and compare."""
    begun = time.monotonic()
    verdict = Verdict(name, chain, own_ray=chance.random() < job.own_ray)
    commands = job.commands(place, chain)
    for number, command in enumerate(commands):
        own = kills // len(commands) + (number < kills % len(commands))
        for _ in range(own):
            strike = _drawn(chance, reference.seconds[number], reference.writes[number], verdict.own_ray)
            attempt = give(place, chain, command, strike, verdict.own_ray)
            if not attempt.struck or attempt.status == reference.statuses[number]:
                verdict.faults += _ended(attempt, reference.statuses[number])
                break
            verdict.kills[strike.number.name] = verdict.kills.get(strike.number.name, 0) + 1
            verdict.in_writes += strike.at_write is not None
            verdict.faults += _bearing(strike, attempt)
            if chance.random() >= _AT_ONCE:
                _look_for_orphans(place, verdict)
            found = job.result(place, chain)
            verdict.faults += _partial(verdict, found)
            if job.stable:
                verdict.faults += differing(reference.result, found)
        last = give(place, chain, command, None, verdict.own_ray)
        verdict.faults += _ended(last, reference.statuses[number])
    _look_for_orphans(place, verdict)
    found = job.result(place, chain)
    verdict.faults += _partial(verdict, found)
    verdict.faults += differences(reference.result, found)
    verdict.faults += _leftovers(place, chain, found)
    verdict.running = sum(fault.startswith("RUNNING") for fault in found.unfinished)
    verdict.faults = list(dict.fromkeys(verdict.faults))
    verdict.seconds = time.monotonic() - begun
    return verdict


def _drawn(chance: random.Random, seconds: float, writes: int, own_ray: bool) -> Strike:
    number = chance.choice(_SIGNALS)
    if writes and chance.random() < _AT_WRITES:
        return Strike(number, chance.randint(1, max(1, writes // 3)), None)  # few, so that chains progress slowly
    return Strike(number, None, chance.uniform(0, seconds + 15 * own_ray))


def give(place: Place, chain: str, command: Sequence[str], strike: Strike | None, own_ray: bool) -> Attempt:
    """Run the command; its output is appended to the chain's log."""
    log = place.folder / "logs" / f"{chain}.log"
    log.parent.mkdir(exist_ok=True)
    before = log.stat().st_size if log.exists() else 0
    environment, struck = place.environment(chain, own_ray), []
    with log.open("ab") as said, watched(place.folder / "out" / chain, place.writes):
        begun = time.monotonic()
        process = subprocess.Popen(
            list(command), stdin=subprocess.DEVNULL, stdout=said, stderr=said, cwd=ROOT, env=environment,
            start_new_session=True,
        )  # fmt: skip

        def hit() -> None:
            if strike is not None and process.poll() is None:
                struck.append(True)
                _send(process.pid, strike.number)

        place.writes.begin(strike.at_write if strike else None, hit)
        deadline = begun + END_WITHIN_S
        if strike is not None and strike.after_s is not None:
            _wait(process, begun + strike.after_s)
            hit()
        _wait(process, deadline)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            status = 124
            process.wait()
        else:
            status = process.returncode
    text = log.read_bytes()[before:].decode(errors="replace")
    return Attempt(status, text, time.monotonic() - begun, place.writes.count, bool(struck))


def _send(pid: int, number: signal.Signals) -> None:
    """Send Ctrl-C to the whole process group, as a terminal does, and other signals to the job's own process."""
    try:
        (os.killpg if number == signal.SIGINT else os.kill)(pid, number)
    except ProcessLookupError:
        return


def _wait(process: "subprocess.Popen[bytes]", until: float) -> None:
    try:
        process.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        return


def _ended(attempt: Attempt, expected: int) -> list[str]:
    """The faults in the end of a job that was not disturbed."""
    if attempt.status == expected or (attempt.status == 2 and _FINISHED in attempt.said):
        return []
    return [f"ended with {attempt.status} instead of {expected}: {_last(attempt.said)}"]


def _bearing(strike: Strike, attempt: Attempt) -> list[str]:
    """The faults in a job's response to a signal that it can handle; before the job has started, Python responds."""
    if strike.number == signal.SIGKILL:
        return []
    faults = []
    if attempt.status not in (128 + strike.number, -strike.number):
        faults.append(f"{strike.number.name} ended it with {attempt.status}: {_last(attempt.said)}")
    if "Traceback" in attempt.said and "in run_job" in attempt.said:
        faults.append(f"{strike.number.name} was answered with a traceback: {_last(attempt.said)}")
    return faults


def _look_for_orphans(place: Place, verdict: Verdict) -> None:
    seconds, left = place.family.wait_until_alone(ALONE_WITHIN_S)
    verdict.alone_s = max(verdict.alone_s, seconds)
    if left:
        verdict.orphans += len(left)
        verdict.faults.append(f"left running: {sorted(left.values())[:4]}")


def _partial(verdict: Verdict, found: Result) -> list[str]:
    names = torn(found.objects)
    verdict.partial += len(names)
    return [f"not whole: {name}" for name in names]


def _leftovers(place: Place, chain: str, found: Result) -> list[str]:
    """Part files and temporary files left behind, except the empty folder of a worker that Ray has ended."""
    parts = [f"part left: {name}" for name in found.objects if PART in name]
    folders = (place.temporary(chain), place.heads_temporary)
    files = (path for folder in folders for path in folder.glob("histill*/**/*") if path.is_file())
    left = sorted(str(path.relative_to(place.scratch)) for path in files if path.name != LOCK)
    return parts + ([f"temporary: {', '.join(left[:4])}"] if left else [])


def _last(said: str) -> str:
    lines = [line for line in said.splitlines() if line.strip()]
    return lines[-1][-300:] if lines else "nothing"
