"""The base model of all configurations, and the types of keys that hold a path, URI or server address."""

from functools import partial
from typing import Annotated

from pydantic import AfterValidator

from histill.config.places import read_file_place, read_model_place, read_place, read_server
from histill.strict import Strict as Strict

Uri = Annotated[str, AfterValidator(read_place)]
"""A local path or `s3://bucket/key`, without credentials."""
ModelUri = Annotated[str, AfterValidator(read_model_place)]
"""A `Uri`, or a registered model: `models:/name@alias` or `models:/name/3`."""
HtmlUri = Annotated[str, AfterValidator(partial(read_file_place, ".html"))]
"""The `Uri` of a page to write."""
PngUri = Annotated[str, AfterValidator(partial(read_file_place, ".png"))]
"""The `Uri` of a picture to write."""
ServerUri = Annotated[str, AfterValidator(read_server)]
"""The `http(s)://` address of a server, without login or query."""
