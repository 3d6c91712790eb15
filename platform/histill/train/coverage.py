"""The ledger of consumed tiles: what makes "nothing lost, nothing twice" a check instead of a hope."""

from typing import ClassVar

import numpy as np
import torch
import torch.distributed as dist

from histill.errors import InputError
from histill.storage.records import Record
from histill.stream.counter_rng import multiset_hash
from histill.stream.tile_batch import TileBatch


class DataState(Record):
    """The next global batch is number `step` of `epoch`, so every position before it is consumed.

    Positions say it all, because the plan's global batches do not depend on the number of workers. The rest is what
    was really consumed in this epoch by all workers, before and after restarts, to be held against the plan.
    """

    noun: ClassVar[str] = "the position of a run"
    remedy: ClassVar[str] = "remove that checkpoint, so that the run resumes from the one before"

    epoch: int = 0
    step: int = 0
    tiles: int = 0
    corrupt: int = 0  # of these, tiles that could not be decoded
    tally: int = 0  # their fingerprint, see stream/counter_rng.py
    loss: float = 0.0  # its sum over them, but for the corrupt ones
    before: tuple[int, int] = (0, 0)  # tiles and tally of the epoch before
    batch_size: int
    tiles_digest: str

    @property
    def mean_loss(self) -> float:
        """Over the epoch's tiles so far, whichever workers saw them."""
        return self.loss / max(1, self.tiles - self.corrupt)

    def next_epoch(self) -> "DataState":
        return DataState(
            epoch=self.epoch + 1,
            before=(self.tiles, self.tally),
            batch_size=self.batch_size,
            tiles_digest=self.tiles_digest,
        )


class ConsumedCounter:
    """What this worker has consumed since the position was last advanced."""

    def __init__(self) -> None:
        self._counts = torch.zeros(3, dtype=torch.int64)  # tiles, corrupt, tally (which wraps around)

    def add(self, batch: TileBatch) -> None:
        """Count a batch, before it leaves the host."""
        index = batch.index.numpy()
        index = index[index >= 0]
        self._counts += torch.tensor([len(index), len(index) - int(batch.valid.sum()), multiset_hash(index)])

    def take(self) -> tuple[int, int, int]:
        """Tiles, corrupt ones and tally over all workers; counting begins anew."""
        counts, self._counts = self._counts, torch.zeros_like(self._counts)
        tiles, corrupt, fingerprint = sum_over_workers(counts).tolist()
        return tiles, corrupt, fingerprint


def advance(position: DataState, step: int, consumed: ConsumedCounter, loss: float) -> DataState:
    """`position` moved to `step` of its epoch, up to which the loss sums up to `loss`.

    Every worker must ask for it equally often.
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


def verify_epoch(position: DataState, planned: np.ndarray, max_corrupt: int) -> None:
    """Hold a finished epoch against the manifest rows `planned` for it.

    Raises RuntimeError when a tile was lost or came twice, InputError when too many could not be decoded.
    """
    if (position.tiles, position.tally) != (len(planned), multiset_hash(planned)):
        raise RuntimeError(
            f"epoch {position.epoch} consumed {position.tiles} tiles and the plan has {len(planned)}, or others; "
            "tiles were lost or came twice"
        )
    if position.corrupt > max_corrupt:
        raise InputError(
            f"{position.corrupt} tiles of epoch {position.epoch} could not be decoded and data.max_corrupt allows "
            f"{max_corrupt}; the warnings above name them: delete their shards and repeat the ingest that made them, "
            "or raise the limit."
        )


def sum_over_workers(value: torch.Tensor) -> torch.Tensor:
    """The sum over the workers, on the device of `value`; `value` itself when there is one worker."""
    if not dist.is_initialized():
        return value
    total = value.clone()
    if dist.get_backend() == "nccl" and not total.is_cuda:  # which has no sums on the host
        total = total.cuda()
    dist.all_reduce(total)
    return total.to(value.device)
