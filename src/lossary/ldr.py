r"""Label-distributionally-robust losses: the worst case over distributions of the rival labels.

.. math:: \ell(f, y) = \max_{r \in \Delta}\ \langle r, z\rangle - \lambda\, R(r), \qquad
          z_k = f_k - f_y + c_{k,y}

With R the Kullback-Leibler divergence to the uniform distribution the maximum is a log-sum-exp: a
cross-entropy with a margin c and a temperature lambda, between the multiclass hinge (lambda = 0,
trusts the label and fights the hardest rival) and a linear, symmetric loss (lambda = infinity).
"""

import math
from dataclasses import replace
from typing import Any, Unpack

import torch
from torch import Tensor

from lossary import _softmax
from lossary._base import ClassificationLoss, ClassOptions, _upcast, present_rows
from lossary._checks import check_choice, check_in_memory, check_int, check_number, check_positive
from lossary._numerics import softplus
from lossary._properties import Properties
from lossary._softmax import readable
from lossary._state import PerSampleState

_SOURCE = "Zhu, Ying, Yang 2023"
_HINGES = "Crammer, Singer 2001; Weston, Watkins 1999"

#: How many numbers stay in the cache while they are read time and again.
_CACHED = 1 << 18


class LDRKLLoss(ClassificationLoss):
    r"""LDR loss with a KL regulariser: cross-entropy with a margin and a temperature.

    .. math:: \ell(f, y) = \max_{r \in \Delta}\ \langle r, z\rangle
              - \lambda \operatorname{KL}(r \,\|\, 1/K)
              = \lambda \log \frac1K \sum_k e^{z_k/\lambda}, \qquad z_k = f_k - f_y + c_{k,y}

    Use it as cross-entropy with two dials. ``lam`` says how much the label is trusted: large lam
    spreads the push over all rivals and tolerates label noise, small lam fights the hardest rival.
    ``margin`` asks for a gap before an example counts as learnt.

    Args:
        lam: 0 <= lam <= inf, both ends allowed. Default 1.
        margin: c >= 0. A number: c_{k,y} = c for every rival k != y. Default 0.1. A (K,) tensor:
            the margin of the examples of each class. A (K, K) tensor with zero diagonal: row y
            holds the margins of the rivals of target y, ``margin[y, k]`` = c_{k,y}.
        normalize: ``None`` (default), ``"l1"`` (f divided by mean_k abs(f_k)) or ``"softplus"``
            (softplus(f) divided by its mean, as in the authors' experiments). Gradients pass
            through it.
        reduction, class_weight, ignore_index, class_dim: see :class:`lossary.ClassificationLoss`.

    Shape:
        logits (N, K, ...), target (N, ...) class indices or (N, K, ...) probabilities; K >= 2.
        Values (N, ...). Logits in memory, streamed or sharded
        (:class:`lossary.LinearLogits`, :class:`lossary.ShardedLogits`); the latter two neither with
        a (K, K) margin nor with ``normalize``.

    Properties:
        Convex in the logits, gradient r* - e_y with r* = softmax(z/lam), so of norm at most
        sqrt(2). Bounded below by -lam log K (0 at lam = 0, nothing at lam = inf), so it can be
        negative; unbounded above. Calibrated and rank-consistent for 0 < lam < inf and a margin
        shared by all classes. Symmetric iff lam = inf, with class sum c (K - 1). Proper iff lam = 1
        and the margin is 0. lam = 0 is calibrated only where some class has probability above 1/2,
        lam = inf only on a bounded set of logits. Nonincreasing in lam. With ``normalize`` none of
        convexity, shift invariance and the minimiser survive.

    Limits:
        Margin 0: lam * (CE(f/lam) - log K). lam = 0: the Crammer-Singer hinge,
        max_k z_k. lam = inf: the mean of z.

    Note:
        For lam of 4 and more the value is computed from the log-odds above chance: lam times
        (log-sum-exp minus log K) would cancel, to 0.15% at lam = 1e4. ``normalize`` divides by a
        mean that is clamped at the smallest normal number, and costs copies of the logits.

    Raises:
        ValueError: ``lam`` negative or nan, a negative or non-finite margin, a margin tensor that
            is neither (K,) nor (K, K) or has a non-zero diagonal, unknown ``normalize``.
        TypeError: ``lam`` or ``margin`` of a wrong type.

    Reference:
        Zhu, Ying, Yang, "Label Distributionally Robust Losses for Multi-class Classification:
        Consistency, Robustness and Adaptivity", 2023. The authors' class defaults to lam = 1,
        margin = 2; their experiments use lam = 10, margin = 0.1 and ``normalize="softplus"``.

    Example:
        >>> import torch
        >>> from lossary import LDRKLLoss
        >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> LDRKLLoss(lam=1.0, margin=0.1)(logits, torch.tensor([0, 2]))
        tensor(0.0199)
    """

    margin: Tensor | float

    def __init__(
        self,
        lam: float = 1.0,
        margin: float | Tensor = 0.1,
        normalize: str | None = None,
        **options: Unpack[ClassOptions],
    ) -> None:
        super().__init__(**options)
        self.lam = check_number("lam", lam, 0.0)
        check_choice("normalize", normalize, (None, "softplus", "l1"))
        self.normalize = normalize
        _set_margin(self, margin)

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of every sample, unreduced."""
        axis = self._class_axis(logits)
        _check_classes(self.margin, logits.shape[axis])
        if self.normalize is not None:
            logits = present_rows(logits, target, axis, "normalize")
            logits = _normalized(logits, axis, self.normalize)
        return _kl_value(self, logits, target, self.lam, self.margin)

    def properties(self, num_classes: int = 10) -> Properties:
        """Return what this instance guarantees on ``num_classes`` classes."""
        if self.normalize is None:
            return _properties(self.lam, self.margin, num_classes)
        known = 0.0 < self.lam < math.inf and not isinstance(self.margin, Tensor)
        a, b = ((10.0, -20.0, -20.0), (-20.0, 100.0, -20.0))
        return Properties(
            convex=False if known else None,
            shift_invariant=False if known else None,
            counterexamples={"convex": (a, b, 0), "shift_invariant": ((1.0, 0.0, 0.0), 5.0)},
            source=_SOURCE,
        )


class LDRLoss(ClassificationLoss):
    r"""LDR loss in general: the worst rivals, by a divergence or by a cap on their probabilities.

    .. math:: \ell(f, y) = \max_{r \in \Omega}\ \langle r, z\rangle - \lambda\, R(r), \qquad
              z_k = f_k - f_y + c_{k,y}

    where Omega is the simplex and R one of

    .. math:: \operatorname{KL}(r \,\|\, 1/K) \quad (\text{"kl"}), \qquad
              \tfrac K2 \lVert r - 1/K \rVert_2^2 \quad (\text{"euclidean"}),

    or, with ``topk=k``, R = 0 and the simplex is capped, r_i <= 1/k: the mean of the k largest z_i,
    z_y = 0 included.

    All rivals share the push of ``"kl"``. ``"euclidean"`` leaves those alone that are far enough
    behind: its r*, the projection of 1/K + z/(lam K) onto the simplex, has exact zeros. ``topk``
    pushes k of them alike, where a label may be one of k look-alikes.

    Args:
        lam: 0 <= lam <= inf, both ends allowed. Default 1. Not used with ``topk``.
        margin: c >= 0, as in :class:`LDRKLLoss`: a number, (K,) or (K, K). Default 0.
        divergence: ``"kl"`` (default), which is :class:`LDRKLLoss`, or ``"euclidean"``. Not used
            with ``topk``.
        topk: ``None`` (default), or k from 1 to K.
        reduction, class_weight, ignore_index, class_dim: see :class:`lossary.ClassificationLoss`.

    Shape:
        logits (N, K, ...), target (N, ...) class indices or (N, K, ...) probabilities; K >= 2.
        Values (N, ...). Logits in memory; for ``"kl"`` also streamed and
        sharded, as in :class:`LDRKLLoss`.
        Probabilities cost O(N K^2) time and memory where ``"euclidean"`` or ``topk`` meets a
        margin.

    Properties:
        Convex in the logits, gradient r* - e_y, of norm at most sqrt(2); where r* is not unique,
        any of them. Bounded below by -lam log K (``"kl"``) or -lam (K - 1)/2 (``"euclidean"``); by
        nothing at lam = inf and for topk > 1. Both divergences, for 0 < lam < inf and a margin
        shared by all classes: calibrated and rank-consistent. ``"kl"`` is smooth, ``"euclidean"``
        has one continuous derivative, ``topk`` a kink. Capped, 1 < k < K: no order is kept beyond
        the first class, for k > 2 not even that; for k = 2 the top class is right where its
        probability is above 1/2, and tied at margin 0 where none is. Symmetric iff lam = inf or
        topk = K.

    Limits:
        ``topk=1``, lam = 0: :class:`CrammerSingerLoss`. ``topk=K``, lam = inf: the mean of z.
        ``"euclidean"`` with lam = 1/K and margin 0: the sparsemax loss less 1/2 - 1/(2K).

    Note:
        With the support S of r*, of size s, the ``"euclidean"`` value is mean_S z +
        sum_S (z - mean_S z)^2 / (2 lam K) - lam (K/s - 1)/2: at a large lam nothing cancels. S is
        found in some passes over the logits, and ``topk`` sorts: both take several times as long
        and as much memory as the other losses here.

    Raises:
        ValueError: ``lam`` negative or nan, a bad margin (see :class:`LDRKLLoss`), unknown
            ``divergence``, ``topk`` below 1, or, in the call, above K.
        TypeError: ``lam``, ``margin`` or ``topk`` of a wrong type.

    Reference:
        Zhu, Ying, Yang, "Label Distributionally Robust Losses for Multi-class Classification:
        Consistency, Robustness and Adaptivity", 2023: the max form. The authors' code has the KL
        member only; the closed forms of the others were derived here from the max form.

    Example:
        >>> import torch
        >>> from lossary import LDRLoss
        >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> LDRLoss(lam=0.5, divergence="euclidean")(logits, torch.tensor([0, 2]))
        tensor(0.2708)
        >>> LDRLoss(topk=2)(logits, torch.tensor([0, 2]))
        tensor(0.)
    """

    margin: Tensor | float

    def __init__(
        self,
        lam: float = 1.0,
        margin: float | Tensor = 0.0,
        divergence: str = "kl",
        topk: int | None = None,
        **options: Unpack[ClassOptions],
    ) -> None:
        super().__init__(**options)
        self.lam = check_number("lam", lam, 0.0)
        check_choice("divergence", divergence, ("kl", "euclidean"))
        self.divergence = divergence
        if topk is not None:
            check_int("topk", topk, 1)
        self.topk = topk
        _set_margin(self, margin)

    def _effective_lam(self, num_classes: int) -> float:
        """Return lam, to which the ends of ``topk`` belong too."""
        if self.topk is None:
            return self.lam
        if self.topk > num_classes:
            raise ValueError(
                f"topk: expected at most {num_classes}, the number of classes, got {self.topk}"
            )
        return {1: 0.0, num_classes: math.inf}.get(self.topk, self.lam)

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of every sample, unreduced."""
        axis = self._class_axis(logits)
        num_classes = logits.shape[axis]
        _check_classes(self.margin, num_classes)
        lam = _within(self._effective_lam(num_classes), logits)
        by_kl = self.topk is None and self.divergence == "kl"
        if by_kl or lam in (0.0, math.inf):
            return _kl_value(self, logits, target, lam, self.margin)
        return _quadratic_value(logits, target, axis, lam, self.margin, self.topk)

    def properties(self, num_classes: int = 10) -> Properties:
        """Return what this instance guarantees on ``num_classes`` classes."""
        lam = self._effective_lam(num_classes)
        if self.topk is None:
            return _properties(lam, self.margin, num_classes, self.divergence)
        facts = _capped_properties(self.topk, self.margin, num_classes)
        return facts if 1 < self.topk < num_classes else _properties(lam, self.margin, num_classes)


