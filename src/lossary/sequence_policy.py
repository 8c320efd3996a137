r"""Policy losses on whole answers, or on the steps of a reasoning chain.

.. math:: \nabla \ell = -A \, w \, \nabla \log \pi(y \mid x), \qquad
          w = \frac{\pi(y \mid x)}{q(y \mid x)}

with q what the answer was drawn from and A what it is worth: against another answer to the prompt,
against a target distribution, or by a critic; and the likelihood of the best answers, near a
reference.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from lossary._base import Loss, LossOptions, _upcast
from lossary._checks import (
    check_choice,
    check_floating,
    check_in_memory,
    check_int,
    check_like,
    check_number,
    check_positive,
)
from lossary._distributed import gather_rows
from lossary._numerics import expm1, softplus
from lossary._properties import Properties
from lossary._sequence_base import SequenceLoss, per_token, present_tokens
from lossary._softmax import readable
from lossary._state import TrainingState
from lossary.sequences import token_logps

#: Log-ratios of sequences are cut off here before the exponential, which is then 4.9e8: the product
#: of two such ratios and a reward is far from overflow in float32.
LARGEST_LOG_RATIO = 20.0

SURROGATE = "the value is a surrogate: only its gradient means something"
CLAIMS = ("convex", "lower", "upper", "lipschitz", "smoothness")


def _importance(logps: Tensor, old_logps: Tensor) -> Tensor:
    """Return the ratio of two probabilities of sequences."""
    return torch.exp((logps - old_logps).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO))


class _PolicyLoss(SequenceLoss):
    """A loss whose inputs are numbers, one per answer, but for those named otherwise."""

    _otherwise: ClassVar[tuple[str, ...]] = ()

    def _check_inputs(self, inputs: dict[str, Any], weight: Tensor | None) -> None:
        super()._check_inputs(inputs, weight)
        first, like = next(iter(inputs.items()))
        for name, x in inputs.items():
            if name not in self._otherwise:
                check_floating(name, x)
                check_like(name, x, first, like)


class P3OLoss(_PolicyLoss):
    r"""Pairwise proximal policy optimisation (P3O): two answers to a prompt, by their difference.

    .. math:: \text{separate: } -\tfrac12 \sum_{i=1}^{2}
              \min\bigl(c_i w_i,\ c_i \operatorname{clip}(w_i, 1 - \epsilon, 1 + \epsilon)\bigr),
              \qquad c_1 = \operatorname{sg}[\Delta r \, w_2], \quad
              c_2 = \operatorname{sg}[-\Delta r \, w_1]

    .. math:: \text{joint: } -\tfrac12
              \min\bigl(s x,\ s \operatorname{clip}(x, m - \epsilon, m + \epsilon)\bigr),
              \qquad s = \operatorname{sg}[\Delta r \, w_1 w_2]

    with w_i = pi(y_i)/pi_old(y_i), Delta r = r_1 - r_2, x = log pi(y_1) - log pi(y_2), m the same
    of the old policy. **The value is a surrogate**: only its gradient means something, the pairwise
    policy gradient -(Delta r/2) w_1 w_2 (grad log pi(y_1) - grad log pi(y_2)) inside of the clip.
    A reward that is learnt from comparisons is only defined up to a number per prompt, and so is
    this loss: no critic and no baseline is needed.

    Args:
        clip: the epsilon above, > 0; infinity for no clipping. Default 0.2.
        variant: ``"separate"`` (default, the paper's first version) clips each answer's ratio,
            ``"joint"`` (its second) the difference of the log-probabilities.
        reduction: see :class:`lossary.Loss`.

    Shape:
        policy_logps_1, policy_logps_2, old_logps_1, old_logps_2 (N, ...): SUMS over the tokens of a
        completion, of the policy and of the one that drew the answers. reward_1, reward_2 of the
        same shape, with the penalty for leaving the reference already taken off: r - beta (log pi -
        log pi_ref). Values of the same shape.

    Properties:
        Unchanged when both rewards of a pair move by the same number, and when the answers are
        exchanged. On policy both variants have the gradient -Delta r/2 in the log-probability of
        the first answer and Delta r/2 in that of the second. An answer that has moved beyond the
        clip in the direction of its reward gets no gradient; in the joint form neither does its
        partner. No gradient flows to the old log-probabilities and to the rewards.

    Limits:
        clip = inf: both variants are the importance-weighted pairwise policy gradient.

    Note:
        Log-ratios are cut off at -20 and 20 before the exponential: sequences' are sums of many
        terms, and exp(89) is infinite in float32. In the separate form there is no gradient beyond.

    Raises:
        ValueError: ``clip`` not positive, unknown ``variant``; inputs of different shapes.
        TypeError: ``clip`` not a number; inputs not floating point.

    Reference:
        Wu, Zhu, Zhang, Wen, Ramchandran, Jiao, "Pairwise Proximal Policy Optimization: Harnessing
        Relative Feedback for LLM Alignment", 2023. The two clipped expressions are RECALLED; their
        gradients, on policy and without clipping, are checked.

    Example:
        >>> import torch
        >>> from lossary import P3OLoss
        >>> one = torch.tensor([-12.0], requires_grad=True)
        >>> two = torch.tensor([-14.0], requires_grad=True)
        >>> loss = P3OLoss()
        >>> rewards = torch.tensor([1.5]), torch.tensor([0.5])
        >>> loss(one, two, one.detach(), two.detach(), *rewards).backward()
        >>> one.grad, two.grad
        (tensor([-0.5000]), tensor([0.5000]))
    """

    def __init__(
        self, clip: float = 0.2, variant: str = "separate", **options: Unpack[LossOptions]
    ) -> None:
        super().__init__(**options)
        self.clip = check_number("clip", clip, 0.0, low_open=True)
        check_choice("variant", variant, ("separate", "joint"))
        self.variant = variant

    def per_sample(
        self,
        policy_logps_1: Tensor,
        policy_logps_2: Tensor,
        old_logps_1: Tensor,
        old_logps_2: Tensor,
        reward_1: Tensor,
        reward_2: Tensor,
    ) -> Tensor:
        """Return the surrogate of every pair, unreduced."""
        # On policy a caller may well give one tensor twice: ratios of 1 without any slope.
        old_1, old_2 = old_logps_1.detach(), old_logps_2.detach()
        w_1, w_2 = _importance(policy_logps_1, old_1), _importance(policy_logps_2, old_2)
        gap = (reward_1 - reward_2).detach()
        if self.variant == "separate":
            terms = self._clipped(gap * w_2.detach(), w_1, 1.0)
            return -0.5 * (terms + self._clipped(-gap * w_1.detach(), w_2, 1.0))
        s = (gap * w_1 * w_2).detach()
        # x - m from small differences: of the large ones float32 has lost what is to be clipped.
        moved = (policy_logps_1 - old_1) - (policy_logps_2 - old_2)
        return -0.5 * (s * (old_1 - old_2) + self._clipped(s, moved, 0.0))

    def _clipped(self, c: Tensor, x: Tensor, middle: float) -> Tensor:
        return torch.minimum(c * x, c * x.clamp(middle - self.clip, middle + self.clip))

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        return Properties(
            limits=(("clip = inf", "the importance-weighted pairwise policy gradient"),),
            unknown=dict.fromkeys(CLAIMS, SURROGATE),
            source="Wu et al. 2023",
        )


class DirectAdvantageLoss(_PolicyLoss):
    r"""Direct advantage policy optimisation (DAPO): log-ratios of steps, regressed on their worth.

    .. math:: \ell = \frac12 \Bigl(\rho - \frac{A}{\beta}\Bigr)^2, \qquad
              \rho = \log \frac{\pi(a \mid s)}{\pi_{\text{ref}}(a \mid s)}

    with s a question and the reasoning so far, a the next step. What is best under a penalty on the
    divergence from the reference has log-ratios A/beta but for a normalisation; here they are
    fitted, on steps drawn beforehand, from the reference and by a critic's advantages, every step
    of a chain with a signal of its own. (ByteDance's DAPO is another method.)

    Args:
        beta: beta > 0, finite: the price of divergence. Default 0.02 (0.01 to 0.02 in the paper).
        reduction: see :class:`lossary.Loss`.

    Shape:
        policy_step_logps, reference_step_logps (N, ...): SUMS over the tokens of one step, not of
        the whole answer. advantage of the same shape: V(s, a) less the mean of V(s, .) over the
        steps drawn at s, V the critic's probability of a right answer, trained by binary
        cross-entropy on how often completions are right. Values of the same shape.

    Properties:
        Convex, infinitely smooth, >= 0, 0 iff rho = A/beta. The gradient is rho - A/beta, without
        bound; no gradient flows to the advantage. At the reference, -beta times the gradient is
        that of the advantage policy gradient, A grad log pi.

    Limits:
        A = 0: half the squared log-ratio, towards the reference. beta -> 0, the gradient times
        beta: the advantage policy gradient.

    Note:
        The best log-ratio is A/beta - log E_ref[exp(A/beta)]. The normalisation is left out, so
        that the probabilities asked for need not add up to 1; a policy's do, and come as near as
        they can.

    Raises:
        ValueError: ``beta`` not positive and finite; inputs of different shapes.
        TypeError: ``beta`` not a number; inputs not floating point.

    Reference:
        Liu et al., "Improving Multi-Step Reasoning Abilities of Large Language Models with Direct
        Advantage Policy Optimization", 2024. The square of the log-ratio less A/beta follows from
        its lemma on gradients; the printed equation was not seen (UNVERIFIED).

    Example:
        >>> import torch
        >>> from lossary import DirectAdvantageLoss
        >>> policy, reference = torch.tensor([-12.0, -9.0]), torch.tensor([-14.0, -8.0])
        >>> DirectAdvantageLoss()(policy, reference, torch.tensor([0.06, -0.04]))
        tensor(0.5000)
    """

    def __init__(self, beta: float = 0.02, **options: Unpack[LossOptions]) -> None:
        super().__init__(**options)
        self.beta = check_positive("beta", beta)

    def per_sample(
        self, policy_step_logps: Tensor, reference_step_logps: Tensor, advantage: Tensor
    ) -> Tensor:
        """Return the loss of every step, unreduced."""
        residual = policy_step_logps - reference_step_logps - advantage.detach() / self.beta
        return 0.5 * residual.square()

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        far = ((1.0,), (0.0,), (0.0,))
        return Properties(
            convex=True,
            lower=0.0,
            upper=math.inf,
            lipschitz=math.inf,
            smoothness=math.inf,
            counterexamples={"upper": far, "lipschitz": far},
            source="Liu et al. 2024",
        )


#: -f'(t) of log t.
_REWARDS: dict[str, Callable[[Tensor], Tensor]] = {
    "kl": lambda log_t: torch.exp(-log_t),
    "reverse_kl": lambda log_t: -(log_t + 1.0),
    "js": lambda log_t: softplus(-log_t) - math.log(2.0),
    "tv": lambda log_t: -0.5 * torch.sign(log_t),
    "chi2": lambda log_t: expm1(-2.0 * log_t),
    "reverse_chi2": lambda log_t: -2.0 * expm1(log_t),
}


class FDPGLoss(_PolicyLoss, TrainingState):
    r"""f-DPG: a policy is brought to a target distribution, in any of six f-divergences.

    .. math:: \ell = -\operatorname{sg}\Bigl[\frac{\pi(y)}{q(y)} (R - B)\Bigr] \log \pi(y), \qquad
              R = -f'(t), \quad t = \operatorname{sg}[\pi(y)] \, \frac{Z}{P(y)}

    with y drawn from the proposal q, P the target's score and Z what it has to be divided by to be
    a distribution. **The value is a surrogate**: only its gradient means something, an unbiased
    estimate of that of D_f = sum_y p(y) f(pi(y)/p(y)), p = P/Z, whatever the constant B. One loss
    for distributional policy gradients (``"kl"``) and for the reward maximisation of RLHF with a
    penalty (``"reverse_kl"``, P = pi_ref exp(r/beta)), and for what lies between.

    Args:
        divergence: the f(t), and what is minimised: ``"kl"`` -log t, KL(p, pi); ``"reverse_kl"``
            t log t, KL(pi, p); ``"js"`` (default), KL(pi, m) + KL(p, m), m = (p + pi)/2, twice the
            Jensen-Shannon divergence; ``"tv"`` |t - 1|/2, the total variation; ``"chi2"``
            1/t + t - 2, chi-square of p from pi; ``"reverse_chi2"`` (t - 1)^2, of pi from p.
        use_baseline: take B, the mean of the last rewards, off every reward. Default ``True``.
        baseline_window: how many rewards it is a mean of, >= 1. Default 1024.
        max_log_ratio: > 0, finite: log t is cut off at this and its negative. Default 30.
        reduction: see :class:`lossary.Loss`.

    Shape:
        policy_logps, target_log_scores, proposal_logps (N, ...): SUMS over the tokens of a
        completion, of pi, P and q; P may be 0, that is -inf. log_z: log Z, a number, a 0-dim
        tensor, or one per answer where prompts have targets of their own. update: ``False`` leaves
        the window as it is. Values of the same shape.

    Properties:
        The gradient in policy_logps is -w (R - B), w = pi/q. Rewards fall in t: what has too little
        probability is made likelier. For ``"js"`` R > -log 2, for ``"tv"`` |R| <= 1/2, for ``"kl"``
        R > 0, for ``"chi2"`` R > -1, for ``"reverse_chi2"`` R < 2. No gradient flows to anything
        else than policy_logps.

    Limits:
        q = pi, without baseline: REINFORCE on the reward R.

    Note:
        The window is in the buffers ``baseline_rewards`` and ``baseline_count``, the same on every
        process: the last rewards of all processes of the default group, which must all call it, in
        the order of their ranks. B is their mean before the call, 0 at first; it is written after
        the loss is computed, in training mode with gradients enabled, outside of ``torch.func`` and
        without ``update=False``. Answers of weight 0 and rewards that are nan do not count.
        ``baseline()`` returns B, ``reset()`` forgets it. It is the authors' code, which keeps the
        same window on one process, with two cuts: exp(-log t) of a sequence overflows where
        the policy has lost mass, and of a P of 0 log t is infinite, so log t is cut off at
        ``max_log_ratio``; importance ratios are cut off at exp(20). For ``"reverse_kl"`` and
        ``"js"``, which are linear in log t, a larger cut costs nothing, and long sequences need it;
        for ``"chi2"`` twice the cut must stay below 88 in float32.

    Raises:
        ValueError: unknown ``divergence``, ``use_baseline`` or ``update`` neither ``True`` nor
            ``False``, ``baseline_window`` below 1, ``max_log_ratio`` not positive and finite;
            inputs of different shapes; a ``log_z`` that is not finite (as a number) or of another
            shape.
        TypeError: hyper-parameters of the wrong type; inputs not floating point.

    Reference:
        Go, Korbak, Kruszewski, Rozen, Ryu, Dymetman, "Aligning Language Models with Preferences
        through f-divergence Minimization", 2023. Verified against the authors' code.

    Example:
        >>> import torch
        >>> from lossary import FDPGLoss
        >>> policy = torch.tensor([-12.0, -9.0], requires_grad=True)
        >>> scores, proposal = torch.tensor([-11.0, -9.5]), torch.tensor([-12.0, -9.0])
        >>> loss = FDPGLoss("reverse_kl")
        >>> loss(policy, scores, proposal, log_z=0.5).backward()
        >>> policy.grad
        tensor([0.2500, 1.0000])
        >>> loss.baseline()
        tensor(-1.2500)
    """

    _otherwise = ("log_z", "update")
    baseline_rewards: Tensor
    baseline_count: Tensor

    def __init__(
        self,
        divergence: str = "js",
        use_baseline: bool = True,
        baseline_window: int = 1024,
        max_log_ratio: float = 30.0,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(**options)
        check_choice("divergence", divergence, tuple(_REWARDS))
        self.divergence = divergence
        check_choice("use_baseline", use_baseline, (True, False))
        self.use_baseline = use_baseline
        self.baseline_window = check_int("baseline_window", baseline_window, 1)
        self.max_log_ratio = check_positive("max_log_ratio", max_log_ratio)
        # The newest last; what is not there yet is 0.
        self.register_buffer("baseline_rewards", torch.zeros(baseline_window * use_baseline))
        self.register_buffer("baseline_count", torch.zeros((), dtype=torch.long))

    def per_sample(
        self,
        policy_logps: Tensor,
        target_log_scores: Tensor,
        proposal_logps: Tensor,
        log_z: float | Tensor,
        update: bool = True,
    ) -> Tensor:
        """Return the surrogate of every answer, unreduced."""
        del update
        policy = policy_logps.detach()
        rewards = self._rewards(policy, target_log_scores, log_z)
        advantage = rewards - self.baseline().to(rewards.dtype)
        return -_importance(policy, proposal_logps.detach()) * advantage * policy_logps

    def baseline(self) -> Tensor:
        """Return the mean of the rewards in the window, 0 if there are none."""
        return self.baseline_rewards.sum() / self.baseline_count.clamp(min=1)

    def reset(self) -> None:
        """Forget all rewards."""
        self.baseline_rewards.zero_()
        self.baseline_count.zero_()

    def _rewards(self, policy: Tensor, scores: Tensor, log_z: float | Tensor) -> Tensor:
        log_z = log_z.detach() if isinstance(log_z, Tensor) else log_z
        log_t = policy - scores.detach() + log_z
        return _REWARDS[self.divergence](log_t.clamp(-self.max_log_ratio, self.max_log_ratio))

    @torch.no_grad()
    def _remember(self, rewards: Tensor, weight: Tensor | None) -> None:
        """Put the rewards of all processes into the window, behind those that are in it."""
        window, count = self.baseline_rewards, self.baseline_count
        there = ~rewards.isnan()
        if weight is not None:
            there &= weight != 0
        new, present = gather_rows(rewards.reshape(-1), there.reshape(-1), group=self.process_group)
        held = torch.arange(len(window), device=window.device) >= len(window) - count
        present = torch.cat((held, present))
        every = torch.cat((window, new.to(window.dtype)))
        # Who is not there goes to the front, all others keep their order.
        last = present.long().argsort(stable=True)[-len(window) :]
        window.copy_(torch.where(present, every, 0.0)[last])
        count.copy_(present.sum().clamp(max=len(window)))

    def _values(
        self, inputs: tuple[Any, ...], weight: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        policy, scores, _, log_z, update = inputs
        check_choice("update", update, (True, False))
        out = super()._values(inputs, weight)
        if self.use_baseline and self._updates(update, policy):
            # Of the inputs as they came: who is not there has been cleaned, but does not count.
            with torch.no_grad():
                rewards = self._rewards(*(_upcast(x) for x in (policy, scores, log_z)))
            self._remember(rewards, weight)
        return out

    def _check_inputs(self, inputs: dict[str, Any], weight: Tensor | None) -> None:
        super()._check_inputs(inputs, weight)
        log_z, policy = inputs["log_z"], inputs["policy_logps"]
        if self.baseline_count.device != policy.device:
            raise ValueError(
                f"policy_logps: expected device {self.baseline_count.device}, where the state lies "
                f"(move the loss with to()), got {policy.device}"
            )
        if not isinstance(log_z, Tensor):
            check_number("log_z", log_z, low_open=True, high_open=True)
            return
        check_floating("log_z", log_z)
        if log_z.dim():
            check_like("log_z", log_z, "policy_logps", policy)

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        return Properties(unknown=dict.fromkeys(CLAIMS, SURROGATE), source="Go et al. 2023")


class SuperHFLoss(Loss):
    r"""SuperHF: the likelihood of the best of several answers, held near a reference model.

    .. math:: \ell = \text{NLL} + c \max(0, \text{KL}) + \frac{\kappa}{\text{NLL}}, \qquad
              \text{NLL} = -\frac{1}{L} \sum_t \log \pi(y_t), \quad
              \text{KL} = \frac{1}{L} \sum_t \sum_v \pi_{\text{ref}}(v)
              \log \frac{\pi_{\text{ref}}(v)}{\pi(v)}

    the sums over the L tokens of a completion, the distributions those before each of them. Draw
    several answers to a prompt, keep the one of the largest reward (:func:`best_of_k`), fine-tune
    on it, draw anew: reinforcement learning by supervised steps. Without the prior over all tokens
    the policy collapses on what pleases the reward model. With c = 0 it is RAFT.

    Args:
        kl_coef: the c above, >= 0, finite. Default 0.35, of the authors' configuration.
        inverse_coef: the kappa above, >= 0, finite: keeps away from certainty, as
            NLL + kappa/NLL is smallest at NLL = sqrt(kappa). Default 0.
        ignore_index: tokens with this label are left out. Default -100.
        shift: position t predicts labels[:, t + 1]: the model's outputs and its own inputs, as they
            are. The default; ``False`` where labels, mask and all logits have been aligned.
        reduction: see :class:`lossary.Loss`.

    Shape:
        logits (N, T, V), floating point, V >= 2; labels (N, T), integers in [0, V) or
        ``ignore_index``; reference_logits (N, T, V), of the model before fine-tuning, under
        ``torch.no_grad()``: they may be ``None``, and are not looked at, with kl_coef = 0; mask
        (N, T) over the labels, bool or numbers 0 and 1. The prompt belongs out of it, by either.
        Values (N,).

    Properties:
        Convex in the logits for kappa = 0, infinitely smooth, > 0. The gradient in the logits
        before a token is ((p - onehot) + c (p - p_ref))/L there, of norm at most sqrt(2) (1 + c)
        for the sequence. An answer without tokens is not in the mean.

    Limits:
        c = kappa = 0: ``SequenceNLLLoss("sequence")``. c -> inf, the loss over c: distillation from
        the reference on the completion's tokens.

    Note:
        Three logits-sized buffers in float32 for the divergence, none with c = 0. The authors' code
        adds up the divergences of a minibatch of B to its mean NLL per token: for B = 1 it is this
        loss, else for answers of equal length with c = B times theirs. It also takes the divergence
        at the positions of the completion's own tokens, which predict the next ones, where here it
        is at the positions that predict them, as in the NLL. max(0, .) concerns rounding only. NLL
        counts as at least 1e-6 in kappa/NLL.

    Raises:
        ValueError: a coefficient negative or infinite, ``shift`` neither ``True`` nor ``False``;
            shapes that do not fit, T < 2 with ``shift``; labels that count outside [0, V), a mask
            other than 0 and 1 (on CPU tensors, where looking costs nothing).
        TypeError: hyper-parameters of the wrong type; logits not floating point or not in memory,
            labels not integers; reference_logits missing with kl_coef > 0.

    Reference:
        Mukobi et al., "SuperHF: Supervised Iterative Learning from Human Feedback", 2023; the
        authors' code was read. Dong et al., "RAFT: Reward rAnked FineTuning for Generative
        Foundation Model Alignment", 2023.

    Example:
        >>> import torch
        >>> from lossary import SuperHFLoss, best_of_k
        >>> logits = torch.tensor([[[0.0, 1.0], [2.0, 0.0], [0.0, 0.0]]] * 2)
        >>> labels = torch.tensor([[0, 0, 1], [0, 1, 1]])
        >>> rewards = torch.tensor([0.3, 0.9])
        >>> loss = SuperHFLoss()
        >>> loss(logits, labels, torch.zeros_like(logits), weight=best_of_k(rewards))
        tensor(1.3170)
    """

    def __init__(
        self,
        kl_coef: float = 0.35,
        inverse_coef: float = 0.0,
        ignore_index: int = -100,
        shift: bool = True,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(**options)
        self.kl_coef = check_number("kl_coef", kl_coef, 0.0, math.inf, high_open=True)
        self.inverse_coef = check_number(
            "inverse_coef", inverse_coef, 0.0, math.inf, high_open=True
        )
        self.ignore_index = check_int("ignore_index", ignore_index)
        check_choice("shift", shift, (True, False))
        self.shift = shift

    def per_sample(
        self,
        logits: Tensor,
        labels: Tensor,
        reference_logits: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the loss of every answer, unreduced, and which have tokens."""
        check_in_memory(logits, "the divergence from a reference")
        logps = token_logps(logits, labels, mask, ignore_index=self.ignore_index, shift=self.shift)
        present = labels != self.ignore_index
        if mask is not None:
            present = present & present_tokens(mask, labels.shape, logits)
        present = present[:, 1:] if self.shift else present
        lengths = present.sum(1)
        nll = per_token(-logps.sum(1), lengths)
        values = nll
        if self.kl_coef:
            check_floating("reference_logits", reference_logits)
            assert reference_logits is not None
            check_like("reference_logits", reference_logits, "logits", logits)
            before = slice(-1 if self.shift else None)
            kl = _token_divergence(logits[:, before], reference_logits[:, before], present)
            values = values + self.kl_coef * per_token(kl.sum(1), lengths).clamp(min=0.0)
        if self.inverse_coef:
            values = values + self.inverse_coef / nll.clamp(min=1e-6)
        there = lengths > 0
        return torch.where(there, values, 0.0), there.to(values.dtype)

    def properties(self) -> Properties:
        """Return what this instance guarantees in the logits."""
        off = torch.tensor([[[-1.0, 1.0], [-1.0, 1.0]]])
        wrong = (off, torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 2, 2))
        alone = self.inverse_coef == 0.0
        inverse = "kappa/NLL is steep near certainty"
        unknown = {"lower": "0 without kappa, but in the logits alone it depends on the reference"}
        return Properties(
            convex=True if alone else None,
            upper=math.inf,
            lipschitz=math.sqrt(2.0) * (1.0 + self.kl_coef) if alone else None,
            smoothness=math.inf if alone else None,
            limits=(("kl_coef = inverse_coef = 0", "SequenceNLLLoss('sequence')"),),
            counterexamples={"upper": wrong},
            unknown=unknown
            | ({} if alone else dict.fromkeys(("convex", "lipschitz", "smoothness"), inverse)),
            source="Mukobi et al. 2023",
        )


def _token_divergence(logits: Tensor, reference: Tensor, present: Tensor) -> Tensor:
    """Return the divergence of the policy's next token from the reference's, 0 where absent."""
    there = present.unsqueeze(-1)
    log_p = torch.log_softmax(torch.where(there, logits, 0.0), -1)
    log_r = torch.log_softmax(torch.where(there, reference, 0.0), -1)
    r = log_r.exp()
    # What the reference never says adds nothing, though its logarithm is infinite.
    return (r * torch.where(r == 0.0, 0.0, log_r - log_p)).sum(-1)


def best_of_k(rewards: Tensor, k: int = 1) -> Tensor:
    r"""Return which answers to each prompt have the largest rewards.

    .. math:: m_{ij} = [\, \#\{l : r_{il} > r_{ij}\} + \#\{l < j : r_{il} = r_{ij}\} < k \,]

    The filter of RAFT and SuperHF: of K answers drawn to a prompt, the best is kept and imitated.
    Take ``completions[best_of_k(rewards)]`` before the forward pass, or give the mask as ``weight``
    to :class:`SequenceNLLLoss` (RAFT) or :class:`SuperHFLoss`.

    Args:
        rewards: (..., K), one row per prompt, floating point, without nan; -inf for what is not to
            be kept before any other.
        k: how many to keep of each row, 1 <= k <= K. Default 1.

    Returns:
        A bool tensor of the shape of the rewards, with exactly k in every row: of equal rewards
        those that come first. No gradient.

    Raises:
        ValueError: rewards without an axis, ``k`` below 1 or above K; nan (on CPU tensors, where
            looking costs nothing; elsewhere it counts as the largest).
        TypeError: rewards not floating point, ``k`` not an int.

    Reference:
        Dong et al., "RAFT: Reward rAnked FineTuning for Generative Foundation Model Alignment",
        2023; Mukobi et al., "SuperHF: Supervised Iterative Learning from Human Feedback", 2023.

    Example:
        >>> import torch
        >>> from lossary import best_of_k
        >>> best_of_k(torch.tensor([[0.1, 0.7, 0.7], [-1.0, -2.0, -3.0]])).int()
        tensor([[0, 1, 0],
                [1, 0, 0]], dtype=torch.int32)
    """
    check_floating("rewards", rewards)
    if rewards.dim() == 0:
        raise ValueError("rewards: expected shape (..., K), got a 0-dim tensor")
    if check_int("k", k, 1) > rewards.shape[-1]:
        raise ValueError(f"k: expected at most K = {rewards.shape[-1]}, got {k}")
    if readable(rewards) and bool(rewards.isnan().any()):
        raise ValueError("rewards: expected numbers, got nan")
    order = rewards.detach().argsort(dim=-1, descending=True, stable=True)
    return torch.zeros_like(rewards, dtype=torch.bool).scatter(-1, order[..., :k], True)
