"""Time and memory of the contrastive losses in tiles: `python benchmarks/contrastive.py`.

Forward plus backward of N rows of D = 128 in float32, beside the form that is usually written,
which holds the N x N matrix of similarities. Before anything is timed, value and gradient are
compared with a plain formula in float64, in blocks of rows. Beside them stand the same losses of
pytorch-metric-learning and lightly, where these are installed.
"""

import importlib.util
import math
import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from harness import (
    DEFAULT,
    GRADIENT_ERROR,
    VALUE_ERROR,
    Clock,
    LossFn,
    Progress,
    Row,
    Section,
    Table,
    main,
    peak_memory,
    ratio,
)
from torch import Tensor

from lossary import (
    DCLLoss,
    GlobalContrastiveLoss,
    InfoNCELoss,
    MultiSimilarityLoss,
    NTXentLoss,
    SupConLoss,
    TwoWayGlobalContrastiveLoss,
)

RATIO, MEMORY = "x plain [IQR]", "peak memory / matrix"
WIDTH, TAU, VIEWS_TAU, TILE = 128, 0.07, 0.1, 1024
CLASSES = 100
#: The losses of two views of every sample.
OF_VIEWS = ("views", "decoupled", "supervised", "similar")


# The losses as they are usually written.


def plain_info_nce(a: Tensor, b: Tensor) -> Tensor:
    """Return cross-entropy over the similarities."""
    logits = F.normalize(a, dim=1) @ F.normalize(b, dim=1).t() / TAU
    return F.cross_entropy(logits, torch.arange(len(a)))


def plain_symmetric(a: Tensor, b: Tensor) -> Tensor:
    """Return the loss of CLIP."""
    logits = F.normalize(a, dim=1) @ F.normalize(b, dim=1).t() / TAU
    target = torch.arange(len(a))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2


def plain_nt_xent(a: Tensor, b: Tensor) -> Tensor:
    """Return the loss of SimCLR."""
    z = F.normalize(torch.cat((a, b)), dim=1)
    logits = (z @ z.t() / VIEWS_TAU).fill_diagonal_(-math.inf)
    return F.cross_entropy(logits, torch.arange(len(z)).roll(len(a)))


def plain_dcl(a: Tensor, b: Tensor) -> Tensor:
    """Return the decoupled contrastive loss."""
    z = F.normalize(torch.cat((a, b)), dim=1)
    logits = z @ z.t() / VIEWS_TAU
    rows = torch.arange(len(z))
    other = rows.roll(len(a))
    own = logits[rows, other]
    masked = torch.eye(len(z), dtype=torch.bool)
    masked[rows, other] = True
    return (logits.masked_fill(masked, -math.inf).logsumexp(1) - own).mean()


def plain_supcon(a: Tensor, b: Tensor) -> Tensor:
    """Return the supervised contrastive loss, of the labels of this file."""
    z, labels = F.normalize(torch.cat((a, b)), dim=1), labels_of(a).repeat(2)
    logits = z @ z.t() / VIEWS_TAU
    others = ~torch.eye(len(z), dtype=torch.bool)
    positive = (labels.unsqueeze(1) == labels) & others
    log_p = logits - logits.masked_fill(~others, -math.inf).logsumexp(1, keepdim=True)
    return -((log_p * positive).sum(1) / positive.sum(1)).mean()


