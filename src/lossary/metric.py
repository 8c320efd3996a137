r"""Metric learning: distances that mean the same for every class.

.. math:: s_{ij} = \frac{\langle e_i, e_j \rangle}{\lVert e_i \rVert \lVert e_j \rVert}, \qquad
          \lVert e_i - e_j \rVert^2 = 2 - 2 s_{ij} \ \text{ on the unit sphere}

Losses of a batch of embeddings and their labels, through the cosines of its pairs: positive pairs
share a label, negative ones do not. One threshold on the distance serves every class only if the
classes agree on what is near: :class:`TCMLoss` asks for it, and :class:`OPIS` measures it.
"""

import warnings
from typing import TypeAlias, Unpack

import torch
from torch import Tensor, nn

from lossary import _distributed
from lossary._base import _upcast
from lossary._checks import (
    check_embeddings,
    check_int,
    check_number,
    check_positive,
)
from lossary._embedding_base import Rows, TiledEmbeddingLoss, TiledOptions, check_labels
from lossary._numerics import normalized
from lossary._properties import Properties
from lossary._similarity import Hinge, Mask, term_sums

#: Of positive and of negative pairs, every row's sum of the excess and its number of hard pairs.
_Sides: TypeAlias = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


def _hard(excess: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Return every row's sum over the pairs where the excess is not negative, and their number."""
    hard = pairs & (excess >= 0)
    return torch.where(hard, excess, 0.0).sum(1), hard.sum(1)


class TCMLoss(TiledEmbeddingLoss):
    r"""Threshold-consistent margin: push hard pairs across two fixed cosines.

    .. math:: L = \lambda_+ \frac{\sum_{S_+} (m_+ - s)\, 1[s \le m_+]}{\sum_{S_+} 1[s \le m_+]}
              + \lambda_- \frac{\sum_{S_-} (s - m_-)\, 1[s \ge m_-]}{\sum_{S_-} 1[s \ge m_-]}

    over the cosines S_+ of positive pairs and S_- of negative ones. Pairs beyond their margin are
    easy and count nowhere. Add it to a metric-learning loss, as a regularizer:
    ``base(embeddings, labels) + tcm(embeddings, labels)``, where one distance threshold has to
    serve every class.

    Args:
        margin_pos: m_+ in [-1, 1]: positive pairs should be nearer than that. Default 0.9.
        margin_neg: m_- in [-1, 1]: negative pairs should be farther than that. Default 0.5.
        lambda_pos: >= 0, weight of the positive pairs. Default 1.
        lambda_neg: >= 0, weight of the negative pairs. Default 1.
        normalize: divide the rows by their norm. ``False`` for rows that are unit vectors already;
            then s is the inner product as it is. Default ``True``.
        gather: whether the rows of all processes make the pairs: ``"auto"`` (default) where
            ``torch.distributed`` runs several, ``True``, or ``False``: those of the own process.
        process_group: whose rows they are. Default ``None``: of all processes.
        tile_size: rows and columns of the tiles in which the cosines are made, forward and
            backward, and never held: memory grows as N, not N^2. First derivatives only. Default
            ``None``: the matrix is held.
        reduction: see :class:`lossary.Loss`. The formula is ``"mean"``.

    Shape:
        embeddings (N, D), labels (N,) of any integers. Values (N,), one per anchor: N times the
        anchor's share of both sums, over the counts of the whole batch, so that their mean is L.
        Dense, a matrix of N x N cosines, or in tiles with ``tile_size``.

    Properties:
        The loss is batch-coupled. 0 <= L <= lambda_+ (1 + m_+) + lambda_- (1 - m_-).
        The gradient in the cosine of a hard positive pair is -lambda_+/n_+, of a hard negative one
        lambda_-/n_-, of all others 0, where n counts the hard pairs and carries no gradient.
        Piecewise linear in the cosines, but not continuous: a pair that becomes hard adds 0 to the
        sum and 1 to the count. Unchanged by a rotation of all embeddings and the length of a row.

    Limits:
        m_+ = 1, m_- = -1: lambda_+ (1 - mean S_+) + lambda_- (1 + mean S_-). All pairs easy, no
        pairs, or N < 2: exactly 0, with gradient 0. A term without hard pairs is 0.

    Note:
        A cosine equal to its margin counts as hard. Cosines are clamped to [-1, 1]: rounding must
        not carry two equal rows beyond m_+ = 1. With several processes (``gather``) own anchors are
        held against the rows of all, the counts are of all, and ``"mean"`` divides by what all
        have, times their number: averaged over the processes, the parameters' gradient is that of
        one process with the whole batch, also of unequal batches. All of them must call it, forward
        and backward.

    Raises:
        ValueError: margins outside [-1, 1], negative weights, labels not of shape (N,),
            ``tile_size`` < 1, a ``process_group`` without this process.
        TypeError: labels that are not integers, embeddings that are not floating point.
        RuntimeError: ``gather=True`` without ``torch.distributed``; second derivatives, forward
            mode or ``vmap`` with ``tile_size``.

    Reference:
        Zhang et al., "Threshold-Consistent Margin Loss for Open-World Deep Metric Learning", 2024.

    Example:
        >>> import torch
        >>> from lossary import TCMLoss
        >>> embeddings = torch.tensor([[1.0, 0.0], [3.0, 4.0], [1.0, 1.0], [0.0, 1.0]])
        >>> TCMLoss()(embeddings, torch.tensor([0, 0, 1, 1]))
        tensor(0.5788)
    """

    def __init__(
        self,
        margin_pos: float = 0.9,
        margin_neg: float = 0.5,
        lambda_pos: float = 1.0,
        lambda_neg: float = 1.0,
        normalize: bool = True,
        **options: Unpack[TiledOptions],
    ) -> None:
        super().__init__(normalize, **options)
        self.margin_pos = check_number("margin_pos", margin_pos, -1.0, 1.0)
        self.margin_neg = check_number("margin_neg", margin_neg, -1.0, 1.0)
        self.lambda_pos = check_number("lambda_pos", lambda_pos, 0.0, high_open=True)
        self.lambda_neg = check_number("lambda_neg", lambda_neg, 0.0, high_open=True)

    def per_sample(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the share of every anchor, unreduced."""
        rows = self.labelled_rows(embeddings, labels)
        sides = self._dense(rows) if self.tile_size is None else self._tiled(rows)
        (pull, near), (push, far) = sides
        share = self.lambda_pos * self._mean(pull, near) + self.lambda_neg * self._mean(push, far)
        return len(rows.every) * share

    def _dense(self, rows: Rows) -> _Sides:
        s = rows.own @ rows.every.t()
        s = s.clamp(-1.0, 1.0) if self.normalize else s
        same = rows.same()
        return (
            _hard(self.margin_pos - s, same & rows.others()),
            _hard(s - self.margin_neg, ~same),
        )

    def _tiled(self, rows: Rows) -> _Sides:
        labels = rows.labels, rows.every_label
        itself = rows.position.unsqueeze(1)

        def side(margin: float, sign: int, mask: Mask) -> tuple[Tensor, Tensor]:
            hinge = Hinge(margin, sign, self.normalize)
            assert self.tile_size is not None
            return term_sums(rows.own, rows.every, mask, hinge, tile_size=self.tile_size)

        return (
            side(self.margin_pos, -1, Mask(itself, *labels)),
            side(self.margin_neg, 1, Mask(None, *labels, equal=True)),
        )

    def _mean(self, excess: Tensor, count: Tensor) -> Tensor:
        """Return every row's share of the mean excess over the hard pairs of all processes."""
        total = count.sum()
        if self._gathers():
            total = _distributed.sum_over_ranks(total, self.process_group)
        return excess / total.clamp(min=1)

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        unknown = {"convex": "piecewise linear in the cosines, which are not in the embeddings"}
        if not self.normalize:
            unknown["lower"] = unknown["upper"] = "holds for rows of norm 1 only"
        highest = self.lambda_pos * (1 + self.margin_pos) + self.lambda_neg * (1 - self.margin_neg)
        return Properties(
            lower=0.0 if self.normalize else None,
            upper=highest if self.normalize else None,
            limits=(("m_+ = 1, m_- = -1", "means over all pairs"),),
            unknown=unknown | {"lipschitz": "not continuous", "smoothness": "not continuous"},
            source="Zhang et al. 2024",
        )


class OPIS(nn.Module):
    r"""Operating-point inconsistency score: how far the classes disagree on a distance threshold.

    .. math:: \operatorname{OPIS} = \frac1T \sum_{i=1}^T \frac{1}{d_{\max} - d_{\min}}
              \int_{d_{\min}}^{d_{\max}} \Big(U_i(d) - \frac1T \sum_k U_k(d)\Big)^2 \mathrm{d}d,
              \qquad U_i = \frac{(1 + c^2)\, \phi_i \psi_i}{c^2 \phi_i + \psi_i}

    At threshold d, class i has sensitivity psi_i, the share of its pairs within the class at
    distance <= d, and specificity phi_i, the share of the pairs with exactly one end in the class
    at distance > d; its utility U_i is their weighted harmonic mean. The score is the variance of
    the utilities over the classes, averaged over the thresholds by the trapezoid rule. A metric:
    it has no gradient. Use it on held-out classes, beside recall.

    Args:
        d_min, d_max: range of the thresholds, 0 <= d_min < d_max, in Euclidean distance between
            unit vectors, so in [0, 2]. Default ``None``: where the pooled false accept rate, the
            share of negative pairs at distance <= d, is ``far_range``.
        far_range: two rates, 0 < low < high <= 1. Default (0.01, 0.1). Used where d_min or d_max
            is ``None``.
        num_thresholds: at least 2. Default 101.
        c: > 0, weight of the sensitivity in the utility. Default 1.

    Shape:
        embeddings (N, D), labels (N,) of any integers. Returns a 0-dim tensor.
        ``per_class(embeddings, labels)`` returns the classes (T,) and their contributions (T,),
        whose mean is the score. O(N^2) distances, on the device of the embeddings.

    Properties:
        In [0, 1/4]. 0 if all classes are mirror images of each other. Unchanged by a rotation of
        all embeddings, the length of a row, the order of rows and the names of classes.

    Limits:
        A class with a single sample has no pair: it is left out with a warning, and its
        contribution is nan. It stays in the negative pairs of the others.

    Raises:
        ValueError: fewer than 2 classes with 2 samples, labels not of shape (N,), thresholds out
            of order, also where ``far_range`` gives a single distance.
        TypeError: labels that are not integers, embeddings that are not floating point.

    Reference:
        Zhang et al., "Threshold-Consistent Margin Loss for Open-World Deep Metric Learning", 2024.
        Held against a written definition of a public re-implementation. The paper's epsilon-OPIS
        is not here: its formula is UNVERIFIED.

    Example:
        >>> import torch
        >>> from lossary import OPIS
        >>> embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.5, 1.0]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> OPIS(d_min=0.0, d_max=1.0)(embeddings, labels)
        tensor(0.0900)
    """

    def __init__(
        self,
        d_min: float | None = None,
        d_max: float | None = None,
        far_range: tuple[float, float] = (0.01, 0.1),
        num_thresholds: int = 101,
        c: float = 1.0,
    ) -> None:
        super().__init__()
        self.d_min = None if d_min is None else check_number("d_min", d_min, 0.0, 2.0)
        self.d_max = None if d_max is None else check_number("d_max", d_max, 0.0, 2.0)
        if self.d_min is not None and self.d_max is not None and self.d_min >= self.d_max:
            raise ValueError(f"d_max: expected more than d_min={d_min}, got {d_max}")
        if not isinstance(far_range, tuple | list) or len(far_range) != 2:
            raise ValueError(f"far_range: expected two rates, got {far_range!r}")
        low = check_number("far_range", far_range[0], 0.0, 1.0, low_open=True)
        self.far_range = low, check_number("far_range", far_range[1], low, 1.0, low_open=True)
        self.num_thresholds = check_int("num_thresholds", num_thresholds, 2)
        self.c = check_positive("c", c)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the score of all classes."""
        return self.per_class(embeddings, labels)[1].nanmean()

    @torch.no_grad()
    def per_class(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the classes (T,), in ascending order, and their contributions (T,)."""
        check_embeddings(embeddings=embeddings)
        check_labels(labels, embeddings)
        classes, code, size = torch.unique(labels, return_inverse=True, return_counts=True)
        paired = size > 1
        if int(paired.sum()) < 2:
            raise ValueError(
                f"labels: expected at least 2 classes with 2 samples, got {int(paired.sum())}"
            )
        if not bool(paired.all()):
            warnings.warn(f"OPIS: left out, having one sample: {classes[~paired]}", stacklevel=2)
        e = normalized(_upcast(embeddings).double())
        # |a - b|^2 = 2 - 2 a.b loses the digits of near pairs, and float64 has them to spare.
        distance = (2.0 - 2.0 * (e @ e.t())).clamp(min=0.0).sqrt().fill_diagonal_(0.0)
        same = code.unsqueeze(1) == code
        thresholds = self._thresholds(distance[~same])
        utility = self._utility(distance, same, thresholds, code, size)[paired]
        spread = (utility - utility.mean(0)).square()
        width = thresholds[-1] - thresholds[0]
        score = torch.full(size.shape, torch.nan, dtype=e.dtype, device=e.device)
        score[paired] = torch.trapezoid(spread, thresholds) / width
        dtype = _upcast(embeddings).dtype
        return classes, score.to(dtype)

    def _thresholds(self, negative: Tensor) -> Tensor:
        ordered = negative.sort().values
        ends = []
        for given, rate in zip((self.d_min, self.d_max), self.far_range, strict=True):
            # The smallest distance within which that share of the negative pairs lies.
            rank = max(0, -int(-rate * len(ordered) // 1) - 1)
            ends.append(ordered[rank] if given is None else ordered.new_tensor(given))
        low, high = ends
        if not bool(low < high):
            raise ValueError(
                f"d_max: expected more than d_min, which the rates {self.far_range} put at "
                f"{float(low):g}, got {float(high):g}"
            )
        steps = torch.linspace(0.0, 1.0, self.num_thresholds, dtype=low.dtype, device=low.device)
        return low + (high - low) * steps

    def _utility(
        self, distance: Tensor, same: Tensor, thresholds: Tensor, code: Tensor, size: Tensor
    ) -> Tensor:
        """Return the utility of every class at every threshold, (T, thresholds)."""
        n, bins = len(distance), len(thresholds) + 1
        # How many pairs of every row become near at every threshold; the last bin never does.
        at = torch.searchsorted(thresholds, distance)
        at = at + bins * same + 2 * bins * torch.arange(n, device=at.device).unsqueeze(1)
        rows = torch.bincount(at.flatten(), minlength=2 * bins * n).view(n, 2, bins)
        near = rows.new_zeros(len(size), 2, bins).index_add_(0, code, rows).cumsum(2)[..., :-1]
        near = near.to(distance.dtype)
        size = size.to(distance.dtype).unsqueeze(1)
        # Every row is at distance 0 from itself, which is no pair.
        itself = (thresholds >= 0).to(distance.dtype) * size
        sensitivity = (near[:, 1] - itself) / (size * (size - 1))
        specificity = 1.0 - near[:, 0] / (size * (n - size))
        c2 = self.c * self.c
        weighed = c2 * specificity + sensitivity
        product = (1.0 + c2) * specificity * sensitivity
        return torch.where(weighed > 0, product / weighed, 0.0)
