"""The model that every configuration derives from, and the types of keys that name a place."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

from histill.config.places import read_model_place, read_place, read_server


class Strict(BaseModel):
    """A frozen model that refuses unknown keys, nan and infinity, and does not coerce strings into numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


Uri = Annotated[str, AfterValidator(read_place)]
"""A local path or an `s3://bucket/key`, never with credentials inside."""
ModelUri = Annotated[str, AfterValidator(read_model_place)]
"""A place, or a registered model: `models:/name@alias` or `models:/name/3`."""
ServerUri = Annotated[str, AfterValidator(read_server)]
"""The `http(s)://` address of a server, without a login or a query."""
