"""The terms of resolution distillation: each takes its options and what student and teacher say of a batch.

A further term is a function of `losses/`, its options in `config/distill.py`, and a line in `TERMS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from histill.config.distill import (
    Attention,
    Contrastive,
    Decoupled,
    DistillLoss,
    Divergence,
    Features,
    Labels,
    ManyFeatures,
    Relational,
)
from histill.distill.masks import per_share
from histill.errors import InputError
from histill.losses.feature import attention_distance, feature_distance, grad_cam, mixed_distances, resized
from histill.losses.logits import bernoulli_kl, binary_cross_entropy, cross_entropy, decoupled_kl, kl_divergence
from histill.losses.relation import angle_relation, distance_relation, info_nce
from histill.models.matching import Answers, Layers, Pair
from histill.stream.batches import Labeled


@dataclass(frozen=True)
class Seen:
    """A batch as student and teacher see it."""

    student: Answers
    logits: Tensor  # the teacher's, in the shape of the student's
    maps: dict[str, Tensor]  # the teacher's, by layer
    target: Tensor  # int64 [B], [B, H, W] or, multi-label, [B, K]; below 0 where there is no label
    valid: Tensor  # bool [B]
    layers: Layers
    multi_label: bool  # the classes do not exclude each other
    queue: Tensor  # [Q, D], what the teacher's pooled last map was for earlier tiles
    labeled: Labeled | None = None  # of masks


def divergence(term: Divergence, seen: Seen) -> Tensor:
    if seen.multi_label:
        return bernoulli_kl(seen.student.logits, seen.logits, seen.valid, term.temperature)
    return kl_divergence(seen.student.logits, seen.logits, seen.valid, term.temperature)


def decoupled(term: Decoupled, seen: Seen) -> Tensor:
    target = torch.where(seen.target >= 0, seen.target, seen.logits.argmax(1))
    return decoupled_kl(
        seen.student.logits, seen.logits, target, seen.valid, term.temperature, term.target, term.others
    )


def labels(term: Labels, seen: Seen) -> Tensor:
    if seen.multi_label:
        return binary_cross_entropy(seen.student.logits, seen.target, seen.valid, term.smoothing)
    loss = cross_entropy(seen.student.logits, seen.target, seen.valid, smoothing=term.smoothing)
    return loss if seen.labeled is None else per_share(loss, seen.labeled.pixels)


def features(term: Features, seen: Seen) -> Tensor:
    return _gap(pair_of(term, seen.layers.last), term, seen)


def many_features(term: ManyFeatures, seen: Seen) -> Tensor:
    assert seen.student.mixture is not None
    gaps = torch.stack([_gap(pair, term, seen) for pair in seen.layers.mixed])
    return mixed_distances(gaps, seen.student.mixture)


def attention(term: Attention, seen: Seen) -> Tensor:
    own, others = pair_of(term, seen.layers.last)
    chosen = seen.logits.argmax(1, keepdim=True)
    student, teacher = (
        grad_cam(each, torch.autograd.grad(logits.gather(1, chosen).sum(), each, create_graph=graph)[0])
        for each, logits, graph in (
            (seen.student.maps[own], seen.student.logits, True),
            (seen.maps[others], seen.logits, False),
        )
    )
    return attention_distance(student, teacher, seen.valid)


def contrastive(term: Contrastive, seen: Seen) -> Tensor:
    query, key = seen.student.projected[seen.layers.last].mean((2, 3)), seen.maps[seen.layers.last[1]].mean((2, 3))
    return info_nce(query, key, seen.queue, seen.valid, term.temperature)


def relational(term: Relational, seen: Seen) -> Tensor:
    own, others = seen.student.maps[seen.layers.last[0]].mean((2, 3)), seen.maps[seen.layers.last[1]].mean((2, 3))
    distances = distance_relation(own, others, seen.valid)
    return term.distances * distances + term.angles * angle_relation(own, others, seen.valid)


TERMS: dict[str, Callable[[Any, Seen], Tensor]] = {
    "divergence": divergence,
    "features": features,
    "labels": labels,
    "decoupled": decoupled,
    "many_features": many_features,
    "attention": attention,
    "contrastive": contrastive,
    "relational": relational,
}


def pair_of(term: Features | Attention, last: Pair) -> Pair:
    """The layers that `term` compares."""
    return term.student_layer or last[0], term.teacher_layer or last[1]


COMPARING_MAPS = ("features", "many_features", "attention", "contrastive", "relational")


def layers_of(loss: DistillLoss, student: dict[str, int], teacher: dict[str, int]) -> Layers:
    """The feature maps that the terms of `loss` need, of networks with these layers (channels by name).

    `teacher` is empty when there is no network to ask for maps. Raises InputError for terms that then cannot be, and
    for a layer that does not exist, naming those that do.
    """
    comparing = [name for name in COMPARING_MAPS if name in loss.terms]
    if not comparing:
        return Layers()
    if not teacher:
        raise InputError(
            f"loss.{comparing[0]} compares feature maps, which these responses do not hold, or this teacher does not "
            f"have; cache them (cache_responses.py layer=<name>), set responses=null, or loss.{comparing[0]}=null."
        )
    own, others = list(student), list(teacher)
    last = own[-1], others[-1]
    raw: list[Pair] = []
    pairs: list[Pair] = []
    mixed: list[Pair] = []
    if loss.features:
        pairs.append(_checked("loss.features", pair_of(loss.features, last), own, others))
    if loss.many_features:
        layer = loss.many_features.student_layer or own[-1]
        for other in loss.many_features.teacher_layers or others[-2:]:
            mixed.append(_checked("loss.many_features", (layer, other), own, others))
    if loss.attention:
        raw.append(_checked("loss.attention", pair_of(loss.attention, last), own, others))
    if loss.contrastive:
        pairs.append(last)
    if loss.relational:
        raw.append(last)
    compared = list(dict.fromkeys((*pairs, *mixed)))
    return Layers(
        student=tuple(dict.fromkeys(layer for layer, _ in raw)),
        teacher=tuple(dict.fromkeys(layer for _, layer in (*raw, *compared))),
        pairs=tuple((pair, teacher[pair[1]]) for pair in compared),
        mixed=tuple(mixed),
        last=last,
    )


def _checked(key: str, pair: Pair, own: list[str], others: list[str]) -> Pair:
    for whose, layer, names in (("student", pair[0], own), ("teacher", pair[1], others)):
        if layer not in names:
            raise InputError(
                f"{key} names the {whose}'s layer {layer!r}, which it does not have; name one of {', '.join(names)}."
            )
    return pair


def _gap(pair: Pair, term: Features | ManyFeatures, seen: Seen) -> Tensor:
    own, others = seen.student.projected[pair], seen.maps[pair[1]].detach()
    height, width = own.shape[-2:]
    return feature_distance(own, resized(others, height, width, term.resize), seen.valid, term.norm)
