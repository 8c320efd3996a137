"""How the benchmarks measure, and how they show it.

Times are ratios within one run: every round runs every candidate once, in a new random order, and
the tables show the median of the per-round ratios with its interquartile range. Absolute times are
not printed, as they do not carry from machine to machine.
"""

import argparse
import gc
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

LossFn = Callable[[Tensor, Tensor], Tensor]
Row = dict[str, Any]
Table = dict[str, Any]
#: Name: (what runs, rounds, the environments it runs in).
Section = tuple[Callable[[str, int, bool], list[Table]], int, dict[str, dict[str, str]]]

# The allocator decides much of the time: pages that the system hands out afresh are slower to
# write than all of the arithmetic. "default": glibc maps every buffer from 1 MiB on, and unmaps it
# when it is freed, as happens in a training step to buffers of 32 MiB and more, and to smaller ones
# between other allocations. "warm": freed memory stays mapped and is used again. There, glibc's
# small-block cache has to be off, for the slivers that aligned allocation leaves in it keep free
# neighbours from merging, and buffers wander to fresh pages after all. The titles say what share of
# a copy's pages was fresh. Where libc is not glibc, the variables do nothing.
DEFAULT = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 26)}
WARM = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 40),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0",
}

VALUE_ERROR, GRADIENT_ERROR = "value error", "gradient error"


class Progress:
    """A bar on standard error: tqdm's where it is installed."""

    def __init__(self, label: str, total: int) -> None:
        self.label, self.total, self.done = label, total, 0
        try:
            from tqdm import tqdm

            self.bar: Any = tqdm(total=total, desc=label, leave=False)
        except ImportError:
            self.bar = None

    def step(self) -> None:
        """Advance by one."""
        self.done += 1
        if self.bar is not None:
            self.bar.update()
            if self.done == self.total:
                self.bar.close()
            return
        full = 30 * self.done // self.total
        end = "\n" if self.done == self.total else ""
        bar = f"\r{self.label} [{'#' * full}{'.' * (30 - full)}] {self.done}/{self.total}"
        print(bar, end=end, file=sys.stderr, flush=True)


def waited() -> int:
    """Return the nanoseconds for which threads of this process were ready but had no core."""
    total = 0
    try:
        for task in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{task}/schedstat") as file:
                total += int(file.read().split()[1])
    except (OSError, IndexError):  # not Linux, or a thread that ended: take the sample as it is
        return 0
    return total


class Clock:
    """Time calls against each other, and repeat samples that other processes disturbed."""

    def __init__(self, quick: bool) -> None:
        self.patience = 2.0 if quick else 12.0  # seconds for repeated samples, in all
        self.samples = self.clean = 0
        self.random = random.Random(0)

    def sample(self, call: Callable[[], object], inner: int) -> float:
        """Return seconds per call: of the first undisturbed sample, or of the least disturbed."""
        best = (math.inf, math.inf)
        while True:
            delay, start = waited(), time.perf_counter()
            for _ in range(inner):
                call()
            wall = time.perf_counter() - start
            share = max(0, waited() - delay) / 1e9 / wall
            best = min(best, (share, wall / inner))
            if share < 0.03 or self.patience < 0:
                break
            self.patience -= wall
        self.samples += 1
        self.clean += best[0] < 0.03
        return best[1]

    def compare(
        self,
        calls: dict[str, Callable[[], object]],
        rounds: int,
        progress: Progress,
        inner: int = 1,
    ) -> dict[str, list[float]]:
        """Return the time of every call in every round."""
        times: dict[str, list[float]] = {name: [] for name in calls}
        for call in calls.values():
            call()
        gc.disable()
        for _ in range(rounds):
            gc.collect()
            for name in self.random.sample(list(calls), len(calls)):
                times[name].append(self.sample(calls[name], inner))
            progress.step()
        gc.enable()
        return times

    def note(self) -> str:
        """Say how many samples were undisturbed."""
        share = self.clean / max(1, self.samples)
        verdict = "" if share >= 0.5 else ": too few, the times here say little"
        return f"{share:.0%} of the samples had the cores to themselves{verdict}"


