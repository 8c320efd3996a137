r"""Redundancy reduction: two views alike in every feature, and the features unlike each other.

.. math:: C_{lm} = \frac1N \sum_i \hat z^1_{il}\, \hat z^2_{im}

Losses of the statistics of features over the batch, D x D numbers, instead of the N x N
similarities of its samples. There are no negatives: what keeps the embeddings from collapsing to a
point is that every feature must vary, and none repeat another.
"""

import math
from typing import Unpack

import torch
from torch import Tensor

from lossary import _distributed
from lossary._checks import check_embeddings, check_number, check_positive
from lossary._embedding_base import EmbeddingLoss, EmbeddingOptions
from lossary._properties import Properties


class _Decorrelation(EmbeddingLoss):
    """What the losses of the statistics of two views share."""

    def __init__(self, eps: float, **options: Unpack[EmbeddingOptions]) -> None:
        super().__init__(False, **options)
        self.eps = check_positive("eps", eps)

    def _samples(self, z1: Tensor, z2: Tensor) -> int:
        """Return how many samples there are, of all processes, of checked views."""
        check_embeddings(z1=z1, z2=z2)
        n = len(z1)
        if self._gathers():
            n = _distributed.count_rows(z1, group=self.process_group)
        if n == 1:
            raise ValueError("z1: expected at least 2 samples, over all processes, got 1")
        return n

    def _sum(self, x: Tensor) -> Tensor:
        """Return the sum over the processes, each of which gets its gradient."""
        if not self._gathers():
            return x
        total: Tensor = _distributed.sum_with_gradient(x, self.process_group)
        return total

    def _centred(self, z1: Tensor, z2: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Return both views less their columns' means over all samples."""
        means = self._sum(torch.stack((z1.sum(0), z2.sum(0)))) / n
        return z1 - means[0], z2 - means[1]


def _off_diagonal(x: Tensor) -> Tensor:
    """Return the sum of the squares off the diagonals of (..., D, D)."""
    diagonal = torch.eye(x.shape[-1], dtype=torch.bool, device=x.device)
    return x.masked_fill(diagonal, 0.0).square().sum()


class BarlowTwinsLoss(_Decorrelation):
    r"""Barlow Twins: the cross-correlation of two views should be the identity.

    .. math:: L = \sum_l (C_{ll} - 1)^2 + \lambda \sum_{l \ne m} C_{lm}^2, \qquad
              C_{lm} = \frac1N \sum_i \frac{z^1_{il} - \mu^1_l}{\sqrt{v^1_l + \epsilon}}
              \frac{z^2_{im} - \mu^2_m}{\sqrt{v^2_m + \epsilon}}

    with the mean mu and the variance v of every column over the batch. Use it to learn from
    augmented views without labels and without negatives, with wide embeddings.

    Args:
        lambda_offdiag: lambda >= 0, weight of the redundancy between features. Default 0.005; the
            paper has 0.0051.
        eps: > 0, added to the variances. Default 1e-5.
        gather: whether the statistics are those of the rows of all processes: ``"auto"`` (default)
            where ``torch.distributed`` runs several, ``True``, or ``False``: of the own rows.
        process_group: whose rows they are. Default ``None``: of all processes.
        reduction: see :class:`lossary.Loss`. The value is one number: ``weight`` is refused.

    Shape:
        z1 (N, D), z2 (N, D), N >= 2: row i of both is a view of sample i. Value 0-dim, the same for
        every reduction. D x D correlations are held.

    Properties:
        The loss is batch-coupled. 0 <= L <= 4 D + lambda D (D - 1). The same with z1 and z2
        exchanged. Up to eps, unchanged when a column is shifted or multiplied by a positive number;
        not by a rotation. A column without variance counts 1, and gets no gradient.

    Limits:
        lambda = 0: every feature of the one view should be a linear function of that of the other.
        An empty batch: 0.

    Note:
        The variances are those of the population, 1/N; the unbiased ones of some codes give another
        value. 1 - C_ll is computed as half of the mean of (z1 - z2)^2, of standardised columns, and
        eps/(v + eps) of both, so that it keeps its digits when the views agree. With several
        processes (``gather``) the means, then the variances, then C are those of all rows, with
        their gradient: the value on every process is that of one process with the whole batch, and
        so is the parameters' gradient, averaged over the processes. The published code sums C
        alone, and standardises by the statistics of each process. All processes must call it,
        forward and backward.

    Raises:
        ValueError: ``lambda_offdiag`` < 0, ``eps`` <= 0; views of different shapes; one sample
            alone, over all processes; a ``weight``; a ``process_group`` without this process.
        TypeError: embeddings that are not floating-point tensors.
        RuntimeError: ``gather=True`` without ``torch.distributed``.

    Reference:
        Zbontar, Jing, Misra, LeCun, Deny, "Barlow Twins: Self-Supervised Learning via Redundancy
        Reduction", 2021, eqs. 1-2.

    Example:
        >>> import torch
        >>> from lossary import BarlowTwinsLoss
        >>> z1 = torch.tensor([[1.0, 0.0], [0.0, 2.0], [2.0, 1.0]])
        >>> z2 = torch.tensor([[3.0, 1.0], [1.0, 1.0], [2.0, 4.0]])
        >>> BarlowTwinsLoss()(z1, z2)
        tensor(1.2588)
    """

    def __init__(
        self,
        lambda_offdiag: float = 5e-3,
        eps: float = 1e-5,
        **options: Unpack[EmbeddingOptions],
    ) -> None:
        super().__init__(eps, **options)
        self.lambda_offdiag = check_number("lambda_offdiag", lambda_offdiag, 0.0, high_open=True)

    def per_sample(self, z1: Tensor, z2: Tensor) -> Tensor:
        """Return the loss of the batch, one number."""
        n = self._samples(z1, z2)
        if n == 0:
            return z1.sum() + z2.sum()
        a, b = self._centred(z1, z2, n)
        variance = self._sum(torch.stack((a.square().sum(0), b.square().sum(0)))) / n
        spread = (variance + self.eps).sqrt()
        a, b = a / spread[0], b / spread[1]
        apart = (a - b).square().sum(0, keepdim=True)
        moments = self._sum(torch.cat((a.t() @ b, apart))) / n
        # 1 - C_ll, without the difference.
        lack = (moments[-1] + (self.eps / (variance + self.eps)).sum(0)) / 2
        return lack.square().sum() + self.lambda_offdiag * _off_diagonal(moments[:-1])

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        # Between one view and minus twice the other, correlation 1 and -1, lies one with -1.
        view = [[1.0], [-1.0]]
        return Properties(
            convex=False,
            lower=0.0,
            smoothness=math.inf,
            limits=(("lambda = 0", "the correlations of each feature with itself alone"),),
            counterexamples={"convex": (view, [[-2.0], [2.0]], view)},
            unknown={
                "upper": "4 D + lambda D (D - 1), which grows with the width",
                "lipschitz": "grows with the width, and as 1/sqrt(eps)",
            },
            source="Zbontar et al. 2021",
        )


class VICRegLoss(_Decorrelation):
    r"""VICReg: views near each other, features that vary, and covariances that vanish.

    .. math:: L = \frac{\mu_s}{N D} \sum_{i,l} (z^1_{il} - z^2_{il})^2 + \sum_{v=1}^2 \Bigl[
              \frac{\mu_v}{2 D} \sum_l \max\bigl(0, 1 - \sqrt{S^v_{ll} + \epsilon}\bigr)
              + \frac{\mu_c}{D} \sum_{l \ne m} (S^v_{lm})^2 \Bigr]

    with the covariance S of the features of each view over the batch. Use it to learn from views
    that are not made alike, of two modalities or two networks: each is held up by itself.

    Args:
        sim_coeff: mu_s >= 0, weight of the distance between the views. Default 25.
        std_coeff: mu_v >= 0, weight of the variance. Default 25.
        cov_coeff: mu_c >= 0, weight of the covariances. Default 1.
        eps: > 0, added to the variances. Default 1e-4.
        gather: whether the statistics are those of the rows of all processes: ``"auto"`` (default)
            where ``torch.distributed`` runs several, ``True``, or ``False``: of the own rows.
        process_group: whose rows they are. Default ``None``: of all processes.
        reduction: see :class:`lossary.Loss`. The value is one number: ``weight`` is refused.

    Shape:
        z1 (N, D), z2 (N, D), N >= 2: row i of both is a view of sample i. Value 0-dim, the same for
        every reduction. D x D covariances are held.

    Properties:
        The loss is batch-coupled. Rows are not normalised. The same with z1 and z2 exchanged, and
        when the same vector is added to all rows of both. Unbounded above. A column without
        variance has no gradient of its variance: the collapsed state is a stationary point of that
        term, an unstable one.

    Limits:
        Unit variance, no covariance, equal views: 0. std_coeff = cov_coeff = 0: mean squared error.
        An empty batch: 0.

    Note:
        Variances and covariances are unbiased, 1/(N - 1). With several processes (``gather``) means
        and covariances are those of all rows, with their gradient: the value on every process is
        that of one process with the whole batch, and so is the parameters' gradient, averaged over
        the processes. All of them must call it, forward and backward.

    Raises:
        ValueError: a coefficient < 0, ``eps`` <= 0; views of different shapes; one sample alone,
            over all processes; a ``weight``; a ``process_group`` without this process.
        TypeError: embeddings that are not floating-point tensors.
        RuntimeError: ``gather=True`` without ``torch.distributed``.

    Reference:
        Bardes, Ponce, LeCun, "VICReg: Variance-Invariance-Covariance Regularization for
        Self-Supervised Learning", 2022, eqs. 1-6; the half of the variance's weight is that of the
        published code.

    Example:
        >>> import torch
        >>> from lossary import VICRegLoss
        >>> z1 = torch.tensor([[1.0, 0.0], [0.0, 2.0], [2.0, 1.0]])
        >>> z2 = torch.tensor([[3.0, 1.0], [1.0, 1.0], [2.0, 4.0]])
        >>> VICRegLoss()(z1, z2)
        tensor(66.9167)
    """

    def __init__(
        self,
        sim_coeff: float = 25.0,
        std_coeff: float = 25.0,
        cov_coeff: float = 1.0,
        eps: float = 1e-4,
        **options: Unpack[EmbeddingOptions],
    ) -> None:
        super().__init__(eps, **options)
        self.sim_coeff = check_number("sim_coeff", sim_coeff, 0.0, high_open=True)
        self.std_coeff = check_number("std_coeff", std_coeff, 0.0, high_open=True)
        self.cov_coeff = check_number("cov_coeff", cov_coeff, 0.0, high_open=True)

    def per_sample(self, z1: Tensor, z2: Tensor) -> Tensor:
        """Return the loss of the batch, one number."""
        n = self._samples(z1, z2)
        if n == 0:
            return z1.sum() + z2.sum()
        width = z1.shape[1]
        a, b = self._centred(z1, z2, n)
        apart = self._sum((z1 - z2).square().sum()) / (n * width)
        covariance = self._sum(torch.stack((a.t() @ a, b.t() @ b))) / (n - 1)
        spread = (covariance.diagonal(dim1=1, dim2=2) + self.eps).sqrt()
        lack = (1.0 - spread).clamp(min=0.0).sum() / (2 * width)
        repeated = _off_diagonal(covariance) / width
        return self.sim_coeff * apart + self.std_coeff * lack + self.cov_coeff * repeated

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        # Of one feature, opposite views at distance s from the other and of deviation s sqrt(2)
        # may lose less than the point between them, which does not vary.
        s = 0.3 * min(1.0, self.std_coeff / max(self.sim_coeff, 1e-30))
        gain = math.sqrt(2 * s * s + self.eps) - math.sqrt(self.eps)
        dips = self.std_coeff * min(gain, 1.0) / 2 > self.sim_coeff * s * s
        opposite: tuple[list[list[float]], ...] = [[s], [-s]], [[-s], [s]], [[0.0], [0.0]]
        grows = [[1.0, 2.0], [-1.0, 3.0], [0.0, -1.0]], [[0.0, 0.0]] * 3
        unbounded = self.sim_coeff > 0 or self.cov_coeff > 0
        counterexamples: dict[str, tuple[list[list[float]], ...]] = {}
        if unbounded:
            counterexamples |= {"upper": grows, "lipschitz": grows}
        unknown = {}
        if dips:
            counterexamples["convex"] = opposite
        else:
            unknown["convex"] = "unknown where the variance counts little, or eps much"
        if not unbounded:
            unknown["lipschitz"] = "at most std_coeff / (2 sqrt(D (N - 1)))"
        return Properties(
            convex=False if dips else None,
            lower=0.0,
            upper=math.inf if unbounded else self.std_coeff * (1.0 - min(1.0, self.eps**0.5)),
            lipschitz=math.inf if unbounded else None,
            smoothness=0 if self.std_coeff > 0 else math.inf,
            limits=(("std_coeff = cov_coeff = 0", "mean squared error"),),
            counterexamples=counterexamples,
            unknown=unknown,
            source="Bardes et al. 2022",
        )
