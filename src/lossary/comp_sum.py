r"""Comp-sum losses: one function of the target's probability, from sum-exponential to MAE.

.. math:: \ell_\tau(f, y) = \Phi_\tau\Bigl(\sum_{k \neq y} e^{f_k - f_y}\Bigr)
          = \frac{p_y^{\tau - 1} - 1}{1 - \tau}, \qquad p = \operatorname{softmax}(f)

The smaller tau, the harder the loss pushes on misclassified examples: tau = 0 grows like 1/p_y,
tau = 1 is cross-entropy, 1 < tau < 2 is generalised cross-entropy, tau = 2 is the mean absolute
error, which is symmetric and so tolerant to uniform label noise, but slow to train.
"""

import math
from dataclasses import replace
from typing import Any, Unpack

import torch
from torch import Tensor

from lossary._base import HALF, ClassificationLoss, ClassOptions
from lossary._checks import check_choice, check_in_memory, check_number, check_positive
from lossary._numerics import expm1, softplus
from lossary._properties import Properties
from lossary._softmax import readable
from lossary._state import PerSampleState

_SOURCE = "Mao, Mohri, Zhong 2023; Zhang, Sabuncu 2018; Ghosh, Kumar, Sastry 2017"


def _phi(surprise: Tensor, a: float) -> Tensor:
    """Return (p^-a - 1)/a of the surprise -log p, for a = 1 - tau."""
    if a == 0.0:
        return surprise
    x = surprise * a
    overflows = False
    if a > 0.0:
        largest = torch.finfo(x.dtype).max
        over = x.detach() > math.log(largest * a)
        overflows = not readable(over) or bool(over.any())
    if overflows:
        x = torch.where(over, 0.0, x)
    value = expm1(x) / a
    if abs(a) < 1e-3:
        # The product of a tiny a and a tiny surprise leaves the normal numbers of float32.
        near = x.abs() < 1e-5
        small = torch.where(near, x, 0.0)
        series = torch.where(near, surprise, 0.0) * (1.0 + small / 2.0 * (1.0 + small / 3.0))
        value = torch.where(near, series, value)
    if overflows:
        # The value overflows to inf, with the largest finite slope: an infinite one, times a
        # probability that underflowed, would be nan.
        finite = surprise.clamp(max=largest)
        steep = (finite - finite.detach()) * (largest * a) + math.inf
        value = torch.where(over, steep, value)
    return value


