r"""Policy losses of tokens: a language model learns from its answers and their advantages.

.. math:: \rho_t = \exp(\log \pi(y_t) - \log \pi_{\text{old}}(y_t)), \qquad
          \ell_t = -\min(\rho_t A, \operatorname{clip}(\rho_t, 1 - \varepsilon, 1 + \varepsilon) A)

The value of an answer is a mean or a sum of its tokens' values. All of them are surrogates: what
they say of an answer means little, their gradient in the policy's log-probabilities is what is
wanted. What went into them, old policies and advantages, counts as constant. Log-probabilities of
tokens, (N, T), come from :func:`lossary.token_logps`, or from :func:`lossary.linear_token_logps`,
which never holds the logits; the mask is that of the tokens that were written, shifted as they are.

Which code is which:

=================================================  ============================================
published code                                     here
=================================================  ============================================
TRL, Liger "grpo"; DeepSeekMath                    GRPOLoss(eps, beta=0.04)
TRL, Liger "bnpo"                                  GRPOLoss(eps, variant="bnpo")
TRL, Liger "dapo"                                  the same, with ``normalizer``: see there
DAPO, the paper                                    GRPOLoss(0.2, 0.28, variant="dapo")
TRL, Liger "dr_grpo"                               GRPOLoss(variant="dr_grpo", max_length=T)
TRL, Liger "cispo"                                 GRPOLoss(eps_high=5.0, variant="cispo")
TRL importance_sampling_level="sequence"; GSPO     GRPOLoss(3e-4, 4e-4, level="sequence")
TRL delta; INTELLECT-2                             GRPOLoss(delta=delta)
R1-Reward, StableReinforce                         StableReinforceLoss()
AReaL, use_decoupled_loss                          DecoupledPPOLoss(behave_mode="unweighted")
AReaL with behave_imp_weight_cap                   DecoupledPPOLoss(behave_cap=cap)
NFT, normalize=1; normalize=2                      NFTLoss(); NFTLoss(prompt_weight="grpo")
=================================================  ============================================
"""

import math
from typing import Any, Unpack

import torch
from torch import Tensor

from lossary._base import HALF, LossOptions, _upcast
from lossary._checks import (
    check_choice,
    check_device,
    check_floating,
    check_int,
    check_integers,
    check_like,
    check_number,
    check_positive,
    check_tensor,
)
from lossary._numerics import exp_remainder, expm1
from lossary._properties import Properties
from lossary._sequence_base import SequenceLoss, check_probability, per_token, present_tokens
from lossary._softmax import readable

#: Where log-ratios stop: exp(20) is 5e8, far beyond every bound on a ratio.
LARGEST = 20.0

OF_ADVANTAGES = {
    "lower": "depends on the signs of the advantages",
    "upper": "depends on the signs of the advantages",
    "lipschitz": "proportional to the advantages, and to ratios where these are negative",
}


class _PolicyLoss(SequenceLoss):
    """A loss of the log-probabilities of tokens, (N, T), with one value per sequence."""

    def _shape_of_values(self, like: Tensor) -> torch.Size:
        return like.shape[:1]

    def _check_inputs(self, inputs: dict[str, Any], weight: Tensor | None) -> None:
        policy = inputs["policy_token_logps"]
        check_floating("policy_token_logps", policy)
        if policy.dim() != 2:
            raise ValueError(
                f"policy_token_logps: expected shape (N, T), got {tuple(policy.shape)}"
            )
        super()._check_inputs(inputs, weight)
        present_tokens(inputs["mask"], policy.shape, policy)
        if "advantages" in inputs:
            _check_advantages(inputs["advantages"], policy)


