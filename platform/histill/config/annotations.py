"""Configuration of the labels and masks that annotations of slides give to tiles."""

import unicodedata
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from histill.config.base import Strict

Name = Annotated[str, AfterValidator(lambda name: unicodedata.normalize("NFC", name.strip()))]
"""A class or label in Unicode's composed form (NFC), like the classes of annotations."""
MOST_CLASSES = 255  # a mask's values, without the one for ignored pixels


class Annotations(Strict):
    """What the polygons of a slide's annotations, in the column `annotations` of the index, are used for."""

    classes: dict[Name, Name | None] | None = Field(
        None,
        description="label of each annotated class, such as {Tumor: tumor, Stroma: stroma, Ignore*: null}, where null "
        "marks pixels as unknown; other classes are left out; null: each class is its own label",
    )
    min_cover: float | None = Field(
        0.5,
        gt=0,
        le=1,
        description="a tile's label is that with the largest share of its area if the share is at least this; null: "
        "tiles get no labels",
    )
    unannotated: Name | None = Field(
        None, description="label of the area without a polygon, such as background; null: it is unknown"
    )
    masks: tuple[Name, ...] | None = Field(
        None,
        description="labels by their class index in masks, the background first, such as [background, tumor]; unknown "
        "pixels are ignored (255); null: no masks",
    )
    regions: tuple[Name, ...] = Field(
        (),
        description="annotated classes whose polygons are regions of interest: of a slide with annotations only the "
        "tiles whose center lies in one are cut",
    )

    @model_validator(mode="after")
    def _fit_together(self) -> "Annotations":
        named = [] if self.classes is None else [label for label in self.classes.values() if label is not None]
        if self.classes is not None and not named:
            raise ValueError("annotations.classes gives no class a label; name one, such as {Tumor: tumor}")
        if self.min_cover is None and self.masks is None and not self.regions:
            raise ValueError(
                "annotations are asked for neither labels (min_cover) nor masks nor regions; set one of them"
            )
        if self.masks is not None:
            if len(set(self.masks)) < len(self.masks) or not 1 <= len(self.masks) <= MOST_CLASSES:
                raise ValueError(f"annotations.masks takes 1 to {MOST_CLASSES} labels, each once; list them so")
            missing = [name for name in (*named, self.unannotated) if name is not None and name not in self.masks]
            if missing:
                raise ValueError(f"annotations.masks does not list the label {missing[0]!r}; give it a place")
        return self

    @property
    def draws(self) -> bool:
        """Whether polygons are drawn, rather than used as regions alone."""
        return self.min_cover is not None or self.masks is not None
