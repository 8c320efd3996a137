"""Time and memory of the robust losses, beside F.huber_loss: `python benchmarks/robust.py`.

Forward plus backward on 16M elements, float32 and bfloat16. The *unit* is one copy of the input
plus one full read of input and target, the least that a loss with a dense gradient can cost. Before
anything is timed, its value and gradient are compared with a plain formula in float64.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from harness import (
    DEFAULT,
    GRADIENT_ERROR,
    VALUE_ERROR,
    WARM,
    Clock,
    LossFn,
    Progress,
    Row,
    Section,
    Table,
    fresh_pages,
    main,
    peak_memory,
    ratio,
    training_step,
    unit,
)
from torch import Tensor, nn

from lossary import CauchyLoss, PseudoHuberLoss

RATIO, UNIT, MEMORY = "x F.huber_loss [IQR]", "x unit", "peak memory / input"
REFERENCE, COPY = "F.huber_loss", "unit: one copy, two reads"
SCALE = 0.03


# What is measured, each with its formula: values of rows of residuals in float64.


def exact_huber(r: Tensor) -> Tensor:
    """Return r^2/2 up to the scale, a line beyond."""
    size = r.abs()
    return torch.where(size <= SCALE, r.square() / 2, SCALE * (size - SCALE / 2))


def exact_pseudo_huber(s: Tensor) -> Tensor:
    """Return sqrt(s + c^2) - c."""
    return s / ((s + SCALE**2).sqrt() + SCALE)


def exact_cauchy(s: Tensor) -> Tensor:
    """Return log(1 + s/(2 c^2))."""
    return torch.log1p(s / (2 * SCALE**2))


def of_elements(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a function of the squares of all elements."""
    return lambda r: fn(r.square())


