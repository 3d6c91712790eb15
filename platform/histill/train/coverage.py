"""Verify that each epoch consumes every planned tile exactly once, across all workers and restarts."""

from typing import ClassVar

import numpy as np
import torch
import torch.distributed as dist

from histill.errors import InputError
from histill.storage.records import Record
from histill.stream.counter_rng import multiset_hash
from histill.stream.tile_batch import TileBatch
from histill.tiles.row_runs import RowRuns


class DataState(Record):
    """The data position: the next global batch is number `step` of `epoch`, and all earlier ones are consumed.

    Epoch and step suffice to resume, because the plan's global batches do not depend on the number of workers. The
    other fields count what all workers consumed in this epoch, before and after restarts, for comparison with the plan.
    """

    noun: ClassVar[str] = "the position of a run"
    remedy: ClassVar[str] = "remove that checkpoint, so that the run resumes from the one before"

    epoch: int = 0
    step: int = 0
    tiles: int = 0
    corrupt: int = 0  # tiles among them that could not be decoded
    tally: int = 0  # multiset hash of the consumed tiles, see stream/counter_rng.py
    loss: float = 0.0  # sum over the consumed tiles without the corrupt ones
    before: tuple[int, int] = (0, 0)  # tiles and tally of the previous epoch
    batch_size: int
    tiles_digest: str

    @property
    def mean_loss(self) -> float:
        """Mean over the epoch's tiles so far, across all workers."""
        return self.loss / max(1, self.tiles - self.corrupt)

    def next_epoch(self) -> "DataState":
        return DataState(
            epoch=self.epoch + 1,
            before=(self.tiles, self.tally),
            batch_size=self.batch_size,
            tiles_digest=self.tiles_digest,
        )


class ConsumedCounter:
    """Counts what this worker has consumed since the position was last advanced."""

    def __init__(self) -> None:
        self._counts = torch.zeros(3, dtype=torch.int64)  # tiles, corrupt, tally (which wraps around)

    def add(self, batch: TileBatch) -> None:
        """Count a batch while it is still on the host."""
        index = batch.index.numpy()
        index = index[index >= 0]
        self._counts += torch.tensor([len(index), len(index) - int(batch.valid.sum()), multiset_hash(index)])

    def take(self) -> tuple[int, int, int]:
        """Return tiles, corrupt tiles and tally summed over all workers, and reset the counter."""
        counts, self._counts = self._counts, torch.zeros_like(self._counts)
        tiles, corrupt, fingerprint = sum_over_workers(counts).tolist()
        return tiles, corrupt, fingerprint


def advance(position: DataState, step: int, consumed: ConsumedCounter, loss: float) -> DataState:
    """Return `position` advanced to `step` of its epoch; `loss` is the epoch's loss sum up to there.

    A collective: every worker must call it equally often.
    """
    tiles, corrupt, fingerprint = consumed.take()
    total = np.array([position.tally, fingerprint], np.int64).sum()  # modulo 2^64
    return position.model_copy(
        update={
            "step": step,
            "tiles": position.tiles + tiles,
            "corrupt": position.corrupt + corrupt,
            "tally": int(total),
            "loss": loss,
        }
    )


def verify_epoch(position: DataState, planned: RowRuns | np.ndarray, max_corrupt: int) -> None:
    """Compare a finished epoch with its plan, the manifest rows `planned`.

    Raises RuntimeError when a tile was lost or consumed twice, InputError when too many could not be decoded.
    """
    pieces = planned.pieces() if isinstance(planned, RowRuns) else [planned]
    tally = np.array([multiset_hash(piece) for piece in pieces], np.int64).sum()  # modulo 2^64
    if (position.tiles, position.tally) != (len(planned), int(tally)):
        raise RuntimeError(
            f"epoch {position.epoch} consumed {position.tiles} tiles and the plan has {len(planned)}, or others; "
            "tiles were lost or came twice"
        )
    if position.corrupt > max_corrupt:
        raise InputError(
            f"{position.corrupt} tiles of epoch {position.epoch} could not be decoded and data.max_corrupt allows "
            f"{max_corrupt}; the warnings above name them: delete their shards and repeat the ingest that made them, "
            "or raise the limit.",
            code="tiles-undecodable",
        )


def sum_over_workers(value: torch.Tensor) -> torch.Tensor:
    """All-reduce `value` to its sum over the workers, on its own device; without a process group, `value` itself."""
    if not dist.is_initialized():
        return value
    total = value.clone()
    if dist.get_backend() == "nccl" and not total.is_cuda:  # NCCL reduces only GPU tensors
        total = total.cuda()
    dist.all_reduce(total)
    return total.to(value.device)


def share_first(values: torch.Tensor, worker: int) -> torch.Tensor:
    """Worker 0's `values` on every worker, so that all decide alike."""
    return sum_over_workers(values if worker == 0 else torch.zeros_like(values))
