"""EmbeddingLoss: what losses of a batch of embeddings share, over one process or several."""

from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor

from lossary import _distributed, _softmax
from lossary._base import Loss, LossOptions
from lossary._checks import (
    check_choice,
    check_device,
    check_embeddings,
    check_floating,
    check_int,
    check_integers,
)
from lossary._numerics import normalized, softplus


class EmbeddingOptions(LossOptions, total=False):
    """The keywords that the losses of a batch of embeddings share."""

    gather: bool | str
    process_group: Any


class TiledOptions(EmbeddingOptions, total=False):
    """Those of the losses that do without the matrix of similarities."""

    tile_size: int | None


class Rows(NamedTuple):
    """Own anchors, and the rows of all processes that they are held against."""

    own: Tensor
    labels: Tensor
    every: Tensor
    every_label: Tensor
    #: Of every own row (N,), which one it is among the rows of all.
    position: Tensor

    def others(self) -> Tensor:
        """Return (N, M), where the row is not the anchor itself."""
        columns = torch.arange(len(self.every), device=self.own.device)
        return self.position.unsqueeze(1) != columns

    def same(self) -> Tensor:
        """Return (N, M), where the labels are equal, the anchor itself included."""
        return self.labels.unsqueeze(1) == self.every_label


class EmbeddingLoss(Loss):
    """A loss of a batch of embeddings, each of which counts for the others."""

    separable = False

    def __init__(
        self,
        normalize: bool = True,
        *,
        gather: bool | str = "auto",
        process_group: Any = None,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(**options)
        check_choice("normalize", normalize, (True, False))
        self.normalize = normalize
        _distributed.check_gather(gather, process_group)
        self.gather = gather
        self.process_group = process_group

    def units(self, *embeddings: Tensor) -> list[Tensor]:
        """Return the rows divided by their norms, where the loss is one of cosines."""
        return [normalized(x) if self.normalize else x for x in embeddings]

    def rows_of_all(self, *views: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return own rows, view after view, those of all processes, and which of them are the own.

        Where nothing is gathered, the second is the first.
        """
        units = self.units(*views)
        n, own, first = len(units[0]), torch.cat(units), 0
        every, of_view = own, n
        if self._gathers():
            gathered, first = _distributed.gather_with_gradient(*units, group=self.process_group)
            every, of_view = torch.cat(gathered), len(gathered[0])
        starts = [first + v * of_view for v in range(len(units))]
        position = torch.cat([torch.arange(a, a + n, device=own.device) for a in starts])
        return own, every, position

    def labelled_rows(
        self, embeddings: Tensor, labels: Tensor, embeddings2: Tensor | None = None
    ) -> Rows:
        """Return the checked rows of this process, of one view or two, and those of all."""
        views = {"embeddings": embeddings}
        if embeddings2 is not None:
            views["embeddings2"] = embeddings2
        check_embeddings(**views)
        check_labels(labels, embeddings)
        own, every, position = self.rows_of_all(*views.values())
        every_label = labels
        if self._gathers():
            (every_label,) = _distributed.gather_rows(labels, group=self.process_group)
        labels, every_label = (x.repeat(len(views)) for x in (labels, every_label))
        return Rows(own, labels, every, every_label, position)


class TiledEmbeddingLoss(EmbeddingLoss):
    """One that may do without the matrix of similarities."""

    def __init__(
        self,
        normalize: bool = True,
        *,
        tile_size: int | None = None,
        **options: Unpack[EmbeddingOptions],
    ) -> None:
        super().__init__(normalize, **options)
        self.tile_size = None if tile_size is None else check_int("tile_size", tile_size, 1)


def check_labels(labels: Any, rows: Tensor, name: str = "labels", of: str = "embedding") -> None:
    """Raise an error unless these are integers, one per row."""
    check_integers(name, labels)
    if labels.shape != rows.shape[:1]:
        raise ValueError(
            f"{name}: expected one per {of}, shape {tuple(rows.shape[:1])}, "
            f"got {tuple(labels.shape)}"
        )
    check_device(name, labels, rows)


def check_class_labels(
    labels: Any, rows: Tensor, num_classes: int, weight: Tensor | None = None, of: str = "row"
) -> None:
    """Raise an error unless these are classes of so many, one per row.

    The values are looked at where that does not wait for a device, and where the weight, if there
    is one per label, is not 0.
    """
    check_labels(labels, rows, of=of)
    if _softmax.readable(labels):
        wrong = (labels < 0) | (labels >= num_classes)
        if weight is not None and weight.shape == labels.shape:
            wrong &= weight != 0
        if bool(wrong.any()):
            raise ValueError(
                f"labels: expected classes in [0, {num_classes}), got {int(labels[wrong][0])}"
            )


def check_classified(
    embeddings: Any, labels: Any, directions: Tensor, weight: Tensor | None = None
) -> None:
    """Raise an error unless these fit a learnt direction per class, (C, D).

    A label counts only where the weight, if there is one per label, is not 0.
    """
    check_floating("embeddings", embeddings)
    classes, width = directions.shape
    if embeddings.dim() != 2 or embeddings.shape[1] != width:
        raise ValueError(f"embeddings: expected shape (N, {width}), got {tuple(embeddings.shape)}")
    check_device("embeddings", embeddings, directions)
    check_class_labels(labels, embeddings, classes, weight, "embedding")


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return |a_i - b_j|^2, (N, M), without the N x M x D differences.

    The slope is that of |a|^2 + |b|^2 - 2ab, in which near rows cancel; so the value is not.
    """
    expanded = a.square().sum(1, keepdim=True) + b.square().sum(1) - 2.0 * (a @ b.t())
    exact = torch.cdist(a.detach(), b.detach(), compute_mode="donot_use_mm_for_euclid_dist")
    return expanded + (exact.square() - expanded.detach())


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Return |a_i - b_j|, (N, M); 0, without a slope, where the rows agree up to rounding."""
    squares = squared_distances(a, b)
    sizes = a.detach().square().sum(1, keepdim=True) + b.detach().square().sum(1)
    # There the direction of the difference is rounding, and the root has no slope at 0.
    apart = squares > (8.0 * torch.finfo(a.dtype).eps) ** 2 * sizes
    return torch.where(apart, torch.where(apart, squares, 1.0).sqrt(), 0.0)


def log_odds(logits: Tensor, target: Tensor, class_dim: int = 1) -> Tensor:
    """Return how far the others stand above the target: logsumexp of them, less its logit."""
    if not logits.numel():
        return logits.sum(class_dim)
    names = (_softmax.LOG_ODDS,)
    return _softmax.row_statistics(logits, target, names, class_dim=class_dim)[0]


def cross_entropy(logits: Tensor, target: Tensor, class_dim: int = 1) -> Tensor:
    """Return -log softmax(logits) at the target, to full relative accuracy."""
    return softplus(log_odds(logits, target, class_dim))