def of_samples(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a function of the square sum of every row."""
    return lambda r: fn(r.square().sum(1))


def huber(input: Tensor, target: Tensor) -> Tensor:
    """Return the reference."""
    return F.huber_loss(input, target, delta=SCALE)


def plain_pseudo_huber(input: Tensor, target: Tensor) -> Tensor:
    """Return the loss as usually written."""
    return (((input - target) ** 2 + SCALE**2).sqrt() - SCALE).mean()


def plain_cauchy(input: Tensor, target: Tensor) -> Tensor:
    """Return the loss as usually written."""
    return torch.log1p((input - target) ** 2 / (2 * SCALE**2)).mean()


Candidate = tuple[LossFn, Callable[[Tensor], Tensor]]
ELEMENTWISE: dict[str, Candidate] = {
    'PseudoHuberLoss(c, "elementwise")': (
        PseudoHuberLoss(SCALE, "elementwise"),
        of_elements(exact_pseudo_huber),
    ),
    "CauchyLoss(c)": (CauchyLoss(SCALE), of_elements(exact_cauchy)),
}
VECTOR: dict[str, Candidate] = {
    "PseudoHuberLoss(c)": (PseudoHuberLoss(SCALE), of_samples(exact_pseudo_huber)),
    'CauchyLoss(c, "vector")': (CauchyLoss(SCALE, "vector"), of_samples(exact_cauchy)),
}
PLAIN: dict[str, Candidate] = {
    "pseudo-Huber, plain: sqrt(r^2 + c^2) - c": (
        plain_pseudo_huber,
        of_elements(exact_pseudo_huber),
    ),
    "Cauchy, plain: log1p(r^2/(2 c^2))": (plain_cauchy, of_elements(exact_cauchy)),
}
REFERENCES: dict[str, Candidate] = {REFERENCE: (huber, exact_huber)}


def data(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Return normal input, a leaf, and target."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    return x.requires_grad_(), y


def check(
    loss: LossFn, exact: Callable[[Tensor], Tensor], input: Tensor, target: Tensor, limit: float
) -> Row:
    """Compare a mean loss and its gradient with the formula in float64, or stop the run."""
    value = loss(input, target)
    (gradient,) = torch.autograd.grad(value, input)
    total = largest = wrong = 0.0
    count = 0
    for x, y, g in zip(input.detach().split(64), target.split(64), gradient.split(64), strict=True):
        r = (x.double() - y.double()).requires_grad_()
        values = exact(r)
        (slope,) = torch.autograd.grad(values.sum(), r)
        total, count = total + float(values.detach().sum()), count + values.numel()
        largest = max(largest, float(slope.abs().max()))
        of_all = input.numel() if values.dim() > 1 else len(input)
        wrong = max(wrong, float((g.double() * of_all - slope).abs().max()))
    true = total / count
    errors = {VALUE_ERROR: abs(float(value.detach()) / true - 1), GRADIENT_ERROR: wrong / largest}
    if not max(errors.values()) < limit:
        raise AssertionError(f"{loss} differs from its formula: {errors}, limit {limit}")
    return errors


# The sections. Each runs in a process of its own.


def eager(title: str, rounds: int, quick: bool) -> list[Table]:
    """Forward plus backward."""
    half = title.startswith("bfloat16")
    dtype = torch.bfloat16 if half else torch.float32
    x, y = data(1024 if quick else 4096, 4096, dtype=dtype)
    # The plain formulas, in bfloat16 throughout, are too far off to be compared.
    candidates = REFERENCES | ELEMENTWISE | VECTOR | ({} if half else PLAIN)
    judged = not title.endswith("warm")
    progress, clock = Progress(title, len(candidates) + rounds), Clock(quick)
    calls: dict[str, Callable[[], object]] = {COPY: unit(x, y)}
    errors: dict[str, Row] = {COPY: {VALUE_ERROR: None, GRADIENT_ERROR: None}}
    for name, (loss, exact) in candidates.items():
        errors[name] = check(loss, exact, x, y, 2e-2 if half else 1e-4)
        calls[name] = training_step(loss, x, y)
        progress.step()
    memory = {name: peak_memory(call, x) for name, call in calls.items()}
    times = clock.compare(calls, rounds, progress)
    rows = []
    for name in (REFERENCE, COPY, *list(candidates)[1:]):
        row: Row = {"loss": name, RATIO: ratio(times, name, REFERENCE)}
        row |= {UNIT: ratio(times, name, COPY)[0], MEMORY: memory[name]}
        row |= {"target": None, "met": None}
        if judged and name in ELEMENTWISE | VECTOR:
            row["target"] = "0.95; memory 1.1"
            row["met"] = row[RATIO][0] <= 0.95 and memory[name] <= 1.1
        rows.append(row | errors[name])
    heading = f"{title}, {tuple(x.shape)}, c = {SCALE}: {fresh_pages(x)}"
    return [{"title": heading, "rows": rows, "note": clock.note()}]


def compiled(title: str, rounds: int, quick: bool) -> list[Table]:
    """Forward plus backward under torch.compile, beside eager and compiled F.huber_loss."""
    x, y = data(1024 if quick else 4096, 4096)
    also = "F.huber_loss, compiled"
    sources = {also: REFERENCES[REFERENCE]} | ELEMENTWISE | VECTOR
    progress, clock = Progress(title, len(sources) + rounds), Clock(quick)
    calls: dict[str, Callable[[], object]] = {
        COPY: unit(x, y),
        REFERENCE: training_step(huber, x, y),
    }
    errors: dict[str, Row] = {REFERENCE: check(huber, exact_huber, x, y, 1e-4)}
    for name, (loss, exact) in sources.items():
        fn = torch.compile(loss, fullgraph=True, dynamic=False)
        errors[name] = check(fn, exact, x, y, 1e-4)
        calls[name] = training_step(fn, x, y)
        progress.step()
    memory = {name: peak_memory(call, x) for name, call in calls.items()}
    times = clock.compare(calls, rounds, progress)
    rows = []
    for name in (REFERENCE, *sources):
        row: Row = {"loss": name, RATIO: ratio(times, name, REFERENCE)}
        row |= {UNIT: ratio(times, name, COPY)[0], MEMORY: memory[name]}
        row |= {"target": None, "met": None}
        if name in ELEMENTWISE | VECTOR:
            row["target"], row["met"] = 0.65, row[RATIO][0] <= 0.65
        rows.append(row | errors[name])
    heading = f"{title}, {tuple(x.shape)}: torch.compile(loss, fullgraph=True), {fresh_pages(x)}"
    return [{"title": heading, "rows": rows, "note": clock.note()}]


def small(title: str, rounds: int, quick: bool) -> list[Table]:
    """Overhead of a call on (32, 10), on one thread."""
    torch.set_num_threads(1)
    x, y = data(32, 10)
    reference = "nn.HuberLoss()"
    candidates: dict[str, LossFn] = {reference: nn.HuberLoss(delta=SCALE)}
    candidates |= {name: loss for name, (loss, _) in (ELEMENTWISE | VECTOR | PLAIN).items()}
    progress, clock = Progress(title, 2 * rounds), Clock(quick)
    forward: dict[str, Callable[[], object]] = {
        name: lambda loss=loss: loss(x, y)  # type: ignore[misc]
        for name, loss in candidates.items()
    }
    both = {name: training_step(loss, x, y) for name, loss in candidates.items()}
    inner = 50 if quick else 200
    forward_times = clock.compare(forward, rounds, progress, inner)
    both_times = clock.compare(both, rounds, progress, inner)
    rows = [
        {
            "loss": name,
            "forward x [IQR]": ratio(forward_times, name, reference),
            "forward + backward x [IQR]": ratio(both_times, name, reference),
        }
        for name in candidates
    ]
    heading = f"{title}, (32, 10): float32, one thread, beside {reference}"
    return [{"title": heading, "rows": rows, "note": clock.note()}]


SECTIONS: dict[str, Section] = {
    "eager": (eager, 11, {"float32": DEFAULT, "float32, warm": WARM}),
    "bfloat16": (eager, 9, {"bfloat16": DEFAULT}),
    "compiled": (compiled, 11, {"compiled": DEFAULT}),
    "small": (small, 15, {"small": DEFAULT}),
}


if __name__ == "__main__":
    main(__file__, __doc__, SECTIONS)
