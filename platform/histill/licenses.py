"""The licenses of what teaches a model, and whether they allow commercial use of a model that it taught."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from histill.strict import Strict

_SPDX = {  # identifier: whether it allows commercial use
    **dict.fromkeys(("MIT", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "CC0-1.0", "CC-BY-4.0"), True),
    **dict.fromkeys(("CC-BY-NC-4.0", "CC-BY-NC-SA-4.0", "CC-BY-NC-ND-4.0"), False),
}


class License(Strict):
    """The terms under which a teacher may be used, as far as they concern models trained on its outputs.

    May be written as the SPDX identifier alone, if it is a common one.
    """

    name: str = Field(min_length=1, description="SPDX identifier, or the name of the terms")
    commercial: bool | None = Field(
        None, description="whether models trained on its outputs may be used commercially; null: not on record"
    )
    source: str = Field(pattern=r"^[^@?]+$", description="URL of the clause, without a login or a query")

    @model_validator(mode="before")
    @classmethod
    def _from_identifier(cls, data: Any) -> Any:
        if isinstance(data, str):
            name = _CANONICAL.get(plain_name(data))
            if name is None:
                raise ValueError(
                    f"the terms of {data!r} are not known here, only those of {', '.join(_SPDX)}; write {{name: "
                    f"{data!r}, commercial: true or false, source: <URL of the clause>}}"
                )
            return {"name": name, "commercial": _SPDX[name], "source": f"https://spdx.org/licenses/{name}.html"}
        if isinstance(data, Mapping) and "commercial" not in data:
            return {**data, "commercial": allows_commercial_use(str(data.get("name", "")))}
        return data


def allows_commercial_use(name: str) -> bool | None:
    """Whether the license with this SPDX identifier, in any case, allows it; None for any other name."""
    return _SPDX.get(_CANONICAL.get(plain_name(name), ""))


def plain_name(name: str) -> str:
    """By which names are compared: `CC BY 4.0` is `cc-by-4.0`."""
    return "-".join(name.lower().split())


_CANONICAL = {plain_name(name): name for name in _SPDX}