class CrammerSingerLoss(ClassificationLoss):
    r"""Crammer-Singer loss: the hinge of the hardest rival, LDR at lambda = 0.

    .. math:: \ell(f, y) = \max\Bigl(0,\ \max_{k \neq y}\ f_k + c_{k,y} - f_y\Bigr)

    The multiclass support vector machine: exactly 0 once the target leads every rival by the
    margin, and all of the push on one rival until then. With wrong labels, or where classes
    overlap, a loss with lambda > 0 orders the classes better: see Properties.

    Args:
        margin: c >= 0, as in :class:`LDRKLLoss`: a number, (K,) or (K, K). Default 1.
        reduction, class_weight, ignore_index, class_dim: see :class:`lossary.ClassificationLoss`.

    Shape:
        logits (N, K, ...), target (N, ...) class indices or (N, K, ...) probabilities; K >= 2.
        Values (N, ...). Logits in memory, streamed or sharded
        (:class:`lossary.LinearLogits`, :class:`lossary.ShardedLogits`); the latter two without a
        (K, K) margin.

    Properties:
        Convex in the logits, >= 0, and 0 iff every margin is kept. Gradient e_k - e_y for a
        hardest rival k, or 0. Not symmetric. Calibrated only where some class has probability
        above 1/2, and even there all others tie: for q = (.4, .3, .3) equal logits are best. With
        two classes, where it is the binary hinge, always. Margin 0 is degenerate: equal logits are
        always best. CS <= WW <= (K - 1) CS for the Weston-Watkins loss at the same margin.

    Limits:
        :class:`LDRKLLoss` at lam = 0, :class:`LDRLoss` at topk = 1.

    Note:
        Only the hardest rival's index is computed from the whole row; its gap is one subtraction.

    Raises:
        ValueError: a negative or non-finite margin, a margin tensor that is neither (K,) nor (K, K)
            or has a non-zero diagonal.
        TypeError: ``margin`` of a wrong type.

    Reference:
        Crammer, Singer, "On the Algorithmic Implementation of Multiclass Kernel-based Vector
        Machines", 2001. Verified against the code of Zhu, Ying, Yang 2023, which compares with it.

    Example:
        >>> import torch
        >>> from lossary import CrammerSingerLoss
        >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> CrammerSingerLoss()(logits, torch.tensor([0, 2]))
        tensor(1.2500)
    """

    margin: Tensor | float

    def __init__(self, margin: float | Tensor = 1.0, **options: Unpack[ClassOptions]) -> None:
        super().__init__(**options)
        _set_margin(self, margin)

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of every sample, unreduced."""
        _check_classes(self.margin, logits.shape[self._class_axis(logits)])
        return _kl_value(self, logits, target, 0.0, self.margin)

    def properties(self, num_classes: int = 10) -> Properties:
        """Return what this instance guarantees on ``num_classes`` classes."""
        return replace(
            _properties(0.0, self.margin, num_classes), limits=(), source=f"{_HINGES}; {_SOURCE}"
        )


class WestonWatkinsLoss(ClassificationLoss):
    r"""Weston-Watkins loss: the sum of the hinges of all rivals.

    .. math:: \ell(f, y) = \sum_{k \neq y} \max(0,\ f_k + c_{k,y} - f_y)

    Every rival that comes within the margin is pushed alike, where :class:`CrammerSingerLoss`
    pushes the hardest only: the gradients are denser, and the scale grows with the number of
    rivals too near.

    Args:
        margin: c >= 0, as in :class:`LDRKLLoss`: a number, (K,) or (K, K). Default 1.
        normalize: ``"sum"`` (default) or ``"mean"``, which divides by K (not K - 1), as
            ``torch.nn.MultiMarginLoss`` does.
        reduction, class_weight, ignore_index, class_dim: see :class:`lossary.ClassificationLoss`.

    Shape:
        logits (N, K, ...), target (N, ...) class indices or (N, K, ...) probabilities; K >= 2.
        Values (N, ...). Logits in memory (dense layout). Probabilities cost O(N K^2) time and
        memory.

    Properties:
        Convex in the logits, >= 0, and 0 iff every margin is kept. Gradient: e_k - e_y for every
        rival k that does not keep it, of norm at most sqrt(K (K - 1)), for ``"mean"`` 1/K of that.
        Not symmetric. Not calibrated: for q = (.4, .35, .25) the risk is least at f = (c, c, 0), a
        tie of the two most probable classes. With two classes, where it is the binary hinge, it
        is. Margin 0 is degenerate: equal logits are always best.

    Limits:
        ``"mean"``: ``torch.nn.MultiMarginLoss`` with p = 1. Two classes, ``"sum"``:
        :class:`CrammerSingerLoss`.

    Note:
        Gaps are taken before the margin is added and summed over the rivals alone, so an offset
        common to all logits costs no digits, and a small loss keeps its own.

    Raises:
        ValueError: a negative or non-finite margin, a margin tensor that is neither (K,) nor (K, K)
            or has a non-zero diagonal, unknown ``normalize``.
        TypeError: ``margin`` of a wrong type.

    Reference:
        Weston, Watkins, "Support Vector Machines for Multi-Class Pattern Recognition", 1999.
        Verified against the code of Zhu, Ying, Yang 2023, which compares with it.

    Example:
        >>> import torch
        >>> from lossary import WestonWatkinsLoss
        >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> WestonWatkinsLoss()(logits, torch.tensor([0, 2]))
        tensor(2.)
    """

    margin: Tensor | float

    def __init__(
        self,
        margin: float | Tensor = 1.0,
        normalize: str = "sum",
        **options: Unpack[ClassOptions],
    ) -> None:
        super().__init__(**options)
        check_choice("normalize", normalize, ("sum", "mean"))
        self.normalize = normalize
        _set_margin(self, margin)

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of every sample, unreduced."""
        axis = self._class_axis(logits)
        num_classes = logits.shape[axis]
        _check_classes(self.margin, num_classes)
        f, own, y = _rows(logits, target, axis)
        rows, shared = _split_margin(self.margin, y, f)
        # In place: none of these operations needs what it overwrites. Adding the negated target
        # spares the negation of a logits-sized gradient.
        gap = f + own.neg().unsqueeze(-1)
        if rows is not None:
            gap.add_(rows)
        elif shared is not None:
            gap.add_(shared.unsqueeze(-1))
        # Not "beyond > 0", which would take a nan for a margin that is kept.
        kept = (gap <= 0.0) | _is_own(f, y)
        value = gap.masked_fill_(kept, 0.0).sum(-1)
        if target is not None:
            # Of an impossible target all gaps are infinite, but -inf less -inf is none.
            value = torch.where(own == -math.inf, math.inf, value)
            value = torch.where(target < 0, 0.0, value)
        if self.normalize == "mean":
            value = value / num_classes
        return value if target is not None else value.movedim(-1, axis)

    def properties(self, num_classes: int = 10) -> Properties:
        """Return what this instance guarantees on ``num_classes`` classes."""
        facts = _properties(0.0, self.margin, num_classes)
        counterexamples = dict(facts.counterexamples)
        if not isinstance(self.margin, Tensor):
            c = self.margin
            _, shown = _hinge_facts(c, num_classes, (0.4, 0.35, 0.25), (c, c, 0.0))
            counterexamples.update(shown)
        unit = 1.0 if self.normalize == "sum" else 1.0 / num_classes
        return replace(
            facts,
            lipschitz=math.sqrt(num_classes * (num_classes - 1)) * unit,
            limits=(),
            counterexamples=counterexamples,
            source=f"{_HINGES}; {_SOURCE}",
        )


