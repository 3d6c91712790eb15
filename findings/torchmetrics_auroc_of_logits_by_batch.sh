#!/usr/bin/env bash
# The AUROC of the same logits depends on how they were cut into batches.
#
# Versions: torchmetrics 1.9.0, torch 2.14.1 (CPU).
# Expected: a metric over a set has one value, however its `update` calls deal the set out; AUROC in particular knows only
#   the order of the scores, which a sigmoid keeps.
# Seen: whether scores are logits is decided anew for each batch: one that has a value outside [0, 1] goes through a
#   sigmoid, one that happens to lie within it is taken as probabilities. Both kinds are then ranked in one list. With
#   small batches (the short last one of an epoch, or a slide of two tiles) the figure moves by points, in silence.
# Who it hurts: classifiers that are scored by their logits tile by tile or slide by slide.
# Way round: apply the sigmoid (or softmax) before `update`.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 torchmetrics==1.9.0 numpy==2.4.6 2>"$work/pip.log" ||
    { cat "$work/pip.log"; exit 2; }
"$work/venv/bin/python" - <<'PY'
import sys

import torch
from torchmetrics.classification import BinaryAUROC

torch.manual_seed(0)
truth = torch.randint(0, 2, (400,))
logits = 1.5 * torch.randn(400) + (2.0 * truth - 1)

positive, negative = logits[truth == 1], logits[truth == 0]
right = float((positive[:, None] > negative[None, :]).double().mean())  # Mann and Whitney; there are no ties


def auroc(scores, size):
    metric = BinaryAUROC()
    for start in range(0, len(scores), size):
        metric.update(scores[start : start + size], truth[start : start + size])
    return float(metric.compute())


of_logits = {size: auroc(logits, size) for size in (400, 40, 4, 2, 1)}
of_probabilities = {size: auroc(logits.sigmoid(), size) for size in (400, 40, 4, 2, 1)}
print(f"by counting pairs: {right:.4f}")
for size, value in of_logits.items():
    print(f"batches of {size:3}: {value:.4f} from logits, {of_probabilities[size]:.4f} from probabilities")
as_described = (
    abs(of_logits[400] - right) < 1e-4
    and all(abs(value - right) < 1e-4 for value in of_probabilities.values())
    and of_logits[1] < right - 0.02
)
print("as described" if as_described else "CHANGED: no longer as described above")
sys.exit(0 if as_described else 1)
PY
