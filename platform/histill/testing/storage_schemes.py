"""A test suite for storage schemes: checks the guarantees that histill relies on."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
from pyarrow import fs

from histill.config.common import Storage
from histill.config.places import read_place
from histill.storage import control
from histill.storage.filesystems import arrow_filesystem, control_filesystem
from histill.storage.retrying import retrying_filesystem
from histill.storage.scheme import scheme_of
from histill.storage.tables import read_columns, write_table
from histill.storage.uris import join, uri_like

_AT_ONCE = 8
_ODD = "a+b c 100%25 Präparat 患者 what?#1 [x]"


def check_storage(uri: str, storage: Storage) -> None:
    """Write, read and remove files of every kind in the empty folder `uri`. Raises AssertionError."""
    assert read_place(uri) == uri
    for check in (_check_files, _check_create, _check_swap, _check_shards, _check_checkpoints):
        check(join(uri, check.__name__.removeprefix("_check_")), storage)


def _check_files(uri: str, storage: Storage) -> None:
    """Small files: write, read, overwrite, list, measure and remove; a missing one raises FileNotFoundError."""
    names = {"one": b"1", _ODD: bytes(range(256)) * 5000, "folder/two": b"", "folder/deep/three": b"333"}
    assert control.list_files(uri, storage) == []
    for name, data in names.items():
        assert not control.exists(join(uri, name), storage)
        control.write_bytes(join(uri, name), b"old", storage)
        control.write_bytes(join(uri, name), data, storage)
        assert control.read_bytes(join(uri, name), storage) == data
        assert control.exists(join(uri, name), storage)
    assert control.measure_files(uri, names, storage) == {name: len(data) for name, data in names.items()}
    assert control.list_files(uri, storage) == sorted(join(uri, name) for name in ("one", _ODD))
    assert control.list_folders(uri, storage) == [join(uri, "folder")]
    control.probe(uri, storage)
    assert control.list_files(uri, storage) == sorted(join(uri, name) for name in ("one", _ODD))
    for name in names:
        control.remove(join(uri, name), storage)
        assert not control.exists(join(uri, name), storage)
        assert _is_missing(join(uri, name), storage)


def _is_missing(uri: str, storage: Storage) -> bool:
    try:
        control.read_bytes(uri, storage)
    except FileNotFoundError:
        return True
    return False


def _check_create(uri: str, storage: Storage) -> None:
    """Only one of several concurrent writers creates a file; its retry succeeds, as after a lost reply."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        made = list(pool.map(lambda n: control.create_bytes(uri, b"by %d" % n, storage), range(_AT_ONCE)))
    assert sum(made) == 1, f"{sum(made)} of {_AT_ONCE} created one file"
    mine = b"by %d" % made.index(True)
    assert control.read_bytes(uri, storage) == mine
    assert control.create_bytes(uri, mine, storage)
    assert not control.create_bytes(uri, b"late", storage)
    assert not scheme_of(uri).create(*control_filesystem(uri, storage), b"late")  # does not compare the content
    assert control.read_bytes(uri, storage) == mine
    control.remove(uri, storage)


def _check_swap(uri: str, storage: Storage) -> None:
    """Only one of several writers that read a file replaces it; a missing file is never replaced."""
    assert not control.swap_bytes(uri, b"", b"new", storage)
    control.write_bytes(uri, b"before", storage)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        swapped = list(pool.map(lambda n: control.swap_bytes(uri, b"before", b"by %d" % n, storage), range(_AT_ONCE)))
    assert sum(swapped) == 1, f"{sum(swapped)} of {_AT_ONCE} swapped one file"
    assert control.read_bytes(uri, storage) == b"by %d" % swapped.index(True)
    control.remove(uri, storage)


def _check_shards(uri: str, storage: Storage) -> None:
    """Parquet files: read by several threads, and by byte ranges."""
    schema = pa.schema([("number", pa.int64()), ("image", pa.binary())])
    groups = [pa.table([[4 * g + n for n in range(4)], [bytes([g]) * 30_000] * 4], schema=schema) for g in range(8)]
    size = write_table(uri, groups, schema, storage)
    assert control.measure_files(uri.rpartition("/")[0], ["shards"], storage) == {"shards": size}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for table in pool.map(lambda _: read_columns(uri, ["number"], storage), range(_AT_ONCE)):
            assert table is not None
            assert table["number"].to_pylist() == list(range(32))
    filesystem, path = arrow_filesystem(uri, storage)
    with filesystem.open_input_file(path) as file:
        whole = file.read()
        assert (len(whole), whole[:4], file.read_at(4, size - 4)) == (size, b"PAR1", b"PAR1")
    control.remove(uri, storage)
    assert read_columns(uri, ["number"], storage) is None


def _check_checkpoints(uri: str, storage: Storage) -> None:
    """Ray Train's files: written through streams, listed, and removed by folder, in other processes too."""
    filesystem, path = retrying_filesystem(uri, storage)
    assert uri_like(uri, path) == uri
    assert copy.copy(filesystem) == filesystem  # by __reduce__, as when it is sent to workers
    filesystem.create_dir(f"{path}/step-1")
    with filesystem.open_output_stream(f"{path}/step-1/model") as stream:
        stream.write(b"wei")
        stream.write(b"ghts")
    listed = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
    files = [found.path.lstrip("/") for found in listed if found.is_file]
    assert files == [f"{path}/step-1/model".lstrip("/")]
    with filesystem.open_input_file(f"{path}/step-1/model") as file:
        assert file.read() == b"weights"
    filesystem.delete_dir(f"{path}/step-1")
    assert filesystem.get_file_info(f"{path}/step-1/model").type == fs.FileType.NotFound