def ratio(times: dict[str, list[float]], name: str, reference: str) -> list[float]:
    """Return the median and the quartiles of the per-round ratios."""
    ratios = [a / b for a, b in zip(times[name], times[reference], strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return [median, low, high]


def training_step(loss: LossFn, input: Tensor, target: Tensor) -> Callable[[], None]:
    """Return forward plus backward. It drops its own gradient, so that all start alike."""

    def call() -> None:
        loss(input, target).backward()
        input.grad = None

    return call


def unit(*inputs: Tensor) -> Callable[[], None]:
    """Return one copy, and one full read of every input."""
    first, *others = (x.detach() for x in inputs)

    def call() -> None:
        first.clone()
        first.sum()
        for x in others:
            x.sum()

    return call


def peak_memory(call: Callable[[], object], like: Tensor) -> float:
    """Return the peak of what torch's allocator gave out during a call, in units of a tensor."""
    call()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()
    held = peak = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / (like.numel() * like.element_size())


def fresh_pages(like: Tensor) -> str:
    """Say which share of the pages of a copy is fresh."""
    try:
        import resource
    except ImportError:
        return "page faults not known"
    x = like.detach()
    for _ in range(3):
        x.clone()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    x.clone()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    pages = x.numel() * x.element_size() / resource.getpagesize()
    return f"{min(1.0, faults / pages):.0%} of a copy's pages fresh"


def relative_error(value: Tensor, exact: Tensor, floor: float = 0.0) -> float:
    """Return the largest error, relative to the size (at least ``floor``)."""
    error = (value.double() - exact).abs()
    return float(torch.where(error > 0, error / exact.abs().clamp(min=floor), 0.0).max())


def machine() -> dict[str, str]:
    """Return what the figures were measured on."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            model = next((x.split(":")[1].strip() for x in file if "model name" in x), model)
    except OSError:
        pass
    return {
        "machine": f"{os.cpu_count()} cores, {model}, {platform.system()}",
        "software": f"Python {platform.python_version()}, torch {torch.__version__}",
        "threads": str(torch.get_num_threads()),
        "date": date.today().isoformat(),
        "allocator": f"{' '.join(platform.libc_ver()) or 'not glibc'}; "
        "default: fresh pages for every buffer from 1 MiB; warm: pages are kept; "
        "all sections run in default where their titles do not say warm",
    }


def cell(value: Any, column: str) -> str:
    """Format one entry of a table."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, list):
        return "{:.2f} [{:.2f}, {:.2f}]".format(*value)
    if isinstance(value, float):
        return f"{value:.1e}" if "error" in column or value < 1e-3 else f"{value:.2f}"
    return str(value)


def show(table: Table) -> None:
    """Print a table in Markdown."""
    columns = list(table["rows"][0])
    print(f"\n### {table['title']}\n")
    print("| " + " | ".join(columns) + " |")
    print("| " + " | ".join("---" for _ in columns) + " |")
    for row in table["rows"]:
        print("| " + " | ".join(cell(row[column], column) for column in columns) + " |")
    print(f"\n{table['note']}.", flush=True)


def main(script: str, about_it: str | None, sections: dict[str, Section]) -> None:
    """Run the sections of a script, each in a fresh process, and print their tables."""
    parser = argparse.ArgumentParser(description=about_it)
    parser.add_argument("--only", choices=sections, help="run one section")
    parser.add_argument("--rounds", type=int, help="rounds of every comparison, at least 2")
    parser.add_argument("--quick", action="store_true", help="smaller and fewer: about a minute")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers here")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rounds is not None and options.rounds < 2:
        parser.error("--rounds: expected at least 2")
    if options.child:
        run, rounds, _ = sections[options.only]
        rounds = options.rounds or (3 if options.quick else rounds)
        print(json.dumps(run(options.child, rounds, options.quick)))
        return
    about = machine()
    for key, text in about.items():
        print(f"- {key}: {text}")
    tables = []
    for name in [options.only] if options.only else sections:
        for title, environment in sections[name][2].items():
            command = [sys.executable, script, "--only", name, "--child", title]
            command += ["--rounds", str(options.rounds)] if options.rounds else []
            command += ["--quick"] if options.quick else []
            # The profiler would announce itself on standard error each time it starts.
            env = os.environ | environment | {"KINETO_LOG_LEVEL": "99"}
            child = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True)
            if child.returncode:
                raise SystemExit(f"{title}: failed with exit status {child.returncode}")
            tables += (made := json.loads(child.stdout.splitlines()[-1]))
            for table in made:
                show(table)
    missed = sum(row.get("met") is False for table in tables for row in table["rows"])
    print(f"\nTargets missed: {missed}.")
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"about": about, "tables": tables}, file, indent=1)