class CompSumLoss(ClassificationLoss):
    r"""Comp-sum loss: one parameter from sum-exponential through cross-entropy and GCE to MAE.

    .. math:: \ell(f, y) = \frac{p_y^{\tau-1} - 1}{1 - \tau}, \qquad
              \ell = -\log p_y \text{ at } \tau = 1, \qquad p = \operatorname{softmax}(f)

    Its gradient is p_y^(tau-1) times that of cross-entropy, p - e_y: tau > 1 turns the volume down
    on examples the model finds improbable (label noise, outliers), tau < 1 turns it up. Take
    ``tau=1`` for clean labels, between 1.5 and 1.8 for noisy ones; ``tau=2`` is the most tolerant
    and the slowest to train.

    Args:
        tau: tau >= 0, finite. Default 1, cross-entropy.
        reduction, class_weight, ignore_index, class_dim: see :class:`lossary.ClassificationLoss`.

    Shape:
        logits (N, K, ...), target (N, ...) class indices or (N, K, ...) probabilities; K >= 2.
        Values (N, ...). Logits in memory, streamed or sharded
        (:class:`lossary.LinearLogits`, :class:`lossary.ShardedLogits`).

    Properties:
        Convex in the logits iff tau <= 1. Bounded iff tau > 1: 0 <= l < 1/(tau - 1). Gradient norm
        at most sqrt(2) for tau >= 1, unbounded below. Symmetric iff tau = 2, with class sum K - 1.
        Calibrated for every tau; rank-consistent iff tau < 2, where the conditional risk is
        minimal at p_k proportional to q_k^(1/(2-tau)); proper iff tau = 1. Nonincreasing in tau.

    Limits:
        tau = 0: 1/p_y - 1. tau -> 1: cross-entropy, continuously. 1 < tau <= 2:
        :class:`GeneralizedCrossEntropyLoss` with q = tau - 1. tau = 2: :class:`MulticlassMAELoss`.

    Note:
        Computed from the log-odds, so small losses keep their digits in float32. For tau < 1 the
        value is inf where the true one overflows, (1 - tau) times cross-entropy beyond 88 in
        float32; its gradient there is huge but finite.

    Raises:
        ValueError: ``tau`` negative, infinite or nan.
        TypeError: ``tau`` not a number.

    Reference:
        Mao, Mohri, Zhong, "Cross-Entropy Loss Functions: Theoretical Analysis and Applications",
        2023. The members tau = 0, 1, (1, 2) and 2 were verified against a digest of the authors'
        follow-up paper; the expression in tau that joins them is RECALLED.

    Example:
        >>> import torch
        >>> from lossary import CompSumLoss
        >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> CompSumLoss(tau=1.5)(logits, torch.tensor([0, 2]))
        tensor(0.7069)
    """

    def __init__(self, tau: float = 1.0, **options: Unpack[ClassOptions]) -> None:
        super().__init__(**options)
        self.tau = check_number("tau", tau, 0.0, math.inf, high_open=True)

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of every sample, unreduced."""
        return _phi(softplus(self.log_odds(logits, target)), 1.0 - self.tau)

    def properties(self, num_classes: int = 10) -> Properties:
        """Return what this instance guarantees on ``num_classes`` classes."""
        return _properties(self.tau, num_classes)


class GeneralizedCrossEntropyLoss(ClassificationLoss):
    r"""Generalised cross-entropy (GCE): from cross-entropy, q = 0, to absolute error, q = 1.

    .. math:: \ell(f, y) = \frac{1 - p_y^q}{q}, \qquad p = \operatorname{softmax}(f)

    The standard robust loss for label noise: it learns nearly as fast as cross-entropy, and an
    example that stays improbable loses its pull, its gradient being p_y^q (p - e_y).

    Args:
        q: 0 <= q <= 1. Default 0.7, the paper's. 0 is cross-entropy, by the limit.
        reduction, class_weight, ignore_index, class_dim: see :class:`lossary.ClassificationLoss`.

    Shape:
        logits (N, K, ...), target (N, ...) class indices or (N, K, ...) probabilities; K >= 2.
        Values (N, ...). Logits in memory, streamed or sharded
        (:class:`lossary.LinearLogits`, :class:`lossary.ShardedLogits`).

    Properties:
        0 <= l < 1/q, gradient norm at most sqrt(2), not convex for q > 0. Symmetric iff q = 1; in
        between the class sum lies in [(K - K^(1-q))/q, (K - 1)/q]. Calibrated; rank-consistent iff
        q < 1; proper iff q = 0.

    Limits:
        q -> 0: cross-entropy. q = 1: :class:`MulticlassMAELoss`. Always
        :class:`CompSumLoss` with tau = 1 + q.

    Note:
        The published code clips p at 1e-7, which cuts off the gradient of improbable targets. From
        the log-odds no clipping is needed.

    Raises:
        ValueError: ``q`` outside [0, 1].
        TypeError: ``q`` not a number.

    Reference:
        Zhang, Sabuncu, "Generalized Cross Entropy Loss for Training Deep Neural Networks with
        Noisy Labels", 2018.

    Example:
        >>> import torch
        >>> from lossary import GeneralizedCrossEntropyLoss
        >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> GeneralizedCrossEntropyLoss(q=0.7)(logits, torch.tensor([0, 2]))
        tensor(0.6138)
    """

    def __init__(self, q: float = 0.7, **options: Unpack[ClassOptions]) -> None:
        super().__init__(**options)
        self.q = check_number("q", q, 0.0, 1.0)

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of every sample, unreduced."""
        return _phi(softplus(self.log_odds(logits, target)), -self.q)

    def properties(self, num_classes: int = 10) -> Properties:
        """Return what this instance guarantees on ``num_classes`` classes."""
        return _properties(1.0 + self.q, num_classes)


