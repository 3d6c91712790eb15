"""A model as it is run."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from histill.artifacts.formats.made import Answer
from histill.config.engine import EngineName


@dataclass(frozen=True)
class Choice:
    """Which engine was chosen, and why."""

    name: EngineName
    about: str  # in words, beginning with the name
    warnings: Sequence[str] = ()  # a sentence for each engine that would have been chosen before it

    def say(self) -> None:
        """Tell the user, on stderr."""
        for warning in self.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        print(f"engine: {self.about}", file=sys.stderr)


@dataclass(frozen=True)
class Engine:
    """Runs a model a few tiles at a time, as many as were measured to be the quickest."""

    choice: Choice
    answer: Answer
    at_once: int

    def __call__(self, tiles: Tensor) -> Tensor:
        """The answers, float32, for tiles, uint8 [N, 3, S, S]."""
        return torch.cat([self.answer(part) for part in tiles.split(self.at_once)])
