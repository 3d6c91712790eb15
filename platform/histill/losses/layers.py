"""Select the feature maps of student and teacher that the terms of a loss compare."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from histill.errors import InputError

Resize = Literal["half_max_half_bicubic", "area", "adaptive_max"]
Pair = tuple[str, str]
"""A layer of the student and one of the teacher."""


class ComparedLayers(NamedTuple):
    """The pairs of layers that one term compares."""

    raw: tuple[Pair, ...] = ()  # both maps unprojected
    projected: tuple[Pair, ...] = ()  # the student's map through a learned 1x1 convolution to the teacher's channels
    mixed: tuple[Pair, ...] = ()  # projected too, and weighted by a learned mixture


@dataclass(frozen=True)
class Layers:
    """The feature maps that all terms together compare. Small, because it is sent to every worker."""

    student: tuple[str, ...] = ()  # compared unprojected
    teacher: tuple[str, ...] = ()
    pairs: tuple[tuple[Pair, int], ...] = ()  # projected pairs, with the channels of the teacher's layer
    mixed: tuple[Pair, ...] = ()  # pairs that share one learned mixture
    last: Pair = ("", "")  # last layer of each network, if any are compared


class ComparesLayers(Protocol):
    """A term that selects layers to compare."""

    def choose_layers(self, own: Sequence[str], others: Sequence[str]) -> ComparedLayers: ...


def select_layers(
    terms: Mapping[str, ComparesLayers], student: Mapping[str, int], teacher: Mapping[str, int]
) -> Layers:
    """The feature maps that `terms`, which all compare maps, need from networks with these layers (channels by name).

    `teacher` is empty when no teacher maps are available. Raises InputError for terms that need them then, and for an
    unknown layer, naming the existing ones.
    """
    if not terms:
        return Layers()
    if not teacher:
        name = next(iter(terms))
        raise InputError(
            f"loss.{name} compares feature maps, which the cached responses or the teacher do not have; "
            f"cache them (histill cache layer=<name>), set responses=null, or loss.{name}=null.",
            code="maps-missing",
        )
    own, others = list(student), list(teacher)
    chosen = {name: term.choose_layers(own, others) for name, term in terms.items()}
    for name, compared in chosen.items():
        for pair in (*compared.raw, *compared.projected, *compared.mixed):
            _check_pair(f"loss.{name}", pair, own, others)
    raw, projected, mixed = (_join(each[at] for each in chosen.values()) for at in range(3))
    brought = _join([projected, mixed])
    return Layers(
        student=tuple(dict.fromkeys(layer for layer, _ in raw)),
        teacher=tuple(dict.fromkeys(layer for _, layer in (*raw, *brought))),
        pairs=tuple((pair, teacher[pair[1]]) for pair in brought),
        mixed=mixed,
        last=(own[-1], others[-1]),
    )


def _join(pairs: Iterable[tuple[Pair, ...]]) -> tuple[Pair, ...]:
    return tuple(dict.fromkeys(pair for each in pairs for pair in each))


def _check_pair(key: str, pair: Pair, own: Sequence[str], others: Sequence[str]) -> None:
    for whose, layer, names in (("student", pair[0], own), ("teacher", pair[1], others)):
        if layer not in names:
            raise InputError(
                f"{key} names the {whose}'s layer {layer!r}, which it does not have; name one of {', '.join(names)}.",
                code="layer-unknown",
            )
