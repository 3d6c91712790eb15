"""The model that every configuration derives from, and the types of keys that name a place."""

from typing import Annotated

from pydantic import AfterValidator

from histill.config.places import read_model_place, read_place, read_server
from histill.strict import Strict as Strict

Uri = Annotated[str, AfterValidator(read_place)]
"""A local path or an `s3://bucket/key`, never with credentials inside."""
ModelUri = Annotated[str, AfterValidator(read_model_place)]
"""A place, or a registered model: `models:/name@alias` or `models:/name/3`."""
ServerUri = Annotated[str, AfterValidator(read_server)]
"""The `http(s)://` address of a server, without a login or a query."""
