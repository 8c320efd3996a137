"""What a loss needs to know about the other processes."""

import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Return the number of processes of the default group, 1 where none is initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_ranks(x: Tensor) -> Tensor:
    """Return the sum of ``x`` over all processes, without a gradient; all of them must call it."""
    if world_size() == 1:
        return x
    total = x.detach().clone()
    dist.all_reduce(total)
    return total
