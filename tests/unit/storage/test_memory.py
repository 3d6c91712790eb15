"""Arrow's allocator in processes of its own, since it is chosen once for each."""

import subprocess
import sys

import pyarrow as pa
import pytest

pytestmark = pytest.mark.unit

BACKENDS = pa.supported_memory_backends()
CODE = """
import pyarrow as pa
from histill.storage.memory import keep_freed_memory
{before}
keep_freed_memory()
print(pa.default_memory_pool().backend_name)
"""


@pytest.mark.skipif(not {"mimalloc", "jemalloc"} <= set(BACKENDS), reason="this Arrow has one allocator")
@pytest.mark.parametrize(
    ("before", "environment", "expected"),
    [
        ("", {}, "jemalloc"),
        ("", {"ARROW_DEFAULT_MEMORY_POOL": "mimalloc"}, "mimalloc"),
        ("", {"MIMALLOC_PURGE_DELAY": "-1"}, "mimalloc"),
        ("pa.set_memory_pool(pa.system_memory_pool())", {}, "system"),
    ],
)
def test_what_is_freed_is_kept_unless_the_user_chose(
    before: str, environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ARROW_DEFAULT_MEMORY_POOL", "MIMALLOC_PURGE_DELAY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    code = CODE.format(before=before)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [expected]