class TruncatedGCELoss(ClassificationLoss, PerSampleState):
    r"""Generalised cross-entropy that stops at the probability k: below it, no gradient.

    .. math:: \ell(f, y) = \min\{L_q(p_y),\, L_q(k)\}, \qquad L_q(p) = \frac{1 - p^q}{q},
              \qquad p = \operatorname{softmax}(f)

    For label noise that GCE alone does not withstand: a sample that the model finds less probable
    than k has no pull at all. With ``mode="clamp"`` that is decided anew in every step, so use it
    on a model that has learnt something; with ``mode="prune"`` you decide when, by calling
    :meth:`prune`, and the decision is kept per sample of the training set.

    Args:
        q: 0 <= q <= 1. Default 0.7. 0 is cross-entropy, by the limit.
        k: 0 <= k < 1, the probability below which a sample is left out. Default 0.5.
        mode: ``"clamp"`` (default), without memory, or ``"prune"``: the loss of sample i is
            w_i L_q(p_y) + (1 - w_i) L_q(k), with w_i = 1 until :meth:`prune` says otherwise.
        num_samples: size of the training set, for ``mode="prune"``.
        reduction, class_weight, ignore_index, class_dim: see :class:`lossary.ClassificationLoss`.

    Shape:
        logits (N, K, ...), target (N, ...) class indices or, with ``"clamp"``, (N, K, ...)
        probabilities; K >= 2; index (N, ...) dataset indices in [0, num_samples), with ``"prune"``
        only. Values (N, ...). Logits in memory, streamed or sharded
        (:class:`lossary.LinearLogits`, :class:`lossary.ShardedLogits`).

    Properties:
        Clamped: 0 <= l <= L_q(k), continuous with a kink at p_y = k, gradient exactly 0 below it,
        of norm at most sqrt(2) above; neither convex nor, for k > 0, rank-consistent; calibrated.
        Pruned: as :class:`GeneralizedCrossEntropyLoss` for the samples that are kept, the constant
        L_q(k) for the others.

    Limits:
        k = 0, clamped, or nothing pruned: :class:`GeneralizedCrossEntropyLoss`.

    Note:
        The weights w_i are the buffer ``sample_weight``, saved in ``state_dict``; ``reset()`` takes
        every sample back in. A sample that occurs several times in one call of :meth:`prune`, on
        all processes, gets the mean of its decisions. Published schedules: prune every 10 epochs
        from epoch 40 on, or once after half of training.

    Raises:
        ValueError: ``q`` outside [0, 1], ``k`` outside [0, 1), unknown ``mode``, ``index`` out of
            range or of another shape than the target.
        TypeError: with ``"prune"``, ``num_samples`` or ``index`` missing, or a target of class
            probabilities; with ``"clamp"``, ``num_samples`` or ``index`` given.

    Reference:
        Zhang, Sabuncu, "Generalized Cross Entropy Loss for Training Deep Neural Networks with
        Noisy Labels", 2018, the truncated loss. Code differs by constants: the authors return
        w (L_q(p) - L_q(k)), others w L_q(p).

    Example:
        >>> import torch
        >>> from lossary import TruncatedGCELoss
        >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> target = torch.tensor([0, 2])
        >>> TruncatedGCELoss(q=0.7, k=0.5)(logits, target)
        tensor(0.3547)
        >>> loss = TruncatedGCELoss(q=0.7, k=0.5, mode="prune", num_samples=1000)
        >>> index = torch.tensor([17, 400])
        >>> loss.prune(logits, target, index)
        >>> loss.sample_weight[index]
        tensor([1., 0.])
        >>> loss(logits, target, index)
        tensor(0.3547)
    """

    sample_weight: Tensor

    def __init__(
        self,
        q: float = 0.7,
        k: float = 0.5,
        mode: str = "clamp",
        num_samples: int | None = None,
        **options: Unpack[ClassOptions],
    ) -> None:
        super().__init__(**options)
        self.q = check_number("q", q, 0.0, 1.0)
        self.k = check_number("k", k, 0.0, 1.0, high_open=True)
        check_choice("mode", mode, ("clamp", "prune"))
        self.mode = mode
        if mode == "prune":
            self._add_state("sample_weight", num_samples, 1.0)
        elif num_samples is not None:
            raise TypeError(f"num_samples: expected None with mode='clamp', got {num_samples!r}")

    def per_sample(self, logits: Tensor, target: Tensor, index: Tensor | None = None) -> Tensor:
        """Return the loss of every sample, unreduced."""
        value = _phi(softplus(self.log_odds(logits, target)), -self.q)
        limit = self._limit()
        if self.mode == "clamp":
            if index is not None:
                raise TypeError(f"index: expected None with mode='clamp', got {type(index)}")
            return value.clamp(max=limit)
        axis = self._class_axis(logits)
        rows = logits.select(axis, 0) if target is None else target
        index, _ = self._samples(index, rows, target)
        weight = self._stored("sample_weight", index, value.dtype)
        weight = weight.unsqueeze(axis) if target is None else weight
        # L_q(k) is infinite for q = k = 0, where no sample is ever left out.
        return torch.where(weight < 1.0, weight * value + (1.0 - weight) * limit, value)

    @torch.no_grad()
    def prune(self, logits: Tensor, target: Tensor, index: Tensor) -> None:
        """Decide for these samples of the training set, by p_y > k, whether they are left out.

        Takes the inputs of a call. It may be called under ``torch.no_grad()`` and in evaluation
        mode; under ``torch.distributed`` by all processes. Ignored targets are passed over.
        """
        if self.mode != "prune":
            raise ValueError(f"mode: expected 'prune', got {self.mode!r}")
        axis = self._check_inputs(logits, target)
        if target.dtype.is_floating_point:
            raise TypeError("target: expected integer class indices, got class probabilities")
        ignored = self._ignored(target.long(), logits.shape[axis])
        target = target.long() if ignored is None else target.long().masked_fill(ignored, -1)
        index, present = self._samples(index, target, target)
        # p_y > k in the terms in which nothing is lost: log-odds against the target below logit(k).
        edge = math.log(1.0 / self.k - 1.0) if self.k > 0.0 else math.inf
        kept = (self.log_odds(logits, target) < edge).float()
        self._store("sample_weight", index, kept, present)

    def expected(self, logits: Tensor, probabilities: Tensor, mass: Tensor, *others: Any) -> Tensor:
        """Return the expectation, where no sample is pruned by its label."""
        if self.mode == "prune":
            raise TypeError("target: expected integer class indices, got class probabilities")
        return super().expected(logits, probabilities, mass, *others)

    def _limit(self) -> float:
        """Return L_q(k)."""
        if self.k == 0.0:
            return 1.0 / self.q if self.q > 0.0 else math.inf
        log_k = math.log(self.k)
        return -math.expm1(self.q * log_k) / self.q if self.q > 0.0 else -log_k

    def properties(self, num_classes: int = 10) -> Properties:
        """Return what this instance guarantees on ``num_classes`` classes."""
        facts = _properties(1.0 + self.q, num_classes)
        limits = (("k = 0", "GeneralizedCrossEntropyLoss"),)
        if self.k == 0.0:
            return replace(facts, limits=limits)
        if self.mode == "prune":
            # The rest depends on which samples are left.
            return Properties(
                lower=0.0,
                upper=facts.upper,
                lipschitz=facts.lipschitz,
                shift_invariant=True,
                limits=limits,
                counterexamples={"upper": ((-1.0, 0.0, 0.0), 0)},
                source=_SOURCE,
            )
        # One class so probable that it does not pay to keep another above k as well.
        gain = (
            -math.expm1(self.q * math.log1p(-self.k)) / self.q if self.q else -math.log1p(-self.k)
        )
        e = 0.1 * min(self.k, gain / (1.0 + self._limit()))
        q, best = (1.0 - 3.0 * e, 2.0 * e, e), (80.0, -1.0, 0.0)
        edge = math.log(2.0 * self.k / (1.0 - self.k))
        # With one class alone above k, the sum falls as that class gains mass.
        sure, surer = (math.log(2.0 / self.k - 2.0), 0.0, 0.0), (80.0, 0.0, 0.0)
        counterexamples = {
            "convex": ((edge - 2.0, 0.0, 0.0), (edge + 2.0, 0.0, 0.0), 0),
            "symmetric": (sure, surer),
            "rank_consistent": (q, best),
            "proper": (q, best),
        }
        return replace(
            facts,
            convex=False,
            upper=self._limit(),
            smoothness=0,
            symmetric=False,
            class_sum=None,
            rank_consistent=False,
            proper=False,
            minimiser="p = e_k at argmax q_k, for k >= 1/2",
            limits=limits,
            counterexamples=counterexamples,
        )


