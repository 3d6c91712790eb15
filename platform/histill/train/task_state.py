"""Save and restore task state, which depends on earlier batches, with checkpoints."""

import torch

from histill.tasks.task import Stateful, Task
from histill.train.coverage import sum_over_workers


def gather_task_state(task: Task, worker: int, workers: int) -> dict[str, torch.Tensor]:
    """Gather the task state of all workers on the CPU, keyed `<worker>.<name>`; every worker calls it equally often."""
    found: dict[str, torch.Tensor] = {}
    for name, mine in task.state_dict().items() if isinstance(task, Stateful) else ():
        rows = torch.zeros(workers, dtype=torch.int64)
        rows[worker] = len(mine)
        lengths = sum_over_workers(rows).tolist()
        both = mine.new_zeros((workers, max(lengths), *mine.shape[1:]))
        both[worker, : len(mine)] = mine
        both = sum_over_workers(both).cpu()
        found |= {f"{each}.{name}": both[each, :length].clone() for each, length in enumerate(lengths)}
    return found


def load_task_state(task: Task, state: dict[str, torch.Tensor], worker: int) -> None:
    """Restore the state of a worker's task; workers added since the checkpoint start with empty state."""
    if isinstance(task, Stateful):
        prefix = f"{worker}."
        task.load_state_dict(
            {name.removeprefix(prefix): each for name, each in state.items() if name.startswith(prefix)}
        )
