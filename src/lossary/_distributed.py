"""What a loss needs to know about the other processes."""

from typing import Any

import torch
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


def gather_rows(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the rows of all processes in the order of their ranks, without a gradient.

    The tensors have equally many rows, in each process as many as it likes. All must call it. The
    lengths are read on the host: a tensor's shape cannot wait.
    """
    if world_size() == 1:
        return tensors
    length = torch.tensor([len(tensors[0])], device=tensors[0].device)
    lengths = [torch.empty_like(length) for _ in range(world_size())]
    dist.all_gather(lengths, length)
    counts = [int(n) for n in lengths]
    return tuple(_gather_padded(x.detach(), counts) for x in tensors)


def _gather_padded(x: Tensor, counts: list[int]) -> Tensor:
    padded = x.new_zeros(max(counts), *x.shape[1:])
    padded[: len(x)] = x
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])


def place(name: str, group: Any) -> tuple[int, int]:
    """Return the rank of this process in the group, and the group's size."""
    if world_size() == 1 and group is None:
        return 0, 1
    rank = dist.get_rank(group)
    if rank < 0:
        raise ValueError(
            f"{name}: expected a group with process {dist.get_rank()}, got one without"
        )
    return rank, dist.get_world_size(group)


def gather_ints(number: int, device: torch.device, group: Any) -> list[int]:
    """Return the numbers of all processes of the group. They are read on the host."""
    if place("process_group", group)[1] == 1:
        return [number]
    own = torch.tensor([number], device=device)
    every = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(every, own, group)
    return [int(n) for n in every]


def summed(x: Tensor, group: Any) -> Tensor:
    """Return the sum over the group, in place and without a gradient."""
    if place("process_group", group)[1] > 1:
        dist.all_reduce(x, group=group)
    return x


def maximum(x: Tensor, group: Any) -> Tensor:
    """Return the largest of the group, likewise."""
    if place("process_group", group)[1] > 1:
        dist.all_reduce(x, dist.ReduceOp.MAX, group)
    return x