class MulticlassMAELoss(ClassificationLoss):
    r"""Mean absolute error between the one-hot label and the softmax, halved: 1 - p_y.

    .. math:: \ell(f, y) = \text{scale} \cdot (1 - p_y)
              = \tfrac12\, \text{scale} \cdot \lVert e_y - p \rVert_1

    Symmetric: under uniform label noise its expected value is an affine function of the clean one
    as long as the true label stays the most frequent, so the minimiser does not move. The price is
    slow training: an improbable target has almost no gradient, p_y (p - e_y).

    Args:
        scale: > 0, finite. Default 1; 2 gives the unhalved l1 norm that some code uses.
        reduction, class_weight, ignore_index, class_dim: see :class:`lossary.ClassificationLoss`.

    Shape:
        logits (N, K, ...), target (N, ...) class indices or (N, K, ...) probabilities; K >= 2.
        Values (N, ...). Logits in memory, streamed or sharded
        (:class:`lossary.LinearLogits`, :class:`lossary.ShardedLogits`).

    Properties:
        0 <= l <= scale, gradient norm at most scale * sqrt(2)/4, not convex. Symmetric, with class
        sum scale * (K - 1); with a share eta of labels redrawn uniformly among the other classes
        the expected loss is (1 - eta K/(K-1)) l + scale * eta. Calibrated, but not rank-consistent:
        it only rewards mass on the most probable class.

    Limits:
        :class:`CompSumLoss` at tau = 2, :class:`GeneralizedCrossEntropyLoss` at q = 1.

    Note:
        1 - p_y keeps its digits when p_y rounds to 1, and the gradient when p_y is tiny.

    Raises:
        ValueError: ``scale`` not positive, or infinite.
        TypeError: ``scale`` not a number.

    Reference:
        Ghosh, Kumar, Sastry, "Robust Loss Functions under Label Noise for Deep Neural Networks",
        2017.

    Example:
        >>> import torch
        >>> from lossary import MulticlassMAELoss
        >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> MulticlassMAELoss()(logits, torch.tensor([0, 2]))
        tensor(0.5080)
    """

    def __init__(self, scale: float = 1.0, **options: Unpack[ClassOptions]) -> None:
        super().__init__(**options)
        self.scale = check_positive("scale", scale)

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of every sample, unreduced."""
        return expm1(-softplus(self.log_odds(logits, target))) * -self.scale

    def properties(self, num_classes: int = 10) -> Properties:
        """Return what this instance guarantees on ``num_classes`` classes."""
        return replace(
            _properties(2.0, num_classes),
            upper=self.scale,
            lipschitz=self.scale * math.sqrt(2.0) / 4.0,
            class_sum=self.scale * (num_classes - 1),
            limits=(),
        )


class SmoothAdversarialCompSumLoss(ClassificationLoss):
    r"""Comp-sum loss of the clean logits plus how far a perturbation moves their differences.

    .. math:: \ell(f, f', y) = \Phi_\tau\Bigl(\sum_{k \neq y} e^{(f_k - f_y)/\rho}\Bigr)
              + \nu \max_m \lVert D(f'_m) - D(f) \rVert_2, \qquad
              D(f) = (f_y - f_k)_{k \neq y}

    with Phi as in :class:`CompSumLoss`. For robustness to perturbed inputs: the first term wants
    the clean input right by a margin, the second wants the perturbed ones, f', no different. The
    loss takes the model's logits for perturbations that your training loop finds, usually by ascent
    on this loss; with several per sample the farthest counts. Gradient flows through clean and
    perturbed logits alike. The paper trains with the mean of this at tau = 1, plus weight decay.

    Args:
        tau: tau >= 0, finite. Default 1, cross-entropy.
        rho: margin scale > 0, finite. Default 1. The clean logits enter as f/rho.
        nu: weight >= 0, finite, of the second term. Default 1. From nu = sqrt(K - 1)/rho on, the
            loss bounds the adversarial error (below).
        reduction, class_weight, ignore_index, class_dim: see :class:`lossary.ClassificationLoss`.

    Shape:
        logits (N, K, ...), adv_logits of the same shape, or with an axis of M >= 1 candidates right
        before the class axis, (N, M, K, ...); target (N, ...) class indices or (N, K, ...)
        probabilities; K >= 2. Values (N, ...). Logits in memory (dense layout).

    Properties:
        Convex in the logits, in adv_logits and in both together iff tau <= 1 (in adv_logits alone
        for every tau). l >= 0; bounded iff nu = 0 and tau > 1. For tau >= 1 the gradient in the
        logits has norm at most sqrt(2)/rho + nu sqrt(K), in adv_logits nu sqrt(K). Unchanged by
        constants added to all logits, or to all of a candidate's. Nondecreasing in nu.
        For nu >= sqrt(K - 1)/rho it is at least the adversarial rho-margin loss,
        max_m Phi_tau(sum_{k != y} min(max(0, 1 - (f'_my - f'_mk)/rho), 1)), and so at least
        Phi_tau(1), log 2 at tau = 1, where some candidate is misclassified or tied.

    Limits:
        nu = 0, or perturbations without effect: :class:`CompSumLoss` of logits/rho.

    Note:
        Where nothing has moved, as in the first step with unperturbed inputs, the norm has no
        gradient; here it is exactly 0. Rows are scaled before they are squared, so that neither
        1e30 nor 1e-30 is lost in float32. At a tie between candidates the gradient goes to one.
        Half precision logits and float32 ones may be mixed; float64 ones go with float64.

    Raises:
        ValueError: ``tau`` or ``nu`` negative, infinite or nan, ``rho`` not positive or infinite;
            ``adv_logits`` of another shape or device.
        TypeError: ``tau``, ``rho`` or ``nu`` not a number; ``adv_logits`` not a tensor, or of a
            dtype that does not go with the logits.

    Reference:
        Mao, Mohri, Zhong, "Cross-Entropy Loss Functions: Theoretical Analysis and Applications",
        2023. The formula is RECALLED; that it bounds the adversarial margin loss was checked
        numerically. The paper's experiments use tau = 1; their rho and nu are UNVERIFIED.

    Example:
        >>> import torch
        >>> from lossary import SmoothAdversarialCompSumLoss
        >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> adv_logits = torch.tensor([[1.0, 1.0, -1.0], [0.5, 1.5, 0.0]])
        >>> SmoothAdversarialCompSumLoss(nu=0.1)(logits, adv_logits, torch.tensor([0, 2]))
        tensor(1.1789)
    """

    def __init__(
        self,
        tau: float = 1.0,
        rho: float = 1.0,
        nu: float = 1.0,
        **options: Unpack[ClassOptions],
    ) -> None:
        super().__init__(**options)
        self.tau = check_number("tau", tau, 0.0, math.inf, high_open=True)
        self.rho = check_positive("rho", rho)
        self.nu = check_number("nu", nu, 0.0, math.inf, high_open=True)

    def per_sample(self, logits: Tensor, adv_logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of every sample, unreduced."""
        self._check_adversarial(logits, adv_logits)
        if logits.dtype in HALF:  # here, so that the sum of the two gradients is rounded once
            logits = logits.float()
        value = _phi(softplus(self.log_odds(logits, target, temperature=self.rho)), 1.0 - self.tau)
        return value + self.nu * self._movement(logits, adv_logits, target) if self.nu else value

    def expected(self, logits: Tensor, probabilities: Tensor, mass: Tensor, *others: Any) -> Tensor:
        """Return the expectation over the classes."""
        (adv_logits,) = others
        self._check_adversarial(logits, adv_logits)
        axis = self._class_axis(logits)
        absent = (probabilities == 0).all(axis, keepdim=True)
        if adv_logits.dim() > logits.dim():
            absent = absent.unsqueeze(axis)
        adv_logits = adv_logits.masked_fill(absent, 0.0)
        return super().expected(logits, probabilities, mass, adv_logits)

    def _movement(self, logits: Tensor, adv_logits: Tensor, target: Tensor | None) -> Tensor:
        """Return max_m ||D(f'_m) - D(f)||, for the target or for every class along the class axis.

        With d = f' - f, which is exact where the two are close, and its mean over the K classes,
        sum_k (d_y - d_k)^2 = K (d_y - mean)^2 + sum_k (d_k - mean)^2: one sum for all classes, of
        squares alone, so that nothing cancels.
        """
        axis = self._class_axis(logits)
        several = adv_logits.dim() > logits.dim()
        d = adv_logits - (logits.unsqueeze(axis) if several else logits)
        d = d.movedim(axis + several, -1)
        if target is not None:
            y = (target.unsqueeze(axis) if several else target).unsqueeze(-1)
            if not readable(y) or (y.numel() > 0 and int(y.min()) < 0):
                d, y = torch.where(y < 0, 0.0, d), y.clamp(min=0)
        # First less one of them: where all are equal that is exactly 0, less their mean it is not.
        d = d - d[..., :1]
        size = d.detach().abs().amax(-1, keepdim=True)
        still = size == 0.0
        size = torch.where(still, 1.0, size)
        d = d / size
        d = d - d.mean(-1, keepdim=True)
        own = d if target is None else d.gather(-1, y.expand(*d.shape[:-1], 1))
        square = d.shape[-1] * own.square() + d.square().sum(-1, keepdim=True)
        # Twice where: the slope of sqrt at 0, times 0, would be nan.
        norm = torch.where(still, 0.0, torch.where(still, 1.0, square).sqrt() * size)
        norm = norm.max(axis).values if several else norm
        return norm.movedim(-1, axis) if target is None else norm.squeeze(-1)

    def _check_adversarial(self, logits: Tensor, adv_logits: Tensor) -> None:
        check_in_memory(logits, "the movement of the logits")
        if not isinstance(adv_logits, Tensor):
            raise TypeError(f"adv_logits: expected a tensor, got {type(adv_logits).__name__}")
        single = (*HALF, torch.float32)
        if adv_logits.dtype not in (single if logits.dtype in single else (logits.dtype,)):
            raise TypeError(
                f"adv_logits: expected the dtype of the logits, {logits.dtype}, "
                f"got {adv_logits.dtype}"
            )
        axis, shape = self._class_axis(logits), tuple(logits.shape)
        given = tuple(adv_logits.shape)
        candidates = given[axis : axis + 1] if len(given) == len(shape) + 1 else ()
        if given != shape[:axis] + candidates + shape[axis:] or candidates == (0,):
            several = ", ".join(map(str, (*shape[:axis], "M", *shape[axis:])))
            raise ValueError(
                f"adv_logits: expected the shape of the logits, {shape}, or ({several}) with "
                f"M >= 1 candidates, got {given}"
            )
        if adv_logits.device != logits.device:
            raise ValueError(
                f"adv_logits: expected device {logits.device}, got {adv_logits.device}"
            )

    def properties(self, num_classes: int = 10) -> Properties:
        """Return what this instance guarantees on ``num_classes`` classes."""
        zero, away = (0.0, 0.0, 0.0), (-1.0, 0.0, 0.0)
        bounded = self.nu == 0.0 and self.tau > 1.0
        counterexamples: dict[str, tuple[Any, ...]] = {}
        if self.tau > 1.0:
            # Between them the logits move along a line that ends in adv_logits: the norm is linear.
            a, b, y = _properties(self.tau, num_classes).counterexamples["convex"]
            a, b = (tuple(self.rho * x for x in f) for f in (a, b))
            counterexamples["convex"] = (a, b, b, y)
        if not bounded:
            counterexamples["upper"] = (away, zero, 0)
        if self.tau < 1.0:
            counterexamples["lipschitz"] = (away, zero, 0)
        slope = math.sqrt(2.0) / self.rho + self.nu * math.sqrt(num_classes)
        return Properties(
            convex=self.tau <= 1.0,
            lower=0.0,
            upper=1.0 / (self.tau - 1.0) if bounded else math.inf,
            lipschitz=slope if self.tau >= 1.0 else math.inf,
            shift_invariant=True,
            limits=(("nu = 0", "CompSumLoss of logits/rho"),),
            counterexamples=counterexamples,
            unknown={"smoothness": "a norm: no slope where both logits agree, smooth elsewhere"}
            | dict.fromkeys(
                ("symmetric", "calibrated", "rank_consistent", "proper"),
                "of two rows of logits, of which the perturbed one has no minimiser of its own",
            ),
            source="Mao, Mohri, Zhong 2023",
        )


def _properties(tau: float, num_classes: int) -> Properties:
    """State the facts of the whole family."""
    q = (0.5, 0.3, 0.2)
    counterexamples: dict[str, tuple[Any, ...]] = {}
    if tau > 1.0:
        # In the direction e_y the loss is concave wherever p_y < (tau - 1)/tau.
        edge = math.log(2.0 * (tau - 1.0))
        low = edge - 2.0 / (tau - 1.0)
        counterexamples["convex"] = ((low, 0.0, 0.0), (edge, 0.0, 0.0), 0)
    else:
        counterexamples["upper"] = ((-1.0, 0.0, 0.0), 0)
    if tau < 1.0:
        counterexamples["lipschitz"] = ((-1.0, 0.0, 0.0), 0)
    if tau != 2.0:
        counterexamples["symmetric"] = ((0.0, 0.0, 0.0), (3.0, 0.0, -1.0))
    if tau >= 2.0:
        counterexamples["rank_consistent"] = (q, (80.0, -1.0, 0.0))
    if tau != 1.0:
        best = tuple(math.log(x) / (2.0 - tau) for x in q) if tau < 2.0 else (80.0, 0.0, 0.0)
        counterexamples["proper"] = (q, best)
    return Properties(
        convex=tau <= 1.0,
        lower=0.0,
        upper=1.0 / (tau - 1.0) if tau > 1.0 else math.inf,
        lipschitz=math.sqrt(2.0) if tau >= 1.0 else math.inf,
        smoothness=math.inf,
        symmetric=tau == 2.0,
        class_sum=float(num_classes - 1) if tau == 2.0 else None,
        shift_invariant=True,
        calibrated=True,
        rank_consistent=tau < 2.0,
        proper=tau == 1.0,
        minimiser="p_k proportional to q_k^(1/(2-tau))" if tau < 2.0 else "p = e_k at argmax q_k",
        limits=(
            ("tau = 0", "1/p_y - 1"),
            ("tau -> 1", "cross-entropy"),
            ("tau = 2", "MulticlassMAELoss"),
        ),
        counterexamples=counterexamples,
        source=_SOURCE,
    )
