"""The model that every configuration derives from."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


class Strict(BaseModel):
    """A frozen model that refuses unknown keys and does not coerce strings into numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())


def _without_credentials(uri: str) -> str:
    scheme, separator, rest = uri.partition("://")
    if separator and "@" in rest.partition("/")[0]:
        raise ValueError(
            f"the {scheme}:// address holds credentials; take them out and set the AWS_* or MLFLOW_TRACKING_* "
            "environment variables instead"
        )
    return uri


Uri = Annotated[str, AfterValidator(_without_credentials)]
"""A local path or an `s3://bucket/key` (or `http(s)://` for a tracking server), never with credentials inside."""
