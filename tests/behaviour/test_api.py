"""A notebook's way from images to predictions, by `import histill` alone and without Ray."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histill.testing.tile_sets import draw_tile

pytestmark = pytest.mark.behaviour

NOTEBOOK = """
import json, sys
import histill

report = histill.ingest_tiles(
    output="tiles", tile_px=64, images={"index": "index.csv", "mpp": 0.5}, local=True,
    split={"train": 0.5, "val": 0.25, "test": 0.25},
)
tiles = histill.open_tiles("tiles")
cached = histill.cache_responses(tiles=tiles, teacher={"classical": True}, output="responses", local=True)
student = {"encoder": "csat_tiny", "decoder_channels": [16, 16, 8, 8, 8]}
common = {"runs": "runs", "student": student, "optimizer": {"epochs": 1}, "local": True}
data = {"tiles": tiles, "batch_size": 4}
first = histill.pretrain_student(name="first", data=data, teacher={"classical": True}, responses=cached.uri, **common)
tuned = histill.finetune_student(
    name="tuned", data=data, target="classification", encoder=first.run, head="probe", runs="runs",
    student={"encoder": "csat_tiny"}, local=True,
)
score = histill.score_model(model=tuned.run, held_out={"tiles": tiles}, robustness_tiles=0, speed=False)
model = histill.load_model(tuned.run)
batch = next(iter(tiles.stream("test", batch_size=24)))
right = model.predict(batch.student).argmax(1) == batch.label
predicted = histill.predict_tiles(model=tuned.run, tiles=tiles, output="predictions", local=True)
embedded = histill.embed_tiles(model=first.run, tiles=tiles, output="features", local=True)
print(json.dumps({
    "tiles": len(tiles), "tiles_of_report": report.manifest.header.tiles, "classes": tiles.classes,
    "figures": score.figures, "right": [right[batch.label == label].float().mean().item() for label in (0, 1)],
    "predicted": predicted.tiles, "embedded": embedded.tiles, "ray": "ray" in sys.modules,
}))
"""


def test_from_images_to_predictions_in_one_process(tmp_path: Path) -> None:
    lines = ["image,label,case"]
    for number in range(24):
        pixels, _ = draw_tile(number, 64, nuclei=number % 2 == 0)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,{'plain' if number % 2 else 'cellular'},case-{number // 2}")
    (tmp_path / "index.csv").write_text("\n".join(lines))
    done = subprocess.run([sys.executable, "-c", NOTEBOOK], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["tiles"] == found["tiles_of_report"] == found["predicted"] == found["embedded"] == 24
    assert found["classes"] == ["cellular", "plain"]
    assert found["figures"]["balanced_accuracy"] == pytest.approx(np.mean(found["right"]))
    assert not found["ray"]
    assert np.isfinite(list(found["figures"].values())).all()
