"""Functions in several gloo processes, in bounded time."""

import datetime
import os
import time

import torch
import torch.distributed as dist


def run_processes(fn, world_size, folder, seconds=180):
    """Call fn(rank, world_size) in as many processes, of one group; wait for them so long."""
    arguments = (fn, world_size, str(folder / "meeting"))
    context = torch.multiprocessing.spawn(_entry, arguments, world_size, join=False)
    deadline = time.monotonic() + seconds
    while not context.join(timeout=1.0):
        if time.monotonic() > deadline:
            for process in context.processes:
                process.kill()
            raise TimeoutError(f"{fn.__name__}: not done after {seconds} s")


def _entry(rank, fn, world_size, path):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{path}",
        rank=rank,
        world_size=world_size,
        timeout=datetime.timedelta(seconds=60),
    )
    fn(rank, world_size)
    if dist.is_initialized():
        dist.barrier()
    # Not through the destructors: gloo's threads and those of DDP may wait for each other there.
    os._exit(0)
