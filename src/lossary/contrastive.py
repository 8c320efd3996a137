r"""Contrastive losses: tell the embedding that belongs to an anchor from all the others.

.. math:: \ell_i = -\frac{s_{ii}}{\tau} + \log \sum_{k \in C(i)} e^{s_{ik}/\tau}

Cross-entropy over similarities: every row of the matrix :math:`s/\tau` is a row of logits, and the
positive is its class. The losses differ in who the candidates :math:`C(i)` are. A small temperature
looks at the nearest negatives only, a large one at all of them alike.
"""

import math
from dataclasses import replace
from typing import Unpack

import torch
from torch import Tensor, nn

from lossary import _distributed, _similarity, _softmax
from lossary._checks import (
    check_choice,
    check_device,
    check_embeddings,
    check_floating,
    check_int,
    check_like,
    check_number,
    check_positive,
)
from lossary._embedding_base import TiledEmbeddingLoss, TiledOptions, cross_entropy, log_odds
from lossary._numerics import softplus
from lossary._properties import Properties


class _Contrastive(TiledEmbeddingLoss):
    """What the losses over a matrix of similarities at one temperature share."""

    def __init__(
        self, temperature: float, normalize: bool, **options: Unpack[TiledOptions]
    ) -> None:
        super().__init__(normalize, **options)
        self.temperature = check_positive("temperature", temperature)

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        unknown = {
            "convex": "convex in the similarities, which are not linear in the embeddings",
            "lipschitz": "without bound near a row of zeros, or in the length of the other rows",
        }
        if self.normalize:
            unknown["upper"] = "grows with the number of candidates: see the docstring"
            unknown["smoothness"] = "smooth but for rows of zeros, where the cosine jumps"
        return Properties(
            lower=0.0,
            upper=None if self.normalize else math.inf,
            smoothness=None if self.normalize else math.inf,
            counterexamples={} if self.normalize else {"upper": self._unbounded()},
            limits=(("tau -> 0", "tau * loss -> max(0, hardest negative - positive)"),),
            unknown=unknown,
            source="Wang, Liu 2021",
        )

    @staticmethod
    def _unbounded() -> tuple[list[list[float]], ...]:
        return [[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]


def _own_similarities(q: Tensor, keys: Tensor) -> Tensor:
    """Return those of every row of q (N, D) with keys (N, M, D) of its own."""
    return (keys @ q.unsqueeze(2)).squeeze(2)


class _Paired(_Contrastive):
    """Queries with a positive each, among the positives of the others and further negatives."""

    symmetric: bool = False
    in_batch: bool = True

    def _among(self, q: Tensor, p: Tensor, n: Tensor | None) -> Tensor:
        """Return the loss of every query, of rows whose inner products are the logits."""
        values = self._dense if self.tile_size is None else self._tiled
        if not (self.in_batch and self._gathers()):
            return values(q, p, p, 0, n, self.symmetric)
        group = self.process_group
        if not self.symmetric:
            (keys,), first = _distributed.gather_with_gradient(p, group=group)
            return values(q, p, keys, first, n, False)
        (queries, keys), first = _distributed.gather_with_gradient(q, p, group=group)
        forward, back = (
            values(q, p, keys, first, n, False),
            values(p, q, queries, first, None, False),
        )
        return (forward + back) / 2

    def _dense(
        self, q: Tensor, p: Tensor, keys: Tensor, first: int, n: Tensor | None, both: bool
    ) -> Tensor:
        """Return the loss of the rows q, whose positives p are the keys from ``first`` on.

        With ``both``, of keys that are p: the mean with the loss of p among the rows q.
        """
        if self.in_batch:
            logits, target = q @ keys.t(), torch.arange(first, first + len(q), device=q.device)
        else:
            logits = (q * p).sum(1, keepdim=True)
            target = torch.zeros(len(q), dtype=torch.long, device=q.device)
        back = cross_entropy(logits, target, class_dim=0) if both else None
        if n is not None:
            far = q @ n.t() if n.dim() == 2 else _own_similarities(q, n)
            logits = torch.cat((logits, far), 1)
        value = self._of_logits(logits, target)
        return value if back is None else (value + back) / 2

    def _of_logits(self, logits: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(logits, target)

    def _tiled(
        self, q: Tensor, p: Tensor, keys: Tensor, first: int, n: Tensor | None, both: bool
    ) -> Tensor:
        """Return the same without the matrix."""
        assert self.tile_size is not None
        own, keys, mask, far = self._candidates(q, p, keys, first, n)
        rest, *columns = _similarity.log_sum_exp(
            q, keys, mask, tile_size=self.tile_size, bound=self._bound(), columns=both
        )
        if far is not None:
            rest = torch.logaddexp(rest, far.logsumexp(1))
        value = softplus(rest - own)
        return (value + softplus(columns[0][: len(q)] - own)) / 2 if columns else value

    def _candidates(
        self, q: Tensor, p: Tensor, keys: Tensor, first: int, n: Tensor | None
    ) -> tuple[Tensor, Tensor, _similarity.Mask, Tensor | None]:
        """Return the positives' logits, keys and who is no negative, and logits beside the keys.

        The latter of negatives (N, M, D): they are fewer than the numbers in these.
        """
        own = (q * p).sum(1)
        target = torch.arange(first, first + len(q), device=q.device).unsqueeze(1)
        if not self.in_batch:
            keys, target = p[:0], target[:, :0]
        if n is not None and n.dim() == 2:
            keys = torch.cat((keys, n))
        far = _own_similarities(q, n) if n is not None and n.dim() == 3 else None
        return own, keys, _similarity.Mask(target), far

    def _bound(self) -> float:
        """Return what no logit exceeds, where that is known without asking a device."""
        return 1.0 / self.temperature if self.normalize else math.inf

    def _check_negatives(self, query: Tensor, negatives: Tensor | None) -> None:
        if negatives is None:
            if not self.in_batch:
                raise ValueError("negatives: expected a tensor with in_batch=False, got None")
            return
        check_floating("negatives", negatives)
        n, width = query.shape
        shape = tuple(negatives.shape)
        if len(shape) not in (2, 3) or shape[-1] != width or (len(shape) == 3 and shape[0] != n):
            raise ValueError(
                f"negatives: expected shape (M, {width}) or ({n}, M, {width}), got {shape}"
            )
        check_device("negatives", negatives, query)


class InfoNCELoss(_Paired):
    r"""InfoNCE: cross-entropy of the positive among in-batch and further negatives.

    .. math:: \ell_i = -\frac{s_{ii}}{\tau} + \log \sum_{k \in C(i)} e^{s_{ik}/\tau}, \qquad
              s_{ik} = \frac{\langle q_i, p_k \rangle}{\lVert q_i \rVert \lVert p_k \rVert}

    C(i) holds the positive of query i, the positives of the other queries if ``in_batch``, and the
    ``negatives``. Use it for pairs that belong together: two modalities (``symmetric=True`` is
    CLIP's loss), queries and documents, a momentum encoder with a queue (``in_batch=False`` and
    ``negatives``). For two views of one sample see :class:`NTXentLoss`, whose candidates include
    the other rows of the same view.

    Args:
        temperature: tau > 0. Default 0.07. With ``learnable_temperature``, where it starts.
        symmetric: also tell the query of a positive from the other queries, and take the mean of
            both. There the candidates are the queries of the batch. Default ``False``.
        in_batch: the positives of the other queries are negatives. Default ``True``.
        normalize: divide the rows by their norm, so that s is the cosine. Default ``True``. A row
            of norm below 1e-6 is divided by 1e-6 (1e-12 in float64).
        learnable_temperature: make log(1/tau) a parameter, ``log_scale``, as in CLIP. tau is held
            at 0.01 at least; there the parameter still gets its gradient, and so can return.
        gather: whether the rows of all processes are the candidates: ``"auto"`` (default) where
            ``torch.distributed`` runs several, ``True``, or ``False``: those of the own process.
        process_group: whose rows they are. Default ``None``: of all processes.
        tile_size: rows and columns of the tiles in which the similarities are made, forward and
            backward, and never held: memory grows as N, not N^2. First derivatives only. 512 or
            1024 is fast; it pays from thousands of rows on. Default ``None``: the matrix is held.
        reduction: see :class:`lossary.Loss`.

    Shape:
        query (N, D), positive (N, D), negatives (M, D), shared by all queries, or (N, M, D).
        Values (N,), one per query. Dense, a matrix of N x (N + M) similarities, or in tiles with
        ``tile_size``; negatives (N, M, D) are met densely, being larger than their similarities.

    Properties:
        The loss is batch-coupled. With K candidates and cosines it lies between
        log(1 + (K-1) exp(-2/tau)) and log(1 + (K-1) exp(2/tau)). The pull on the positive is
        -(1/tau) sum_{k != i} P_ik and the push of a negative P_ik/tau, so the relative penalties
        of the negatives are softmax(s/tau) over them, whatever s_ii is; their entropy rises with
        tau. log K - E[loss] is a lower bound of the mutual information of query and positive.
        Unchanged by a rotation of all embeddings and by the length of any row. Convex in the
        similarities. With ``normalize=False`` unbounded above.

    Limits:
        tau -> 0: tau * loss -> max(0, max_k s_ik - s_ii). tau -> inf: log K +
        sum_{k != i} (s_ik - s_ii) / (K tau) + Var_k(s) / (2 tau^2). One negative:
        softplus((s_n - s_p)/tau). N = 1 without negatives: 0.

    Note:
        It is computed from the log-odds of the positive, so that tiny values keep their digits.
        With several processes (``gather``) own anchors are held against the rows of all, and
        ``"mean"`` divides by what all have, times their number: averaged over the processes, the
        parameters' gradient is that of one process with the whole batch, also of unequal batches.
        All of them must call it, forward and backward. ``negatives`` are not gathered: a queue is
        the same everywhere, and hard negatives are the query's own. ``fully_shard`` takes no scalar
        parameters: with a learnt temperature wrap the loss by itself in
        ``DistributedDataParallel``.

    Raises:
        ValueError: ``temperature`` <= 0, or below 0.01 if it is to be learnt; shapes that differ;
            ``in_batch=False`` without negatives, or with ``symmetric``; ``tile_size`` < 1;
            a ``process_group`` without this process.
        TypeError: embeddings that are not floating-point tensors.
        RuntimeError: ``gather=True`` without ``torch.distributed``; second derivatives, forward
            mode or ``vmap`` with ``tile_size``.

    Reference:
        van den Oord, Li, Vinyals, "Representation Learning with Contrastive Predictive Coding",
        2018, eq. 4. Gradients and limits: Wang, Liu, "Understanding the Behaviour of Contrastive
        Loss", 2021. Symmetric: Radford et al., "Learning Transferable Visual Models From Natural
        Language Supervision", 2021.

    Example:
        >>> import torch
        >>> from lossary import InfoNCELoss
        >>> loss = InfoNCELoss(temperature=0.5)
        >>> query = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> positive = torch.tensor([[3.0, 1.0], [1.0, 1.0]])
        >>> loss(query, positive)
        tensor(0.4286)
        >>> loss(query, positive, negatives=torch.tensor([[-1.0, 0.0]]))
        tensor(0.5120)
    """

    def __init__(
        self,
        temperature: float = 0.07,
        symmetric: bool = False,
        in_batch: bool = True,
        normalize: bool = True,
        learnable_temperature: bool = False,
        **options: Unpack[TiledOptions],
    ) -> None:
        super().__init__(temperature, normalize, **options)
        check_choice("symmetric", symmetric, (True, False))
        check_choice("in_batch", in_batch, (True, False))
        check_choice("learnable_temperature", learnable_temperature, (True, False))
        if symmetric and not in_batch:
            raise ValueError(
                "symmetric: expected False with in_batch=False, where a positive has no other "
                "queries to be told from, got True"
            )
        if learnable_temperature:
            check_number("temperature", temperature, 0.01, math.inf, high_open=True)
            self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.symmetric = symmetric
        self.in_batch = in_batch
        self.learnable_temperature = learnable_temperature

    def per_sample(
        self, query: Tensor, positive: Tensor, negatives: Tensor | None = None
    ) -> Tensor:
        """Return the loss of every query, unreduced."""
        check_embeddings(query=query, positive=positive)
        self._check_negatives(query, negatives)
        q, p = self.units(query, positive)
        n = None if negatives is None else self.units(negatives)[0]
        return self._among(q * self._scale(q), p, n)

    def _scale(self, like: Tensor) -> float | Tensor:
        """Return 1/tau."""
        if not self.learnable_temperature:
            return 1.0 / self.temperature
        excess = (self.log_scale - math.log(100.0)).clamp(min=0.0).detach()
        return torch.exp(self.log_scale - excess).to(like.dtype)

    def _bound(self) -> float:
        return math.inf if self.learnable_temperature else super()._bound()


class _TwoViews(_Contrastive):
    """Two views of every sample, told from both views of the other samples."""

    def _log_odds(self, z: Tensor, keys: Tensor, position: Tensor) -> Tensor:
        """Return of every row how far those of other samples stand above its other view."""
        other = position.roll(len(z) // 2)
        if self.tile_size is not None:
            absent = torch.stack((position, other), 1)
            return self._tiled_log_odds(z, keys, absent, self.tile_size)
        is_self = position.unsqueeze(1) == torch.arange(len(keys), device=z.device)
        logits = (z @ keys.t() / self.temperature).masked_fill(is_self, -math.inf)
        return log_odds(logits, other)

    def _tiled_log_odds(self, z: Tensor, keys: Tensor, absent: Tensor, tile_size: int) -> Tensor:
        """Return the same without the matrix: of row i, the keys ``absent`` are no negatives."""
        mask = _similarity.Mask(absent)
        bound = 1.0 / self.temperature if self.normalize else math.inf
        root, alone = self.temperature**-0.5, keys is z
        z = z * root
        if alone:
            rest = _similarity.self_log_sum_exp(z, mask, tile_size=tile_size, bound=bound)
        else:
            keys = keys * root
            (rest,) = _similarity.log_sum_exp(z, keys, mask, tile_size=tile_size, bound=bound)
        return rest - _positives(z).repeat(2)

    @staticmethod
    def _unbounded() -> tuple[list[list[float]], ...]:
        return [[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]


def _positives(z: Tensor) -> Tensor:
    """Return the similarity of the two views of every sample, which stand one after the other."""
    return (z[: len(z) // 2] * z[len(z) // 2 :]).sum(1)


def _mean_of_views(values: Tensor) -> Tensor:
    return (values[: len(values) // 2] + values[len(values) // 2 :]) / 2


class NTXentLoss(_TwoViews):
    r"""NT-Xent: the loss of SimCLR, over two views of every sample.

    .. math:: \ell_a = -\frac{s_{a a'}}{\tau} + \log \sum_{b \ne a} e^{s_{ab}/\tau}

    over the 2N rows of both views, where a' is the other view of the sample of a; the value of a
    sample is the mean over its two views. Use it to learn from augmented views without labels.

    Args:
        temperature: tau > 0. Default 0.5. SimCLR's best values lie between 0.1 and 0.5.
        normalize: divide the rows by their norm, so that s is the cosine. Default ``True``. A row
            of norm below 1e-6 is divided by 1e-6 (1e-12 in float64).
        gather: whether the rows of all processes are the candidates: ``"auto"`` (default) where
            ``torch.distributed`` runs several, ``True``, or ``False``: those of the own process.
        process_group: whose rows they are. Default ``None``: of all processes.
        tile_size: rows and columns of the tiles in which the similarities are made, forward and
            backward, and never held: memory grows as N, not N^2. First derivatives only. 512 or
            1024 is fast; it pays from thousands of rows on. Default ``None``: the matrix is held.
        reduction: see :class:`lossary.Loss`.

    Shape:
        z1 (N, D), z2 (N, D): row i of both is a view of sample i. Values (N,), one per sample.
        Dense, a matrix of 2N x 2N similarities, or in tiles with ``tile_size``, where each serves
        its mirror image too.

    Properties:
        The loss is batch-coupled. It is the same with z1 and z2 exchanged, under a rotation of all
        embeddings, and for any length of a row. With cosines it lies between
        log(1 + 2(N-1) exp(-2/tau)) and log(1 + 2(N-1) exp(2/tau)). Convex in the similarities.
        With ``normalize=False`` unbounded above.

    Limits:
        tau -> 0: tau * loss -> max(0, hardest negative - positive), per view. N = 1: there is
        nothing to tell apart, and the loss is 0.

    Note:
        With several processes (``gather``) own anchors are held against the rows of all, and
        ``"mean"`` divides by what all have, times their number: averaged over the processes, the
        parameters' gradient is that of one process with the whole batch, also of unequal batches.
        All of them must call it, forward and backward.

    Raises:
        ValueError: ``temperature`` <= 0, shapes that differ, ``tile_size`` < 1;
            a ``process_group`` without this process.
        TypeError: embeddings that are not floating-point tensors.
        RuntimeError: ``gather=True`` without ``torch.distributed``; second derivatives, forward
            mode or ``vmap`` with ``tile_size``.

    Reference:
        Chen, Kornblith, Norouzi, Hinton, "A Simple Framework for Contrastive Learning of Visual
        Representations", 2020, eq. 1.

    Example:
        >>> import torch
        >>> from lossary import NTXentLoss
        >>> z1 = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> z2 = torch.tensor([[3.0, 1.0], [1.0, 1.0]])
        >>> NTXentLoss()(z1, z2)
        tensor(0.7797)
    """

    def __init__(
        self,
        temperature: float = 0.5,
        normalize: bool = True,
        **options: Unpack[TiledOptions],
    ) -> None:
        super().__init__(temperature, normalize, **options)

    def per_sample(self, z1: Tensor, z2: Tensor) -> Tensor:
        """Return the loss of every sample, unreduced."""
        check_embeddings(z1=z1, z2=z2)
        return _mean_of_views(softplus(self._log_odds(*self.rows_of_all(z1, z2))))


_OF_DCL = (("tau -> 0", "tau * loss -> hardest negative - positive"),)


class DCLLoss(_TwoViews):
    r"""Decoupled contrastive loss: NT-Xent without the positive in the denominator.

    .. math:: \ell_a = -w_i \frac{s_{a a'}}{\tau} + \log \sum_{b} e^{s_{ab}/\tau}, \qquad
              w_i = \operatorname{sg}\Big[2 - N
              \frac{e^{s_{ii'}/\sigma}}{\sum_j e^{s_{jj'}/\sigma}}\Big] \ \text{ or } \ 1

    over the 2(N - 1) rows b of both views of the other samples, where a' is the other view of the
    sample i of a; the value of a sample is the mean over its two views. In NT-Xent the gradient of
    a sample vanishes once its positive stands out; here it does not, so that small batches learn
    more. ``weighting="vmf"`` weighs positives up that are still far apart.

    Args:
        temperature: tau > 0. Default 0.1.
        weighting: ``None`` (default) for w = 1, or ``"vmf"``, the von Mises-Fisher weights.
        sigma: > 0, the concentration of these weights. Default 0.5. Without them not used.
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
        z1 (N, D), z2 (N, D): row i of both is a view of sample i; N >= 2, over all processes.
        Values (N,), one per sample. Dense, O(N^2) memory for 2N x 2N similarities, or O(N D) with
        ``tile_size``, where each tile serves its mirror image too.

    Properties:
        The loss is batch-coupled, and not bounded below by 0: with cosines and w = 1 it lies
        between log(2(N-1)) - 2/tau and log(2(N-1)) + 2/tau, so over all N >= log 2 - 2/tau. The
        weights sum to N over the samples of all processes, are below 2, and may be negative. They
        carry no gradient: that in s_aa' is -w/tau, in s_ab softmax_b(s/tau)/tau. The same with z1
        and z2 exchanged, under a rotation of all embeddings, and for any length of a row. Without
        weights convex in the similarities. With ``normalize=False`` unbounded.

    Limits:
        NT-Xent is softplus of this, anchor by anchor. tau -> 0: tau * loss -> hardest negative -
        positive, per view. sigma -> inf: w = 1. Twice tau times its gradient is that of
        :class:`GlobalContrastiveLoss` at gamma = 1.

    Note:
        With several processes (``gather``) own anchors are held against the rows of all, the
        weights are those among the samples of all, and ``"mean"`` divides by what all have, times
        their number: averaged over the processes, the parameters' gradient is that of one process
        with the whole batch, also of unequal batches. All of them must call it, forward and
        backward.

    Raises:
        ValueError: ``temperature`` or ``sigma`` <= 0, an unknown ``weighting``, shapes that differ,
            N = 1, ``tile_size`` < 1, a ``process_group`` without this process.
        TypeError: embeddings that are not floating-point tensors.
        RuntimeError: ``gather=True`` without ``torch.distributed``; second derivatives, forward
            mode or ``vmap`` with ``tile_size``.

    Reference:
        Yeh, Hong, Hsu, Liu, Chen, LeCun, "Decoupled Contrastive Learning", 2021.

    Example:
        >>> import torch
        >>> from lossary import DCLLoss
        >>> z1 = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> z2 = torch.tensor([[3.0, 1.0], [1.0, 1.0]])
        >>> DCLLoss(0.5)(z1, z2)
        tensor(0.1104)
        >>> DCLLoss(0.5, weighting="vmf")(z1, z2)
        tensor(0.1677)
    """

    def __init__(
        self,
        temperature: float = 0.1,
        weighting: str | None = None,
        sigma: float = 0.5,
        normalize: bool = True,
        **options: Unpack[TiledOptions],
    ) -> None:
        super().__init__(temperature, normalize, **options)
        check_choice("weighting", weighting, (None, "vmf"))
        self.weighting = weighting
        self.sigma = check_positive("sigma", sigma)

    def per_sample(self, z1: Tensor, z2: Tensor) -> Tensor:
        """Return the loss of every sample, unreduced."""
        check_embeddings(z1=z1, z2=z2)
        z, keys, position = self.rows_of_all(z1, z2)
        if len(keys) == 2:
            over = ", over all processes" if keys is not z else ""
            raise ValueError(
                f"z1: expected at least 2 samples{over}, the others are the negatives, got 1"
            )
        value = _mean_of_views(self._log_odds(z, keys, position))
        if self.weighting is None:
            return value
        # The log-odds hold the positive with weight 1.
        positive, every = _positives(z), _positives(keys).detach() / self.sigma
        share = torch.exp(positive.detach() / self.sigma - every.logsumexp(0))
        return value + (len(every) * share - 1.0) * positive / self.temperature

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        p = super().properties()
        same = [[1.0, 0.0], [-1.0, 0.0]]
        if not self.normalize:
            far = {"lower": (same, same)}
            return replace(
                p, lower=-math.inf, limits=_OF_DCL, counterexamples={**p.counterexamples, **far}
            )
        if self.weighting is None:
            return replace(p, lower=math.log(2.0) - 2.0 / self.temperature, limits=_OF_DCL)
        unknown = {**p.unknown, "lower": "falls with the number of samples"}
        return replace(p, lower=None, limits=_OF_DCL, unknown=unknown)


class HardContrastiveLoss(_Paired):
    r"""Hard contrastive loss: InfoNCE over the nearest negatives of each anchor alone.

    .. math:: \ell_i = -\frac{s_{ii}}{\tau} + \log \Big( e^{s_{ii}/\tau} +
              \sum_{k \in H_i} e^{s_{ik}/\tau} \Big), \qquad
              \ell_i^{\text{simple}} = -s_{ii} + \lambda \sum_{k \in H_i} s_{ik}

    with H_i those of the n negatives of query i that are at least as near as the ceil(alpha n)-th
    nearest. A small temperature makes InfoNCE look at hard negatives, but also push apart what is
    alike; choosing them allows a larger temperature, or with ``simple=True`` none at all.

    Args:
        temperature: tau > 0. Default 0.2. With ``simple`` not used.
        alpha: in (0, 1], the share of the negatives that is kept, at least one of them. Default
            ``None``: 0.1, unless ``num_hard`` says how many.
        num_hard: at least 1, how many negatives are kept; all of them where there are fewer.
            Default ``None``: the share alpha.
        simple: the sum of similarities in place of the logarithm. Default ``False``.
        lambda_simple: >= 0, its weight lambda. Default 1. ``1/num_hard`` is the mean over the
            negatives kept.
        normalize: divide the rows by their norm, so that s is the cosine. Default ``True``. A row
            of norm below 1e-6 is divided by 1e-6 (1e-12 in float64).
        in_batch: the positives of the other queries are negatives. Default ``True``.
        gather: whether the rows of all processes are the candidates: ``"auto"`` (default) where
            ``torch.distributed`` runs several, ``True``, or ``False``: those of the own process.
        process_group: whose rows they are. Default ``None``: of all processes.
        tile_size: rows and columns of the tiles in which the similarities are made, and never held
            all at once. First derivatives only. Default ``None``: the matrix is held.
        reduction: see :class:`lossary.Loss`.

    Shape:
        query (N, D), positive (N, D), negatives (M, D), shared by all queries, or (N, M, D), as in
        :class:`InfoNCELoss`. Values (N,), one per query. Dense, O(N (N + M)) memory. With
        ``tile_size`` O((N + M) (D + tile_size)): to find the threshold, whole rows are made first,
        ``tile_size`` of them at a time; negatives (N, M, D) are met densely.

    Properties:
        The loss is batch-coupled. The threshold carries no gradient, and negatives below it have
        none; on those that are kept it is that of InfoNCE. All that are equal to the threshold are
        kept, so that the order of rows changes nothing. Between 0 and InfoNCE over all negatives,
        and nondecreasing in alpha. Not continuous in how many are kept, but continuous in the
        embeddings, with kinks where two negatives change places (ties aside: an exact tie adds a
        term). With ``simple`` linear in the similarities, piece by piece.

    Limits:
        alpha = 1: :class:`InfoNCELoss`. One negative kept: softplus((max_k s_ik - s_ii)/tau).
        N = 1 without negatives: 0, with ``simple`` -s_ii.

    Note:
        With several processes (``gather``) own anchors are held against the rows of all, and
        ``"mean"`` divides by what all have, times their number: averaged over the processes, the
        parameters' gradient is that of one process with the whole batch, also of unequal batches.
        All of them must call it, forward and backward. ``negatives`` are not gathered. The default
        temperature and alpha are this library's.

    Raises:
        ValueError: ``temperature`` <= 0, ``alpha`` outside (0, 1], both ``alpha`` and ``num_hard``,
            ``num_hard`` < 1, ``lambda_simple`` < 0; shapes that differ; ``in_batch=False`` without
            negatives; ``tile_size`` < 1; a ``process_group`` without this process.
        TypeError: embeddings that are not floating-point tensors.
        RuntimeError: ``gather=True`` without ``torch.distributed``; second derivatives, forward
            mode or ``vmap`` with ``tile_size``.

    Reference:
        Wang, Liu, "Understanding the Behaviour of Contrastive Loss", 2021, eqs. 8 and 9.

    Example:
        >>> import torch
        >>> from lossary import HardContrastiveLoss
        >>> query = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> positive = torch.tensor([[3.0, 1.0], [1.0, 1.0]])
        >>> far = torch.tensor([[-1.0, 0.0], [0.0, -1.0]])
        >>> HardContrastiveLoss(0.5, num_hard=1)(query, positive, far)
        tensor(0.4286)
        >>> HardContrastiveLoss(0.5, alpha=1.0)(query, positive, far)
        tensor(0.5654)
    """

    def __init__(
        self,
        temperature: float = 0.2,
        alpha: float | None = None,
        num_hard: int | None = None,
        simple: bool = False,
        lambda_simple: float = 1.0,
        normalize: bool = True,
        in_batch: bool = True,
        **options: Unpack[TiledOptions],
    ) -> None:
        super().__init__(temperature, normalize, **options)
        if alpha is not None and num_hard is not None:
            raise ValueError(f"num_hard: expected None beside alpha={alpha}, got {num_hard}")
        if num_hard is None:
            given = 0.1 if alpha is None else alpha
            alpha = check_number("alpha", given, 0.0, 1.0, low_open=True)
        self.alpha = alpha
        self.num_hard = None if num_hard is None else check_int("num_hard", num_hard, 1)
        check_choice("simple", simple, (True, False))
        check_choice("in_batch", in_batch, (True, False))
        self.simple = simple
        self.lambda_simple = check_number("lambda_simple", lambda_simple, 0.0, high_open=True)
        self.in_batch = in_batch

    def per_sample(
        self, query: Tensor, positive: Tensor, negatives: Tensor | None = None
    ) -> Tensor:
        """Return the loss of every query, unreduced."""
        check_embeddings(query=query, positive=positive)
        self._check_negatives(query, negatives)
        q, p = self.units(query, positive)
        n = None if negatives is None else self.units(negatives)[0]
        return self._among(q if self.simple else q / self.temperature, p, n)

    def _of_logits(self, logits: Tensor, target: Tensor) -> Tensor:
        itself = target.unsqueeze(1) == torch.arange(logits.shape[1], device=logits.device)
        rivals = logits.masked_fill(itself, -math.inf)
        kept = self._num_kept(logits.shape[1] - 1)
        if kept is not None:
            least = rivals.detach().topk(kept, 1).values[:, -1:]
            rivals = rivals.masked_fill(rivals < least, -math.inf)
        if self.simple:
            own = torch.where(itself, logits, 0.0).sum(1)
            return self.lambda_simple * rivals.masked_fill(rivals == -math.inf, 0.0).sum(1) - own
        return cross_entropy(torch.where(itself, logits, rivals), target)

    def _tiled(
        self, q: Tensor, p: Tensor, keys: Tensor, first: int, n: Tensor | None, both: bool
    ) -> Tensor:
        assert self.tile_size is not None
        own, keys, mask, far = self._candidates(q, p, keys, first, n)
        far = q[:, :0] if far is None else far
        count = len(keys) - int(self.in_batch) + far.shape[1]
        kept, dropped = self._num_kept(count), torch.zeros_like(far, dtype=torch.bool)
        if kept is not None:
            least = _similarity.kth_largest(
                q, keys, mask, kept, tile_size=self.tile_size, beside=far
            )
            mask, dropped = mask._replace(least=least), far < least.unsqueeze(1)
        if self.simple:
            total, _ = _similarity.term_sums(
                q, keys, mask, _similarity.Identity(), tile_size=self.tile_size
            )
            return self.lambda_simple * (total + far.masked_fill(dropped, 0.0).sum(1)) - own
        (rest,) = _similarity.log_sum_exp(
            q, keys, mask, tile_size=self.tile_size, bound=self._bound()
        )
        if far.shape[1]:
            # By the lowest number, not -inf, of whose sum the slope would be nan.
            far = far.masked_fill(dropped, torch.finfo(far.dtype).min)
            rest = torch.logaddexp(rest, far.logsumexp(1))
        return softplus(rest - own)

    def _num_kept(self, count: int) -> int | None:
        """Return how many of the negatives are kept, ``None`` for all."""
        kept = self.num_hard
        if kept is None:
            assert self.alpha is not None
            # A product such as 0.07 * 100 that is above its integer by rounding stays that integer.
            kept = max(1, math.ceil(self.alpha * count * (1.0 - 1e-12)))
        return kept if kept < count else None

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        p = super().properties()
        limits = (("alpha = 1", "InfoNCE"), ("one negative kept", "logistic loss"))
        kinks = "kinks where two negatives change places at the threshold"
        p = replace(p, limits=limits, smoothness=None, unknown={**p.unknown, "smoothness": kinks})
        if not self.simple:
            return p
        unknown = {**p.unknown, "lower": "falls with the number of negatives"}
        unknown["upper"] = "grows with it"
        return replace(p, lower=None, upper=None, counterexamples={}, unknown=unknown)


class BatchSoftmaxLoss(_Paired):
    r"""Batch softmax: tell the second view of an item from those of the other items of the batch.

    .. math:: \ell_i = -\Big(\frac{s_{ii}}{\tau} - \log q_i\Big) +
              \log \sum_{j=1}^N e^{s_{ij}/\tau - \log q_j}

    between two views z_i and z'_i, one way. The self-supervised term for the item tower of a
    two-tower recommender, beside its main loss of queries and items, each of two differently
    masked copies of an item's features. Items of a stream occur with very different probabilities
    q: as negatives the frequent ones are met too often, which ``log_q`` corrects.

    Args:
        temperature: tau > 0. Default 0.1.
        normalize: divide the rows by their norm, so that s is the cosine. Default ``True``. A row
            of norm below 1e-6 is divided by 1e-6 (1e-12 in float64).
        gather: whether the rows of all processes are the candidates: ``"auto"`` (default) where
            ``torch.distributed`` runs several, ``True``, or ``False``: those of the own process.
        process_group: whose rows they are. Default ``None``: of all processes.
        tile_size: rows and columns of the tiles in which the similarities are made, forward and
            backward, and never held. First derivatives only. Default ``None``: the matrix is held.
        reduction: see :class:`lossary.Loss`.

    Shape:
        z1 (N, D), z2 (N, D): row i of both is a view of item i; log_q (N,) or ``None``: logarithms
        of the sampling probabilities of the items, up to a constant. Values (N,), one per item.
        Dense, O(N^2) memory, or O(N D) with ``tile_size``.

    Properties:
        The loss is batch-coupled, and >= 0. Without ``log_q`` it is :class:`InfoNCELoss`, one way,
        and with cosines between log(1 + (N-1) exp(-2/tau)) and log(1 + (N-1) exp(2/tau)). A
        constant ``log_q`` changes nothing. Convex in the similarities. A gradient flows to
        ``log_q``, where it needs one. With ``normalize=False`` unbounded above.

    Limits:
        tau -> 0: tau * loss -> max(0, hardest negative - positive). N = 1: 0.

    Note:
        The default temperature is this library's; that the correction is of this form, and also of
        the positive, is RECALLED. With several processes (``gather``) own anchors are held against
        the rows of all, and ``"mean"`` divides by what all have, times their number: averaged over
        the processes, the parameters' gradient is that of one process with the whole batch, also
        of unequal batches. All of them must call it, forward and backward, all with ``log_q`` or
        all without.

    Raises:
        ValueError: ``temperature`` <= 0; shapes that differ; ``log_q`` not (N,), or not finite
            where that can be seen without waiting for a device; ``tile_size`` < 1; a
            ``process_group`` without this process.
        TypeError: embeddings or ``log_q`` that are not floating-point tensors.
        RuntimeError: ``gather=True`` without ``torch.distributed``; second derivatives, forward
            mode or ``vmap`` with ``tile_size``.

    Reference:
        Yao et al., "Self-supervised Learning for Large-scale Item Recommendations", 2021.

    Example:
        >>> import torch
        >>> from lossary import BatchSoftmaxLoss
        >>> z1 = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> z2 = torch.tensor([[3.0, 1.0], [1.0, 1.0]])
        >>> BatchSoftmaxLoss(0.5)(z1, z2)
        tensor(0.4286)
        >>> BatchSoftmaxLoss(0.5)(z1, z2, torch.tensor([0.75, 0.25]).log())
        tensor(0.5947)
    """

    def __init__(
        self, temperature: float = 0.1, normalize: bool = True, **options: Unpack[TiledOptions]
    ) -> None:
        super().__init__(temperature, normalize, **options)

    def per_sample(self, z1: Tensor, z2: Tensor, log_q: Tensor | None = None) -> Tensor:
        """Return the loss of every item, unreduced."""
        check_embeddings(z1=z1, z2=z2)
        q, p = self.units(z1, z2)
        q = q / self.temperature
        if log_q is not None:
            _check_log_q(log_q, z1)
            # The similarity to a column of ones: so it is gathered, and has its gradient, too.
            q = torch.cat((q, torch.ones_like(q[:, :1])), 1)
            p = torch.cat((p, -log_q.to(p.dtype).unsqueeze(1)), 1)
        return self._among(q, p, None)

    def _bound(self) -> float:
        return math.inf  # of log q nothing is known


def _check_log_q(log_q: Tensor, rows: Tensor) -> None:
    check_floating("log_q", log_q)
    check_like("log_q", log_q, "the rows", rows[:, 0])
    if _softmax.readable(log_q) and not bool(log_q.isfinite().all()):
        raise ValueError(f"log_q: expected finite numbers, got {log_q.detach()}")


class SigLIPLoss(TiledEmbeddingLoss):
    r"""SigLIP: every pair is a logistic regression of its own, whether the two belong together.

    .. math:: \ell_i = \sum_j -\log \sigma\big(y_{ij} (t\, s_{ij} + b)\big), \qquad
              y_{ii} = 1, \quad y_{ij} = -1

    Use it for two modalities in place of CLIP's loss (:class:`InfoNCELoss` with
    ``symmetric=True``): no softmax couples the pairs, so it is the same in both directions and
    works at small and large batches alike. The mean divides the double sum by N, not N^2. The
    bias makes up for N - 1 negatives against one positive at the start.

    Args:
        logit_scale: t > 0. Default 10. If learnt, where it starts.
        logit_bias: b. Default -10. If learnt, where it starts.
        learnable: make log t and b parameters, ``log_scale`` and ``bias``. Default ``True``: give
            the loss's ``parameters()`` to the optimiser too, or they stay as they are.
        normalize: divide the rows by their norm, so that s is the cosine. Default ``True``. A row
            of norm below 1e-6 is divided by 1e-6 (1e-12 in float64).
        gather: whether own rows of z1 are held against the rows of z2 of all processes: ``"auto"``
            (default) where ``torch.distributed`` runs several, ``True``, or ``False``: those of
            the own process.
        process_group: whose rows they are. Default ``None``: of all processes.
        tile_size: rows and columns of the tiles in which the similarities are made, forward and
            backward, and never held. First derivatives only. Default ``None``: the matrix is held.
        reduction: see :class:`lossary.Loss`.

    Shape:
        z1 (N, D), z2 (N, D): row i of both belong together. Values (N,), one per row of z1.
        Dense, O(N^2) memory, or O(N D) with ``tile_size``.

    Properties:
        The loss is batch-coupled. The gradient in a logit x = t s + b is sigma(x_ij) - 1[i = j].
        With cosines each term lies between 0 and softplus(t + abs(b)), and the value of a sample is
        at least softplus(-t - b). The terms add up over any partition of z2. Convex in the
        logits. The sum over all rows is the same with z1 and z2 exchanged, under a rotation of
        all embeddings, and for any length of a row. With ``normalize=False`` unbounded above.

    Limits:
        N = 1: softplus(-t s - b). b -> -inf: t s pulls the positives alone, with slope -1.

    Note:
        softplus(-x_ii) is computed on its own, not as softplus(x_ii) - x_ii, which loses its digits
        where the positive is sure. The parameters are kept in the loss's dtype, float32 unless the
        module is converted, and used in that of the embeddings. With several processes
        (``gather``) every pair is counted once, and ``"mean"`` divides by the rows of all, times
        the number of processes: averaged over them, the parameters' gradient, also in log t and b,
        is that of one process with the whole batch, also of unequal batches. All of them must call
        it, forward and backward. ``fully_shard`` takes no scalar parameters: wrap the loss by
        itself in ``DistributedDataParallel``.

    Raises:
        ValueError: ``logit_scale`` <= 0, ``logit_bias`` not finite, shapes that differ,
            ``tile_size`` < 1, a ``process_group`` without this process.
        TypeError: embeddings that are not floating-point tensors.
        RuntimeError: ``gather=True`` without ``torch.distributed``; second derivatives, forward
            mode or ``vmap`` with ``tile_size``.

    Reference:
        Zhai, Mustafa, Kolesnikov, Beyer, "Sigmoid Loss for Language Image Pre-Training", 2023,
        eq. 1.

    Example:
        >>> import torch
        >>> from lossary import SigLIPLoss
        >>> image = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> text = torch.tensor([[3.0, 1.0], [1.0, 1.0]])
        >>> loss = SigLIPLoss()
        >>> loss(image, text).detach()
        tensor(2.0082)
        >>> [name for name, _ in loss.named_parameters()]
        ['log_scale', 'bias']
    """

    def __init__(
        self,
        logit_scale: float = 10.0,
        logit_bias: float = -10.0,
        learnable: bool = True,
        normalize: bool = True,
        **options: Unpack[TiledOptions],
    ) -> None:
        super().__init__(normalize, **options)
        self.logit_scale = check_positive("logit_scale", logit_scale)
        self.logit_bias = check_number(
            "logit_bias", logit_bias, -math.inf, math.inf, low_open=True, high_open=True
        )
        check_choice("learnable", learnable, (True, False))
        self.learnable = learnable
        if learnable:
            self.log_scale = nn.Parameter(torch.tensor(math.log(self.logit_scale)))
            self.bias = nn.Parameter(torch.tensor(self.logit_bias))

    def per_sample(self, z1: Tensor, z2: Tensor) -> Tensor:
        """Return the loss of every row of z1, unreduced."""
        check_embeddings(z1=z1, z2=z2)
        q, p = self.units(z1, z2)
        keys, first = p, 0
        if self._gathers():
            (keys,), first = _distributed.gather_with_gradient(p, group=self.process_group)
        position = torch.arange(first, first + len(q), device=q.device).unsqueeze(1)
        scale, bias = self._line(q)
        q = q * scale
        if self.tile_size is None:
            x = q @ keys.t() + bias
            itself = position == torch.arange(len(keys), device=q.device)
            return softplus(torch.where(itself, -x, x)).sum(1)
        one, own = torch.ones_like(p[:, :1]), (q * p).sum(1) + bias
        # The bias is the similarity to a column of ones: its gradient comes from the same tiles.
        rest, _ = _similarity.term_sums(
            torch.cat((q, one * bias), 1),
            torch.cat((keys, torch.ones_like(keys[:, :1])), 1),
            _similarity.Mask(position),
            _similarity.Softplus(),
            tile_size=self.tile_size,
        )
        return rest + softplus(-own)

    def _line(self, like: Tensor) -> tuple[float | Tensor, float | Tensor]:
        """Return t and b."""
        if not self.learnable:
            return self.logit_scale, self.logit_bias
        return self.log_scale.to(like.dtype).exp(), self.bias.to(like.dtype)

    def properties(self) -> Properties:
        """Return what this instance guarantees, at its present t and b."""
        t, b = self.logit_scale, self.logit_bias
        if self.learnable:
            t, b = float(self.log_scale.detach().double().exp()), float(self.bias.detach())
        unknown = {
            "convex": "convex in the similarities, which are not linear in the embeddings",
            "lipschitz": "without bound near a row of zeros, or in the length of the other rows",
        }
        if self.normalize:
            unknown["upper"] = "grows with the number of rows: see the docstring"
            unknown["smoothness"] = "smooth but for rows of zeros, where the cosine jumps"
        away = [[1.0, 0.0], [0.0, 1.0]], [[-1.0, 0.0], [0.0, -1.0]]
        least = float(softplus(torch.tensor(-t - b, dtype=torch.float64)))
        return Properties(
            lower=least if self.normalize else 0.0,
            upper=None if self.normalize else math.inf,
            smoothness=None if self.normalize else math.inf,
            counterexamples={} if self.normalize else {"upper": away},
            limits=(("N = 1", "softplus(-t s - b)"),),
            unknown=unknown,
            source="Zhai et al. 2023",
        )