class ALDRKLLoss(ClassificationLoss, PerSampleState):
    r"""LDR-KL loss with a temperature per training sample that adapts to the noise of its label.

    .. math:: \ell(f, y) = \max_{\lambda \ge 0}\ \lambda \log \frac1K \sum_k e^{z_k/\lambda}
              - \frac{\alpha \log K}{2 \lambda_0} (\lambda - \lambda_0)^2, \qquad
              z_k = f_k - f_y + c_{k,y}

    A sample whose rivals stand out against the label lowers its temperature and so pays less than
    under a fixed one; one whose logits all agree keeps lam. Use it where noise differs between
    samples and :class:`LDRKLLoss` would need one temperature for all. The maximum is followed by
    fixed-point steps, one per visit of a sample:

    .. math:: \lambda_i \leftarrow \lambda_0 - \frac{\lambda_0}{\alpha \log K}
              \operatorname{KL}(r \,\|\, 1/K), \qquad r = \operatorname{softmax}(z/\lambda_i)

    Args:
        num_samples: size of the training set.
        lam: lam_0 > 0, finite: where every sample begins, and the largest temperature. Default 1.
        alpha: > 1. Default 2. How far temperatures may fall: to lam (1 - 1/alpha).
        margin: as in :class:`LDRKLLoss`. Default 0.1.
        normalize: ``None`` (default), ``"l1"`` or ``"softplus"``, as in :class:`LDRKLLoss`;
            ``"softplus-l1"`` is the same as ``"softplus"``.
        margin_in_update: whether r sees the margin. Default ``True``; the official code: ``False``.
        prob_eps: >= 0, added to each r_k in the update. Default 0; the official code: 1e-5.
        n_iter: fixed-point steps per visit, at least 1. Default 1.
        reduction, class_weight, ignore_index, class_dim: see :class:`lossary.ClassificationLoss`.

    Shape:
        logits (N, K, ...), target (N, ...) class indices, index (N, ...) dataset indices in
        [0, num_samples); K >= 2. Values (N, ...). Logits in memory (dense layout).
        ``update=False`` in the call leaves the temperatures as they are: for the second forward of
        activation checkpointing.

    Properties:
        lam_i in [lam (1 - 1/alpha), lam], without gradient; the gradient in the logits is
        softmax(z/lam_i) - e_y, of norm at most sqrt(2). Starting from lam the steps decrease to
        the largest fixed point, and LDR-KL <= value after one step <= value at the fixed point
        <= Crammer-Singer (with ``margin_in_update`` and ``prob_eps=0``). That point was the
        global maximiser in every case tried with alpha >= 1.5 up to 100 classes, 2 up to 1000, 4
        up to 10^6; for a smaller alpha the steps may stop at a lower maximum. The maximum is
        convex, as each value at a fixed temperature is, and calibrated and rank-consistent for a
        margin shared by all classes. Bounded below by -lam log K.

    Limits:
        alpha -> inf: :class:`LDRKLLoss`. Equal z leave lam_i = lam; one dominant z_k sends it to
        lam (1 - 1/alpha).

    Note:
        The temperatures are the buffer ``sample_lam``, saved in ``state_dict``; ``reset()`` sets
        them back. They are written only in training mode with gradients enabled, not under
        torch.func, and not for entries that are left out; a sample that occurs several times in a
        batch, on all processes, gets the mean of its new temperatures. In evaluation the stored
        ones are used. The value is the loss at the stored temperature, not yet at the fixed point.

    Raises:
        ValueError: ``alpha`` <= 1, ``lam`` <= 0, ``n_iter`` or ``num_samples`` < 1, ``index`` out
            of range or of another shape than the target.
        TypeError: ``index`` missing or not of integers; a target of class probabilities, for which
            the adaptive temperature is not defined.

    Reference:
        Zhu, Ying, Yang, "Label Distributionally Robust Losses for Multi-class Classification:
        Consistency, Robustness and Adaptivity", 2023. To reproduce the official code:
        ``normalize="l1"`` (or ``"softplus-l1"``), ``margin_in_update=False``, ``prob_eps=1e-5``.
        The paper's alpha is log(K)/lam times the one here, which follows the code; the paper's
        condition alpha > log(K)/lam is RECALLED.

    Example:
        >>> import torch
        >>> from lossary import ALDRKLLoss
        >>> loss = ALDRKLLoss(num_samples=1000)
        >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> loss(logits, torch.tensor([0, 2]), index=torch.tensor([17, 400]))
        tensor(0.0713)
        >>> loss.sample_lam[[17, 400, 0]]
        tensor([0.7524, 0.9055, 1.0000])
    """

    margin: Tensor | float
    sample_lam: Tensor

    def __init__(
        self,
        num_samples: int,
        lam: float = 1.0,
        alpha: float = 2.0,
        margin: float | Tensor = 0.1,
        normalize: str | None = None,
        margin_in_update: bool = True,
        prob_eps: float = 0.0,
        n_iter: int = 1,
        **options: Unpack[ClassOptions],
    ) -> None:
        super().__init__(**options)
        self.lam = check_positive("lam", lam)
        self.alpha = check_positive("alpha", alpha, 1.0)
        check_choice("normalize", normalize, (None, "softplus", "l1", "softplus-l1"))
        self.normalize = normalize
        check_choice("margin_in_update", margin_in_update, (True, False))
        self.margin_in_update = margin_in_update
        self.prob_eps = check_number("prob_eps", prob_eps, 0.0, math.inf, high_open=True)
        self.n_iter = check_int("n_iter", n_iter, 1)
        _set_margin(self, margin)
        self._add_state("sample_lam", num_samples, self.lam)

    def per_sample(
        self, logits: Tensor, target: Tensor, index: Tensor, update: bool = True
    ) -> Tensor:
        """Return the loss of every sample, unreduced."""
        check_in_memory(logits, "a temperature per sample")
        axis = self._class_axis(logits)
        num_classes = logits.shape[axis]
        _check_classes(self.margin, num_classes)
        index, present = self._samples(index, logits.select(axis, 0), target)
        if self.normalize is not None:
            logits = present_rows(logits, target, axis, "normalize")
            logits = _normalized(logits, axis, self.normalize)
        dtype = _softmax._compute_dtype(logits)
        lam = self._bounded(self._stored("sample_lam", index, dtype))
        if target is not None and self._updates(update, logits):
            for _ in range(self.n_iter):
                lam = self._step(logits, target, lam, axis)
            lam = self._store("sample_lam", index, lam, present)
        value = _log_mean_exp(self, logits, target, lam, self.margin, self.lam >= 4.0)
        if target is None:
            lam = lam.unsqueeze(axis)
        penalty = self.alpha * math.log(num_classes) / (2.0 * self.lam)
        return lam * value - penalty * (lam - self.lam).square()

    def _step(self, logits: Tensor, target: Tensor, lam: Tensor, axis: int) -> Tensor:
        """Return the temperatures after one fixed-point step."""
        divergence = _softmax.uniform_divergence(
            logits,
            target,
            class_dim=axis,
            temperature=lam,
            margin=self.margin if self.margin_in_update else None,
            smoothing=self.prob_eps,
        )
        lam = self.lam - (self.lam / (self.alpha * math.log(logits.shape[axis]))) * divergence
        return self._bounded(lam)

    def _bounded(self, lam: Tensor) -> Tensor:
        # Rounding must not carry it past the bounds: below lies 0, where nothing is defined.
        return lam.clamp(self.lam * (1.0 - 1.0 / self.alpha), self.lam)

    def expected(self, logits: Tensor, probabilities: Tensor, mass: Tensor, *others: Any) -> Tensor:
        """Refuse: whose temperature would adapt to which label?"""
        raise TypeError("target: expected integer class indices, got class probabilities")

    def properties(self, num_classes: int = 10) -> Properties:
        """Return what this instance guarantees on ``num_classes`` classes.

        Calibration is that of the maximum; the others hold at any stored temperatures.
        """
        source = "Zhu, Ying, Yang 2023"
        if self.normalize is not None:
            return Properties(limits=(("alpha -> inf", "LDRKLLoss"),), source=source)
        rest = (0.0,) * (num_classes - 1)
        shared = not isinstance(self.margin, Tensor)
        counterexamples: dict[str, tuple[Any, ...]] = {"upper": ((-1.0, *rest), 0)}
        if shared:
            counterexamples["symmetric"] = ((0.0, *rest), (3.0, *rest))
        return Properties(
            convex=True,  # at every temperature, and so is the maximum over them
            lower=-self.lam * math.log(num_classes),
            upper=math.inf,
            lipschitz=math.sqrt(2.0),
            symmetric=False if shared else None,
            shift_invariant=True,
            # The loss is symmetric in the rivals and increasing in each z_k, so two logits in the
            # wrong order are better exchanged; at a tie the slope along e_i - e_j is
            # (q_i - q_j)(r_i - r_j - 1) < 0. It lies above LDR-KL, which has a finite minimiser.
            calibrated=True if shared else None,
            rank_consistent=True if shared else None,
            minimiser="orders the classes as q does" if shared else None,
            limits=(("alpha -> inf", "LDRKLLoss"),),
            counterexamples=counterexamples,
            unknown={
                "smoothness": "smooth at stored temperatures, not known of the maximum",
                "proper": "the minimiser's order is known, not its values",
            }
            | (
                {}
                if shared
                else dict.fromkeys(
                    ("symmetric", "calibrated", "rank_consistent"), "margins per class"
                )
            ),
            source=source,
        )