class GRPOLoss(_PolicyLoss):
    r"""Group-relative policy optimisation (GRPO), with the clipping and averaging of its variants.

    .. math:: \ell_t = -\min\bigl(\min(\rho_t, \delta) A, \operatorname{clip}(\rho_t,
              1 - \varepsilon_l, 1 + \varepsilon_h) A\bigr) + \beta (e^{u_t} - 1 - u_t), \qquad
              \rho_t = \frac{\pi(y_t)}{\pi_{\text{old}}(y_t)}, \qquad
              u_t = \log \frac{\pi_{\text{ref}}(y_t)}{\pi(y_t)}

    PPO's clipped objective without a critic: the advantage of an answer is its reward less the mean
    reward of the answers to the same prompt (:func:`group_advantages`), and all its tokens share
    it. For rewards that a program can check. The variants differ in what a token counts, for the
    answer i of L_i tokens among N:

    - ``"grpo"``: (1/N) sum_i (1/L_i) sum_t l_t. Every answer counts the same, and so a token of a
      long answer less: wrong answers grow longer.
    - ``"bnpo"``, ``"dapo"``: (sum of all l_t)/(sum_i L_i). Every token counts the same.
    - ``"dr_grpo"``: (1/N) sum_i (1/max_length) sum_t l_t. Every token counts the same in every
      batch.
    - ``"cispo"``: averaged as ``"dapo"``, with l_t = -sg[min(rho_t, eps_high)] A log pi(y_t), sg
      what no gradient flows through: a token beyond the bound keeps its gradient.

    Args:
        eps_low: 0 <= eps_low <= 1: ratios below 1 - eps_low earn a negative advantage no further
            gradient. Default 0.2. Not used by ``"cispo"``.
        eps_high: >= 0, infinity included: likewise above 1 + eps_high with a positive advantage;
            ``"cispo"``: the largest ratio itself, > 0. Default ``None``: ``eps_low``, and for
            ``"cispo"`` 5.
        beta: >= 0, finite: the weight of the divergence from the reference. Default 0.
        variant: ``"grpo"`` (default), ``"bnpo"``, ``"dapo"``, ``"dr_grpo"`` or ``"cispo"``.
        max_length: of ``"dr_grpo"`` alone, and required there: an int >= 1, the number of tokens
            that an answer may have at most.
        level: ``"token"`` (default), or ``"sequence"``, GSPO: all tokens of an answer share the
            ratio exp(mean of their log-ratios). Its bounds are a thousand times closer: 3e-4 and
            4e-4 in the paper.
        delta: > 1 + eps_high, or ``None``, the default: the largest ratio where the advantage is
            negative and the other bounds leave it free. Not with ``"cispo"``.
        reduction: see :class:`lossary.Loss`. The formulas are those of ``"mean"``.

    Shape:
        policy_token_logps, old_token_logps (N, T); old_token_logps ``None`` takes the policy for
        the one that wrote the answers: ratios are 1, and have a gradient. advantages (N,), or
        (N, T) where tokens differ, floating point. mask (N, T), bool or numbers 0 and 1: the tokens
        that were written. reference_token_logps (N, T) with beta > 0, else ``None``.
        ``weight`` and values (N,).

    Properties:
        A surrogate, neither convex nor bounded, with kinks where ratios meet their bounds. At ratio
        1 and beta = 0 the gradient is that of REINFORCE, -A times that of log pi(y_t), in all
        variants (``"cispo"``: eps_high >= 1). But for ``"cispo"``, with a positive advantage no
        gradient is left above 1 + eps_high, with a negative one none below 1 - eps_low, nor above
        delta. The divergence is at least 0, 0 where policy and reference agree. No gradient flows
        to old_token_logps and advantages.

    Limits:
        eps_low = 1, eps_high = inf: importance-weighted REINFORCE. One token per answer: ``"grpo"``
        and ``"bnpo"`` are the same.

    Note:
        Log-ratios stop at 20, on the one side where they are large: beyond, ratio and divergence
        are constant and have no gradient. A token whose probability fell to 0 has ratio 0. The
        divergence is computed without the cancellation of exp(u) - u - 1, of which float32 leaves
        no digit below \|u\| = 3e-4. What the mask leaves out may be infinite or nan.

        ``"bnpo"``, ``"dapo"`` and ``"cispo"`` return for each answer the sum over its tokens and
        their number as its share in the denominator of the mean, which is then exactly the mean of
        all tokens, also of a weighted batch. Over micro-batches or processes it is so with
        ``normalizer=global_normalizer(mask, ...)``, the number of all tokens (times ``weight``, if
        there is one): that is what TRL calls ``"dapo"``; its ``"bnpo"`` is the mean of the
        micro-batch. For ``"grpo"`` and ``"dr_grpo"`` the normalizer is the number of answers.
        ``"batchmean"`` divides by the number of answers, for the former three by those with tokens.
        An answer without tokens has the value 0; it counts in ``"grpo"`` and ``"dr_grpo"``, as it
        does in TRL and Liger, unless its weight is 0.

    Raises:
        ValueError: hyper-parameters out of range, unknown ``variant`` or ``level``; ``max_length``
            given without ``"dr_grpo"``; ``delta`` with ``"cispo"``; inputs of shapes that do not
            fit, a mask other than 0 and 1 (on CPU tensors, where looking costs nothing).
        TypeError: hyper-parameters not numbers, ``max_length`` missing with ``"dr_grpo"``; inputs
            not floating point; reference_token_logps missing with beta > 0, or given with beta = 0.

    Reference:
        Shao et al., "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language
        Models", 2024, for GRPO. Yu et al., "DAPO: An Open-Source LLM Reinforcement Learning System
        at Scale", 2025. Liu et al., "Understanding R1-Zero-Like Training: A Critical Perspective",
        2025, for Dr. GRPO. MiniMax, "MiniMax-M1", 2025, for CISPO; the default of its bound is that
        of later work, RECALLED. Zheng et al., "Group Sequence Policy Optimization", 2025. Schulman,
        "Approximating KL Divergence", 2020, for its third estimator. Verified against Liger's
        ``ppo_loss_fn``; ``delta`` is TRL's. Titles are RECALLED.

    Example:
        >>> import torch
        >>> from lossary import GRPOLoss, group_advantages
        >>> old = torch.tensor([[-1.0, -2.0, -0.5], [-1.5, -0.2, 0.0]])
        >>> policy = old + torch.tensor([[0.1, 0.5, 0.0], [0.1, 0.0, 0.0]])
        >>> mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
        >>> advantages = group_advantages(torch.tensor([1.0, 0.0]), torch.tensor([7, 7]), "none")
        >>> GRPOLoss()(policy, old, advantages, mask)
        tensor(-0.0123)
        >>> GRPOLoss(variant="dapo")(policy, old, advantages, mask)
        tensor(-0.1200)
    """

    def __init__(
        self,
        eps_low: float = 0.2,
        eps_high: float | None = None,
        beta: float = 0.0,
        variant: str = "grpo",
        max_length: int | None = None,
        level: str = "token",
        delta: float | None = None,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(**options)
        check_choice("variant", variant, ("grpo", "bnpo", "dapo", "dr_grpo", "cispo"))
        check_choice("level", level, ("token", "sequence"))
        self.eps_low = check_number("eps_low", eps_low, 0.0, 1.0)
        cispo = variant == "cispo"
        if eps_high is None:
            eps_high = 5.0 if cispo else self.eps_low
        self.eps_high = check_number("eps_high", eps_high, 0.0, math.inf, low_open=cispo)
        self.beta = check_number("beta", beta, 0.0, math.inf, high_open=True)
        self.variant = variant
        if variant == "dr_grpo":
            check_int("max_length", max_length, 1)
        elif max_length is not None:
            raise ValueError(
                f"max_length: expected None with variant={variant!r}, got {max_length}"
            )
        self.max_length = max_length
        self.level = level
        if delta is not None:
            if cispo:
                raise ValueError(f"delta: expected None with variant='cispo', got {delta!r}")
            delta = check_positive("delta", delta, 1.0 + self.eps_high)
        self.delta = delta

    def per_sample(
        self,
        policy_token_logps: Tensor,
        old_token_logps: Tensor | None,
        advantages: Tensor,
        mask: Tensor,
        reference_token_logps: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the loss of every answer; for means over all tokens with the denominators."""
        present = mask != 0
        count = present.sum(1)
        logps = torch.where(present, policy_token_logps, 0.0)
        old = logps if old_token_logps is None else torch.where(present, old_token_logps, 0.0)
        advantages = _of_tokens(advantages, present)
        log_ratio = logps - old.detach()
        if self.level == "sequence":
            log_ratio = per_token(log_ratio.sum(1), count).unsqueeze(1)
        values = self._policy_term(logps, torch.exp(log_ratio.clamp(max=LARGEST)), advantages)
        if reference_token_logps is not None and self.beta:
            u = torch.where(present, reference_token_logps, 0.0) - logps
            values = values + self.beta * exp_remainder(u.clamp(max=LARGEST))
        total = values.sum(1)
        if self.variant == "grpo":
            return per_token(total, count)
        if self.max_length is not None:
            return total / self.max_length
        return total, count.to(total.dtype)

    def _policy_term(self, logps: Tensor, ratio: Tensor, advantages: Tensor) -> Tensor:
        if self.variant == "cispo":
            factor = ratio.detach().clamp(max=self.eps_high)
            # Not 0 times the logarithm of 0, of a token that has become impossible.
            return -factor * advantages * torch.where(factor == 0, 0.0, logps)
        bound = ratio if self.delta is None else ratio.clamp(max=self.delta)
        return _clipped(bound, ratio, advantages, self.eps_low, self.eps_high)

    def _check_inputs(self, inputs: dict[str, Any], weight: Tensor | None) -> None:
        on_policy = inputs["old_token_logps"] is None
        super()._check_inputs(
            {k: x for k, x in inputs.items() if k != "old_token_logps" or not on_policy}, weight
        )
        reference = inputs["reference_token_logps"]
        if self.beta and reference is None:
            raise TypeError(
                f"reference_token_logps: expected a tensor with beta={self.beta:g}, got None"
            )
        if reference is not None and not self.beta:
            raise TypeError(
                f"reference_token_logps: expected None with beta=0, got {type(reference).__name__}"
            )

    def properties(self) -> Properties:
        """Return what this instance guarantees, in the policy's log-probabilities."""
        unknown = dict(OF_ADVANTAGES)
        cispo = self.variant == "cispo"
        if cispo:
            unknown["convex"] = unknown["smoothness"] = (
                "the gradient is that of a surrogate, not of the value"
            )
        reference = ([[-40.0]],) * (self.beta > 0)
        others = ([[0.0]], [1.0], [[True]], *reference)
        return Properties(
            convex=None if cispo else False,
            smoothness=None if cispo else 0,
            limits=(
                ("eps_low = 1, eps_high = inf", "importance-weighted REINFORCE"),
                ("one token per answer", "'grpo' and 'bnpo' are the same"),
            ),
            counterexamples={"convex": ([[-1.0]], [[0.0]], *others)},
            unknown=unknown,
            source="Shao et al. 2024; Liger, TRL",
        )


class StableReinforceLoss(_PolicyLoss):
    r"""StableReinforce: PPO whose log-ratios are clipped before they are exponentiated.

    .. math:: \rho_t = \exp \operatorname{clip}\bigl(\log \pi(y_t) - \log \pi_{\text{old}}(y_t),
              \log \rho_{\min}, \log \rho_{\max}\bigr), \qquad
              \ell_t = -\min(\rho_t A_t, \operatorname{clip}(\rho_t, 1 \pm \varepsilon) A_t)

    Where the policy runs far ahead of the one that wrote the answers: with a negative advantage
    PPO's ratio has no upper bound, and one token may outweigh the batch. Here it ends at rho_max,
    and has no gradient beyond. Give it advantages of :func:`filter_advantages`, the other half of
    the method.

    Args:
        clip_eps: the epsilon above, 0 <= clip_eps <= 1. Default 0.2.
        ratio_min: rho_min, in (0, 1). Default 1e-3.
        ratio_max: rho_max > 1, finite. Default 1e3.
        reduction: see :class:`lossary.Loss`.

    Shape:
        policy_token_logps, old_token_logps (N, T). advantages (N, T), or (N,) where all tokens of
        an answer share one, floating point. mask (N, T), bool or numbers 0 and 1. ``weight`` and
        values (N,): the mean over the tokens of each answer, 0 where there is none.

    Properties:
        A surrogate, not convex, with kinks where ratios meet their bounds; finite for any
        log-ratio, infinite ones included, and at most rho_max times the largest advantage in
        absolute value; the gradient per token is at most rho_max \|A\| as well, and 0 outside of
        the bounds. No gradient flows to old_token_logps and advantages.

    Limits:
        Ratios within [rho_min, rho_max]: PPO, :class:`GRPOLoss` with the same epsilon.

    Note:
        As the authors' code, ``"mean"`` is the mean over answers of their means over tokens;
        answers without tokens count in it, unless their weight is 0. What the mask leaves out may
        be infinite or nan. The normalizer of a whole batch is its number of answers.

    Raises:
        ValueError: hyper-parameters out of range, inputs of shapes that do not fit, a mask other
            than 0 and 1 (on CPU tensors, where looking costs nothing).
        TypeError: hyper-parameters not numbers; inputs not floating point.

    Reference:
        Zhang et al., "R1-Reward: Training Multimodal Reward Model Through Stable Reinforcement
        Learning", 2025. Verified against the authors' code, ``PolicyLoss``; the title is RECALLED.

    Example:
        >>> import torch
        >>> from lossary import StableReinforceLoss
        >>> old = torch.tensor([[-1.0, -2.0], [-60.0, -0.5]])
        >>> policy = torch.tensor([[-0.9, -2.5], [-1.0, -0.5]])
        >>> advantages = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
        >>> StableReinforceLoss()(policy, old, advantages, torch.ones(2, 2))
        tensor(249.8221)
    """

    def __init__(
        self,
        clip_eps: float = 0.2,
        ratio_min: float = 1e-3,
        ratio_max: float = 1e3,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(**options)
        self.clip_eps = check_number("clip_eps", clip_eps, 0.0, 1.0)
        self.ratio_min = check_number(
            "ratio_min", ratio_min, 0.0, 1.0, low_open=True, high_open=True
        )
        self.ratio_max = check_number(
            "ratio_max", ratio_max, 1.0, math.inf, low_open=True, high_open=True
        )

    def per_sample(
        self, policy_token_logps: Tensor, old_token_logps: Tensor, advantages: Tensor, mask: Tensor
    ) -> Tensor:
        """Return the loss of every answer, unreduced."""
        present = mask != 0
        log_ratio = _log_ratio(policy_token_logps, old_token_logps, present)
        ratio = torch.exp(log_ratio.clamp(math.log(self.ratio_min), math.log(self.ratio_max)))
        advantages = _of_tokens(advantages, present)
        values = _clipped(ratio, ratio, advantages, self.clip_eps, self.clip_eps)
        return per_token(values.sum(1), present.sum(1))

    def properties(self) -> Properties:
        """Return what this instance guarantees, in the policy's log-probabilities."""
        below = max(-1.0, math.log(self.ratio_min))
        return Properties(
            convex=False,
            smoothness=0,
            limits=(("ratios within [ratio_min, ratio_max]", "GRPOLoss(clip_eps)"),),
            counterexamples={"convex": ([[below]], [[0.0]], [[0.0]], [1.0], [[True]])},
            unknown=OF_ADVANTAGES,
            source="Zhang et al. 2025",
        )


class DecoupledPPOLoss(_PolicyLoss):
    r"""Decoupled PPO: for answers that older policies wrote than the one that bounds the step.

    .. math:: \ell_t = v_t \max\bigl(-\rho_t A, -\operatorname{clip}(\rho_t, 1 - \varepsilon_l,
              1 + \varepsilon_h) A\bigr), \qquad
              \rho_t = \frac{\pi(y_t)}{\pi_{\text{prox}}(y_t)}, \qquad
              v_t = \frac{\pi_{\text{prox}}(y_t)}{\pi_{\text{behav}}(y_t)}

    In asynchronous training answers are written by policies several updates old, and different
    tokens of one answer by different ones. PPO's bounds around such a policy hold the current one
    back for no reason; here they are around a recent, proximal policy, and an importance weight
    corrects for who wrote the token. :func:`approximate_proximal_logps` saves the proximal policy's
    forward pass.

    Args:
        clip_eps: eps_l, 0 <= clip_eps <= 1. Default 0.2.
        clip_eps_high: eps_h >= 0, infinity included. Default ``None``: ``clip_eps``.
        dual_clip: c > 1, finite, or ``None``, the default: l_t, before the weight, is at most
            c \|A\|. That takes the gradient from tokens with a negative advantage and a ratio
            above c.
        behave_cap: >= 1, infinity included: what bounds the importance weight. Default 5.
        behave_mode: ``"mask"`` (default): tokens with v > behave_cap are dropped. ``"clamp"``:
            min(v, behave_cap). ``"unweighted"``: 1.
        reduction: see :class:`lossary.Loss`. ``"mean"`` is over all tokens.

    Shape:
        policy_token_logps, proximal_token_logps, behavior_token_logps (N, T): of the policy being
        trained, of the recent one, and of those that wrote the tokens, which ``"unweighted"`` does
        not use. advantages (N,) or (N, T), floating point. mask (N, T), bool or numbers 0 and 1.
        ``weight`` and values (N,).

    Properties:
        A surrogate, neither convex nor bounded, with kinks where ratios meet their bounds. The
        weight has no gradient; none flows to any input but policy_token_logps.

    Limits:
        proximal = behaviour: PPO, :class:`GRPOLoss` with ``variant="dapo"`` and the same bounds.
        behave_cap = inf: the paper's objective, without truncation.

    Note:
        The value of an answer is the sum over its tokens, its share in the denominator of the mean
        the number of its tokens, dropped ones included: dropping tokens does not make the others
        count for more. The normalizer of a whole batch is the number of tokens,
        ``global_normalizer(mask)``; ``"batchmean"`` divides by the number of answers with tokens.
        The paper's objective always has the weight, the authors' code only where rejection
        sampling is configured; its earlier default was ``"mask"`` with a cap of 5. Log-ratios and
        log-weights stop at 20: beyond, the ratio has no gradient. What the mask leaves out may be
        infinite or nan.

    Raises:
        ValueError: hyper-parameters out of range, unknown ``behave_mode``; inputs of shapes that do
            not fit, a mask other than 0 and 1 (on CPU tensors, where looking costs nothing).
        TypeError: hyper-parameters not numbers; inputs not floating point.

    Reference:
        Fu et al., "AReaL: A Large-Scale Asynchronous Reinforcement Learning System for Language
        Reasoning", 2025; the idea is from Hilton, Cobbe, Schulman, "Batch size-invariance for
        policy optimization", 2021. Verified against AReaL's ``ppo_actor_loss_fn``. Ye et al.,
        "Mastering Complex Control in MOBA Games with Deep Reinforcement Learning", 2020, for
        ``dual_clip``. Titles are RECALLED.

    Example:
        >>> import torch
        >>> from lossary import DecoupledPPOLoss
        >>> behavior = torch.tensor([[-1.0, -4.0], [-1.5, -0.5]])
        >>> proximal = torch.tensor([[-0.8, -2.0], [-1.5, -0.6]])
        >>> policy = torch.tensor([[-0.7, -2.0], [-1.4, -0.9]])
        >>> advantages, mask = torch.tensor([1.0, -1.0]), torch.tensor([[1, 1], [1, 1]])
        >>> DecoupledPPOLoss()(policy, proximal, behavior, advantages, mask)
        tensor(0.1198)
        >>> DecoupledPPOLoss(behave_mode="clamp")(policy, proximal, behavior, advantages, mask)
        tensor(-1.1302)
    """

    def __init__(
        self,
        clip_eps: float = 0.2,
        clip_eps_high: float | None = None,
        dual_clip: float | None = None,
        behave_cap: float = 5.0,
        behave_mode: str = "mask",
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(**options)
        self.clip_eps = check_number("clip_eps", clip_eps, 0.0, 1.0)
        high = self.clip_eps if clip_eps_high is None else clip_eps_high
        self.clip_eps_high = check_number("clip_eps_high", high, 0.0, math.inf)
        self.dual_clip = None if dual_clip is None else check_positive("dual_clip", dual_clip, 1.0)
        self.behave_cap = check_number("behave_cap", behave_cap, 1.0, math.inf)
        check_choice("behave_mode", behave_mode, ("mask", "clamp", "unweighted"))
        self.behave_mode = behave_mode

    def per_sample(
        self,
        policy_token_logps: Tensor,
        proximal_token_logps: Tensor,
        behavior_token_logps: Tensor,
        advantages: Tensor,
        mask: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return the sum over the tokens of every answer, and their numbers as denominators."""
        present = mask != 0
        log_ratio = _log_ratio(policy_token_logps, proximal_token_logps, present)
        ratio = torch.exp(log_ratio.clamp(max=LARGEST))
        advantages = _of_tokens(advantages, present)
        values = _clipped(ratio, ratio, advantages, self.clip_eps, self.clip_eps_high)
        if self.dual_clip is not None:
            values = torch.minimum(values, self.dual_clip * advantages.abs())
        if self.behave_mode != "unweighted":
            log_v = _log_ratio(proximal_token_logps, behavior_token_logps, present).detach()
            values = self._behavior_weight(log_v) * values
        count = present.sum(1)
        return values.sum(1), count.to(values.dtype)

    def _behavior_weight(self, log_v: Tensor) -> Tensor:
        # Compared as logarithms, which do not overflow.
        cap = math.log(self.behave_cap)
        v = torch.exp(log_v.clamp(max=min(cap, LARGEST)))
        return torch.where(log_v > cap, 0.0, v) if self.behave_mode == "mask" else v

    def properties(self) -> Properties:
        """Return what this instance guarantees, in the policy's log-probabilities."""
        others = ([[0.0]], [[0.0]], [1.0], [[True]])
        return Properties(
            convex=False,
            smoothness=0,
            limits=(
                ("proximal = behaviour", "GRPOLoss(clip_eps, clip_eps_high, variant='dapo')"),
                ("behave_cap = inf", "the paper's objective"),
            ),
            counterexamples={"convex": ([[-1.0]], [[0.0]], *others)},
            unknown=OF_ADVANTAGES,
            source="Fu et al. 2025",
        )


class NFTLoss(_PolicyLoss):
    r"""Negative-aware fine-tuning (NFT): right answers, and an implicit policy for wrong ones.

    .. math:: \ell_t = -w \log R_t \text{ if correct}, \qquad
              -w \lambda \log \max(R^-_t, \varepsilon) \text{ otherwise}, \qquad
              R_t = \frac{\pi(y_t)}{\pi_{\text{old}}(y_t)}, \qquad
              R^-_t = \frac{1 - r R_t}{1 - r}

    with r the share of right answers to the prompt. The policy that wrote the answers is a mixture
    of what its right and its wrong answers are drawn from; if pi is to be the former, then the
    latter has the ratio R^-, and wrong answers can be fitted by supervised learning as right ones
    are. Without rewards of any other kind than right and wrong.

    Args:
        eps: 0 < eps <= 1: where R^- stops. Below, the value is constant, the gradient is that of
            R^-/eps. Default 1, as in the authors' code: the slope of wrong answers is at most that
            of R^- itself.
        neg_weight: the lambda above, >= 0, finite. Default 1.
        prompt_weight: w, what a prompt counts: ``"dr_grpo"`` (default): 1 - r. ``"grpo"``:
            sqrt((1 - r)/r). ``"none"``: 1.
        ratio_level: ``"token"`` (default), or ``"sequence"``: R is the ratio of the whole answer,
            the product over its tokens.
        rate_clip: (low, high), 0 < low <= high < 1: what r is held between. Default (0.02, 0.98).
        log_ratio_max: > 0, finite: where log R stops. Default 10.
        reduction: see :class:`lossary.Loss`. ``"mean"`` is over all tokens; for ``"sequence"`` over
            the answers that have any.

    Shape:
        policy_token_logps, old_token_logps (N, T). mask (N, T), bool or numbers 0 and 1. correct
        (N,), bool or numbers 0 and 1. correct_rate (N,), floating point, in [0, 1]: the r of each
        answer's prompt. ``weight`` and values (N,).

    Properties:
        A surrogate. In log pi(y_t) the gradient is -w for right answers and
        w lambda (r/(1 - r)) R/max(R^-, eps) for wrong ones, 0 where log R > log_ratio_max. Linear
        in log pi for right answers. A prompt all of whose answers are right, or wrong, teaches
        nothing: r = 0 and r = 1 leave the answer out, of the mean as well. No gradient flows to
        old_token_logps and correct_rate.

    Limits:
        On-policy, R = 1, the gradient is that of :class:`GRPOLoss` with ``variant="bnpo"`` and the
        advantages ``group_advantages(correct, ids, "none")`` for ``"dr_grpo"``, and
        ``"population_std"`` with eps = 0 for ``"grpo"``. neg_weight = 0: fine-tuning on right
        answers alone (rejection sampling).

    Note:
        log R^- is computed as log1p(-(r/(1 - r)) expm1(log R)), accurate next to the policy that
        wrote the answers, where R^- is next to 1. R^- is negative from R = 1/r on: hence eps, whose
        gradient is straight-through, so that no token is lost. It is not the derivative of the
        value there.

        The authors' code divides the sum over tokens by 1000, or takes the sum over answers for
        ``"sequence"``; here the value of an answer is the sum over its tokens, its share in the
        denominator of the mean their number (1 for ``"sequence"``). The normalizer of a whole
        batch is therefore the number of tokens of answers with 0 < r < 1. Which answers a code
        leaves out differs: the authors drop prompts with r = 0 or 1 before. What the mask leaves
        out may be infinite or nan.

    Raises:
        ValueError: hyper-parameters out of range, unknown ``prompt_weight`` or ``ratio_level``;
            inputs of shapes that do not fit; masks other than 0 and 1, rates outside [0, 1] (on CPU
            tensors, where looking costs nothing).
        TypeError: hyper-parameters not numbers; inputs not floating point.

    Reference:
        Chen et al., "Bridging Supervised Learning and Reinforcement Learning in Math Reasoning",
        2025. Verified against the authors' code, where ``normalize`` is 1 for ``"dr_grpo"`` and 2
        for ``"grpo"``; the title is RECALLED.

    Example:
        >>> import torch
        >>> from lossary import NFTLoss
        >>> old = torch.tensor([[-1.0, -2.0, -0.5], [-1.5, -0.2, 0.0]])
        >>> policy = old + torch.tensor([[0.1, 0.5, 0.0], [-0.3, 0.2, 0.0]])
        >>> mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
        >>> correct, rate = torch.tensor([True, False]), torch.tensor([0.5, 0.5])
        >>> NFTLoss()(policy, old, mask, correct, rate)
        tensor(-0.0830)
    """

    def __init__(
        self,
        eps: float = 1.0,
        neg_weight: float = 1.0,
        prompt_weight: str = "dr_grpo",
        ratio_level: str = "token",
        rate_clip: tuple[float, float] = (0.02, 0.98),
        log_ratio_max: float = 10.0,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(**options)
        self.eps = check_number("eps", eps, 0.0, 1.0, low_open=True)
        self.neg_weight = check_number("neg_weight", neg_weight, 0.0, math.inf, high_open=True)
        check_choice("prompt_weight", prompt_weight, ("dr_grpo", "grpo", "none"))
        self.prompt_weight = prompt_weight
        check_choice("ratio_level", ratio_level, ("token", "sequence"))
        self.ratio_level = ratio_level
        self.rate_clip = _checked_interval("rate_clip", rate_clip)
        self.log_ratio_max = check_positive("log_ratio_max", log_ratio_max)

    def per_sample(
        self,
        policy_token_logps: Tensor,
        old_token_logps: Tensor,
        mask: Tensor,
        correct: Tensor,
        correct_rate: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return the sum over the tokens of every answer, and the denominators."""
        mixed = (correct_rate > 0) & (correct_rate < 1)
        present = (mask != 0) & mixed.unsqueeze(1)
        right, rate = correct != 0, correct_rate.detach().clamp(*self.rate_clip)
        log_ratio = _log_ratio(policy_token_logps, old_token_logps, present)
        if self.ratio_level == "sequence":
            log_ratio, present = log_ratio.sum(1), present.any(1)
        else:
            right, rate = right.unsqueeze(1), rate.unsqueeze(1)
        log_ratio = log_ratio.clamp(max=self.log_ratio_max)
        values = torch.where(right, -log_ratio, self.neg_weight * self._negative(log_ratio, rate))
        values = self._prompt_weight(rate) * values
        if self.ratio_level == "sequence":
            return values, present.to(values.dtype)
        return values.sum(1), present.sum(1).to(values.dtype)

    def _negative(self, log_ratio: Tensor, rate: Tensor) -> Tensor:
        """Return -log max(1 - y, eps), with the slope of y/eps where that is log eps."""
        y = rate / (1.0 - rate) * expm1(log_ratio)
        stopped = y > 1.0 - self.eps
        held = (y - y.detach()) / self.eps - math.log(self.eps)
        return torch.where(stopped, held, -torch.log1p(-torch.where(stopped, 0.0, y)))

    def _prompt_weight(self, rate: Tensor) -> Tensor | float:
        if self.prompt_weight == "none":
            return 1.0
        return 1.0 - rate if self.prompt_weight == "dr_grpo" else ((1.0 - rate) / rate).sqrt()

    def _check_inputs(self, inputs: dict[str, Any], weight: Tensor | None) -> None:
        super()._check_inputs(inputs, weight)
        policy, rate = inputs["policy_token_logps"], inputs["correct_rate"]
        present_tokens(inputs["correct"], policy.shape[:1], policy, "correct")
        check_floating("correct_rate", rate)
        _check_row(rate, "correct_rate", policy)
        check_probability("correct_rate", rate, weight)

    def properties(self) -> Properties:
        """Return what this instance guarantees, in the policy's log-probabilities."""
        surrogate = "the gradient is that of a surrogate, not of the value, where R^- < eps"
        unbounded = "depends on which answers are right"
        return Properties(
            limits=(
                ("on-policy", "GRPOLoss(variant='bnpo')"),
                ("neg_weight = 0", "rejection-sampling fine-tuning"),
            ),
            unknown={
                "convex": surrogate,
                "smoothness": surrogate,
                "lower": unbounded,
                "upper": unbounded,
                "lipschitz": "grows with r/(1 - r) and with the ratio, up to exp(log_ratio_max)",
            },
            source="Chen et al. 2025",
        )


def group_advantages(
    rewards: Tensor, group_ids: Tensor, scale: str = "std", eps: float = 1e-4
) -> Tensor:
    r"""Return the advantage of every answer over the other answers to its prompt.

    .. math:: A_i = \frac{r_i - \mu_g}{\sigma_g + \epsilon} \quad\text{or}\quad r_i - \mu_g

    with the mean and the standard deviation of the rewards of the group, those of one prompt.

    Args:
        rewards: (N,), floating point.
        group_ids: (N,), integers: which answers are to one prompt. Any numbers, in any order.
        scale: ``"std"`` (default): divided by the unbiased standard deviation, as TRL and the code
            of NFT do. ``"population_std"``: by that with 1/n, for which NFT and GRPO agree.
            ``"none"``: not divided, as in Dr. GRPO; dividing gives prompts that are nearly always
            or nearly never answered right a larger weight.
        eps: >= 0, finite, added to the standard deviation. Default 1e-4.

    Returns:
        (N,), without a gradient, in float32 for half precision, else in the dtype of the rewards.
        Exactly 0 where all rewards of a group are equal, and for an answer alone in its group. The
        sum over a group is 0, up to rounding.

    Note:
        Computed by a sort: nothing waits for a device. Groups are those within the call: with
        answers to one prompt on several processes, gather them before. A reward that is not finite
        spoils its own group only.

    Raises:
        ValueError: unknown ``scale``, negative ``eps``, shapes that do not fit.
        TypeError: rewards not floating point, ids not integers, ``eps`` not a number.

    Reference:
        Shao et al., "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language
        Models", 2024. Liu et al., "Understanding R1-Zero-Like Training: A Critical Perspective",
        2025, for ``"none"``. ``eps`` is TRL's. Titles are RECALLED.

    Example:
        >>> import torch
        >>> from lossary import group_advantages
        >>> rewards, ids = torch.tensor([1.0, 0.0, 0.5, 0.0]), torch.tensor([7, 3, 7, 7])
        >>> group_advantages(rewards, ids)
        tensor([ 0.9998,  0.0000,  0.0000, -0.9998])
        >>> group_advantages(rewards, ids, "none")
        tensor([ 0.5000,  0.0000,  0.0000, -0.5000])
    """
    check_floating("rewards", rewards)
    _check_vector("rewards", rewards)
    check_integers("group_ids", group_ids)
    check_like("group_ids", group_ids, "rewards", rewards)
    check_choice("scale", scale, ("std", "population_std", "none"))
    eps = check_number("eps", eps, 0.0, math.inf, high_open=True)
    group = _groups(group_ids.long())
    deviation, count = _centered(_upcast(rewards.detach()), None, group)
    if scale == "none":
        return deviation
    divisor = count if scale == "population_std" else (count - 1.0).clamp(min=1.0)
    std = (_group_sum(deviation.square(), group) / divisor).sqrt()
    return deviation / torch.where(std == 0, 1.0, std + eps)


def filter_advantages(advantages: Tensor, mask: Tensor, k: float = 3.0) -> Tensor:
    r"""Return standardised advantages, with 0 in place of outliers.

    .. math:: \tilde A = \frac{A - \mu}{\sigma}, \qquad
              A' = \tilde A \text{ where } |\tilde A| \le k, \text{ else } 0

    with the mean and the standard deviation over all tokens of the batch: the advantage filter of
    StableReinforce (:class:`StableReinforceLoss`). A batch with nearly equal rewards and one that
    stands out has a standard deviation next to 0, and an advantage that makes the step alone.

    Args:
        advantages: (N, T), floating point, or any shape.
        mask: of the same shape, bool or numbers 0 and 1: which of them count.
        k: > 0, infinity included: how many standard deviations are allowed. Default 3.

    Returns:
        A tensor of the same shape, without a gradient, in float32 for half precision, else in the
        dtype of the advantages; 0 where the mask is 0, whatever stands there.

    Note:
        The standard deviation is the population's, 1/n, and at least 1e-4, as in the authors' code:
        advantages that are all the same give 0. Mean and standard deviation are those of this call:
        with several processes, gather the advantages before. The authors' code compares the
        standardised advantages with mean +- 3, mean that of A before, a slip, and sets those beyond
        10 and infinite ones to 0 as well.

    Raises:
        ValueError: a mask of another shape, or other than 0 and 1 (on CPU tensors, where looking
            costs nothing); ``k`` not positive.
        TypeError: advantages not floating point, ``k`` not a number.

    Reference:
        Zhang et al., "R1-Reward: Training Multimodal Reward Model Through Stable Reinforcement
        Learning", 2025. Read in the authors' code; the title is RECALLED.

    Example:
        >>> import torch
        >>> from lossary import filter_advantages
        >>> advantages = torch.tensor([[0.0, 1.0, -1.0], [0.5, -0.5, 9.0]])
        >>> filter_advantages(advantages, torch.ones(2, 3), k=2)
        tensor([[-0.4392, -0.1464, -0.7319],
                [-0.2928, -0.5855,  0.0000]])
    """
    check_floating("advantages", advantages)
    present = present_tokens(mask, advantages.shape, advantages)
    k = check_number("k", k, 0.0, math.inf, low_open=True)
    count = present.sum().clamp(min=1)
    deviation = torch.where(present, _upcast(advantages.detach()), 0.0)
    for _ in range(2):  # the rounding of the first mean would be all there is of equal numbers
        deviation = torch.where(present, deviation - deviation.sum() / count, 0.0)
    variance = deviation.square().sum() / count
    standard = deviation / variance.clamp(min=1e-8).sqrt()
    return torch.where(standard.abs() <= k, standard, 0.0)


def grpo_lambda_reward(
    correct: Tensor,
    lengths: Tensor,
    group_ids: Tensor,
    *,
    alpha: float,
    top_fraction: float = 0.2,
) -> Tensor:
    r"""Return rewards that favour short answers, to the prompts that are answered right most often.

    .. math:: r_i = 1 - \alpha \, \sigma\Bigl(\frac{L_i - \mu_g}{\sigma_g}\Bigr)
              \text{ if correct and in an efficient group}, \qquad
              1 \text{ if correct otherwise}, \qquad 0 \text{ if wrong}

    with the mean and the standard deviation of the lengths of the right answers of the group.
    GRPO-lambda: a penalty on length for all prompts makes a model that cannot yet solve them give
    up; it comes where the answers are right already, in the top fraction of the groups of a batch.
    Give the result to :func:`group_advantages`.

    Args:
        correct: (B,), bool or numbers 0 and 1: which answers are right.
        lengths: (B,), integers, float32 or float64, >= 0: the numbers of their tokens. Those of
            wrong answers are not looked at.
        group_ids: (B,), integers: which answers are to one prompt. Any numbers, in any order.
        alpha: 0 <= alpha <= 1: at most so much of a right answer's reward is lost. There is no
            default: the paper's is not known here (UNVERIFIED; one public implementation has 0.6).
        top_fraction: the share of the groups that are efficient, in (0, 1]: the
            ceil(top_fraction G) with the largest shares of right answers, at least one. Default
            0.2.

    Returns:
        (B,), in float64 where the lengths are, else in float32, without a gradient.

    Note:
        Choices of this library: the standard deviation is the population's; where fewer than two
        answers are right, or all right ones equally long, the argument of the sigmoid is 0; of
        groups with equal shares the one that occurs first in the batch comes first. Shares and
        ranks are those of the call: with several processes, gather the batch before. A circulating
        implementation forgets to set wrong answers of efficient groups to 0.

    Raises:
        ValueError: shapes that do not fit, ``alpha`` outside [0, 1], ``top_fraction`` outside
            (0, 1]; ``correct`` other than 0 and 1, lengths of right answers negative or not finite
            (on CPU tensors, where looking costs nothing).
        TypeError: lengths not numbers or in half precision, ids not integers, hyper-parameters not
            numbers.

    Reference:
        Dai, Liu, Si, "Stable Reinforcement Learning for Efficient Reasoning", 2025. There is no
        official code; the formulas are those that a public account of the paper quotes.

    Example:
        >>> import torch
        >>> from lossary import grpo_lambda_reward
        >>> correct = torch.tensor([1, 1, 0, 1, 0, 0])
        >>> lengths, ids = torch.tensor([10, 30, 5, 10, 7, 8]), torch.tensor([4, 4, 4, 9, 9, 9])
        >>> grpo_lambda_reward(correct, lengths, ids, alpha=0.6)
        tensor([0.8386, 0.5614, 0.0000, 1.0000, 0.0000, 0.0000])
    """
    _check_lambda_inputs(correct, lengths, group_ids)
    alpha = check_number("alpha", alpha, 0.0, 1.0)
    top_fraction = check_number("top_fraction", top_fraction, 0.0, 1.0, low_open=True)
    right, group = correct != 0, _groups(group_ids.long())
    dtype = torch.float64 if lengths.dtype is torch.float64 else torch.float32
    deviation, right_count = _centered(lengths.detach().to(dtype), right, group)
    count = _group_sum(torch.ones_like(deviation), group)
    std = (_group_sum(deviation.square(), group) / right_count).sqrt()
    z = deviation / torch.where(std == 0, 1.0, std)
    # A group is known by its first row; the other rows stand behind all groups.
    rows = torch.arange(len(group), device=group.device)
    share = torch.where(group == rows, _group_sum(right.to(dtype), group) / count, -1.0)
    order = torch.sort(share, descending=True, stable=True).indices
    rank = torch.empty_like(rows).scatter(0, order, rows)
    # The product of 0.07 and 100 is above 7 by rounding, and its ceiling would be 8.
    groups = (group == rows).sum().to(dtype)
    top = torch.ceil(top_fraction * groups * (1.0 - 1e-6))
    efficient = rank.gather(0, group) < top
    rewarded = torch.where(efficient, 1.0 - alpha * torch.sigmoid(z), 1.0)
    return torch.where(right, rewarded, 0.0)


def approximate_proximal_logps(
    policy_token_logps: Tensor,
    behavior_token_logps: Tensor,
    behavior_versions: Tensor,
    current_version: int,
) -> Tensor:
    r"""Return log-probabilities of the proximal policy, one update old, without a forward pass.

    .. math:: \log \pi_{\text{prox}} \approx \log \pi_b + a (\log \pi - \log \pi_b), \qquad
              a = \frac{v - 1 - v_b}{v - v_b}

    with v the version of the policy being trained, and v_b the one that wrote the token: what a
    path of equal steps from the one to the other had reached an update ago. For
    :class:`DecoupledPPOLoss`.

    Args:
        policy_token_logps: (N, T), floating point.
        behavior_token_logps: (N, T), floating point.
        behavior_versions: (N, T), integers: how many updates the policy had seen that wrote each
            token; negative where none did.
        current_version: an int: how many the policy being trained has seen.

    Returns:
        (N, T), without a gradient, in float32 for half precision; behavior_token_logps themselves
        where the token was written by the policy of the last version or of this, or by none.

    Raises:
        ValueError: shapes that do not fit.
        TypeError: log-probabilities not floating point, versions not integers.

    Reference:
        Fu et al., "AReaL: A Large-Scale Asynchronous Reinforcement Learning System for Language
        Reasoning", 2025: the authors' code, ``prox_logp_method="loglinear"``.

    Example:
        >>> import torch
        >>> from lossary import approximate_proximal_logps
        >>> policy, behavior = torch.full((1, 3), -1.0), torch.full((1, 3), -2.0)
        >>> approximate_proximal_logps(policy, behavior, torch.tensor([[6, 8, 9]]), 10)
        tensor([[-1.2500, -1.5000, -2.0000]])
    """
    check_floating("policy_token_logps", policy_token_logps)
    check_floating("behavior_token_logps", behavior_token_logps)
    first = "policy_token_logps"
    check_like("behavior_token_logps", behavior_token_logps, first, policy_token_logps)
    check_integers("behavior_versions", behavior_versions)
    check_like("behavior_versions", behavior_versions, first, policy_token_logps)
    check_int("current_version", current_version)
    policy: Tensor = _upcast(policy_token_logps.detach())
    behavior: Tensor = _upcast(behavior_token_logps.detach())
    age = current_version - behavior_versions.long()
    older = (age > 1) & (behavior_versions >= 0)
    part = (1.0 - 1.0 / torch.where(older, age, 1).to(behavior.dtype)) * (policy - behavior)
    return behavior + torch.where(older, part, 0.0)


# Ratios and advantages of tokens.


def _log_ratio(logps: Tensor, old: Tensor, present: Tensor) -> Tensor:
    """Return log pi - log pi_old of the tokens that are there, 0 of the others."""
    return torch.where(present, logps - old.detach(), 0.0)


def _of_tokens(advantages: Tensor, present: Tensor) -> Tensor:
    """Return the advantage of every token, 0 where there is none."""
    own = advantages.detach()
    return torch.where(present, own if own.dim() == 2 else own.unsqueeze(1), 0.0)


def _clipped(bound: Tensor, ratio: Tensor, advantages: Tensor, low: float, high: float) -> Tensor:
    """Return PPO's clipped objective, to be minimised; ``bound`` is the ratio or less."""
    held = ratio.clamp(1.0 - low, 1.0 + high)
    return -torch.minimum(bound * advantages, held * advantages)


# Groups of rows. Each is known by the position of its first row.


def _groups(ids: Tensor) -> Tensor:
    """Return for every row the position of the first row with the same id."""
    ordered, order = torch.sort(ids, stable=True)
    first = torch.cat((ordered[:1] == ordered[:1], ordered[1:] != ordered[:-1]))
    rows = torch.arange(len(ids), device=ids.device)
    start = torch.where(first, rows, 0).cummax(0).values
    return torch.empty_like(order).scatter(0, order, order.gather(0, start))


def _group_sum(x: Tensor, group: Tensor) -> Tensor:
    """Return for every row the sum over its group."""
    return torch.zeros_like(x).scatter_add(0, group, x).gather(0, group)


def _centered(x: Tensor, present: Tensor | None, group: Tensor) -> tuple[Tensor, Tensor]:
    """Return x less the mean of its group, 0 where it is not there, and the counts, at least 1."""
    there = torch.ones_like(group, dtype=torch.bool) if present is None else present
    # Less the smallest first: the mean of equal numbers is not always that number.
    from_least = torch.where(there, x, math.inf)
    least = torch.full_like(x, math.inf).scatter_reduce(0, group, from_least, "amin")
    x = torch.where(there, x - least.gather(0, group), 0.0)
    count = _group_sum(there.to(x.dtype), group).clamp(min=1.0)
    return torch.where(there, x - _group_sum(x, group) / count, 0.0), count


# Checking the arguments.


def _check_vector(name: str, x: Tensor) -> None:
    if x.dim() != 1:
        raise ValueError(f"{name}: expected shape (N,), got {tuple(x.shape)}")


def _check_row(x: Tensor, name: str, policy: Tensor) -> None:
    """Raise an error unless there is one number per sequence."""
    if x.shape != policy.shape[:1]:
        raise ValueError(f"{name}: expected shape {tuple(policy.shape[:1])}, got {tuple(x.shape)}")
    check_device(name, x, policy)


def _check_advantages(advantages: Any, policy: Tensor) -> None:
    check_floating("advantages", advantages)
    if advantages.shape not in (policy.shape, policy.shape[:1]):
        raise ValueError(
            f"advantages: expected shape {tuple(policy.shape[:1])} or {tuple(policy.shape)}, "
            f"got {tuple(advantages.shape)}"
        )
    check_device("advantages", advantages, policy)


def _checked_interval(name: str, value: Any) -> tuple[float, float]:
    if not isinstance(value, tuple | list):
        raise TypeError(f"{name}: expected two numbers, got {type(value).__name__} ({value!r})")
    if len(value) != 2:
        raise ValueError(f"{name}: expected two numbers, got {value!r}")
    low, high = (check_number(name, x, 0.0, 1.0, low_open=True, high_open=True) for x in value)
    if low > high:
        raise ValueError(f"{name}: expected the smaller number first, got {value!r}")
    return low, high


def _check_lambda_inputs(correct: Any, lengths: Any, group_ids: Any) -> None:
    check_tensor("correct", correct)
    _check_vector("correct", correct)
    right = present_tokens(correct, correct.shape, correct, "correct")
    check_tensor("lengths", lengths)
    if lengths.dtype is torch.bool or lengths.dtype.is_complex or lengths.dtype in HALF:
        # bfloat16 has no number between 256 and 258.
        raise TypeError(f"lengths: expected integers, float32 or float64, got {lengths.dtype}")
    check_like("lengths", lengths, "correct", correct)
    check_integers("group_ids", group_ids)
    check_like("group_ids", group_ids, "correct", correct)
    if readable(lengths):
        wrong = right & ~((lengths >= 0) & (lengths < math.inf))
        if bool(wrong.any()):
            found = float(lengths[wrong][0])
            raise ValueError(f"lengths: expected finite lengths >= 0, got {found:g}")