def plain_multi_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Return the multi-similarity loss, of the labels of this file."""
    z, labels = F.normalize(torch.cat((a, b)), dim=1), labels_of(a).repeat(2)
    s = z @ z.t()
    same = labels.unsqueeze(1) == labels
    positive = same & ~torch.eye(len(z), dtype=torch.bool)
    pull = (-2.0 * (s - 0.5)).exp().masked_fill(~positive, 0.0).sum(1).log1p() / 2.0
    push = (50.0 * (s - 0.5)).exp().masked_fill(same, 0.0).sum(1).log1p() / 50.0
    return (pull + push).mean()


def labels_of(a: Tensor) -> Tensor:
    """Return the classes of the samples."""
    return torch.arange(len(a)) % CLASSES


def stacked(loss: Any, labels: Callable[[Tensor], Tensor] = labels_of) -> LossFn:
    """Return the loss of the rows of both views, with the labels of their samples."""
    return lambda a, b: loss(torch.cat((a, b)), labels(a).repeat(2))


def supervised(loss: SupConLoss) -> LossFn:
    """Return the loss of the two views and these classes."""
    return lambda a, b: loss(a, labels_of(a), b)


# The same in float64, in blocks of rows, with the gradient in the first embeddings.


def exact(a: Tensor, b: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Return value and gradient; in blocks, because nothing else would fit."""
    leaf = a.detach().double().requires_grad_()
    q, p = F.normalize(leaf, dim=1), F.normalize(b.detach().double(), dim=1)
    views = kind in OF_VIEWS
    x, y, tau = (torch.cat((q, p)),) * 2 + (VIEWS_TAU,) if views else (q, p, TAU)
    sides = [(x, y), (y, x)] if kind == "symmetric" else [(x, y)]
    total, gradient = torch.zeros(()).double(), torch.zeros_like(leaf)
    n = len(x)
    target = torch.arange(n).roll(len(a)) if views else torch.arange(n)
    labels = labels_of(a).repeat(2)
    for left, right in sides:
        for rows in torch.arange(n).split(512):
            logits = left[rows] @ right.t() / tau
            itself = rows.unsqueeze(1) == torch.arange(n)
            if views:
                logits = logits.masked_fill(itself, -math.inf)
            if kind == "decoupled":
                other = target[rows].unsqueeze(1)
                own = logits.gather(1, other).squeeze(1)
                part = logits.scatter(1, other, -math.inf).logsumexp(1) - own
            elif kind == "supervised":
                positive = (labels[rows].unsqueeze(1) == labels) & ~itself
                near = torch.where(positive, logits, 0.0).sum(1) / positive.sum(1)
                part = logits.logsumexp(1) - near
            elif kind == "similar":
                s = left[rows] @ right.t() - 0.5
                same = labels[rows].unsqueeze(1) == labels
                pull = (-2.0 * s).exp().masked_fill(~same | itself, 0.0).sum(1).log1p() / 2.0
                push = (50.0 * s).exp().masked_fill(same, 0.0).sum(1).log1p() / 50.0
                part = pull + push
            else:
                part = F.cross_entropy(logits, target[rows], reduction="none")
            part = part.sum() / (n * len(sides))
            (slope,) = torch.autograd.grad(part, leaf, retain_graph=True)
            total, gradient = total + part.detach(), gradient + slope
    return total, gradient


def step(loss: LossFn, a: Tensor, b: Tensor) -> Callable[[], object]:
    """Return forward plus backward to both embeddings."""
    return lambda: torch.autograd.grad(loss(a, b), (a, b))


def data(rows: int) -> tuple[Tensor, Tensor]:
    """Return two leaves, of which the second is a noisy copy of the first."""
    generator = torch.Generator().manual_seed(0)
    a, noise = (torch.randn(rows, WIDTH, generator=generator) for _ in range(2))
    return a.requires_grad_(), (a.detach() + noise).requires_grad_()


def check(loss: LossFn, a: Tensor, b: Tensor, wanted: tuple[Tensor, Tensor]) -> Row:
    """Compare a mean loss and its gradient with the formula in float64, or stop the run."""
    value = loss(a, b)
    (gradient,) = torch.autograd.grad(value, a)
    true, slope = wanted
    errors = {
        VALUE_ERROR: abs(float(value.detach()) / float(true) - 1),
        GRADIENT_ERROR: float((gradient.double() - slope).abs().max() / slope.abs().max()),
    }
    if not max(errors.values()) < 1e-4:
        raise AssertionError(f"{loss} differs from its formula: {errors}")
    return errors