def _set_margin(loss: Any, margin: float | Tensor) -> None:
    if isinstance(margin, Tensor):
        loss.register_buffer("margin", _checked_margin(margin))
    else:
        loss.margin = check_number("margin", margin, 0.0, math.inf, high_open=True)


def _check_classes(margin: float | Tensor, num_classes: int) -> None:
    if isinstance(margin, Tensor) and len(margin) != num_classes:
        shape = tuple(margin.shape)
        raise ValueError(f"margin: expected {num_classes} classes, got shape {shape}")


def _log_mean_exp(
    loss: ClassificationLoss,
    logits: Tensor,
    target: Tensor | None,
    lam: float | Tensor,
    margin: float | Tensor,
    hot: bool,
) -> Tensor:
    """Return log((1/K) sum_k exp(z_k/lam)); ``hot`` where it may nearly vanish, at a large lam."""
    num_classes = logits.shape[loss._class_axis(logits)]
    t = loss.log_odds(logits, target, temperature=lam, margin=margin, above_chance=hot)
    return _above_chance(t, num_classes) if hot else softplus(t) - math.log(num_classes)


def _kl_value(
    loss: ClassificationLoss,
    logits: Tensor,
    target: Tensor | None,
    lam: float,
    margin: float | Tensor,
) -> Tensor:
    """Return the value of the KL member, both ends included, where all divergences agree."""
    lam = _within(lam, logits)
    if lam == 0.0:
        axis = loss._class_axis(logits)
        rival = _softmax.hardest_rival(logits, target, class_dim=axis, margin=margin)
        return torch.relu(rival)
    if lam == math.inf:
        return _mean_gap(logits, target, loss._class_axis(logits), margin)
    value = _log_mean_exp(loss, logits, target, lam, margin, lam >= 4.0)
    return value if lam == 1.0 else value * lam


