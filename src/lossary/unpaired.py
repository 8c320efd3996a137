r"""Preference losses of single answers, each of which is good or bad.

.. math:: \ell = g\bigl(\pm \beta (\rho - z_0)\bigr), \qquad
          \rho = \log \frac{\pi(y \mid x)}{\pi_{\text{ref}}(y \mid x)}

with z_0 what the rewards of the batch, or of all training so far, are measured against.
"""

import math
from typing import Any, Unpack

import torch
from torch import Tensor

from lossary._base import LossOptions, _upcast
from lossary._checks import (
    check_choice,
    check_floating,
    check_like,
    check_number,
    check_positive,
    check_tensor,
)
from lossary._distributed import check_group, sum_over_ranks
from lossary._numerics import softplus
from lossary._properties import Properties
from lossary._sequence_base import SequenceLoss
from lossary._softmax import readable
from lossary._state import RunningMean


class _UnpairedPreferenceLoss(SequenceLoss):
    """A loss of single answers that are good or bad; a subclass writes its slope in the reward."""

    def __init__(self, beta: float = 0.1, **options: Unpack[LossOptions]) -> None:
        super().__init__(**options)
        self.beta = check_positive("beta", beta)

    def implicit_rewards(self, policy_logps: Tensor, reference_logps: Tensor) -> Tensor:
        """Return beta times the log-ratios, detached: rewards for logging."""
        names = ("policy_logps", "reference_logps")
        for name, x in zip(names, (policy_logps, reference_logps), strict=True):
            check_floating(name, x)
            check_like(name, x, names[0], policy_logps)
        return self._rewards(policy_logps, reference_logps).detach()

    def _rewards(self, policy_logps: Tensor, reference_logps: Tensor) -> Tensor:
        ratio: Tensor = _upcast(policy_logps) - _upcast(reference_logps)
        return self.beta * ratio

    def _check_inputs(self, inputs: dict[str, Any], weight: Tensor | None) -> None:
        super()._check_inputs(inputs, weight)
        desirable = inputs["desirable"]
        check_tensor("desirable", desirable)
        if desirable.dtype is not torch.bool:
            raise TypeError(f"desirable: expected a bool tensor, got {desirable.dtype}")
        check_like("desirable", desirable, "policy_logps", inputs["policy_logps"])