Candidates = dict[str, tuple[LossFn, float | None]]
#: What is compared: first the plain form, then losses and the share of its time that is allowed.
COMPARED: dict[str, tuple[str, Candidates]] = {
    "InfoNCE": (
        "one way",
        {
            "plain": (plain_info_nce, None),
            "InfoNCELoss()": (InfoNCELoss(TAU), None),
            "InfoNCELoss(tile_size=512)": (InfoNCELoss(TAU, tile_size=512), None),
            f"InfoNCELoss(tile_size={TILE})": (InfoNCELoss(TAU, tile_size=TILE), 0.6),
        },
    ),
    "InfoNCE, symmetric": (
        "symmetric",
        {
            "plain": (plain_symmetric, None),
            "InfoNCELoss(symmetric=True)": (InfoNCELoss(TAU, True), None),
            f"InfoNCELoss(symmetric=True, tile_size={TILE})": (
                InfoNCELoss(TAU, True, tile_size=TILE),
                0.6,
            ),
        },
    ),
    "NT-Xent": (
        "views",
        {
            "plain": (plain_nt_xent, None),
            "NTXentLoss()": (NTXentLoss(VIEWS_TAU), None),
            "NTXentLoss(tile_size=512)": (NTXentLoss(VIEWS_TAU, tile_size=512), None),
            f"NTXentLoss(tile_size={TILE})": (NTXentLoss(VIEWS_TAU, tile_size=TILE), 0.4),
        },
    ),
    "DCL": (
        "decoupled",
        {
            "plain": (plain_dcl, None),
            "DCLLoss()": (DCLLoss(VIEWS_TAU), None),
            f"DCLLoss(tile_size={TILE})": (DCLLoss(VIEWS_TAU, tile_size=TILE), 0.4),
        },
    ),
    "SupCon": (
        "supervised",
        {
            "plain": (plain_supcon, None),
            "SupConLoss()": (supervised(SupConLoss(VIEWS_TAU)), None),
            f"SupConLoss(tile_size={TILE})": (
                supervised(SupConLoss(VIEWS_TAU, tile_size=TILE)),
                0.4,
            ),
        },
    ),
    "MultiSimilarity": (
        "similar",
        {
            "plain": (plain_multi_similarity, None),
            "MultiSimilarityLoss()": (stacked(MultiSimilarityLoss()), None),
            f"MultiSimilarityLoss(tile_size={TILE})": (
                stacked(MultiSimilarityLoss(tile_size=TILE)),
                1.0,
            ),
        },
    ),
}


# What other libraries have of these, where they are installed.


def peers(kind: str) -> Candidates:
    """Return the same losses of other libraries."""
    found: Candidates = {}
    if importlib.util.find_spec("pytorch_metric_learning"):
        from pytorch_metric_learning import losses

        # Its NTXentLoss makes a matrix of positive times negative pairs, 69 GB at N = 4096. Of one
        # positive its SupConLoss is the same number.
        of_pairs, of_labels = losses.SupConLoss(TAU), losses.SupConLoss(VIEWS_TAU)

        def one_way(a: Tensor, b: Tensor) -> Tensor:
            index = torch.arange(len(a))
            # Labels that are one object would say that the rows are, too.
            value: Tensor = of_pairs(a, index, ref_emb=b, ref_labels=index.clone())
            return value

        made: dict[str, LossFn] = {
            "one way": one_way,
            "views": stacked(of_labels, lambda a: torch.arange(len(a))),
            "supervised": stacked(of_labels),
            "similar": stacked(losses.MultiSimilarityLoss(2.0, 50.0, 0.5)),
        }
        if kind in made:
            found["pytorch-metric-learning"] = made[kind], None
    if importlib.util.find_spec("lightly") and importlib.util.find_spec("torchvision"):
        from lightly import loss as lightly

        named = {"views": lightly.NTXentLoss, "decoupled": lightly.DCLLoss}
        if kind in named:
            found["lightly"] = named[kind](VIEWS_TAU), None
    return found


# The sections. Each runs in a process of its own.


