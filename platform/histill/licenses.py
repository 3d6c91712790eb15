"""The licenses of what teaches a model, and whether they allow commercial use of a model that it taught."""

from pydantic import Field

from histill.strict import Strict


class License(Strict):
    """The terms under which a teacher may be used, as far as they concern models trained on its outputs."""

    name: str = Field(min_length=1, description="SPDX identifier, or the name of the terms")
    commercial: bool | None = Field(
        None, description="whether models trained on its outputs may be used commercially; null: not on record"
    )
    source: str = Field(pattern=r"^[^@?]+$", description="URL of the clause, without a login or a query")
