"""Configuration of `histill sync`."""

from pydantic import Field

from histill.config.base import Strict, Uri
from histill.config.common import Storage


class SyncConfig(Strict):
    """Metrics that could not be sent to a tracking server."""

    unsent: Uri = Field(description="folder that the run's warning names: <runs>/_unsent")
    storage: Storage = Storage()
