"""The files below a folder, local or in the bucket, and whether each file is whole."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy
from PIL import Image

from histill.local.s3 import REGION, S3Server

PART = ".part"  # suffix of unfinished files, which no reader accepts


def bucket_client(server: S3Server) -> Any:
    """An S3 client that bypasses the proxy."""
    import botocore.session

    return botocore.session.get_session().create_client(
        "s3",
        endpoint_url=server.endpoint,
        region_name=REGION,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
    )


def files_below(folder: Path) -> dict[str, bytes]:
    """Path and bytes of each file."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def objects_below(server: S3Server, prefix: str) -> dict[str, bytes]:
    """Key, without `prefix`, and bytes of each object."""
    client, found = bucket_client(server), {}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=server.bucket, Prefix=f"{prefix}/"):
        for each in page.get("Contents", ()):
            if not each["Key"].endswith("/"):  # SeaweedFS's own folders
                body = client.get_object(Bucket=server.bucket, Key=each["Key"])["Body"].read()
                found[each["Key"].removeprefix(f"{prefix}/")] = body
    return found


def open_uploads(server: S3Server, prefix: str) -> list[str]:
    """The keys below `prefix` of multipart uploads that were neither completed nor aborted."""
    found = bucket_client(server).list_multipart_uploads(Bucket=server.bucket, Prefix=f"{prefix}/")
    return sorted(each["Key"] for each in found.get("Uploads", ()))


def torn(objects: Mapping[str, bytes]) -> list[str]:
    """The names of objects that cannot be read as the format of their extension."""
    return [name for name, data in objects.items() if not name.endswith(PART) and not _is_whole(name, data)]


def _is_whole(name: str, data: bytes) -> bool:
    try:
        match Path(name).suffix:
            case ".parquet":
                pq.read_table(io.BytesIO(data))
            case ".json" | ".geojson":
                json.loads(data)
            case ".safetensors":
                safetensors.numpy.load(data)
            case ".png":
                Image.open(io.BytesIO(data)).load()
    except (ValueError, OSError, pa.ArrowException, safetensors.SafetensorError):
        return False
    return True
