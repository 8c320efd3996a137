r"""Supervised contrastive loss: whoever shares the anchor's label is a positive.

.. math:: \ell_i = -\frac{1}{|P(i)|} \sum_{p \in P(i)} \log
          \frac{e^{s_{ip}/\tau}}{\sum_{a \ne i} e^{s_{ia}/\tau}}

Cross-entropy over similarities, as in the losses of pairs, with any number of positives:
:class:`NTXentLoss` is the case in which every sample is a class of its own.
"""

from typing import Unpack

import torch
from torch import Tensor

from lossary._checks import check_choice, check_positive
from lossary._embedding_base import Rows, TiledEmbeddingLoss, TiledOptions
from lossary._numerics import softplus
from lossary._properties import Properties
from lossary._similarity import Mask, log_sum_exp, self_log_sum_exp


class SupConLoss(TiledEmbeddingLoss):
    r"""Supervised contrastive loss: embeddings of a class together, those of others apart.

    .. math:: \ell_i^{\text{out}} = -\frac{\tau}{\tau_0} \frac{1}{|P(i)|} \sum_{p \in P(i)} \log
              \frac{e^{s_{ip}/\tau}}{\sum_{a \ne i} e^{s_{ia}/\tau}}, \qquad
              \ell_i^{\text{in}} = -\frac{\tau}{\tau_0} \log \frac{1}{|P(i)|} \sum_{p \in P(i)}
              \frac{e^{s_{ip}/\tau}}{\sum_{a \ne i} e^{s_{ia}/\tau}}

    with P(i) the other rows that have the label of row i. Use it to learn embeddings from labels,
    followed by a linear head or by nearest neighbours; with a second view of every sample
    (``embeddings2``) each has a positive.

    Args:
        temperature: tau > 0. Default 0.07.
        base_temperature: tau_0 > 0, or ``None`` (default) for tau, factor 1. The authors' code
            has 0.07, whatever tau is.
        variant: ``"out"`` (default), the mean over the positives outside of the logarithm, or
            ``"in"``. The authors find the former to train better.
        no_positive: anchors that are alone in their class are left out of the mean, ``"skip"``
            (default), or stay in it with 0, ``"zero"``.
        normalize: divide the rows by their norm, so that s is the cosine. Default ``True``. A row
            of norm below 1e-6 is divided by 1e-6 (1e-12 in float64).
        gather: whether the rows of all processes are the candidates: ``"auto"`` (default) where
            ``torch.distributed`` runs several, ``True``, or ``False``: those of the own process.
        process_group: whose rows they are. Default ``None``: of all processes.
        tile_size: rows and columns of the tiles in which the similarities are made, forward and
            backward, and never held. First derivatives only. 512 or 1024 is fast; it pays from
            thousands of rows on. Default ``None``: the matrix is held.
        reduction: see :class:`lossary.Loss`.

    Shape:
        embeddings (N, D), labels (N,) of any integers, embeddings2 (N, D) or ``None``: a second
        view of every sample, stacked below the first, with its label. Values (N,), one per anchor,
        or with two views the mean of the sample's two anchors. Dense, O(N^2) memory, or O(N D) with
        ``tile_size``: in one sweep for ``"out"``, in two for ``"in"``.

    Properties:
        The loss is batch-coupled. At tau_0 = tau it is >= log |P(i)|, and ``"in"`` <= ``"out"``.
        The gradient in s_ia is (softmax_a - 1[a in P(i)]/|P(i)|)/tau for ``"out"``. Unchanged by a
        rotation of all embeddings, the length of a row, and other names for the classes. ``"out"``
        is convex in the similarities. With ``normalize=False`` unbounded above.

    Limits:
        All labels distinct and two views: :class:`NTXentLoss`. One positive each: both variants
        agree. All rows equal, of one class: log(N - 1). No pair with a common label, so also
        N = 1: 0, attached to the graph. N = 2 of one class: 0.

    Note:
        An anchor with one positive has a softplus, so that tiny values keep their digits; with more
        of them the value is at least log 2. In tiles the mean over the positives comes from sums
        over classes, sum_p s_ip = <z_i, S_y - z_i>; with ``normalize=False`` and rows of very
        different lengths this is less exact than the dense form. Where an anchor has no positive,
        early versions of the authors' code gave nan, later ones count it as 0. With several
        processes (``gather``) own anchors are held against the rows of all, |P(i)| counts all, and
        ``"mean"`` divides by the anchors of all that count, times the number of processes: averaged
        over these, the parameters' gradient is that of one process with the whole batch, also of
        unequal batches. All of them must call it, forward and backward.

    Raises:
        ValueError: ``temperature`` or ``base_temperature`` <= 0, an unknown ``variant`` or
            ``no_positive``, labels not of shape (N,), shapes that differ, ``tile_size`` < 1, a
            ``process_group`` without this process.
        TypeError: labels that are not integers, embeddings that are not floating-point tensors.
        RuntimeError: ``gather=True`` without ``torch.distributed``; second derivatives, forward
            mode or ``vmap`` with ``tile_size``.

    Reference:
        Khosla et al., "Supervised Contrastive Learning", 2020, eqs. 2 and 3.

    Example:
        >>> import torch
        >>> from lossary import SupConLoss
        >>> embeddings = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0], [-1.0, 0.0]])
        >>> labels = torch.tensor([0, 0, 0, 1])
        >>> SupConLoss(0.5)(embeddings, labels)
        tensor(0.9255)
        >>> SupConLoss(0.5, variant="in")(embeddings, labels)
        tensor(0.7711)
    """

    def __init__(
        self,
        temperature: float = 0.07,
        base_temperature: float | None = None,
        variant: str = "out",
        no_positive: str = "skip",
        normalize: bool = True,
        **options: Unpack[TiledOptions],
    ) -> None:
        super().__init__(normalize, **options)
        self.temperature = check_positive("temperature", temperature)
        self.base_temperature = base_temperature
        if base_temperature is not None:
            self.base_temperature = check_positive("base_temperature", base_temperature)
        check_choice("variant", variant, ("out", "in"))
        self.variant = variant
        check_choice("no_positive", no_positive, ("skip", "zero"))
        self.no_positive = no_positive

    def per_sample(
        self, embeddings: Tensor, labels: Tensor, embeddings2: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the loss of every sample, unreduced, and whether it counts."""
        rows = self.labelled_rows(embeddings, labels, embeddings2)
        value, count = (self._dense if self.tile_size is None else self._tiled)(rows)
        value = torch.where(count > 0, value, 0.0)
        if self.base_temperature is not None:
            value = value * (self.temperature / self.base_temperature)
        n = len(embeddings)
        if embeddings2 is not None:
            value, count = (value[:n] + value[n:]) / 2, count[:n]
        counts = torch.ones_like(value) if self.no_positive == "zero" else (count > 0).to(value)
        return value, counts

    def _dense(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return the loss of every anchor, and how many positives it has."""
        s = rows.own @ rows.every.t() / self.temperature
        same, others = rows.same(), rows.others()
        positive = same & others
        count = positive.sum(1).to(s.dtype)
        # The lowest number, not -inf: where nothing is left, a slope of that would be nan.
        lowest = torch.finfo(s.dtype).min

        def total(left: Tensor) -> Tensor:
            return torch.where(left, s, lowest).logsumexp(1)

        if self.variant == "in":
            return _inside(total(~same), total(positive), count), count
        only = positive & (count == 1).unsqueeze(1)
        near = torch.where(positive, s, 0.0).sum(1) / count.clamp(min=1.0)
        return _outside(total(others & ~only), near, count), count

    def _tiled(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return the same without the matrix."""
        size, near, only = _positives(rows)
        count = size.to(near.dtype)
        itself = rows.position.unsqueeze(1)
        if self.variant == "in":
            labels = rows.labels, rows.every_label
            negative, positive = Mask(None, *labels, equal=True), Mask(itself, *labels)
            return _inside(self._total(rows, negative), self._total(rows, positive), count), count
        rest = self._total(rows, Mask(torch.cat((itself, only.unsqueeze(1)), 1)))
        return _outside(rest, near / self.temperature, count), count

    def _total(self, rows: Rows, mask: Mask) -> Tensor:
        """Return every anchor's log sum exp of what the mask leaves."""
        assert self.tile_size is not None
        bound = 1.0 / self.temperature if self.normalize else float("inf")
        root = self.temperature**-0.5
        q = rows.own * root
        if rows.every is rows.own:
            return self_log_sum_exp(q, mask, tile_size=self.tile_size, bound=bound)
        k = rows.every * root
        return log_sum_exp(q, k, mask, tile_size=self.tile_size, bound=bound)[0]

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        unknown = {
            "convex": "in the similarities, which are not linear in the embeddings, if at all",
            "lipschitz": "without bound near a row of zeros, or in the length of the other rows",
        }
        if self.normalize:
            unknown["upper"] = "grows with the number of samples"
            unknown["smoothness"] = "smooth but for rows of zeros, where the cosine jumps"
        return Properties(
            lower=0.0,
            upper=None if self.normalize else float("inf"),
            smoothness=None if self.normalize else float("inf"),
            counterexamples={} if self.normalize else {"upper": self._unbounded()},
            limits=(
                ("all labels distinct, two views", "NT-Xent"),
                ("all rows equal, of one class", "log(N - 1)"),
            ),
            unknown=unknown,
            source="Khosla et al. 2020",
        )

    @staticmethod
    def _unbounded() -> tuple[object, ...]:
        return [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], torch.tensor([0, 1, 0])


def _outside(rest: Tensor, near: Tensor, count: Tensor) -> Tensor:
    """Return the loss from the sum over the others, without the positive if it is the only one."""
    gap = rest - near
    return torch.where(count == 1, softplus(gap), gap)


def _inside(negative: Tensor, positive: Tensor, count: Tensor) -> Tensor:
    """Return the loss from the sums over negatives and positives."""
    gap = torch.where(count > 0, negative - positive, 0.0)
    return softplus(gap) + count.clamp(min=1.0).log()


def _positives(rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Return how many positives each anchor has, their mean similarity, and the only one, or -1.

    Without a matrix: labels that are sorted give every class a number, its first place.
    """
    ordered, order = rows.every_label.long().sort()
    labels, every_label = rows.labels.long(), rows.every_label.long()
    first = torch.searchsorted(ordered, labels)
    count = torch.searchsorted(ordered, labels, right=True) - first - 1
    classes = torch.searchsorted(ordered, every_label)
    sums = torch.zeros_like(rows.every).index_add(0, classes, rows.every)
    # The other one of two is at either of both places.
    second = (first + 1).clamp(max=max(len(order) - 1, 0))
    other = order[first] + order[second] - rows.position
    only = torch.where(count == 1, other, -1)
    alone = (count == 1).unsqueeze(1)
    rest = torch.where(alone, rows.every[only.clamp(min=0)], sums[first] - rows.own)
    near = (rows.own * rest).sum(1) / count.clamp(min=1)
    return count, near, only
