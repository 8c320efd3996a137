r"""Preferences between segments of trajectories.

.. math:: \ell = -\log \sigma\bigl(A(\text{preferred}) - A(\text{other})\bigr)

with A what is taken to drive the preference: the return, the regret, or the log-probabilities of a
policy.
"""

import math
from typing import Any, Unpack

import torch
from torch import Tensor

from lossary._base import Loss, LossOptions, _upcast, check_sample_weight
from lossary._checks import (
    check_alike,
    check_device,
    check_floating,
    check_like,
    check_number,
    check_positive,
    check_tensor,
)
from lossary._numerics import binary_cross_entropy, softplus
from lossary._pairwise import counted
from lossary._properties import Properties
from lossary._sequence_base import check_probability, check_range, present_tokens


class CPLLoss(Loss):
    r"""Contrastive preference learning (CPL): a policy from preferences between segments.

    .. math:: \ell = -y \log \sigma(A_2 - \lambda A_1) - (1 - y) \log \sigma(A_1 - \lambda A_2)
              - c \operatorname{mean}(\log \pi), \qquad
              A = \alpha \sum_t \gamma^t \rho_t

    with rho_t the log-probability of the action at step t, or its log-ratio to a reference. People
    prefer the segment with less regret, and with the best policy's advantage alpha log pi in place
    of the reward no reinforcement learning is left: preferences over segments of trajectories train
    the policy directly. With lambda < 1 the segments that were seen stay likely; a reference makes
    it CPL-KL.

    Args:
        alpha: alpha > 0, finite: the temperature. Default 0.1, as in the authors' configurations
            (0.2 for CPL-KL).
        bias: the lambda above, in (0, 1]. Default 0.5 (0.75 for CPL-KL).
        gamma: the discount, in (0, 1]. Default 1, as in the authors' code.
        bc_coef: the c above, >= 0, finite: the weight of behaviour cloning, on the mean
            log-probability of the steps of both segments. Default 0.
        reduction: see :class:`lossary.Loss`.

    Shape:
        logps_1, logps_2 (N, S): log-probabilities or log-densities of the S actions of each
        segment, step by step, neither summed nor averaged. label (N,), floating point: the
        probability that segment 2 is preferred, in [0, 1]. reference_1, reference_2 (N, S), both or
        none. Values (N,).

    Properties:
        Convex in the log-probabilities, infinitely smooth, unbounded above. l > 0 for c = 0; else
        unbounded below, as log-densities may be above 0. For lambda = 1 and c = 0 binary
        cross-entropy on A_2 - A_1, unchanged when both move by the same number; for lambda < 1 it
        falls strictly when both rise. No gradient flows to the label.

    Limits:
        bias = 1, S = 1, label 0: :class:`DPOLoss` with beta = alpha.

    Note:
        The mean is over all pairs. The authors' code divides by the number of losses that are not
        0, and so leaves out pairs whose loss has underflowed. Their Gaussian policies have
        -\|a - mu\|^2 for a log-density, without the 1/2. Their form for scored segments, all pairs
        of a batch, is this loss of the pairs that :func:`pairs_from_scores` makes.

    Raises:
        ValueError: ``alpha`` not positive and finite, ``bias`` or ``gamma`` outside (0, 1],
            ``bc_coef`` negative or infinite; inputs of shapes that do not fit, S = 0, one reference
            only, labels outside [0, 1] (on CPU tensors, where looking costs nothing).
        TypeError: hyper-parameters not numbers; inputs not floating point.

    Reference:
        Hejna, Rafailov, Sikchi, Finn, Niekum, Knox, Sadigh, "Contrastive Preference Learning:
        Learning from Human Feedback without RL", 2023. Verified against the authors' code.

    Example:
        >>> import torch
        >>> from lossary import CPLLoss
        >>> logps_1 = torch.tensor([[-1.0, -2.0], [-3.0, -1.0]])
        >>> logps_2 = torch.tensor([[-1.5, -0.5], [-2.0, -2.5]])
        >>> CPLLoss()(logps_1, logps_2, torch.tensor([1.0, 0.0]))
        tensor(0.7515)
    """

    def __init__(
        self,
        alpha: float = 0.1,
        bias: float = 0.5,
        gamma: float = 1.0,
        bc_coef: float = 0.0,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(**options)
        self.alpha = check_positive("alpha", alpha)
        self.bias = check_number("bias", bias, 0.0, 1.0, low_open=True)
        self.gamma = check_number("gamma", gamma, 0.0, 1.0, low_open=True)
        self.bc_coef = check_number("bc_coef", bc_coef, 0.0, math.inf, high_open=True)

    def per_sample(
        self,
        logps_1: Tensor,
        logps_2: Tensor,
        label: Tensor,
        reference_1: Tensor | None = None,
        reference_2: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of every pair of segments, unreduced."""
        one, two = self._advantage(logps_1, reference_1), self._advantage(logps_2, reference_2)
        y = label.detach()
        second = y * softplus(counted(self.bias * one - two, y))
        values = second + (1.0 - y) * softplus(counted(self.bias * two - one, 1.0 - y))
        if self.bc_coef == 0.0:
            return values
        return values - self.bc_coef * 0.5 * (logps_1.mean(1) + logps_2.mean(1))

    def _advantage(self, logps: Tensor, reference: Tensor | None) -> Tensor:
        ratio = logps if reference is None else logps - reference
        if self.gamma == 1.0:
            return self.alpha * ratio.sum(1)
        steps = torch.arange(ratio.shape[1], dtype=ratio.dtype, device=ratio.device)
        return self.alpha * (ratio * self.gamma**steps).sum(1)

    def _values(
        self, inputs: tuple[Any, ...], weight: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        first, second, label, *references = inputs
        check_floating("logps_1", first)
        if first.dim() != 2 or first.shape[1] == 0:
            raise ValueError(f"logps_1: expected shape (N, S), S >= 1, got {tuple(first.shape)}")
        names = ("reference_1", "reference_2")
        for name, x in (("logps_2", second), *zip(names, references, strict=True)):
            if x is not None or name == "logps_2":
                check_floating(name, x)
                check_like(name, x, "logps_1", first)
        check_floating("label", label)
        if label.shape != first.shape[:1]:
            shape = tuple(first.shape[:1])
            raise ValueError(f"label: expected shape {shape}, got {tuple(label.shape)}")
        check_device("label", label, first)
        if (references[0] is None) != (references[1] is None):
            missing = names[references[0] is not None]
            raise ValueError(f"{missing}: expected a tensor, as for its counterpart, got None")
        check_sample_weight(weight, label.shape, label)
        check_probability("label", label, weight)
        return super()._values(inputs, weight)

    def properties(self) -> Properties:
        """Return what this instance guarantees, in the first segment's log-probabilities."""
        unknown = {
            "lower": "0, or -inf with bc_coef, but in one segment alone it depends on the other",
            "upper": "inf, but in one segment alone it depends on the label",
            "lipschitz": "grows with the root of the number of steps",
        }
        return Properties(
            convex=True,
            smoothness=math.inf,
            limits=(("bias = 1, S = 1, label 0", "DPOLoss with beta = alpha"),),
            unknown=unknown,
            source="Hejna et al. 2023",
        )


class _ModelOfPreference(Loss):
    """A loss of the log-odds that people prefer segment 1, and of what they said."""

    def __init__(self, temperature: float = 1.0, **options: Unpack[LossOptions]) -> None:
        super().__init__(**options)
        self.temperature = check_positive("temperature", temperature)

    def _cross_entropy(self, difference: Tensor, label: Tensor, first: str) -> Tensor:
        check_floating("label", label)
        check_like("label", label, first, difference)
        check_probability("label", label, None)
        return binary_cross_entropy(label.detach(), difference / self.temperature)

    def _properties(self, inputs: int, limits: tuple[tuple[str, str], ...]) -> Properties:
        return Properties(
            convex=True,
            lower=0.0,
            upper=math.inf,
            lipschitz=math.sqrt(inputs) / self.temperature,
            smoothness=math.inf,
            minimiser="the model's probability is that with which segment 1 is preferred",
            limits=limits,
            counterexamples={"upper": (-1.0, *(0.0,) * (inputs - 1), 1.0)},
            source="Knox et al. 2022; algebra",
        )


class PartialReturnPreferenceLoss(_ModelOfPreference):
    r"""Preferences between segments by what they have earned: their partial returns.

    .. math:: \ell = -y \log \sigma(z) - (1 - y) \log \sigma(-z), \qquad
              z = \frac{1}{T} \Bigl(\sum_t r_{1,t} - \sum_t r_{2,t}\Bigr)

    The usual model of preference-based reinforcement learning: it fits a reward r whose sums over
    segments explain what people prefer. It takes no account of where a segment begins and ends;
    :class:`lossary.RegretPreferenceLoss` does.

    Args:
        temperature: T > 0, finite: how loosely preferences follow the returns. Default 1.
        reduction: see :class:`lossary.Loss`.

    Shape:
        partial_return_1, partial_return_2 (N, ...) of one shape: SUMS of the rewards of the steps
        of each segment. label of the same shape, floating point: the probability that segment 1 is
        preferred, in [0, 1]; 1/2 for a tie. (:class:`lossary.CPLLoss` has that of segment 2.)
        Values of the same shape.

    Properties:
        Convex in the returns, infinitely smooth, unbounded above. l >= H(label), the entropy in
        nats; unchanged when both returns move by the same number. The gradient in partial_return_1
        is (sigma(z) - label)/T, in the other its opposite. No gradient flows to the label.

    Limits:
        Label 1, T = 1: :class:`BradleyTerryLoss` of the returns.

    Note:
        Cross-entropy from log-odds: published code takes the logarithm of probabilities that are
        clamped at 1e-35, which ends the gradient there.

    Raises:
        ValueError: ``temperature`` not positive and finite; inputs of different shapes or devices,
            labels outside [0, 1] (on CPU tensors, where looking costs nothing).
        TypeError: ``temperature`` not a number; inputs that are not floating point.

    Reference:
        Christiano et al., "Deep Reinforcement Learning from Human Preferences", 2017, as restated
        in Knox et al., "Models of Human Preference for Learning Reward Functions", 2022. Verified
        against the latter's later code.

    Example:
        >>> import torch
        >>> from lossary import PartialReturnPreferenceLoss
        >>> returns = torch.tensor([2.0, -1.0]), torch.tensor([1.0, 0.5])
        >>> PartialReturnPreferenceLoss()(*returns, torch.tensor([1.0, 0.5]))
        tensor(0.6323)
    """

    def per_sample(
        self, partial_return_1: Tensor, partial_return_2: Tensor, label: Tensor
    ) -> Tensor:
        """Return the loss of every pair of segments, unreduced."""
        check_alike(partial_return_1=partial_return_1, partial_return_2=partial_return_2)
        return self._cross_entropy(partial_return_1 - partial_return_2, label, "partial_return_1")

    def properties(self) -> Properties:
        """Return what this instance guarantees; the Lipschitz constant is in the two returns."""
        return self._properties(2, (("label 1, T = 1", "BradleyTerryLoss"),))


class RegretPreferenceLoss(_ModelOfPreference):
    r"""Preferences between segments by how little was given away: their regret.

    .. math:: \ell = -y \log \sigma(z) - (1 - y) \log \sigma(-z), \qquad
              z = \frac{R_2 - R_1}{T}, \qquad
              R = V^*(s_0) - \Bigl(\sum_t r_t + V^*(s_{\text{end}})\Bigr)

    with V* the value of a state under the best policy. People judge a segment by how good its
    decisions were, and that counts where it leads to, and what could have been had from where it
    began: two segments of equal return differ. Where transitions are random the regret is
    -sum_t A*(s_t, a_t), minus the advantages of the actions taken: :meth:`forward_advantage`.

    Args:
        temperature: T > 0, finite: how loosely preferences follow the regret. Default 1.
        reduction: see :class:`lossary.Loss`.

    Shape:
        partial_return_1, v_start_1, v_end_1, partial_return_2, v_start_2, v_end_2 (N, ...) of one
        shape: SUMS of the rewards of the steps of each segment, and the values of the states where
        it begins and ends. label of the same shape, floating point: the probability that segment 1
        is preferred, in [0, 1]; 1/2 for a tie. (:class:`lossary.CPLLoss` has that of segment 2.)
        Values of the same shape.

    Properties:
        Convex in the six numbers, infinitely smooth, unbounded above. l >= H(label), the entropy in
        nats. Unchanged by potential shaping, r' = r + Phi(s') - Phi(s) and V' = V - Phi, which
        changes partial returns. The gradient in partial_return_1 is (sigma(z) - label)/T. No
        gradient flows to the label.

    Limits:
        Equal values of both starts and of both ends: :class:`PartialReturnPreferenceLoss`. A* =
        alpha log pi, T = 1: :class:`CPLLoss` with ``bias=1`` and 1 - label.

    Note:
        V* depends on r. Whether gradient flows through it is the caller's choice: it does unless
        the values are detached (the authors' code differentiates a soft maximum over successor
        features). What belongs together is subtracted first, so that large values that are equal
        cost no digits. Cross-entropy from log-odds: that code takes the logarithm of probabilities
        that are clamped at 1e-35, which ends the gradient there.

    Raises:
        ValueError: ``temperature`` not positive and finite; inputs of different shapes or devices,
            labels outside [0, 1] (on CPU tensors, where looking costs nothing).
        TypeError: ``temperature`` not a number; inputs that are not floating point.

    Reference:
        Knox, Hatgis-Kessell, Booth, Niekum, Stone, Allievi, "Models of Human Preference for
        Learning Reward Functions", 2022. Verified against the authors' later code.

    Example:
        >>> import torch
        >>> from lossary import RegretPreferenceLoss
        >>> first = torch.tensor([2.0]), torch.tensor([3.0]), torch.tensor([0.5])
        >>> second = torch.tensor([1.0]), torch.tensor([1.5]), torch.tensor([0.5])
        >>> RegretPreferenceLoss()(*first, *second, torch.tensor([1.0]))
        tensor(0.9741)
        >>> advantages = torch.tensor([[-0.5, 0.0]]), torch.tensor([[0.0, 0.0]])
        >>> RegretPreferenceLoss().forward_advantage(*advantages, torch.tensor([1.0]))
        tensor(0.9741)
    """

    def per_sample(
        self,
        partial_return_1: Tensor,
        v_start_1: Tensor,
        v_end_1: Tensor,
        partial_return_2: Tensor,
        v_start_2: Tensor,
        v_end_2: Tensor,
        label: Tensor,
    ) -> Tensor:
        """Return the loss of every pair of segments, unreduced."""
        check_alike(
            partial_return_1=partial_return_1,
            v_start_1=v_start_1,
            v_end_1=v_end_1,
            partial_return_2=partial_return_2,
            v_start_2=v_start_2,
            v_end_2=v_end_2,
        )
        earned = partial_return_1 - partial_return_2
        difference = earned + (v_end_1 - v_end_2) - (v_start_1 - v_start_2)
        return self._cross_entropy(difference, label, "partial_return_1")

    def forward_advantage(
        self,
        advantages_1: Tensor,
        advantages_2: Tensor,
        label: Tensor,
        mask_1: Tensor | None = None,
        mask_2: Tensor | None = None,
        *,
        weight: Tensor | None = None,
        normalizer: float | Tensor | None = None,
    ) -> Tensor:
        """Return the loss of segments whose regret is minus the sum of their advantages.

        advantages_1 (N, S), advantages_2 (N, S'): A* of every step's action, mask_1 and mask_2 of
        the same shapes, bool or numbers 0 and 1: 0 for padding, which may be infinite or nan. The
        rest is as in a call.
        """
        totals = []
        for i, (x, mask) in enumerate(((advantages_1, mask_1), (advantages_2, mask_2)), 1):
            name = f"advantages_{i}"
            check_floating(name, x)
            if x.dim() != 2:
                raise ValueError(f"{name}: expected shape (N, S), got {tuple(x.shape)}")
            if mask is not None:
                x = torch.where(present_tokens(mask, x.shape, x, f"mask_{i}"), x, 0.0)
            totals.append(_upcast(x).sum(1))
        one, two = totals
        if two.shape != one.shape:
            raise ValueError(f"advantages_2: expected {len(one)} rows, got {len(two)}")
        check_device("advantages_2", two, one)
        check_floating("label", label)
        check_like("label", label, "the sum over steps", one)
        zeros = torch.zeros_like(one), torch.zeros_like(one)
        return self._call((one, *zeros, two, *zeros, label), weight, normalizer)

    def properties(self) -> Properties:
        """Return what this instance guarantees; the Lipschitz constant is in the six numbers."""
        limits = (
            ("equal values of starts and of ends", "PartialReturnPreferenceLoss"),
            ("A* = alpha log pi, T = 1", "CPLLoss(alpha, bias=1), of 1 - label"),
        )
        return self._properties(6, limits)


def pairs_from_scores(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return all pairs of a batch of scored items, and how surely the second is the better one.

    .. math:: \{(i, j) : s_i \le s_j\}, \qquad y_{ij} = 1 \text{ if } s_i < s_j, \quad
              \tfrac12 \text{ if } s_i = s_j

    For losses of pairs where what there is are scores or returns of single items: segments, or
    several answers to one prompt. N items make N (N - 1)/2 pairs, each item in N - 1 of them.

    Args:
        scores: one number per item, (N,), floating point or integers. Larger is better.

    Returns:
        Three tensors (N (N - 1)/2,): the indices of the worse and of the better items, and the
        probability that the second is the better one, in the scores' dtype, or float32 for half
        precision and integers: 1, or 1/2 for a tie, in which the item that comes first in the batch
        is the first. Give it to :class:`CPLLoss` as ``label``; to losses of a chosen and a rejected
        answer, the better and the worse item, give 1 - y as ``label_smoothing``. Fewer than two
        items make no pair, and a loss of 0.

    Raises:
        ValueError: ``scores`` not of shape (N,), or nan (on CPU tensors, where looking costs
            nothing).
        TypeError: ``scores`` not a tensor of real numbers.

    Reference:
        Hejna et al., "Contrastive Preference Learning: Learning from Human Feedback without RL",
        2023: the form of the authors' code for scored segments. That ties are sure there, in the
        order of a sort, is RECALLED; here they are undecided.

    Example:
        >>> import torch
        >>> from lossary import CPLLoss, pairs_from_scores
        >>> worse, better, label = pairs_from_scores(torch.tensor([2.0, 0.0, 2.0]))
        >>> worse, better, label
        (tensor([1, 1, 0]), tensor([0, 2, 2]), tensor([1.0000, 1.0000, 0.5000]))
        >>> logps = torch.tensor([[-1.0, -2.0], [-3.0, -1.0], [-2.0, -2.5]])
        >>> CPLLoss()(logps[worse], logps[better], label)
        tensor(0.7877)
    """
    check_tensor("scores", scores)
    if scores.dtype.is_complex or scores.dtype is torch.bool:
        raise TypeError(f"scores: expected floating point or integers, got {scores.dtype}")
    if scores.dim() != 1:
        raise ValueError(f"scores: expected shape (N,), got {tuple(scores.shape)}")
    check_range("scores", scores, None, lambda s: s == s, "no nan")
    order = scores.detach().argsort(stable=True)
    first, second = torch.triu_indices(len(order), len(order), 1, device=order.device)
    worse, better = order[first], order[second]
    tie = scores[worse] == scores[better]
    dtype = torch.float64 if scores.dtype is torch.float64 else torch.float32
    return worse, better, torch.where(tie, 0.5, 1.0).to(dtype)