class KTOLoss(_UnpairedPreferenceLoss):
    r"""Kahneman-Tversky optimisation (KTO): answers that are good or bad, without pairs.

    .. math:: \ell = \lambda_D \, \sigma(-\beta (\rho - z_0)) \text{ if desirable}, \qquad
              \lambda_U \, \sigma(\beta (\rho - z_0)) \text{ otherwise}, \qquad
              z_0 = \max\Bigl(0, \frac{1}{N} \sum_i k_i\Bigr)

    with k the log-ratios of answers to other prompts than their own, an estimate of the
    divergence from the reference: gains and losses are felt relative to a reference point, and less
    and less far from it. For thumbs up and down, and where good and bad answers are not equally
    many (the paper keeps lambda_D n_D between 1 and 4/3 of lambda_U n_U).

    Args:
        beta: beta > 0, finite. Default 0.1.
        desirable_weight: lambda_D >= 0, finite. Default 1.
        undesirable_weight: lambda_U >= 0, finite. Default 1.
        process_group: the processes over which the estimate is a mean. Default ``None``: all.
        reduction: see :class:`lossary.Loss`.

    Shape:
        policy_logps, reference_logps (N, ...): SUMS over the tokens of a completion. desirable of
        the same shape, bool. Then either kl, a number or a 0-dim tensor, or kl_policy_logps and
        kl_reference_logps of the same shape: SUMS likewise, of prompt i with the completion of
        another prompt. Values of the same shape.

    Properties:
        Not convex; infinitely smooth; 0 < l < lambda; l = lambda/2 at rho = z_0. The gradient in
        policy_logps is -lambda beta sigma(u) sigma(-u), u = beta (rho - z_0), of a desirable
        answer, and its opposite of another; at most lambda beta/4, and vanishing for answers far
        on either side. No gradient flows through z_0.

    Limits:
        kl = 0: the unpaired form of :class:`APOLoss`, TRL's ``"apo_zero_unpaired"``.

    Note:
        z_0 is detached and at least 0; it is the mean over all processes, of entries whose weight
        is not 0 and whose log-ratio is finite, before it is cut off at 0, as in the authors' code.
        TRL averages on each process first, which is the same for equal batches. Every process must
        call it then. Micro-batches have estimates of their own, so that they do not add up to the
        batch, unless kl is given.

    Raises:
        ValueError: ``beta`` not positive, a weight negative, ``process_group`` without this
            process; inputs of different shapes; no estimate, or two; one of its two inputs only;
            kl not finite or not 0-dim.
        TypeError: hyper-parameters not numbers; inputs not floating point, desirable not bool; a
            ``process_group`` that is none.

    Reference:
        Ethayarajh, Xu, Muennighoff, Jurafsky, Kiela, "KTO: Model Alignment as Prospect Theoretic
        Optimization", 2024. Verified against Liger's formula; TRL and HALOs, the authors' code,
        were read. The ratio of the weights is RECALLED.

    Example:
        >>> import torch
        >>> from lossary import KTOLoss
        >>> policy, reference = torch.tensor([-12.0, -9.0]), torch.tensor([-14.0, -8.0])
        >>> desirable = torch.tensor([True, False])
        >>> KTOLoss()(policy, reference, desirable, kl=0.5)
        tensor(0.4626)
        >>> mismatched = torch.tensor([-30.0, -28.0]), torch.tensor([-31.0, -28.0])
        >>> names = ("kl_policy_logps", "kl_reference_logps")
        >>> KTOLoss()(policy, reference, desirable, **dict(zip(names, mismatched)))
        tensor(0.4626)
    """

    def __init__(
        self,
        beta: float = 0.1,
        desirable_weight: float = 1.0,
        undesirable_weight: float = 1.0,
        process_group: Any = None,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(beta, **options)
        self.desirable_weight = check_number(
            "desirable_weight", desirable_weight, 0.0, math.inf, high_open=True
        )
        self.undesirable_weight = check_number(
            "undesirable_weight", undesirable_weight, 0.0, math.inf, high_open=True
        )
        check_group(process_group)
        self.process_group = process_group

    def per_sample(
        self,
        policy_logps: Tensor,
        reference_logps: Tensor,
        desirable: Tensor,
        kl: float | Tensor | None = None,
        kl_policy_logps: Tensor | None = None,
        kl_reference_logps: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of every answer, unreduced."""
        if kl_policy_logps is not None:
            kl = self._divergence(kl_policy_logps, kl_reference_logps, None)
        z0 = kl.detach().clamp(min=0.0) if isinstance(kl, Tensor) else max(0.0, kl or 0.0)
        u = self._rewards(policy_logps, reference_logps) - self.beta * z0
        good = self.desirable_weight * torch.sigmoid(-u)
        return torch.where(desirable, good, self.undesirable_weight * torch.sigmoid(u))

    @torch.no_grad()
    def _divergence(self, policy: Tensor, reference: Any, weight: Tensor | None) -> Tensor:
        """Return the mean log-ratio over all processes."""
        ratio: Tensor = _upcast(policy) - _upcast(reference)
        there = ratio.isfinite() if weight is None else ratio.isfinite() & (weight != 0)
        sums = torch.stack((torch.where(there, ratio, 0.0).sum(), there.sum().to(ratio.dtype)))
        total, count = sum_over_ranks(sums, self.process_group)
        mean: Tensor = total / count.clamp(min=1.0)
        return mean

    def _values(
        self, inputs: tuple[Any, ...], weight: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        *pair, policy, reference = inputs
        if policy is not None:
            # Before the weight is worked into the inputs: who is not there does not count.
            self._check_inputs(dict(zip(self._names, inputs, strict=True)), weight)
            kl = self._divergence(policy, reference, weight)
            inputs = (*pair[:-1], kl, None, None)
        return super()._values(inputs, weight)

    def _check_inputs(self, inputs: dict[str, Any], weight: Tensor | None) -> None:
        super()._check_inputs(inputs, weight)
        kl, policy = inputs["kl"], inputs["kl_policy_logps"]
        if (policy is None) != (inputs["kl_reference_logps"] is None):
            missing = "kl_policy_logps" if policy is None else "kl_reference_logps"
            raise ValueError(f"{missing}: expected a tensor, as for its counterpart, got None")
        if (kl is None) == (policy is None):
            given = "neither" if kl is None else "both"
            raise ValueError(f"kl: expected it or kl_policy_logps, not both, got {given}")
        if isinstance(kl, Tensor):
            check_floating("kl", kl)
            if kl.dim() != 0:
                raise ValueError(f"kl: expected a 0-dim tensor, got shape {tuple(kl.shape)}")
            if readable(kl) and not math.isfinite(float(kl.detach())):
                raise ValueError(f"kl: expected a finite number, got {float(kl.detach())}")
        elif kl is not None:
            check_number("kl", kl, -math.inf, math.inf, low_open=True, high_open=True)

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        most = max(self.desirable_weight, self.undesirable_weight)
        far = 8.0 / self.beta
        at = (-far, 0.0, 0.0, True) if self.desirable_weight else (far, 0.0, 0.0, False)
        return Properties(
            convex=not most,
            lower=0.0,
            upper=most,
            lipschitz=self.beta * most / 4.0,
            smoothness=math.inf,
            counterexamples={"convex": (*at, 0.0)},
            source="Ethayarajh et al. 2024",
        )


class BCOLoss(_UnpairedPreferenceLoss, RunningMean):
    r"""Binary classifier optimisation (BCO): good and bad answers are classified by their rewards.

    .. math:: \ell = -\log \sigma(\beta \rho - \delta) \text{ if desirable}, \qquad
              -\log \sigma(\delta - \beta \rho) \text{ otherwise}

    with delta the mean of all rewards beta rho seen in training. Logistic regression of thumbs up
    and down on the reward: the better the classifier, the smaller DPO's loss, of which this is an
    upper bound. Where good and bad answers are to prompts of different kinds, weigh the bad ones by
    clamp(p/(1 - p), 0.5, 10), p a classifier's probability that the prompt has good answers: the
    paper's underlying distribution matching, as ``weight``.

    Args:
        beta: beta > 0, finite. Default 0.1.
        reduction: see :class:`lossary.Loss`.

    Shape:
        policy_logps, reference_logps (N, ...): SUMS over the tokens of a completion. desirable of
        the same shape, bool. update: ``False`` leaves the running mean as it is. Values of the same
        shape.

    Properties:
        Convex in the log-probabilities, infinitely smooth, l > 0, unbounded above. The gradient in
        policy_logps is -beta sigma(delta - beta rho) of a desirable answer and
        beta sigma(beta rho - delta) of another, less than beta in absolute value; delta is taken as
        a constant.

    Limits:
        A good and a bad answer to one prompt: :class:`BCOPairLoss`, their sum.

    Note:
        The running mean is in the buffers ``delta_mean`` and ``delta_count``, the same on every
        process: it is written before the loss is computed, in training mode with gradients
        enabled, outside of ``torch.func`` and without ``update=False``, over the rewards of all
        processes of the default group, which must all call it. Answers of weight 0 and infinite
        rewards do not count. ``reset()`` forgets it. Micro-batches see other means than the batch.
        It is TRL's ``"bco"``, whose cumulative mean it is; both bounds of the weight are TRL's.

    Raises:
        ValueError: ``beta`` not positive and finite, ``update`` neither ``True`` nor ``False``;
            inputs of different shapes.
        TypeError: ``beta`` not a number; inputs not floating point, desirable not bool.

    Reference:
        Jung, Han, Nam, On, "Binary Classifier Optimization for Large Language Model Alignment",
        2024. Verified against TRL.

    Example:
        >>> import torch
        >>> from lossary import BCOLoss
        >>> policy, reference = torch.tensor([-12.0, -9.0]), torch.tensor([-14.0, -8.0])
        >>> loss = BCOLoss()
        >>> loss(policy, reference, torch.tensor([True, False]))
        tensor(0.6210)
        >>> loss.delta_mean
        tensor(0.0500)
    """

    delta_mean: Tensor

    def __init__(self, beta: float = 0.1, **options: Unpack[LossOptions]) -> None:
        super().__init__(beta, **options)
        self._add_mean("delta")

    def per_sample(
        self, policy_logps: Tensor, reference_logps: Tensor, desirable: Tensor, update: bool = True
    ) -> Tensor:
        """Return the loss of every answer, unreduced."""
        del update
        rewards = self._rewards(policy_logps, reference_logps)
        above = rewards - self.delta_mean.to(rewards.dtype)
        return softplus(torch.where(desirable, -above, above))

    def _values(
        self, inputs: tuple[Any, ...], weight: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        policy, reference, _, update = inputs
        check_choice("update", update, (True, False))
        if self._updates(update, policy):
            # Before the weight is worked into the inputs: who is not there does not count.
            self._check_inputs(dict(zip(self._names, inputs, strict=True)), weight)
            with torch.no_grad():
                self._see("delta", self._rewards(policy, reference), weight)
        return super()._values(inputs, weight)

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        return Properties(
            convex=True,
            lower=0.0,
            upper=math.inf,
            lipschitz=self.beta,
            smoothness=math.inf,
            counterexamples={"upper": (-1.0, 0.0, True)},
            source="Jung et al. 2024",
        )
