#!/usr/bin/env bash
# Importing torchvision, and so timm, loads all of torch's compiler, before anything is compiled.
#
# Versions: torchvision 0.29.1, torch 2.14.1 (CPU), timm 1.0.31.
# Expected: TorchDynamo, Inductor and what they need (sympy, FSDP) are loaded by the first call of torch.compile; torchvision's
#   roi_align wraps its compiled fallback so that it is made at the first call, for that very reason.
# Seen: the file with that wrapper also imports a helper from torch._dynamo at its top, and that package loads everything.
#   `import torchvision` alone brings a thousand modules and 170 MB more into the process, and takes about as long as
#   `import torch`. timm imports torchvision, so each process that makes a timm model pays for it.
# Who it hurts: short-lived processes with a network in them: workers of Ray or of a data loader, trials of a sweep, command
#   lines. On two cores it was 1.2 of the 3.9 s from a training command to its first step.
# Way round: none without patching; keep processes alive, or do without torchvision and timm where no model is made.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 torchvision==0.29.1 timm==1.0.31 2>"$work/pip.log" ||
    { cat "$work/pip.log"; exit 2; }
"$work/venv/bin/python" - <<'PY'
import subprocess
import sys

CHILD = """
import resource, sys, time
import torch
before, begun = len(sys.modules), time.perf_counter()
import {package}
seconds = time.perf_counter() - begun
loaded = [name for name in ("torch._dynamo", "torch._inductor", "torch.distributed.fsdp", "sympy") if name in sys.modules]
megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
print(len(sys.modules) - before, round(seconds, 2), megabytes, ",".join(loaded) or "-")
"""


def load(package):
    child = [sys.executable, "-c", CHILD.format(package=package)]
    subprocess.run(child, check=True, capture_output=True)  # once unmeasured, to have the files in memory
    modules, seconds, megabytes, loaded = subprocess.run(child, check=True, capture_output=True, text=True).stdout.split()
    print(f"import {package:11} after torch: {modules:>5} modules, {seconds:>5} s, {megabytes} MB in all; of the compiler: {loaded}")
    return int(modules), loaded


found = {package: load(package) for package in ("safetensors", "torchvision", "timm")}
as_described = found["safetensors"][1] == "-" and all(
    "torch._dynamo" in found[name][1] and "sympy" in found[name][1] and found[name][0] > 1000
    for name in ("torchvision", "timm")
)
print("as described" if as_described else "CHANGED: no longer as described above")
sys.exit(0 if as_described else 1)
PY