def compare(title: str, rounds: int, quick: bool) -> list[Table]:
    """Forward plus backward beside the matrix."""
    name, _, size = title.partition(", N = ")
    kind, ours = COMPARED[name]
    candidates = ours | peers(kind)
    n = 4096 if quick else int(size)
    a, b = data(n // 2 if kind in OF_VIEWS else n)
    like = torch.empty(n, n, device="meta")
    progress, clock = Progress(title, len(candidates) + rounds), Clock(quick)
    wanted = exact(a, b, kind)
    calls, errors = {}, {}
    for label, (loss, _) in candidates.items():
        errors[label] = check(loss, a, b, wanted)
        calls[label] = step(loss, a, b)
        progress.step()
    memory = {label: peak_memory(call, like) for label, call in calls.items()}
    times = clock.compare(calls, rounds, progress)
    rows = []
    for label, (_, allowed) in candidates.items():
        row: Row = {"loss": label, RATIO: ratio(times, label, "plain"), MEMORY: memory[label]}
        row |= {"target": None, "met": None}
        if allowed is not None:
            # At the size of --quick a tile is no small part of the matrix.
            most = 0.1 if n >= 16384 else None
            row["target"] = f"{allowed}" + ("" if most is None else f"; memory {most}")
            row["met"] = row[RATIO][0] <= allowed and (most is None or memory[label] <= most)
        rows.append(row | errors[label])
    return [{"title": f"{name}, N = {n}, D = {WIDTH}", "rows": rows, "note": clock.note()}]


def growth(title: str, rounds: int, quick: bool) -> list[Table]:
    """How time and memory grow with N: the exponents of a power of N."""
    sizes = [1024, 2048, 4096] if quick else [2048, 4096, 8192, 16384]
    tile = 256 if quick else 512
    made: dict[str, Callable[[int], LossFn]] = {
        "InfoNCELoss": lambda n: InfoNCELoss(TAU, tile_size=tile),
        "InfoNCELoss(symmetric=True)": lambda n: InfoNCELoss(TAU, True, tile_size=tile),
        "NTXentLoss": lambda n: NTXentLoss(VIEWS_TAU, tile_size=tile),
        "GlobalContrastiveLoss": lambda n: visits(GlobalContrastiveLoss(n, tile_size=tile), n),
        "TwoWayGlobalContrastiveLoss": lambda n: visits(
            TwoWayGlobalContrastiveLoss(n, tile_size=tile), n
        ),
    }
    progress, clock = Progress(title, len(made) * rounds), Clock(quick)
    unit = torch.empty(2**20, device="meta")
    rows = []
    for label, make in made.items():
        calls = {str(n): step(make(n), *data(n)) for n in sizes}
        memory = [peak_memory(call, unit) for call in calls.values()]
        times = clock.compare(calls, rounds, progress)
        seconds = [statistics.median(times[str(n)]) for n in sizes]
        by_time, by_memory = (exponent(sizes, y) for y in (seconds, memory))
        row: Row = {"loss": label, "time ~ N^": by_time, "memory ~ N^": by_memory}
        row |= {"target": "2.3; memory 1.1", "met": by_time <= 2.3 and by_memory <= 1.1}
        rows.append(row)
    return [{"title": f"{title}, N = {sizes}, tiles of {tile}", "rows": rows, "note": clock.note()}]


def visits(loss: GlobalContrastiveLoss | TwoWayGlobalContrastiveLoss, n: int) -> LossFn:
    """Return the loss of the samples 0, 1, ..."""
    index = torch.arange(n)
    return lambda a, b: loss(a, b, index)


def exponent(sizes: list[int], values: list[float]) -> float:
    """Return the slope of the line through the logarithms."""
    x, y = ([math.log(v) for v in xs] for xs in (sizes, values))
    return statistics.linear_regression(x, y).slope


def large(title: str, rounds: int, quick: bool) -> list[Table]:
    """Whether it runs where the matrix has no place."""
    n = 8192 if quick else 65536
    candidates: dict[str, LossFn] = {
        "InfoNCELoss": InfoNCELoss(TAU, tile_size=TILE),
        "NTXentLoss": NTXentLoss(VIEWS_TAU, tile_size=TILE),
    }
    like, progress = torch.empty(n, n, device="meta"), Progress(title, len(candidates))
    rows = []
    for label, loss in candidates.items():
        a, b = data(n // 2 if label == "NTXentLoss" else n)
        memory = peak_memory(step(loss, a, b), like)
        progress.step()
        row: Row = {"loss": label, MEMORY: memory, "MiB": memory * n * n / 2**18}
        rows.append(row | {"target": None if quick else 0.02, "met": quick or memory <= 0.02})
    note = f"The matrix would take {n * n / 2**28:.3g} GiB, and the plain form three of it"
    return [{"title": f"{title}, N = {n}, tiles of {TILE}", "rows": rows, "note": note}]


SECTIONS: dict[str, Section] = {
    "compare": (compare, 5, {f"{name}, N = 16384": DEFAULT for name in COMPARED}),
    "growth": (growth, 3, {"growth": DEFAULT}),
    "large": (large, 2, {"large": DEFAULT}),
}


if __name__ == "__main__":
    main(__file__, __doc__, SECTIONS)