def _mean_gap(logits: Tensor, target: Tensor | None, axis: int, margin: float | Tensor) -> Tensor:
    """Return mean_k z_k, the loss at infinite temperature."""
    num_classes = logits.shape[axis]
    if target is None:
        f = _upcast(logits)
        # From the top, so that an offset common to all logits costs no digits.
        f = f - f.detach().amax(axis, keepdim=True)
        # An impossible target is infinitely far behind, not infinity less infinity.
        gap = torch.where(f == -math.inf, math.inf, f.mean(axis, keepdim=True) - f)
        if not isinstance(margin, Tensor):
            return gap + margin * (num_classes - 1) / num_classes
        margin = margin.to(f.dtype)
        mean = margin.sum(1) if margin.dim() == 2 else margin * (num_classes - 1)
        return (gap.movedim(axis, -1) + mean / num_classes).movedim(-1, axis)
    names = (_softmax.GAPS,)
    (gaps,) = _softmax.row_statistics(logits, target, names, class_dim=axis, margin=margin)
    return gaps / num_classes


def _quadratic_value(
    logits: Tensor,
    target: Tensor | None,
    axis: int,
    lam: float,
    margin: float | Tensor,
    topk: int | None,
) -> Tensor:
    r"""Return max_r <r, z> - lam K/2 \|r - 1/K\|^2, or the mean of the ``topk`` largest z.

    The support S of r*, s classes, is found first, without a gradient. On it the loss is

        mean_S z + sum_S (z - mean_S z)^2 / (2 lam K) - lam (K/s - 1)/2,

    whose derivatives, r* - e_y and the Hessian, are those of the loss. The rivals in S are taken
    together, by their mean gap g to the target and their spread, and the target apart: neither an
    offset common to all logits nor a margin common to the rivals is ever rounded into a difference.
    """
    f, own, y = _rows(logits, target, axis)
    num_classes = f.shape[-1]
    rows, shared = _split_margin(margin, y, f)
    # Without a margin the target is one of the rivals, in any row: S serves all targets at once.
    is_own = None if shared is None else _is_own(f, y)
    top = f.detach().amax(-1, keepdim=True)
    base = f.detach() - top
    base = base if rows is None else base + rows.detach()
    ranked = base
    if is_own is not None and shared is not None:
        ranked = torch.where(is_own, base - shared.detach().unsqueeze(-1), base)
    width = lam * num_classes
    chosen = _support(ranked, width) if topk is None else _largest(ranked, topk)
    rivals = chosen if is_own is None else chosen & ~is_own
    size, count = chosen.sum(-1).to(f.dtype), rivals.sum(-1).to(f.dtype)
    with_target = count < size
    size, some = size.clamp(min=1.0), count.clamp(min=1.0)

    # Distances are taken from the logit nearest to the mean. Of the sum of their squares the mean's
    # then takes half at most, so nothing cancels; and ties are exact, for lam has no lower limit.
    mean = torch.where(rivals & (base > -math.inf), base, 0.0).sum(-1) / some
    nearest = (base - mean.unsqueeze(-1)).abs().argmin(-1, keepdim=True)
    # Where there is a nan, and only there, the top is one too.
    centre = torch.where(top.isnan(), top, torch.take_along_dim(f.detach(), nearest, -1))
    d, behind = f - centre, centre.squeeze(-1) - own
    if rows is not None:
        extra = torch.take_along_dim(rows.detach().expand_as(base), nearest, -1)
        d, behind = d + (rows - extra), behind + extra.squeeze(-1)
    elif shared is not None:
        behind = behind + shared
    d = torch.where(rivals, d, 0.0)
    mean = d.sum(-1) / some
    gap = behind + mean
    value = count / size * gap
    if topk is None:
        spread = d.square().sum(-1) - count * mean.square()
        # The target in S: its distance from the rivals' mean squared, times n/(n + 1), n rivals.
        apart = torch.where(with_target, gap, 0.0).square() * (count / size)
        value = value + (spread + apart) / (2.0 * width)
        value = value - (num_classes - size) / size * (lam / 2.0)
    else:
        # Of an impossible target all gaps are infinite, but -inf less -inf is none.
        value = torch.where(own == -math.inf, math.inf, value)
    if target is None:
        return value.movedim(-1, axis)
    # Where inf or nan stand in an absent row, S is empty or the value linear: no gradient is nan.
    return torch.where(target < 0, 0.0, value)


