"""Time and memory of streamed logits, beside logits in memory: `python benchmarks/layouts.py`.

Forward plus backward from hidden states, through a linear layer, to a loss. *In memory*: the layer
makes the logits, and the loss takes them. *Streamed*: the loss takes `lossary.LinearLogits`. The
memory includes the gradients of hidden states and weight. Before anything is timed, value and
gradients of the two are compared.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from harness import (
    DEFAULT,
    GRADIENT_ERROR,
    VALUE_ERROR,
    Clock,
    Progress,
    Row,
    Section,
    Table,
    main,
    peak_memory,
    ratio,
)
from torch import Tensor

from lossary import CompSumLoss, LDRKLLoss, LinearLogits

IN_MEMORY, STREAMED = "F.linear + LDRKLLoss()", "LinearLogits + LDRKLLoss()"
CROSS_ENTROPY = "F.linear + F.cross_entropy"
RATIO, MEMORY = "x in memory [IQR]", "peak memory / logits"

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def losses() -> dict[str, Loss]:
    """Return what is measured, as functions of hidden states, weight and target."""
    ldr, comp_sum = LDRKLLoss(), CompSumLoss()
    found: dict[str, Loss] = {
        IN_MEMORY: lambda h, w, y: ldr(F.linear(h, w), y),
        STREAMED: lambda h, w, y: ldr(LinearLogits(h, w), y),
        CROSS_ENTROPY: lambda h, w, y: F.cross_entropy(F.linear(h, w), y),
        "LinearLogits + CompSumLoss()": lambda h, w, y: comp_sum(LinearLogits(h, w), y),
    }
    if hasattr(F, "linear_cross_entropy"):  # from torch 2.13 on
        for size in (None, 256):
            options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=size)
            found[f"F.linear_cross_entropy, {f'chunks of {size}' if size else 'by itself'}"] = (
                lambda h, w, y, options=options: F.linear_cross_entropy(h, w, y, options=options)
            )
    return found


def data(rows: int, width: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden states and weight, both leaves, and a target."""
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(rows, width, generator=generator)
    w = torch.randn(classes, width, generator=generator) / width**0.5
    y = torch.randint(classes, (rows,), generator=generator)
    return h.requires_grad_(), w.requires_grad_(), y


def step(loss: Loss, h: Tensor, w: Tensor, y: Tensor) -> Callable[[], None]:
    """Return forward plus backward. It drops its own gradients, so that all start alike."""

    def call() -> None:
        loss(h, w, y).backward()
        h.grad = w.grad = None

    return call


def check(loss: Loss, reference: Loss, h: Tensor, w: Tensor, y: Tensor) -> Row:
    """Compare value and gradients with those of the logits in memory, or stop the run."""
    values, gradients = [], []
    for fn in (loss, reference):
        values.append(fn(h, w, y))
        gradients.append(torch.autograd.grad(values[-1], (h, w)))
    value = abs(float(values[0].detach()) / float(values[1].detach()) - 1)
    gradient = max(
        float((a - b).abs().max() / b.abs().max()) for a, b in zip(*gradients, strict=True)
    )
    if not max(value, gradient) < 1e-4:
        raise AssertionError(f"streamed and in memory differ: {value}, {gradient}")
    return {VALUE_ERROR: value, GRADIENT_ERROR: gradient}


def streamed(title: str, rounds: int, quick: bool) -> list[Table]:
    """Compare time and memory at many classes."""
    rows, width, classes = (512, 256, 16000) if quick else (2048, 256, 64000)
    h, w, y = data(rows, width, classes)
    like = torch.empty(rows, classes, device="meta")
    candidates = losses()
    progress, clock = Progress(title, len(candidates) + rounds), Clock(quick)
    calls, errors = {}, {}
    for name, loss in candidates.items():
        in_memory = candidates[IN_MEMORY if "LDR" in name else CROSS_ENTROPY]
        errors[name] = check(loss, in_memory, h, w, y)
        calls[name] = step(loss, h, w, y)
        progress.step()
    memory = {name: peak_memory(call, like) for name, call in calls.items()}
    times = clock.compare(calls, rounds, progress)
    out = []
    for name in candidates:
        row: Row = {"loss": name, RATIO: ratio(times, name, IN_MEMORY), MEMORY: memory[name]}
        row |= {"target": None, "met": None}
        if name == STREAMED:
            row["target"] = "1.35; memory 0.4"
            row["met"] = row[RATIO][0] <= 1.35 and memory[name] <= 0.4
        out.append(row | errors[name])
    heading = f"{title}: hidden {(rows, width)}, {classes} classes, float32"
    return [{"title": heading, "rows": out, "note": clock.note()}]


def frozen(title: str, rounds: int, quick: bool) -> list[Table]:
    """Show that behind a frozen weight extra memory does not grow with the classes."""
    out: list[Row] = []
    count, width, few = (256, 64, 6000) if quick else (1024, 64, 66000)
    for classes in (few, 10 * few):
        h, w, y = data(count, width, classes)
        w.requires_grad_(False)
        call = step(losses()[STREAMED], h, w, y)
        peak = peak_memory(call, torch.empty(1 << 20, dtype=torch.uint8))
        met = None if not out else peak <= 1.1 * out[0]["peak, MiB"]
        logits = count * classes * 4 / (1 << 20)
        out.append({"classes": classes, "logits, MiB": logits, "peak, MiB": peak, "met": met})
    heading = f"{title}: hidden {(count, width)}, {STREAMED}"
    return [{"title": heading, "rows": out, "note": "Peak memory at most 1.1 x that of the first"}]


SECTIONS: dict[str, Section] = {
    "streamed": (streamed, 7, {"streamed": DEFAULT}),
    "frozen": (frozen, 2, {"frozen weight": DEFAULT}),
}


if __name__ == "__main__":
    main(__file__, __doc__, SECTIONS)
