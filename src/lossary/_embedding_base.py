"""EmbeddingLoss: what losses of a batch of embeddings share, over one process or several."""

from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor

from lossary import _distributed, _softmax
from lossary._base import Loss, LossOptions
from lossary._checks import check_choice, check_device, check_embeddings, check_int, check_integers
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

    def labelled_rows(self, embeddings: Tensor, labels: Tensor) -> Rows:
        """Return the checked rows of this process and those of all."""
        check_embeddings(embeddings=embeddings)
        check_labels(labels, embeddings)
        (own,) = self.units(embeddings)
        every, every_label, first = own, labels, 0
        if self._gathers():
            group = self.process_group
            (every,), first = _distributed.gather_with_gradient(own, group=group)
            (every_label,) = _distributed.gather_rows(labels, group=group)
        position = torch.arange(first, first + len(own), device=own.device)
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


def cross_entropy(logits: Tensor, target: Tensor, class_dim: int = 1) -> Tensor:
    """Return -log softmax(logits) at the target, to full relative accuracy."""
    if not logits.numel():
        return logits.sum(class_dim)
    names = (_softmax.LOG_ODDS,)
    return softplus(_softmax.row_statistics(logits, target, names, class_dim=class_dim)[0])
