"""Configuration of `jobs/check_cluster.py`."""

from pydantic import Field

from histill.config.base import Strict, Uri
from histill.config.common import Storage, Tracking, WorkerGroup


class CheckConfig(Strict):
    """What a long run will need: each of it is tried from the driver and from every node."""

    read: Uri | None = Field(None, description="folder that jobs will read, such as a tile set; null: none is tried")
    write: Uri | None = Field(None, description="folder that jobs will write to, such as runs; null: none is tried")
    nodes: int = Field(1, ge=1, description="least number of nodes, the head among them")
    workers: WorkerGroup | None = Field(
        None, description="a training run's workers, for which the nodes must have room; null: any room will do"
    )
    min_free_gb: float = Field(
        10.0, ge=0, description="gigabytes (10^9 bytes) that must be free where nodes keep temporary files and caches"
    )
    max_skew_s: float = Field(2.0, gt=0, description="seconds by which a node's clock may differ from the driver's")
    timeout_s: float = Field(60.0, gt=0, description="seconds that a node may take to answer; all are asked at once")
    storage: Storage = Storage()
    tracking: Tracking = Tracking()
