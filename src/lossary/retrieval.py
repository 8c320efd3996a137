r"""Dense retrieval: queries and documents by their inner products.

.. math:: \ell(q, p, n) = -\log \frac{e^{\sigma s_{qp}}}{e^{\sigma s_{qp}} + e^{\sigma s_{qn}}}

Pairwise logistic losses: a relevant document p should score above another one n. What differs is
who the others are, and how much a pair counts.
"""

import math
from typing import Any, Unpack

import torch
from torch import Tensor

from lossary import _distributed
from lossary._base import Loss, LossOptions
from lossary._checks import (
    check_device,
    check_embeddings,
    check_floating,
    check_int,
    check_number,
    check_positive,
)
from lossary._numerics import softplus
from lossary._properties import Properties
from lossary._sequence_base import present_tokens


class PairwiseRankNetLoss(Loss):
    r"""STAR's pairwise logistic loss, with in-batch negatives and static hard ones.

    .. math:: \ell(q, p, n) = -\log \sigma\bigl(\sigma_0 (s_{qp} - s_{qn})\bigr), \qquad
              L = \frac{\sum_{\text{pairs}} \ell}{\text{number of pairs}}

    RankNet over the pairs of a query's document with every other document: those of the other
    queries of the batch, and hard negatives that were retrieved once before training. The hard ones
    teach the top of the ranking, the random ones keep the rest in place.

    Args:
        sigma: sigma_0 > 0, finite. Default 1.
        alpha: >= 0, finite: the weight of the mean over in-batch pairs beside the mean over hard
            ones, L = L_hard + alpha L_in-batch. ``None``, the default, pools all pairs, as the
            authors' code does; the paper's weighted sum is RECALLED.
        gather: whether the documents of all processes are negatives: ``"auto"`` (default) where
            ``torch.distributed`` runs several, ``True``, or ``False``: those of the own process.
        process_group: whose documents they are. Default ``None``: of all processes.
        reduction: see :class:`lossary.Loss`. The formula is ``"mean"``.

    Shape:
        queries (B, D), positives (B, D): row i is relevant for query i; hard_negatives (M, D),
        which every query is held against, or ``None``. in_batch_mask (B, B'), hard_mask (B, M'),
        bool or numbers 0 and 1: which pairs count, by default all but a query's own document; use
        them to leave out what is also relevant. B' and M' count the documents of all processes, in
        the order of their ranks, where those are gathered. Values (B,): the sum over the query's
        pairs, which counts in the mean as often as it has pairs. Inner products, (B, B' + M').

    Properties:
        The loss is batch-coupled. Convex in the inner products; l >= 0. l(d) - l(-d) = -sigma_0 d
        of a single pair with difference d. Unchanged by a rotation of all embeddings, and when the
        same vector is added to all documents.

    Limits:
        One negative: :class:`InfoNCELoss` with ``normalize=False`` and temperature 1/sigma_0. No
        pairs: 0.

    Note:
        Embeddings are not normalised. With several processes documents are gathered with a
        gradient, and ``"mean"`` divides by the pairs of all, times the number of processes. All of
        them must call it, forward and backward, with hard negatives or all without.

    Raises:
        ValueError: ``sigma`` not positive and finite, ``alpha`` negative or infinite; embeddings of
            shapes that do not fit; masks of other shapes, or other than 0 and 1 (on CPU tensors,
            where looking costs nothing); a ``process_group`` without this process.
        TypeError: hyper-parameters that are not numbers, embeddings that are not floating point;
            ``hard_mask`` without hard negatives.
        RuntimeError: ``gather=True`` without ``torch.distributed``.

    Reference:
        Zhan, Mao, Liu, Guo, Zhang, Ma, "Optimizing Dense Retrieval Model Training with Hard
        Negatives", 2021. Verified against the authors' code.

    Example:
        >>> import torch
        >>> from lossary import PairwiseRankNetLoss
        >>> queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> positives = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> PairwiseRankNetLoss()(queries, positives)
        tensor(0.2201)
        >>> PairwiseRankNetLoss()(queries, positives, torch.tensor([[1.0, 1.0]]))
        tensor(0.3616)
    """

    separable = False

    def __init__(
        self,
        sigma: float = 1.0,
        alpha: float | None = None,
        *,
        gather: bool | str = "auto",
        process_group: Any = None,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(**options)
        self.sigma = check_positive("sigma", sigma)
        self.alpha = None if alpha is None else check_number("alpha", alpha, 0.0, high_open=True)
        _distributed.check_gather(gather, process_group)
        self.gather = gather
        self.process_group = process_group

    def per_sample(
        self,
        queries: Tensor,
        positives: Tensor,
        hard_negatives: Tensor | None = None,
        in_batch_mask: Tensor | None = None,
        hard_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the sum over the pairs of every query, and their number."""
        check_embeddings(queries=queries, positives=positives)
        documents, first = self._every(positives)
        own = (queries * positives).sum(1, keepdim=True)
        columns = torch.arange(len(documents), device=queries.device)
        rows = torch.arange(first, first + len(queries), device=queries.device)
        pairs = rows.unsqueeze(1) != columns
        near = queries @ documents.t() - own
        if in_batch_mask is not None:
            pairs = pairs & present_tokens(in_batch_mask, near.shape, queries, "in_batch_mask")
        sums = [self._sum(near, pairs)]
        if hard_negatives is None:
            if hard_mask is not None:
                raise TypeError(
                    f"hard_mask: expected None without hard_negatives, got {type(hard_mask)}"
                )
        else:
            check_embeddings(hard_negatives=hard_negatives)
            if hard_negatives.shape[1] != queries.shape[1]:
                raise ValueError(
                    f"hard_negatives: expected shape (M, {queries.shape[1]}), "
                    f"got {tuple(hard_negatives.shape)}"
                )
            check_device("hard_negatives", hard_negatives, queries)
            far = queries @ self._every(hard_negatives)[0].t() - own
            there = torch.ones_like(far, dtype=torch.bool)
            if hard_mask is not None:
                there = present_tokens(hard_mask, far.shape, queries, "hard_mask")
            sums.append(self._sum(far, there))
        return self._pooled(sums) if self.alpha is None else self._balanced(sums)

    def _every(self, documents: Tensor) -> tuple[Tensor, int]:
        if not self._gathers():
            return documents, 0
        (every,), first = _distributed.gather_with_gradient(documents, group=self.process_group)
        return every, first

    def _sum(self, excess: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Return every query's sum over the pairs, and their number."""
        values = softplus(self.sigma * excess.masked_fill(~pairs, 0.0))
        return values.masked_fill(~pairs, 0.0).sum(1), pairs.sum(1).to(excess.dtype)

    @staticmethod
    def _pooled(sums: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        values, counts = zip(*sums, strict=True)
        return torch.stack(values).sum(0), torch.stack(counts).sum(0)

    def _balanced(self, sums: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Return the queries' shares of the weighted sum of the means, which their mean is."""
        ones = torch.ones_like(sums[0][0])
        totals = torch.stack([ones.sum(), *(count.sum() for _, count in sums)])
        if self._gathers():
            totals = _distributed.sum_over_ranks(totals, self.process_group)
        queries, *counts = totals
        # In-batch pairs come first, the hard ones, whose weight is 1, after them.
        weights = (self.alpha, 1.0)
        shares = [
            weight * values / count.clamp(min=1.0)
            for weight, (values, _), count in zip(weights, sums, counts, strict=False)
            if weight is not None
        ]
        return queries * torch.stack(shares).sum(0), ones

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        return Properties(
            limits=(("one negative", "InfoNCELoss(1/sigma, normalize=False)"),),
            unknown={
                "convex": "convex in the inner products, which are not linear in the embeddings",
                "lower": "0, but for a query without other documents",
                "upper": "inf, but for a query without other documents",
                "lipschitz": "grows with the other embeddings",
                "smoothness": "infinitely smooth, but the sample has no pair alone",
            },
            source="Zhan et al. 2021",
        )


class ADORELoss(Loss):
    r"""ADORE's loss: pairwise, weighted by what a swap would change in the retrieved list.

    .. math:: \ell = \frac{1}{P} \sum_{i \in R} \sum_{j \notin R} \lvert a_i - a_j \rvert
              \log\bigl(1 + e^{\sigma (s_j - s_i)}\bigr), \qquad
              a_r = \frac1r \text{ for } r \le c, \text{ else } 0

    with R the relevant documents of the list, P the number of pairs, and a_r the reciprocal rank:
    LambdaLoss for the mean reciprocal rank. Train the query encoder on what it retrieves at every
    step, against fixed documents, so that it meets the negatives it will meet later.

    Args:
        cutoff: c >= 1: ranks beyond it count alike. ``None``: no cut. Default 200.
        sigma: > 0, finite. Default 1.
        reduction: see :class:`lossary.Loss`.

    Shape:
        scores (B, K), in the order of the retrieval: column r - 1 has rank r; relevance (B, K),
        bool or numbers 0 and 1; mask (B, K) likewise, 0 where there is no document, or ``None``.
        Values (B,). O(B K^2) pairs. Relevant documents that were not retrieved are appended after
        the list, as the authors do.

    Properties:
        Convex in the scores, infinitely smooth, l >= 0, unbounded above. The gradient in the scores
        sums to 0 over a list. A pair with both ranks beyond the cutoff counts nothing. A query
        without a relevant document, or without another, has the value 0 and stays in the mean.
        What the mask leaves out may be infinite or nan.

    Limits:
        K = 2, the relevant document first: log(1 + exp(sigma (s_2 - s_1)))/2.

    Note:
        Ranks are positions; the scores are not sorted again. In the authors' code ``cutoff=None``
        sets all weights to 0; the command that they published has 200.

    Raises:
        ValueError: ``cutoff`` < 1, ``sigma`` not positive and finite; scores not (B, K); relevance
            or mask of another shape, or other than 0 and 1 (on CPU tensors, where looking costs
            nothing).
        TypeError: ``cutoff`` not an int, ``sigma`` not a number; scores that are not floating
            point.

    Reference:
        Zhan, Mao, Liu, Guo, Zhang, Ma, "Optimizing Dense Retrieval Model Training with Hard
        Negatives", 2021. Verified against the authors' code.

    Example:
        >>> import torch
        >>> from lossary import ADORELoss
        >>> ADORELoss()(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[0, 1, 0]]))
        tensor(0.3544)
    """

    def __init__(
        self, cutoff: int | None = 200, sigma: float = 1.0, **options: Unpack[LossOptions]
    ) -> None:
        super().__init__(**options)
        self.cutoff = None if cutoff is None else check_int("cutoff", cutoff, 1)
        self.sigma = check_positive("sigma", sigma)

    def per_sample(self, scores: Tensor, relevance: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the loss of every query, unreduced."""
        check_floating("scores", scores)
        if scores.dim() != 2:
            raise ValueError(f"scores: expected shape (B, K), got {tuple(scores.shape)}")
        relevant = present_tokens(relevance, scores.shape, scores, "relevance")
        other = ~relevant
        if mask is not None:
            there = present_tokens(mask, scores.shape, scores, "mask")
            relevant, other = relevant & there, other & there
            scores = scores.masked_fill(~there, 0.0)
        ranks = torch.arange(1, scores.shape[1] + 1, device=scores.device)
        gain = 1.0 / ranks.to(scores.dtype)
        if self.cutoff is not None:
            gain = gain.masked_fill(ranks > self.cutoff, 0.0)
        weight = (gain.unsqueeze(1) - gain).abs()
        pairs = relevant.unsqueeze(2) & other.unsqueeze(1)
        terms = weight * softplus(self.sigma * (scores.unsqueeze(1) - scores.unsqueeze(2)))
        counts = pairs.sum((1, 2)).clamp(min=1)
        return terms.masked_fill(~pairs, 0.0).sum((1, 2)) / counts

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        return Properties(
            convex=True,
            lower=0.0,
            upper=math.inf,
            lipschitz=self.sigma * math.sqrt(2.0),
            smoothness=math.inf,
            counterexamples={"upper": ([[-1.0, 0.0, 0.0, 0.0]], [[1, 0, 0, 0]])},
            source="Zhan et al. 2021",
        )
