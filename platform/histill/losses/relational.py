"""Losses on the relations between tiles in the feature spaces of student and teacher.

Embeddings are float [B, D], one row per tile, where D may differ between student and teacher; `valid` is bool [B],
False for a padded row, which counts nowhere and gets a gradient of exactly zero. No gradient reaches the teacher. These
losses compare the tiles of one worker, so unlike the others they depend on how a batch is split over workers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from histill.losses.padding import mask_padding

_LEAST = 1e-12


def distance_relation(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Relational distillation by distances: the mean over pairs of huber(d_student - d_teacher).

    d_ij = ||e_i - e_j|| / (its mean over all pairs), huber(x) = x^2 / 2 up to |x| = 1 and |x| - 1/2 beyond
    (Park et al., "Relational Knowledge Distillation", arXiv 1904.05068, section 3.2). 0 for fewer than two valid tiles.
    """
    pairs = valid[:, None] & valid & ~torch.eye(len(valid), dtype=torch.bool, device=valid.device)
    own = _scaled_distances(mask_padding(student, valid), pairs)
    others = _scaled_distances(mask_padding(teacher.detach(), valid), pairs)
    return _mean_where(F.smooth_l1_loss(own, others, reduction="none"), pairs)


def angle_relation(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Relational distillation by angles: the mean over triples of huber(cos_student - cos_teacher).

    cos_ijk is the cosine of the angle at e_j between e_i and e_k, for distinct i, j, k (Park et al., arXiv 1904.05068,
    section 3.2). 0 for fewer than three valid tiles. Memory grows with B^3.
    """
    different = ~torch.eye(len(valid), dtype=torch.bool, device=valid.device)
    pairs = valid[:, None] & valid & different
    triples = pairs[:, :, None] & pairs[None] & different[:, None, :]
    own, others = _cosines(mask_padding(student, valid)), _cosines(mask_padding(teacher.detach(), valid))
    return _mean_where(F.smooth_l1_loss(own, others, reduction="none"), triples)


def info_nce(query: Tensor, key: Tensor, queue: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """InfoNCE: each tile's query must identify the teacher's key of the same tile among those of all others.

    L = mean over tiles of -log [exp(q_i.k_i / T) / (sum_j exp(q_i.k_j / T) + sum_n exp(q_i.n / T))], j over the valid
    tiles of the batch and n over the queue, all of unit length (van den Oord et al., arXiv 1807.03748, equation 4;
    the queue is that of He et al., arXiv 1911.05722; in pathology MoMA, Vuong & Kwak, arXiv 2308.16561).

    Args:
        query: the student's embeddings, projected to the teacher's width, [B, D].
        key: the teacher's embeddings, [B, D].
        queue: keys of earlier batches, [Q, D]; Q may be 0.
        temperature: T > 0 (else `ValueError`).
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature} but must be above 0.")
    queries = F.normalize(mask_padding(query, valid), dim=1)
    keys = F.normalize(mask_padding(key.detach(), valid), dim=1)
    batch = (queries @ keys.T / temperature).masked_fill(~valid, -torch.inf)
    others = queries @ F.normalize(queue.detach(), dim=1).T / temperature
    own = (queries * keys).sum(1) / temperature
    everything = torch.cat([batch, others], 1)
    everything = torch.where(valid[:, None], everything, 0)  # else logsumexp of a padded row could be of -inf only
    losses = torch.logsumexp(everything, 1) - own
    return _mean_where(losses, valid)


def _scaled_distances(embeddings: Tensor, pairs: Tensor) -> Tensor:
    gaps = embeddings[:, None] - embeddings[None]
    distances = (gaps.square().sum(-1) + _LEAST).sqrt()
    return distances / (_mean_where(distances, pairs) + _LEAST)


def _cosines(embeddings: Tensor) -> Tensor:
    """Cosines [B, B, B] of the angle at the second tile between the first and the third."""
    gaps = F.normalize(embeddings[:, None] - embeddings[None], dim=-1)  # [i, j]: from j to i
    return torch.einsum("ijd,kjd->ijk", gaps, gaps)


def _mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    """The mean of `values` where `chosen`; 0 when nothing is chosen."""
    return torch.where(chosen, values, 0).sum() / chosen.sum().clamp(min=1)
