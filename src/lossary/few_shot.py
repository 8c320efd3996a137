r"""Few-shot learning by distances: prototypes of classes, and neighbours in the episode.

.. math:: d(a, b) = \sqrt{\lVert a - b \rVert^2 + 10^{-6}}

An episode has a few samples of a few classes. A class is known by the mean of its embeddings, its
prototype, or by how its samples lie among their nearest neighbours. The small number under the root
gives the distance a slope where two embeddings agree.
"""

import math
from typing import Any, Unpack

import torch
from torch import Tensor

from lossary._base import HALF, Loss, LossOptions
from lossary._checks import check_device, check_floating, check_int, check_positive
from lossary._embedding_base import (
    EmbeddingLoss,
    EmbeddingOptions,
    check_labels,
    squared_distances,
)
from lossary._properties import Properties
from lossary._softmax import readable

#: Under the root of the distances of ICNN.
_ROOT_EPS = 1e-6


def class_means(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the mean embedding of every class: the prototypes of a few-shot episode.

    .. math:: p_c = \frac{1}{\#\{i : y_i = c\}} \sum_{i : y_i = c} e_i

    Args:
        embeddings: (N, D), floating point. Gradient flows through the means.
        labels: (N,) of any integers.

    Returns:
        The means (C, D), float32 for half-precision embeddings, and their labels (C,), the classes
        that occur, in ascending order. Which occur is read on the host.

    Raises:
        ValueError: embeddings not (N, D), labels not of shape (N,).
        TypeError: labels that are not integers, embeddings that are not floating point.

    Reference:
        Snell, Swersky, Zemel, "Prototypical Networks for Few-shot Learning", 2017, eq. 1.

    Example:
        >>> import torch
        >>> from lossary import class_means
        >>> class_means(torch.tensor([[1.0, 0.0], [3.0, 2.0], [5.0, 5.0]]), torch.tensor([7, 7, 2]))
        (tensor([[5., 5.],
                [2., 1.]]), tensor([2, 7]))
    """
    _check_rows("embeddings", embeddings)
    check_labels(labels, embeddings)
    x = embeddings.float() if embeddings.dtype in HALF else embeddings
    classes, code, count = torch.unique(labels, return_inverse=True, return_counts=True)
    sums = x.new_zeros(len(classes), x.shape[1]).index_add(0, code, x)
    return sums / count.unsqueeze(1), classes


def _check_rows(name: str, x: Any, width: int | None = None) -> None:
    check_floating(name, x)
    if x.dim() != 2 or x.shape[1] == 0 or width not in (None, x.shape[1]):
        expected = "(N, D), D >= 1" if width is None else f"(C, {width})"
        raise ValueError(f"{name}: expected shape {expected}, got {tuple(x.shape)}")


class ProtoTripletLoss(Loss):
    r"""Prototype triplet: nearer to the own class's prototype than to any other, by a margin.

    .. math:: \ell_q = \max\Bigl(0,\ d(q, p_{y_q}) - \min_{c \ne y_q} d(q, p_c) + m\Bigr), \qquad
              d(a, b) = \sqrt{\lVert a - b \rVert^2 + \epsilon}

    The triplet loss with the own prototype as positive and the nearest other one as negative, for
    the queries of a few-shot episode; :func:`class_means` makes the prototypes of its support set.

    Args:
        margin: m > 0. Default 0.5, that of the first author's code.
        eps: > 0, under the root. Default 1e-6.
        reduction: see :class:`lossary.Loss`.

    Shape:
        queries (Q, D), query_labels (Q,) of integers, prototypes (C, D), C >= 2, prototype_labels
        (C,), which differ, or ``None`` for 0, ..., C-1. Values (Q,). Embeddings are taken as they
        are, without normalising them.

    Properties:
        Separable in the queries, whose prototypes are given. 0 <= l <= m + the distance of the own
        prototype from the farthest other one. Unchanged when all are rotated or moved together.
        Not convex. Lipschitz constant 2 in the query.

    Limits:
        As :class:`TripletMarginLoss` with one triplet per query: the query, its prototype and the
        nearest other one.

    Note:
        Distances are computed from differences. Where two other prototypes are equally near, the
        gradient is shared between them.

    Raises:
        ValueError: ``margin`` or ``eps`` not positive and finite; shapes that do not fit; fewer
            than 2 prototypes; labels of prototypes that are not distinct, a query label without a
            prototype (looked at on CPU tensors).
        TypeError: labels that are not integers, embeddings that are not floating point.

    Reference:
        "SuSana Distancia is all you need: Enforcing class separability in metric learning via two
        novel distance-based loss functions for few-shot image classification", 2023. Verified
        against a public module of its first author.

    Example:
        >>> import torch
        >>> from lossary import ProtoTripletLoss, class_means
        >>> support = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
        >>> prototypes, classes = class_means(support, torch.tensor([5, 5, 8]))
        >>> queries = torch.tensor([[2.0, 1.0], [1.0, 1.0]])
        >>> ProtoTripletLoss()(queries, torch.tensor([5, 8]), prototypes, classes)
        tensor(1.1240)
    """

    def __init__(
        self, margin: float = 0.5, eps: float = 1e-6, **options: Unpack[LossOptions]
    ) -> None:
        super().__init__(**options)
        self.margin = check_positive("margin", margin)
        self.eps = check_positive("eps", eps)

    def per_sample(
        self,
        queries: Tensor,
        query_labels: Tensor,
        prototypes: Tensor,
        prototype_labels: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of every query, unreduced."""
        own = self._own(queries, query_labels, prototypes, prototype_labels)
        d = (squared_distances(queries, prototypes) + self.eps).sqrt()
        near = torch.where(own, d, 0.0).sum(1)
        return (near - d.masked_fill(own, math.inf).amin(1) + self.margin).clamp(min=0.0)

    def _own(
        self, queries: Tensor, labels: Tensor, prototypes: Tensor, of_prototypes: Tensor | None
    ) -> Tensor:
        """Return (Q, C), where the prototype is that of the query, of the checked inputs."""
        _check_rows("queries", queries)
        check_labels(labels, queries, "query_labels", "query")
        _check_rows("prototypes", prototypes, queries.shape[1])
        check_device("prototypes", prototypes, queries)
        if len(prototypes) < 2:
            raise ValueError(f"prototypes: expected at least 2, got {len(prototypes)}")
        if of_prototypes is None:
            of_prototypes = torch.arange(len(prototypes), device=queries.device)
        check_labels(of_prototypes, prototypes, "prototype_labels", "prototype")
        check_device("prototype_labels", of_prototypes, queries)
        if readable(of_prototypes):
            distinct = len(torch.unique(of_prototypes))
            if distinct < len(of_prototypes):
                raise ValueError(
                    f"prototype_labels: expected {len(of_prototypes)} distinct ones, got {distinct}"
                )
        own = labels.unsqueeze(1) == of_prototypes
        if readable(own):
            without = ~own.any(1)
            if bool(without.any()):
                raise ValueError(
                    f"query_labels: expected labels of prototypes, got {int(labels[without][0])}"
                )
        return own

    def _without_absent(self, inputs: tuple[Any, ...], weight: Tensor) -> tuple[Any, ...]:
        # The prototypes are no samples, however many they are.
        (queries,) = super()._without_absent(inputs[:1], weight)
        return queries, *inputs[1:]

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        prototypes = [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [9.0, 9.0, 9.0]]
        return Properties(
            convex=False,
            lower=0.0,
            lipschitz=2.0,
            smoothness=0,
            counterexamples={
                "convex": (
                    [[0.5, 0.0, 0.0]],
                    [[1.5, 0.0, 0.0]],
                    torch.tensor([0]),
                    prototypes,
                )
            },
            limits=(("two prototypes", "a triplet loss"),),
            unknown={"upper": "margin + the distance of the own prototype from another"},
            source="SuSana 2023",
        )


class ICNNLoss(EmbeddingLoss):
    r"""ICNN: minus the logarithm of a score of how classes lie among nearest neighbours.

    .. math:: L = -\log \frac12 \Bigl(\frac{\lambda_{\text{same}} + \lambda_{\text{diff}}}{2}
              + \gamma\Bigr)

    Of the k nearest neighbours of every row, gamma is the share that is of the row's class;
    lambda_same is high where those are near, beside the nearest one of another class, and
    lambda_diff where those of other classes are far. With d_ij = sqrt(|z_i - z_j|^2 + 1e-6) to
    neighbour j = 1, ..., J, nearest first, and nu_i the nearest distance to another class among
    them (infinite if none is):

    .. math:: r_{ij} = \frac{d_{ij}}{\nu_i + \epsilon} \Big/ \max\Bigl(1, \max_{j \le k}
              \frac{d_{ij}}{\nu_i + \epsilon}\Bigr), \qquad c_i = \sum_{j \le k} \text{same}_{ij}

    .. math:: \lambda_{\text{same}} = 1 - \frac{\sum_i \sum_{j \le k} \text{same}_{ij}\, r_{ij} /
              (c_i + \epsilon)}{\#\{c_i > 0\} + \epsilon}, \qquad
              \lambda_{\text{diff}} = \frac{\sum_i \sum_{j \le k} o_{ij} / (k - c_i + \epsilon)}
              {\#\{k - c_i > 0\} + \epsilon}

    with o_ij the distances to other classes among the k, over their largest. For few-shot episodes:
    it asks for compact classes with room between them, and makes no prototypes.

    Args:
        k: >= 1, neighbours that count. In a batch of n <= k + 2 rows k is n - 2, and gamma 1.
            Default 4.
        neighbours: J, from k to n - 1, among which the nearest row of another class is sought;
            shots plus queries per class in the authors' episodes. Default ``None``: k + 1.
        eps: > 0, in the denominators. Default 1e-7.
        score_eps: > 0, the least score: the loss is at most -log of that. Default 1e-12.
        gather: whether the rows of all processes are neighbours: ``"auto"`` (default) where
            ``torch.distributed`` runs several, ``True``, or ``False``: those of the own process.
        process_group: whose rows they are. Default ``None``: of all processes.
        reduction: see :class:`lossary.Loss`. Of one number they are all the same.

    Shape:
        embeddings (n, D), labels (n,) of any integers, n >= 3. The value is a single number, a
        score of the batch; it has no share of a row, and takes no ``weight``. n x n distances.

    Properties:
        The loss is batch-coupled. The score is in [0, 1] up to eps, so L >= 0. Unchanged by the
        order of the rows, by a rotation and a translation of all embeddings, and by their scale up
        to eps. Ranks, counts and gamma carry no gradient: it goes through the distances alone. Not
        continuous where neighbours change places.

    Limits:
        Tight classes far apart: L -> 0. A single class: lambda_same = lambda_diff = gamma = 1, and
        L = 0. No neighbour of another class among the k anywhere: lambda_diff = 1. No rows: 0.

    Note:
        The row itself is left out by its position; the authors' code drops the nearest column,
        which is another row where rows coincide. It also compares queries with prototypes, and
        there drops a real neighbour: only the form of one set is offered. Embeddings are not
        normalised. With several processes (``gather``) each computes the score of all rows, and the
        gradient averaged over the processes is that of one process with the whole batch.

    Raises:
        ValueError: ``k`` < 1, ``neighbours`` < k or >= n, ``eps`` or ``score_eps`` not positive and
            finite, n of 1 or 2, labels not of shape (n,), a ``process_group`` without this process.
        TypeError: labels that are not integers, embeddings that are not floating point.
        RuntimeError: ``gather=True`` without ``torch.distributed``.

    Reference:
        "SuSana Distancia is all you need: Enforcing class separability in metric learning via two
        novel distance-based loss functions for few-shot image classification", 2023. The score is
        the modified one of its first author's public module, against which it is verified; an older
        one with exponents is not used by the loss.

    Example:
        >>> import torch
        >>> from lossary import ICNNLoss
        >>> embeddings = torch.tensor([[0.0], [0.1], [1.0], [1.2], [3.0], [3.3]])
        >>> ICNNLoss(k=2)(embeddings, torch.tensor([0, 0, 1, 1, 2, 2]))
        tensor(0.4841)
    """

    def __init__(
        self,
        k: int = 4,
        neighbours: int | None = None,
        eps: float = 1e-7,
        score_eps: float = 1e-12,
        **options: Unpack[EmbeddingOptions],
    ) -> None:
        super().__init__(False, **options)
        self.k = check_int("k", k, 1)
        self.neighbours = None if neighbours is None else check_int("neighbours", neighbours, k)
        self.eps = check_positive("eps", eps)
        self.score_eps = check_positive("score_eps", score_eps)

    def per_sample(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return minus the logarithm of the score of the batch."""
        rows = self.labelled_rows(embeddings, labels)
        z, y = rows.every, rows.every_label
        n = len(z)
        if n == 0:
            return z.sum()
        if n < 3:
            raise ValueError(f"embeddings: expected at least 3 rows, or none, got {n}")
        if self.neighbours is not None and self.neighbours >= n:
            raise ValueError(
                f"neighbours: expected less than the {n} rows of the batch, got {self.neighbours}"
            )
        few = self.k + 2 >= n
        k = n - 2 if few else self.k
        itself = torch.eye(n, dtype=torch.bool, device=z.device)
        d = (squared_distances(z, z) + _ROOT_EPS).sqrt().masked_fill(itself, math.inf)
        near = d.topk(self.neighbours or k + 1, largest=False)
        same = y[near.indices] == y.unsqueeze(1)
        share = 1.0 if few else same[:, :k].to(d.dtype).mean()
        spread = (self._same(near.values, same, k) + self._different(near.values, same, k)) / 2.0
        score = (spread + share) / 2.0
        return -score.clamp(min=self.score_eps).log()

    def _same(self, d: Tensor, same: Tensor, k: int) -> Tensor:
        """Return how near the neighbours of the own class are, at most 1."""
        bounded = ~same.all(1, keepdim=True)
        nearest = torch.where(bounded, d.masked_fill(same, math.inf).amin(1, keepdim=True), 1.0)
        d, same = d[:, :k], same[:, :k]
        ratio = torch.where(bounded, d / (nearest + self.eps), 0.0)
        ratio = ratio / ratio.amax(1, keepdim=True).clamp(min=1.0)
        count = same.to(d.dtype).sum(1)
        means = torch.where(same, ratio, 0.0).sum(1) / (count + self.eps)
        return 1.0 - means.sum() / ((count > 0).to(d.dtype).sum() + self.eps)

    def _different(self, d: Tensor, same: Tensor, k: int) -> Tensor:
        """Return how far the neighbours of other classes are, at most 1."""
        other = ~same[:, :k]
        d = torch.where(other, d[:, :k], 0.0)
        d = d / (d.amax() + self.eps)
        count = other.to(d.dtype).sum(1)
        means = d.sum(1) / (count + self.eps)
        score = means.sum() / ((count > 0).to(d.dtype).sum() + self.eps)
        return torch.where(other.any(), score, 1.0)

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        return Properties(
            lower=0.0,
            limits=(("a single class", "0"), ("tight classes far apart", "0")),
            unknown={
                "convex": "a ratio of distances",
                "upper": "-log(score_eps) at most, which is not known to be reached",
                "lipschitz": "not continuous where neighbours change places",
                "smoothness": "not continuous where neighbours change places",
            },
            source="SuSana 2023",
        )