def _support(w: Tensor, width: float) -> Tensor:
    """Return where the projection of w/width onto the simplex is positive, on the last axis."""
    # Rows that leave the cache would go through memory with every step.
    rows = max(1, _CACHED // w.shape[-1])
    if not readable(w) or w.numel() <= rows * w.shape[-1]:
        return _above_threshold(w, width)
    flat = w.reshape(-1, w.shape[-1])
    parts = [_above_threshold(flat[a : a + rows], width) for a in range(0, len(flat), rows)]
    return torch.cat(parts).view(w.shape)


def _above_threshold(w: Tensor, width: float) -> Tensor:
    """Return where w exceeds the root x of phi(x) = sum_k max(0, w_k - x) - width.

    By Newton's method from below. As phi is convex and falls, steps stay below the root; and with
    s, the number of w that exceed x, the ratios of phi and of s to those of the step before add up
    to 1 at most. So every step divides phi s by 4 or more, from K^2 width at the start: that many
    steps, and phi/width, the error in the sum of r, is a rounding. Mostly a few are enough.
    """
    # From the top: ties there are then exact.
    w = w - w.amax(-1, keepdim=True)
    x = torch.full_like(w[..., :1], -width)
    size = torch.zeros_like(x, dtype=torch.long)
    steps = math.log2(w.shape[-1]) - math.log2(torch.finfo(w.dtype).eps) / 2.0
    for _ in range(math.ceil(steps)):
        over = torch.relu(w - x)
        before, size = size, (over > 0.0).sum(-1, keepdim=True)
        x = x + (over.sum(-1, keepdim=True) - width) / size
        if readable(size) and torch.equal(size, before):
            break
    return w > x


def _largest(w: Tensor, k: int) -> Tensor:
    """Return where the k largest are, on the last axis; of ties, any."""
    return torch.zeros_like(w, dtype=torch.bool).scatter(-1, w.topk(k, -1).indices, True)


def _rows(logits: Tensor, target: Tensor | None, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the logits with the classes last, the target's logit, and its index.

    Without a target, for every class: the axes are then (target, class), of size 1 for the target
    where that is all the same.
    """
    check_in_memory(logits, "this loss")
    f: Tensor = _upcast(logits).movedim(axis, -1)
    if target is None:
        return f.unsqueeze(-2), f, torch.arange(f.shape[-1], device=f.device)
    y = target.clamp(min=0)
    return f, f.gather(-1, y.unsqueeze(-1)).squeeze(-1), y


def _is_own(f: Tensor, y: Tensor) -> Tensor:
    return torch.arange(f.shape[-1], device=f.device) == y.unsqueeze(-1)


def _split_margin(
    margin: float | Tensor, y: Tensor, f: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Return every row's own margins, from a matrix, or else what all rivals of a row share."""
    if not isinstance(margin, Tensor):
        return None, None if margin == 0.0 else f.new_full((), margin)
    found = margin.to(f.dtype)[y]
    return (found, None) if margin.dim() == 2 else (None, found)


def _within(lam: float, logits: Tensor) -> float:
    """Return lam, or the end that it cannot be told from: neither lam nor 1/lam may overflow."""
    tiny = torch.finfo(_softmax._compute_dtype(logits)).tiny
    return 0.0 if lam < tiny else math.inf if lam > 1.0 / tiny else lam


def _checked_margin(margin: Tensor) -> Tensor:
    if not margin.dtype.is_floating_point:
        raise TypeError(f"margin: expected a float tensor, got {margin.dtype}")
    square = margin.dim() == 2 and margin.shape[0] == margin.shape[1]
    if not (square or margin.dim() == 1) or len(margin) < 2:
        raise ValueError(f"margin: expected shape (K,) or (K, K), got {tuple(margin.shape)}")
    bad = margin[~((margin >= 0) & margin.isfinite())]
    if len(bad) > 0:
        raise ValueError(f"margin: expected finite numbers >= 0, got {float(bad[0])}")
    if square and bool((margin.diagonal() != 0).any()):
        largest = float(margin.diagonal().max())
        raise ValueError(f"margin: expected a zero diagonal, got up to {largest:g} on it")
    return margin


def _normalized(logits: Tensor, axis: int, normalize: str) -> Tensor:
    f: Tensor = _upcast(logits)
    if normalize != "l1":
        f = softplus(f)
    # A sum and a product of the logits: the backward of their mean and quotient holds a third more.
    total = (f.abs() if normalize == "l1" else f).sum(axis, keepdim=True)
    mean = (total / f.shape[axis]).clamp(min=torch.finfo(f.dtype).tiny)
    # In units of itself: the slope of 1/mean, 1/mean^2, overflows where its products do not.
    unit = mean.detach()
    return f * ((mean / unit).reciprocal() / unit)


def _above_chance(u: Tensor, num_classes: int) -> Tensor:
    """Return log((1 + (K-1) e^u)/K), which vanishes with u, to full relative accuracy."""
    share = (num_classes - 1) / num_classes
    far = u.abs() > 1.0
    near = torch.log1p(share * torch.expm1(torch.where(far, 0.0, u)))
    return torch.where(far, softplus(u + math.log(num_classes - 1)) - math.log(num_classes), near)


def _properties(
    lam: float, margin: float | Tensor, num_classes: int, divergence: str = "kl"
) -> Properties:
    """State the facts of the family, both ends included."""
    inside = 0.0 < lam < math.inf
    by_kl = divergence == "kl"
    rest = (0.0,) * (num_classes - 1)
    counterexamples: dict[str, tuple[Any, ...]] = {"upper": ((-1.0, *rest), 0)}
    if lam == math.inf:
        counterexamples["lower"] = ((1.0, *rest), 0)
    facts = Properties(
        convex=True,
        lower=-lam * (math.log(num_classes) if by_kl else (num_classes - 1) / 2),
        upper=math.inf,
        lipschitz=math.sqrt(2.0),
        smoothness=0 if lam == 0.0 else 1 if inside and not by_kl else math.inf,
        shift_invariant=True,
        limits=(("lam -> 0", "CrammerSingerLoss"), ("lam -> inf", "the mean of z")),
        counterexamples=counterexamples,
        source=_SOURCE,
    )
    if isinstance(margin, Tensor):
        return facts
    # Before -f_y the value is symmetric and convex in f with margins, so Schur-convex: a target
    # whose logit is d below another's has a loss at least d above the other's, and exchanging two
    # logits in the wrong order lowers the risk. At a tie of i and j every other target has r_i =
    # r_j, as r* is unique inside, and target i has r_j >= r_i: along e_i - e_j the risk changes at
    # -(q_i - q_j)(1 + r_j - r_i) < 0. It grows with max f - min f, so there is a finite minimiser.
    calibrated = inside
    rank_consistent: bool | None = inside
    proper = by_kl and lam == 1.0 and margin == 0.0
    if lam == 0.0:
        calibrated, shown = _hinge_facts(margin, num_classes, (0.4, 0.3, 0.3), (0.0, 0.0, 0.0))
        counterexamples.update(shown)
        rank_consistent = calibrated
    elif not inside:
        calibrated, shown = _mean_facts(margin, num_classes)
        counterexamples.update(shown)
        # Of two classes the right one wins, but no finite f is least.
        rank_consistent = None if num_classes == 2 else False
    elif not proper:
        best = _best_by_kl if by_kl else _best_by_distance
        counterexamples["proper"] = best(lam, margin)
    if lam < math.inf:
        counterexamples["symmetric"] = ((0.0, *rest), (3.0 + margin, *rest))
    return replace(
        facts,
        symmetric=lam == math.inf,
        class_sum=margin * (num_classes - 1) if lam == math.inf else None,
        calibrated=calibrated,
        rank_consistent=rank_consistent,
        proper=proper,
        minimiser="orders the classes as q does" if rank_consistent else None,
    )


def _capped_properties(k: int, margin: float | Tensor, num_classes: int) -> Properties:
    """State the facts of 1 < topk < K."""
    rest = (0.0,) * (num_classes - 1)
    facts = replace(
        _properties(0.0, margin, num_classes),
        lower=-math.inf,
        lipschitz=math.sqrt(1.0 + 1.0 / k),
        calibrated=None,
        limits=(("topk = 1", "CrammerSingerLoss"), ("topk = K", "the mean of z")),
    )
    shown: dict[str, tuple[Any, ...]] = {"upper": ((-1.0, *rest), 0), "lower": ((1.0, *rest), 0)}
    if isinstance(margin, Tensor):
        return replace(facts, counterexamples=shown)
    # Along f the risk tends to the mean of its k largest entries less <q, f>. That is below 0, and
    # unbounded, for some f with q's first class alone in place; for k > 2, for one without.
    scale = 100.0 * (1.0 + margin)
    few, zeros = [0.01 / k] * (k - 2), [0.0] * (k - 2)  # k + 1 classes in all
    ordered = ((0.6, 0.25, 0.15 - sum(few), *few), (10.0 * scale, 0.0, scale, *zeros))
    shown |= {
        "symmetric": ((0.0, *rest), (3.0 + margin, *rest)),
        "rank_consistent": ordered,
        "proper": ordered,
    }
    if k > 2:
        q = (0.5, 0.4, 0.1 - sum(few), *few)
        shown["calibrated"] = (q, (9.0 * scale, 10.0 * scale, 0.0, *zeros))
    return replace(
        facts,
        calibrated=False if k > 2 else None,
        rank_consistent=False,
        minimiser=None,
        counterexamples=shown,
    )


def _hinge_facts(
    margin: float, num_classes: int, q: tuple[float, ...], tied: tuple[float, ...]
) -> tuple[bool, dict[str, tuple[Any, ...]]]:
    """Return whether a multiclass hinge is consistent, and its counterexamples.

    With two classes it is the binary hinge, whose risk is least where the more probable class leads
    by the margin, and nowhere else.
    """
    if num_classes > 2 or margin == 0.0:
        if num_classes == 2:
            q, tied = (0.6, 0.4), (0.0, 0.0)
        return False, dict.fromkeys(("calibrated", "rank_consistent", "proper"), (q, tied))
    a = 0.7 if margin > 1.5 else 0.9  # not the one whose log-odds are the margin
    return True, {"proper": ((a, 1.0 - a), (margin, 0.0))}


def _mean_facts(margin: float, num_classes: int) -> tuple[bool, dict[str, tuple[Any, ...]]]:
    """Return whether the mean of z is calibrated, and its counterexamples.

    The risk, mean f - <q, f> and a constant, falls without end along f: with more than two classes
    also along an f that has the wrong class on top.
    """
    scale = 1.0 + margin
    if num_classes == 2:
        return True, {"proper": ((0.6, 0.4), (100.0, 0.0))}
    others = num_classes - 2
    q = (0.5, 0.3, *[0.2 / others] * others)
    f = (9.0 * scale, 10.0 * scale, *[-100.0 * scale] * others)
    return False, dict.fromkeys(("calibrated", "rank_consistent", "proper"), (q, f))


def _best_by_kl(lam: float, margin: float) -> tuple[Any, ...]:
    """Return (q, f) for two classes, with f the minimiser of the conditional risk.

    With u = exp(gap/lam) and v = exp(margin/lam), stationarity is
    (1 - a) u^2 - (2a - 1) v u - a = 0; for large v, u is (2a - 1) v/(1 - a).
    """
    a = 0.7
    if margin / lam > 300.0:
        gap = margin + lam * math.log((2 * a - 1) / (1 - a))
    else:
        b = (2 * a - 1) * math.exp(margin / lam)
        gap = lam * math.log((b + math.sqrt(b * b + 4 * a * (1 - a))) / (2 * (1 - a)))
    return (a, 1.0 - a), (gap, 0.0)


def _best_by_distance(lam: float, margin: float) -> tuple[Any, ...]:
    """Return (q, f) for two classes, with f the minimiser of the conditional risk.

    For a gap of z the loss has the slope 1/2 + z/(4 lam), within [0, 1]. The gap in f is chosen,
    and q from it; of two gaps the one further from the log-odds of its q.
    """
    found = []
    for gap in (margin + lam, margin + lam / 2.0):
        rise = min(1.0, 0.5 + (margin + gap) / (4.0 * lam))
        odds = rise / (0.5 + (margin - gap) / (4.0 * lam))
        found.append((abs(gap - math.log(odds)), odds / (1.0 + odds), gap))
    _, a, gap = max(found)
    return (a, 1.0 - a), (gap, 0.0)
