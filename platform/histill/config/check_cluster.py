"""Configuration of `histill check`."""

from pydantic import Field, model_validator

from histill.config.base import Strict, Uri
from histill.config.common import Storage, Tracking, WorkerGroup


class CheckConfig(Strict):
    """What a long run will need, to be checked from the driver and from every node."""

    read: Uri | None = Field(None, description="folder that jobs will read, such as a tile set; null: not checked")
    write: Uri | None = Field(None, description="folder that jobs will write to, such as runs; null: not checked")
    nodes: int = Field(1, ge=1, description="least number of nodes, including the head")
    workers: WorkerGroup | None = Field(
        None, description="a training run's workers, for which the nodes must have room; null: not checked"
    )
    min_free_gb: float = Field(
        10.0, ge=0, description="gigabytes (10^9 bytes) that must be free where nodes keep temporary files and caches"
    )
    max_skew_s: float = Field(2.0, gt=0, description="seconds by which a node's clock may differ from the driver's")
    timeout_s: float = Field(60.0, gt=0, description="seconds within which each node must answer")
    storage: Storage = Storage()
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _workers_on_nodes(self) -> "CheckConfig":
        if self.workers is not None and self.workers.in_process:
            raise ValueError("workers.count is 0, and such a run needs no cluster; set it to 1 or more workers")
        return self
