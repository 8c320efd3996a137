r"""Preference losses of self-play: of win rates, of Nash policies, of a model that judges itself.

.. math:: \pi^* = \operatorname*{argmax}_\pi \min_{\pi'} \;
          P(\pi \succ \pi') - \tau \operatorname{KL}(\pi \,\|\, \pi_{\text{ref}})
          + \tau \operatorname{KL}(\pi' \,\|\, \pi_{\text{ref}}), \qquad
          \pi^* \propto \pi_{\text{ref}} \, e^{P(\cdot \,\succ\, \pi^*) / \tau}

A preference need not come from a reward: rock may beat scissors, scissors paper and paper rock.
What remains is a game of two policies, whose Nash policy no other beats in the mean. It is reached
in rounds, each against the policy of the round before, the *anchor*, whose log-probabilities are
inputs here, as those of the reference are: compute them under ``torch.no_grad()``.

Where the judge is the model itself, CREAM and SCIR ask how far it agrees with itself. A third
method of that kind has no loss of its own: the self-supervised preference degree (SPO, 2024) adds
to a preference loss the cross-entropy of a head that says how much of the key content has been
taken out of an answer. With the head's logits and the degrees by hand it is a sum; the weight, 0.1
here, and the number of degrees are UNVERIFIED, as the authors' repository has no code:

    >>> import torch
    >>> from lossary import CompSumLoss, DPOLoss
    >>> chosen, rejected = torch.tensor([-12.0, -9.0]), torch.tensor([-14.0, -8.0])
    >>> reference = torch.tensor([-13.0, -9.0]), torch.tensor([-11.0, -11.0])
    >>> degree_logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.5]])
    >>> degree = torch.tensor([0, 2])
    >>> align = DPOLoss(beta=0.1)(chosen, rejected, *reference)
    >>> align + 0.1 * CompSumLoss()(degree_logits, degree)
    tensor(0.7512)
"""

import math
from typing import Any, Unpack

import torch
from torch import Tensor

from lossary._base import HALF, Loss, LossOptions, _upcast, check_sample_weight
from lossary._checks import (
    check_choice,
    check_device,
    check_floating,
    check_like,
    check_number,
    check_positive,
    check_tensor,
)
from lossary._numerics import softplus
from lossary._pairwise import LOGPS, PairwisePreferenceLoss, logistic, steepest
from lossary._properties import Properties
from lossary._sequence_base import (
    SequenceLoss,
    check_probabilities,
    check_probability,
    present_tokens,
)
from lossary._softmax import readable

#: Of a loss whose gradient alone is meant.
_SURROGATE = dict.fromkeys(
    ("convex", "lower", "upper", "lipschitz", "smoothness"),
    "the value is a surrogate: only its gradient means something",
)


class INPOLoss(PairwisePreferenceLoss):
    r"""Iterative Nash policy optimisation (INPO): regression of a margin to the last two policies.

    .. math:: \ell = \Bigl(h - \frac{1}{2 \eta}\Bigr)^2, \qquad
              h = \log \frac{\pi(y_w)}{\pi(y_l)}
              - \frac{\tau}{\eta} \log \frac{\pi_{\text{ref}}(y_w)}{\pi_{\text{ref}}(y_l)}
              - \frac{\eta - \tau}{\eta} \log \frac{\pi_t(y_w)}{\pi_t(y_l)}

    One step of mirror descent towards the Nash policy of a preference that is held to a reference:
    pairs are drawn from the anchor pi_t, the policy of the round before, and judged; no win rate
    has to be estimated. The policy that comes out is the anchor of the next round.

    Args:
        eta: eta > 0, finite: how strongly a round is held to where it starts; a small eta is a
            large step. Default 0.0075.
        tau: in [0, eta]: how strongly the game is held to the reference. Default 0.0025, a third
            of the default eta.
        reduction: see :class:`lossary.Loss`.

    Shape:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps,
        reference_rejected_logps, and those of the policy that wrote the pair, anchor_chosen_logps,
        anchor_rejected_logps (N, ...): SUMS over the tokens of a completion. All six are needed.
        Values of the same shape.

    Properties:
        A parabola: convex in all log-probabilities together, infinitely smooth, l >= 0, unbounded
        above, with an unbounded gradient: 2 (h - 1/(2 eta)) in policy_chosen_logps and its opposite
        in policy_rejected_logps. If w is preferred with probability p, the mean over both orders is
        least at h = (p - 1/2)/eta. Over pairs drawn from pi_t the gradient is that of a regression
        of h on (P(y_w beats pi_t) - P(y_l beats pi_t))/eta, and the minimiser is
        pi proportional to pi_ref^(tau/eta) pi_t^(1 - tau/eta) exp(P(. beats pi_t)/eta). Unchanged
        when both log-probabilities of one model move by the same number.

    Limits:
        tau = eta: :class:`IPOLoss` with tau = eta; the anchor is not used. tau = 0: the same with
        the anchor for the reference, which is not used.

    Note:
        The gap 1/(2 eta) is 67 at the default, and the values of the order of 4000: a log-ratio
        moves far in a round. ``implicit_rewards`` takes all six inputs and returns eta times the
        log-ratios to the mixture pi_ref^(tau/eta) pi_t^(1 - tau/eta), which estimate the win rate
        over pi_t up to a constant per prompt. What is not used may be infinite.

    Raises:
        ValueError: ``eta`` not positive and finite, ``tau`` outside [0, eta]; inputs of different
            shapes or devices.
        TypeError: hyper-parameters not numbers; inputs missing or not floating point.

    Reference:
        Zhang, Yu, Peng, Song, Tian, Huo, Jiang, Mi, Yu, "Iterative Nash Policy Optimization:
        Aligning LLMs with General Preferences via No-Regret Learning", 2024, Algorithm 1 and eqs.
        5 to 8. There is no official code; verified against the text, an independent implementation
        and the closed form. The authors' names are RECALLED.

    Example:
        >>> import torch
        >>> from lossary import INPOLoss
        >>> chosen, rejected = torch.tensor([-12.0, -9.0]), torch.tensor([-14.0, -8.0])
        >>> reference = torch.tensor([-13.0, -9.0]), torch.tensor([-11.0, -11.0])
        >>> anchor = torch.tensor([-12.0, -10.0]), torch.tensor([-13.0, -8.0])
        >>> INPOLoss(eta=0.1, tau=0.05)(chosen, rejected, *reference, *anchor)
        tensor(21.1250)
    """

    def __init__(
        self, eta: float = 7.5e-3, tau: float = 2.5e-3, **options: Unpack[LossOptions]
    ) -> None:
        eta = check_positive("eta", eta)
        super().__init__(eta, **options)
        self.eta = eta
        self.tau = check_number("tau", tau, 0.0, eta)

    def per_sample(  # type: ignore[override]
        self,
        policy_chosen_logps: Tensor,
        policy_rejected_logps: Tensor,
        reference_chosen_logps: Tensor,
        reference_rejected_logps: Tensor,
        anchor_chosen_logps: Tensor,
        anchor_rejected_logps: Tensor,
    ) -> Tensor:
        """Return the loss of every pair, unreduced."""
        chosen = self._log_ratio(policy_chosen_logps, reference_chosen_logps, anchor_chosen_logps)
        rejected = self._log_ratio(
            policy_rejected_logps, reference_rejected_logps, anchor_rejected_logps
        )
        return self.pair_loss(chosen, rejected)

    def pair_loss(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the loss of every pair from its two log-ratios to the mixture."""
        return (chosen - rejected - 0.5 / self.eta).square()

    def _log_ratio(self, policy: Tensor, reference: Tensor, anchor: Tensor) -> Tensor:
        """Return the log-ratio to the geometric mixture of reference and anchor."""
        policy, reference, anchor = _upcast(policy), _upcast(reference), _upcast(anchor)
        # Not 0 times what is not used, which may be infinite.
        if self.tau == self.eta:
            return policy - reference
        if self.tau == 0.0:
            return policy - anchor
        # Two policies that are near each other lose nothing in their difference; a mixture would.
        return (policy - anchor) - self.tau / self.eta * (reference - anchor)

    def implicit_rewards(  # type: ignore[override]
        self,
        policy_chosen_logps: Tensor,
        policy_rejected_logps: Tensor,
        reference_chosen_logps: Tensor,
        reference_rejected_logps: Tensor,
        anchor_chosen_logps: Tensor,
        anchor_rejected_logps: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return eta times the log-ratios to the mixture, chosen and rejected, detached."""
        chosen = policy_chosen_logps, reference_chosen_logps, anchor_chosen_logps
        rejected = policy_rejected_logps, reference_rejected_logps, anchor_rejected_logps
        inputs = [x for pair in zip(chosen, rejected, strict=True) for x in pair]
        self._check_inputs(dict(zip(self._names, inputs, strict=True)), None)
        return (
            self.eta * self._log_ratio(*chosen).detach(),
            self.eta * self._log_ratio(*rejected).detach(),
        )

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        down = ([-1.0], *[[0.0]] * 5)
        return Properties(
            convex=True,
            lower=0.0,
            upper=math.inf,
            lipschitz=math.inf,
            smoothness=math.inf,
            minimiser="h = (p - 1/2)/eta, w preferred with probability p",
            limits=(
                ("tau = eta", "IPOLoss(tau=eta)"),
                ("tau = 0", "IPOLoss(tau=eta) with the anchor for the reference"),
            ),
            counterexamples={"upper": down, "lipschitz": down},
            source="Zhang et al. 2024",
        )


class DNOLoss(PairwisePreferenceLoss):
    r"""Direct Nash optimisation (DNO): cross-entropy of margins with differences of win rates.

    .. math:: \ell = -q \log \sigma(\Delta) - (1 - q) \log \sigma(-\Delta), \qquad
              \Delta = \eta \log \frac{\pi(y_w) \, \pi_t(y_l)}{\pi_t(y_w) \, \pi(y_l)}, \qquad
              q = \sigma(r_w - r_l) \text{ or } 1

    with r an answer's expected win rate over the answers of pi_t, the policy of the round before.
    Soft targets regress the margin on the difference of win rates, and so learn from pairs that are
    nearly even as well; hard ones are for pairs that were picked because one answer beats the other
    by far (DNO-Prct).

    Args:
        eta: eta > 0, finite: how strongly a round is held to where it starts. Default 1.
        target: ``"soft"`` (default), q from the win rates, or ``"hard"``, q = 1.
        reduction: see :class:`lossary.Loss`.

    Shape:
        policy_chosen_logps, policy_rejected_logps, and those of the policy of the round before,
        anchor_chosen_logps, anchor_rejected_logps (N, ...): SUMS over the tokens of a completion.
        With ``"soft"`` only, chosen_win_rate and rejected_win_rate of the same shape, floating
        point, in [0, 1]. Values of the same shape.

    Properties:
        Convex in all log-probabilities together, infinitely smooth, unbounded above. The gradient
        in policy_chosen_logps is eta (sigma(Delta) - q) and its opposite in policy_rejected_logps:
        of a norm below sqrt(2) eta max(q, 1 - q). l >= H(q), the binary entropy in nats, reached at
        Delta = r_w - r_l, that is by pi proportional to pi_t exp(r/eta); l > 0 for hard targets.
        Unchanged when both log-probabilities of one model move by the same number. Soft targets:
        exchanging the two answers, which one is called chosen, changes nothing. No gradient flows
        to the win rates.

    Limits:
        target = "hard": :class:`DPOLoss` with beta = eta and the anchor for the reference.
        r_w = r_l: the margin is pulled to 0.

    Note:
        Win rates lie in [0, 1], so that q is between sigma(-1) = 0.27 and sigma(1) = 0.73: soft
        targets never ask for a margin above 1. ``implicit_rewards`` takes the anchor's
        log-probabilities in the place of the reference's.

    Raises:
        ValueError: ``eta`` not positive and finite, unknown ``target``; inputs of different shapes,
            win rates outside [0, 1] (on CPU tensors, where looking costs nothing).
        TypeError: ``eta`` not a number; inputs missing or not floating point; win rates missing
            with ``"soft"``, or given with ``"hard"``.

    Reference:
        Rosset, Cheng, Mitra, Santacroce, Awadallah, Xie, "Direct Nash Optimization: Teaching
        Language Models to Self-Improve with General Preferences", 2024, eqs. 11 to 13. There is no
        official code; verified against the text and the closed form.

    Example:
        >>> import torch
        >>> from lossary import DNOLoss
        >>> chosen, rejected = torch.tensor([-12.0, -9.0]), torch.tensor([-14.0, -8.0])
        >>> anchor = torch.tensor([-12.5, -9.0]), torch.tensor([-14.0, -9.0])
        >>> win_rates = torch.tensor([0.75, 0.5]), torch.tensor([0.25, 0.375])
        >>> DNOLoss()(chosen, rejected, *anchor, *win_rates)
        tensor(0.7537)
        >>> DNOLoss(target="hard")(chosen, rejected, *anchor)
        tensor(0.8937)
    """

    def __init__(
        self, eta: float = 1.0, target: str = "soft", **options: Unpack[LossOptions]
    ) -> None:
        eta = check_positive("eta", eta)
        super().__init__(eta, **options)
        self.eta = eta
        check_choice("target", target, ("soft", "hard"))
        self.target = target

    def per_sample(  # type: ignore[override]
        self,
        policy_chosen_logps: Tensor,
        policy_rejected_logps: Tensor,
        anchor_chosen_logps: Tensor,
        anchor_rejected_logps: Tensor,
        chosen_win_rate: Tensor | None = None,
        rejected_win_rate: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of every pair, unreduced."""
        chosen, rejected = self.log_ratios(
            policy_chosen_logps, policy_rejected_logps, anchor_chosen_logps, anchor_rejected_logps
        )
        margin = self.eta * (chosen - rejected)
        if chosen_win_rate is None or rejected_win_rate is None:
            return logistic(margin, 0.0)
        lead = (chosen_win_rate - rejected_win_rate).detach()
        return torch.sigmoid(lead) * softplus(-margin) + torch.sigmoid(-lead) * softplus(margin)

    def _check_inputs(self, inputs: dict[str, Any], weight: Tensor | None) -> None:
        super()._check_inputs(inputs, weight)
        for name in ("chosen_win_rate", "rejected_win_rate"):
            x = inputs.get(name)
            if self.target == "soft" and name in inputs:
                check_probabilities(name, x, LOGPS[0], inputs[LOGPS[0]], weight)
            elif x is not None:
                raise TypeError(f"{name}: expected None with target='hard', got {type(x).__name__}")

    def properties(self) -> Properties:
        """Return what this instance guarantees; the Lipschitz constant is in the policy's two."""
        soft = self.target == "soft"
        unknown = {"lower": "H(q), but q depends on the win rates"} if soft else {}
        even = (0.5, 0.5) * soft
        return Properties(
            convex=True,
            lower=None if soft else 0.0,
            upper=math.inf,
            lipschitz=steepest(self.eta, 1.0 / (1.0 + math.e) if soft else 0.0),
            smoothness=math.inf,
            minimiser="Delta = r_w - r_l" if soft else None,
            limits=(("target = 'hard'", "DPOLoss(beta=eta) with the anchor for the reference"),),
            counterexamples={"upper": (-1.0, 0.0, 0.0, 0.0, *even)},
            unknown=unknown,
            source="Rosset et al. 2024",
        )


class NashMDLoss(Loss):
    r"""Nash mirror descent (Nash-MD-PG): a policy gradient towards the Nash policy; a surrogate.

    .. math:: \ell = -\operatorname{sg}\Bigl[P(y \succ y') - \tfrac12
              - \tau \sum_t (\log \pi_t - \log \mu_t)\Bigr] \sum_t \log \pi_t

    **The value is a surrogate** for its gradient: it may have any sign and says nothing about
    progress; watch the preference and the KL divergence instead. y is drawn from the policy, its
    opponent y' from the geometric mixture of policy and reference, proportional to
    pi^(1 - c) mu^c (mix the logits with these weights; TRL has c = 0.5), which is what makes the
    last policy converge and not only the average of all.

    Args:
        tau: tau >= 0, finite: how strongly the game is held to the reference mu. Default 0.1.
        kl_estimator: ``"sequence"`` (default), the paper's: the log-ratio of the whole answer is
            part of its reward. ``"token"``, TRL's: every token has its own log-ratio only, which
            is biased.
        reduction: see :class:`lossary.Loss`.

    Shape:
        policy_token_logps, reference_token_logps (N, T): log-probabilities of the tokens of y, as
        :func:`lossary.token_logps` returns them. preference_prob (N,), floating point, in [0, 1]:
        the probability that y is preferred to y'. mask (N, T), bool or numbers 0 and 1, or ``None``
        (default) for all tokens. Values (N,).

    Properties:
        The gradient in every token's log-probability is -s, s the bracket, with ``"sequence"``, and
        tau (log pi_t - log mu_t) - (P - 1/2) with ``"token"``. Over answers drawn from the policy
        the first is, in the mean, the gradient of -(E P - tau KL(pi \|\| mu)); the second leaves
        out how a token moves the divergence of those after it. The 1/2 is a baseline, which the
        mean does not depend on. No gradient flows to the reference or the preference. What the mask
        leaves out may be infinite or nan. An answer without tokens is 0, but counts in the mean.

    Limits:
        tau = 0: the policy gradient of the preference alone, the same for both estimators. T = 1:
        both estimators agree.

    Note:
        ``"token"`` is TRL's ``NashMDTrainer``. Second derivatives are those of the surrogate, and
        mean nothing.

    Raises:
        ValueError: ``tau`` negative or infinite, unknown ``kl_estimator``; shapes that do not fit,
            T = 0; preferences outside [0, 1] or a mask other than 0 and 1 (on CPU tensors, where
            looking costs nothing).
        TypeError: ``tau`` not a number; inputs not floating point, a complex mask.

    Reference:
        Munos et al., "Nash Learning from Human Feedback", 2023. There is no official code; verified
        against TRL, and ``"sequence"`` by enumeration against the exact gradient.

    Example:
        >>> import torch
        >>> from lossary import NashMDLoss
        >>> policy = torch.tensor([[-1.0, -0.5], [-2.0, -0.25]], requires_grad=True)
        >>> reference = torch.tensor([[-1.5, -0.5], [-1.0, -0.5]])
        >>> loss = NashMDLoss(tau=0.1)(policy, reference, torch.tensor([0.75, 0.5]))
        >>> loss.backward()
        >>> policy.grad
        tensor([[-0.1000, -0.1000],
                [-0.0375, -0.0375]])
    """

    def __init__(
        self, tau: float = 0.1, kl_estimator: str = "sequence", **options: Unpack[LossOptions]
    ) -> None:
        super().__init__(**options)
        self.tau = check_number("tau", tau, 0.0, math.inf, high_open=True)
        check_choice("kl_estimator", kl_estimator, ("sequence", "token"))
        self.kl_estimator = kl_estimator

    def per_sample(
        self,
        policy_token_logps: Tensor,
        reference_token_logps: Tensor,
        preference_prob: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Return the surrogate of every answer, unreduced."""
        logps = policy_token_logps
        ratios = (logps - reference_token_logps).detach()
        if mask is not None:
            present = present_tokens(mask, logps.shape, logps)
            logps, ratios = torch.where(present, logps, 0.0), torch.where(present, ratios, 0.0)
        gain = preference_prob.detach() - 0.5
        if self.kl_estimator == "token":
            return self.tau * (ratios * logps).sum(1) - gain * logps.sum(1)
        return (self.tau * ratios.sum(1) - gain) * logps.sum(1)

    def _values(
        self, inputs: tuple[Any, ...], weight: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        policy, reference, preference, _ = inputs
        check_floating("policy_token_logps", policy)
        if policy.dim() != 2 or policy.shape[1] == 0:
            raise ValueError(
                f"policy_token_logps: expected shape (N, T), T >= 1, got {tuple(policy.shape)}"
            )
        check_floating("reference_token_logps", reference)
        check_like("reference_token_logps", reference, "policy_token_logps", policy)
        check_floating("preference_prob", preference)
        if preference.shape != policy.shape[:1]:
            raise ValueError(
                f"preference_prob: expected shape {tuple(policy.shape[:1])}, "
                f"got {tuple(preference.shape)}"
            )
        check_device("preference_prob", preference, policy)
        check_sample_weight(weight, preference.shape, preference)
        check_probability("preference_prob", preference, weight)
        return super()._values(inputs, weight)

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        return Properties(
            limits=(("tau = 0", "the policy gradient of the preference"),),
            unknown=_SURROGATE,
            source="Munos et al. 2023",
        )


class NashMPLoss(SequenceLoss):
    r"""Nash mirror prox (Nash-MP): a proximal step towards the Nash policy; a surrogate.

    .. math:: \ell = -\operatorname{sg}\Bigl[P(y \succ y') - \tfrac12
              - \beta \log \frac{\pi(y)}{\pi_{\text{ref}}(y)}
              - \frac{1}{\eta} \log \frac{\pi(y)}{\pi_k(y)}\Bigr] \log \pi(y)

    **The value is a surrogate** for its gradient: it may have any sign and says nothing about
    progress. A round from pi_k, the anchor, has two steps of this loss: first against opponents
    y' of pi_k itself, which gives a policy in between, then from pi_k again, with the same anchor,
    against opponents of that policy, which gives pi_(k+1). Looking ahead in this way the last
    policy converges to the Nash policy at a linear rate.

    Args:
        beta: beta > 0, finite: how strongly the game is held to the reference.
        eta: eta > 0, finite: the step; how far a round may go from where it starts. At most 2 is
            known to be safe.
        reduction: see :class:`lossary.Loss`.

    Shape:
        policy_logps, reference_logps, anchor_logps (N, ...): SUMS over the tokens of y, drawn from
        the policy. preference_prob of the same shape, floating point, in [0, 1]: the probability
        that y is preferred to y'. Values of the same shape.

    Properties:
        The gradient in policy_logps is -s, s the bracket; in the mean over answers drawn from the
        policy it is that of -(E P - beta KL(pi \|\| pi_ref) - KL(pi \|\| pi_k)/eta), which is least
        at pi proportional to (pi_ref^beta pi_k^(1/eta) exp(P(. beats y')))^(1/(beta + 1/eta)). Of
        the two steps the fixed point is the Nash policy, pi* proportional to
        pi_ref exp(P(. beats pi*)/beta). No gradient flows to anything but the policy.

    Limits:
        eta -> inf: the policy gradient of the preference less beta times the KL divergence, as
        :class:`NashMDLoss` with tau = beta.

    Note:
        With eta = 2, KL(pi* \|\| pi_k) <= (1 + 2 beta)^-k KL(pi* \|\| pi_0) after k rounds of exact
        steps, which held on random games. The factor is 1/(1 + eta beta) in general, but failed at
        eta = 4: hence at most 2. Second derivatives are those of the surrogate, and mean nothing.

    Raises:
        ValueError: ``beta`` or ``eta`` not positive and finite; inputs of different shapes,
            preferences outside [0, 1] (on CPU tensors, where looking costs nothing).
        TypeError: hyper-parameters not numbers; inputs not floating point.

    Reference:
        Tiapkin et al., "Accelerating Nash Learning from Human Feedback via Mirror Prox", 2025. The
        scheme of two steps and the authors are RECALLED; the closed form of a step, the fixed point
        and the rate were checked on random games. How the paper trains language models, target
        networks above all, is UNVERIFIED and not part of this loss.

    Example:
        >>> import torch
        >>> from lossary import NashMPLoss
        >>> policy = torch.tensor([-12.0, -9.0], requires_grad=True)
        >>> reference, anchor = torch.tensor([-13.0, -9.0]), torch.tensor([-12.0, -9.5])
        >>> preference = torch.tensor([0.8, 0.5])
        >>> NashMPLoss(beta=0.1, eta=2.0)(policy, reference, anchor, preference).backward()
        >>> policy.grad
        tensor([-0.1000,  0.1250])
    """

    def __init__(self, beta: float, eta: float, **options: Unpack[LossOptions]) -> None:
        super().__init__(**options)
        self.beta = check_positive("beta", beta)
        self.eta = check_positive("eta", eta)

    def per_sample(
        self,
        policy_logps: Tensor,
        reference_logps: Tensor,
        anchor_logps: Tensor,
        preference_prob: Tensor,
    ) -> Tensor:
        """Return the surrogate of every answer, unreduced."""
        bracket = preference_prob - 0.5
        bracket = bracket - self.beta * (policy_logps - reference_logps)
        bracket = bracket - (policy_logps - anchor_logps) / self.eta
        return -bracket.detach() * policy_logps

    def _check_inputs(self, inputs: dict[str, Any], weight: Tensor | None) -> None:
        super()._check_inputs(inputs, weight)
        name = "preference_prob"
        check_probabilities(name, inputs[name], "policy_logps", inputs["policy_logps"], weight)

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        return Properties(
            limits=(("eta -> inf", "the gradient of NashMDLoss(tau=beta)"),),
            unknown=_SURROGATE,
            source="Tiapkin et al. 2025",
        )


def self_play_win_rate(preferences: Tensor) -> Tensor:
    r"""Return every answer's mean win rate over the others: the reward of self-play (SPO).

    .. math:: r_i = \frac{1}{K - 1} \sum_{j \neq i} W_{ij}

    K answers of one policy to one prompt are compared with each other; the mean is the reward of
    any reinforcement-learning loss. Playing against oneself is enough for a policy that no other
    beats (a minimax winner), and needs no reward model.

    Args:
        preferences: W, (..., K, K), K >= 2, floating point: W_ij in [0, 1], the probability that
            answer i is preferred to answer j. The diagonal is not looked at. For sum r = K/2, a
            mean of 1/2, W_ij + W_ji = 1 has to hold, which is not checked.

    Returns:
        (..., K), detached, in float32 for half precision, else in the dtype of ``preferences``.

    Raises:
        ValueError: the last two axes are not square, K < 2; a probability off the diagonal outside
            [0, 1] (on CPU tensors, where looking costs nothing).
        TypeError: ``preferences`` not a floating-point tensor.

    Reference:
        Swamy, Dann, Kidambi, Wu, Agarwal, "A Minimaximalist Approach to Reinforcement Learning from
        Human Feedback", 2024.

    Example:
        >>> import torch
        >>> from lossary import self_play_win_rate
        >>> self_play_win_rate(torch.tensor([[0.5, 0.75, 1.0], [0.25, 0.5, 0.5], [0.0, 0.5, 0.5]]))
        tensor([0.8750, 0.3750, 0.2500])
    """
    check_floating("preferences", preferences)
    shape = preferences.shape
    if len(shape) < 2 or shape[-1] != shape[-2] or shape[-1] < 2:
        raise ValueError(f"preferences: expected shape (..., K, K), K >= 2, got {tuple(shape)}")
    k = shape[-1]
    itself = torch.eye(k, dtype=torch.bool, device=preferences.device)
    won = _upcast(preferences.detach()).masked_fill(itself, 0.0)
    check_probability("preferences", won, None)
    rate: Tensor = won.sum(-1) / (k - 1)
    return rate


class CREAMLoss(PairwisePreferenceLoss):
    r"""Consistency-regularised self-rewarding (CREAM): DPO as sure as the judge is consistent.

    .. math:: \ell = -C \log \sigma(z) - (1 - C) \log \sigma(-z), \qquad
              z = \beta \, (\rho_w - \rho_l)

    Where a model makes its own preferences, some of them are noise that it then learns to believe.
    C, how far it ranks the answers as the model of the round before did
    (:func:`consistency_rate`), says how much to trust them: at C = 1 this is DPO, at C = 1/2 the
    margin is pulled to 0.

    Args:
        beta: beta > 0, finite. Default 0.1.
        reduction: see :class:`lossary.Loss`.

    Shape:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps,
        reference_rejected_logps (N, ...): SUMS over the tokens of a completion; all four are
        needed. consistency, C in [0, 1]: floating point of the same shape, or for the whole data
        set one number or a 0-dim tensor. Values of the same shape.

    Properties:
        Convex in all log-probabilities together, infinitely smooth, unbounded above. The gradient
        in the two log-probabilities of the policy is -beta (sigma(-z) - (1 - C)) and its opposite,
        of a norm below sqrt(2) beta max(C, 1 - C). l >= H(C), the binary entropy in nats, reached
        at z = log(C/(1 - C)). Unchanged when both log-probabilities of the policy, or both of the
        reference, move by the same number. If w is preferred with probability p, the mean is least
        at sigma(z) = p C + (1 - p)(1 - C). C is a constant: no gradient flows to it.

    Limits:
        C = 1: :class:`DPOLoss`. One C for all: DPOLoss with label_smoothing = 1 - C. C = 0: DPO of
        the exchanged pair.

    Note:
        It is label smoothing by 1 - C, a number of every pair. Of answers that have become
        impossible a certain label, C of 0 or 1, leaves out the other term, which would be 0 times
        infinity. Where the rate of a prompt is missing, the authors' code takes the mean of the
        others.

    Raises:
        ValueError: ``beta`` not positive and finite; inputs of different shapes; consistency of
            another shape, or outside [0, 1] (on CPU tensors, where looking costs nothing).
        TypeError: ``beta`` not a number; inputs missing or not floating point.

    Reference:
        Wang, He, Liang, Zhang, Bansal, Wei, Zhang, Yao, "CREAM: Consistency Regularized
        Self-Rewarding Language Models", 2024. Verified against the authors' code; their names are
        RECALLED.

    Example:
        >>> import torch
        >>> from lossary import CREAMLoss, consistency_rate
        >>> chosen, rejected = torch.tensor([-12.0, -9.0]), torch.tensor([-14.0, -8.0])
        >>> reference = torch.tensor([-13.0, -9.0]), torch.tensor([-11.0, -11.0])
        >>> now = torch.tensor([[3.0, 1.0, 2.0, 0.0], [0.0, 1.0, 2.0, 3.0]])
        >>> before = torch.tensor([[5.0, 2.0, 1.0, 0.0], [2.0, 1.0, 3.0, 4.0]])
        >>> consistency_rate(now, before)
        tensor([0.8333, 0.8333])
        >>> CREAMLoss()(chosen, rejected, *reference, consistency_rate(now, before))
        tensor(0.6920)
    """

    def __init__(self, beta: float = 0.1, **options: Unpack[LossOptions]) -> None:
        super().__init__(beta, **options)

    def per_sample(  # type: ignore[override]
        self,
        policy_chosen_logps: Tensor,
        policy_rejected_logps: Tensor,
        reference_chosen_logps: Tensor,
        reference_rejected_logps: Tensor,
        consistency: Tensor | float,
    ) -> Tensor:
        """Return the loss of every pair, unreduced."""
        chosen, rejected = self.log_ratios(
            policy_chosen_logps,
            policy_rejected_logps,
            reference_chosen_logps,
            reference_rejected_logps,
        )
        z = self.beta * (chosen - rejected)
        if not isinstance(consistency, Tensor):
            consistency = torch.full((), consistency, dtype=z.dtype, device=z.device)
        c = consistency.detach()
        # Not 0 * inf, for a sequence that has become impossible.
        agree, differ = torch.where(c > 0.0, z, 0.0), torch.where(c < 1.0, z, 0.0)
        return c * softplus(-agree) + (1.0 - c) * softplus(differ)

    def _check_inputs(self, inputs: dict[str, Any], weight: Tensor | None) -> None:
        super()._check_inputs(inputs, weight)
        if "consistency" not in inputs:  # of implicit_rewards
            return
        consistency, like = inputs["consistency"], inputs[LOGPS[0]]
        if not isinstance(consistency, Tensor):
            check_number("consistency", consistency, 0.0, 1.0)
        elif consistency.dim() == 0 and like.dim() > 0:
            check_floating("consistency", consistency)
            check_device("consistency", consistency, like)
            check_probability("consistency", consistency, None)
        else:
            check_probabilities("consistency", consistency, LOGPS[0], like, weight)

    def properties(self) -> Properties:
        """Return what this instance guarantees; the Lipschitz constant is in the policy's two."""
        return Properties(
            convex=True,
            upper=math.inf,
            lipschitz=steepest(self.beta, 0.0),
            smoothness=math.inf,
            minimiser="sigmoid(z) = p C + (1 - p)(1 - C), w preferred with probability p",
            limits=(("C = 1", "DPOLoss"), ("one C", "DPOLoss(label_smoothing=1 - C)")),
            counterexamples={"upper": (-1.0, 0.0, 0.0, 0.0, 1.0)},
            unknown={"lower": "H(C), but C is an input"},
            source="Wang et al. 2024; Mitchell 2023",
        )


def consistency_rate(rewards: Tensor, previous: Tensor, method: str = "kendall") -> Tensor:
    r"""Return how far two models' rewards of the same answers agree in their order, in [0, 1].

    .. math:: C = \frac{\tau_K + 1}{2} \quad\text{or}\quad \frac{\rho_S + 1}{2} \quad\text{or}\quad
              \mathbb{1}[\text{same best and same worst}]

    with Kendall's tau and Spearman's rho of the ranks: 1 where both rank alike, 1/2 for orders that
    have nothing to do with each other, 0 for opposite ones. Kendall's is the share of the pairs of
    answers that both models order alike. The ``consistency`` of :class:`CREAMLoss`.

    Args:
        rewards: (..., K), K >= 2 answers to a prompt, of the model that is trained; floating point
            or integers, finite or infinite. Of equal rewards the earlier answer has the lower rank,
            as in the authors' code.
        previous: of the model of the round before, of the same shape.
        method: ``"kendall"`` (default), ``"spearman"`` or ``"top_bottom"``.

    Returns:
        (...), detached, in float64 where a reward is, else in float32.

    Raises:
        ValueError: shapes that do not fit, K < 2, unknown ``method``; a reward that is nan (on CPU
            tensors, where looking costs nothing).
        TypeError: rewards that are no tensors of numbers.

    Reference:
        Wang et al., "CREAM: Consistency Regularized Self-Rewarding Language Models", 2024. Kendall
        and Spearman as in the authors' code; for ``"top_bottom"`` that code compares the ranks of
        the first and of the last answer instead, which is the same for answers in the order of one
        of the two rankings only.

    Example:
        >>> import torch
        >>> from lossary import consistency_rate
        >>> now, before = torch.tensor([3.0, 1.0, 2.0, 0.0]), torch.tensor([5.0, 2.0, 1.0, 0.0])
        >>> consistency_rate(now, before), consistency_rate(now, before, "top_bottom")
        (tensor(0.8333), tensor(1.))
    """
    check_choice("method", method, ("kendall", "spearman", "top_bottom"))
    for name, x in (("rewards", rewards), ("previous", previous)):
        check_tensor(name, x)
        if x.dtype is torch.bool or x.dtype.is_complex:
            raise TypeError(f"{name}: expected numbers, got {x.dtype}")
        if x.dim() == 0 or x.shape[-1] < 2:
            raise ValueError(f"{name}: expected shape (..., K), K >= 2, got {tuple(x.shape)}")
        check_like(name, x, "rewards", rewards)
        if readable(x) and bool(x.isnan().any()):
            raise ValueError(f"{name}: expected numbers, got nan")
    double = torch.float64 in (rewards.dtype, previous.dtype)
    dtype = torch.float64 if double else torch.float32
    one, other = (_ordinal_ranks(x.detach()) for x in (rewards, previous))
    k = one.shape[-1]
    if method == "top_bottom":
        same = (one.argmax(-1) == other.argmax(-1)) & (one.argmin(-1) == other.argmin(-1))
        return same.to(dtype)
    if method == "spearman":
        distance = (one - other).square().sum(-1).to(dtype)
        return 1.0 - 3.0 * distance / (k * (k**2 - 1))
    before, also = (x.unsqueeze(-1) < x.unsqueeze(-2) for x in (one, other))
    return (before & also).sum((-1, -2)).to(dtype) / (k * (k - 1) // 2)


def _ordinal_ranks(x: Tensor) -> Tensor:
    """Return the ranks 0, ..., K - 1 of the last axis; of equal numbers the first is lower."""
    return x.argsort(dim=-1, stable=True).argsort(dim=-1)


class SCIRLoss(PairwisePreferenceLoss):
    r"""Self-consistent internal rewards (SCIR): a model's two judgements of a pair are made one.

    .. math:: \ell = D(p, q) + \frac{\lambda}{2} \bigl(H(p) + H(q)\bigr), \qquad
              p = \sigma\bigl(\beta (\rho_w - \rho_l)\bigr), \qquad q = \sigma(g)

    A language model judges a pair in two ways: by its implicit reward, p, and, asked which answer
    is better, by what it says, q. Trained to agree with itself on unlabelled pairs, and to be sure,
    it is a better judge of its own answers. A preference loss is then added of those pairs only on
    which the two judgements agree: ``consistent_mask``, of the same inputs, is its ``weight``.

    This form is OURS and UNVERIFIED: that two judgements are pulled together, with an entropy term,
    and that DPO is for the pairs on which they agree is known of the paper; the divergence D, its
    weights and the defaults are not.

    Args:
        beta: beta > 0, finite. Default 0.1.
        divergence: D: ``"js"`` (default), Jensen-Shannon, (KL(p, m) + KL(q, m))/2 with m the mean
            of both; or ``"symmetric_kl"``, (KL(p, q) + KL(q, p))/2, which grows without bound.
        entropy_weight: lambda >= 0, finite: how much being sure is worth. Default 0.1.
        reduction: see :class:`lossary.Loss`.

    Shape:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps,
        reference_rejected_logps (N, ...): SUMS over the tokens of a completion; all four are
        needed. judge_logits, g, of the same shape, floating point: the log-odds that the model,
        asked, prefers the answer called chosen; of a probability, the mean over both orders of the
        answers in the question, ``torch.logit(q)``. Values of the same shape.
        ``consistent_mask(...)``, of the same inputs: bool, whether p and q are on the same side of
        1/2, neither being 1/2.

    Properties:
        l >= 0, infinitely smooth, not convex; exchanging the two judgements, or the two answers
        (with -g), changes nothing. For lambda = 0 it is 0 where p = q, and ``"js"`` is at most
        log 2. For lambda > 0 only certain judgements that agree come near 0. Gradient flows to
        both judgements; detach one to train the other alone.

    Limits:
        ``"js"`` with entropy_weight = 1: the entropy of the mean judgement, H((p + q)/2).
        Judgements that nearly agree, with z = logit(p): D -> (z - g)^2 p (1 - p)/8 for ``"js"``,
        and four times that for ``"symmetric_kl"``.

    Note:
        Both divergences come from log-odds, without a difference of entropies: relative accuracy
        holds for judgements that nearly agree and for nearly certain ones. At the start of training
        p is 1/2 for every pair, and for lambda > 0 the entropy has no slope there.

    Raises:
        ValueError: ``beta`` not positive and finite, unknown ``divergence``, ``entropy_weight``
            negative or infinite; inputs of different shapes.
        TypeError: hyper-parameters not numbers; inputs missing or not floating point.

    Reference:
        "Self-Consistency of the Internal Reward Models Improves Self-Rewarding Language Models",
        2025. There is no official code; title RECALLED, form UNVERIFIED.

    Example:
        >>> import torch
        >>> from lossary import SCIRLoss
        >>> chosen, rejected = torch.tensor([-12.0, -9.0]), torch.tensor([-14.0, -8.0])
        >>> reference = torch.tensor([-13.0, -9.0]), torch.tensor([-11.0, -11.0])
        >>> judge = torch.logit(torch.tensor([0.8, 0.7]))
        >>> loss = SCIRLoss()
        >>> loss(chosen, rejected, *reference, judge)
        tensor(0.0933)
        >>> loss.consistent_mask(chosen, rejected, *reference, judge)
        tensor([ True, False])
    """

    def __init__(
        self,
        beta: float = 0.1,
        divergence: str = "js",
        entropy_weight: float = 0.1,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(beta, **options)
        check_choice("divergence", divergence, ("js", "symmetric_kl"))
        self.divergence = divergence
        self.entropy_weight = check_number(
            "entropy_weight", entropy_weight, 0.0, math.inf, high_open=True
        )

    def per_sample(  # type: ignore[override]
        self,
        policy_chosen_logps: Tensor,
        policy_rejected_logps: Tensor,
        reference_chosen_logps: Tensor,
        reference_rejected_logps: Tensor,
        judge_logits: Tensor,
    ) -> Tensor:
        """Return the loss of every pair, unreduced."""
        chosen, rejected = self.log_ratios(
            policy_chosen_logps,
            policy_rejected_logps,
            reference_chosen_logps,
            reference_rejected_logps,
        )
        z, g = self.beta * (chosen - rejected), judge_logits
        distance = _jensen_shannon(z, g) if self.divergence == "js" else _symmetric_kl(z, g)
        if self.entropy_weight == 0.0:
            return distance
        return distance + 0.5 * self.entropy_weight * (_entropy(z) + _entropy(g))

    def consistent_mask(
        self,
        policy_chosen_logps: Tensor,
        policy_rejected_logps: Tensor,
        reference_chosen_logps: Tensor,
        reference_rejected_logps: Tensor,
        judge_logits: Tensor,
    ) -> Tensor:
        """Return on which pairs both judgements are on the same side of 1/2, as bool."""
        logps = (
            policy_chosen_logps,
            policy_rejected_logps,
            reference_chosen_logps,
            reference_rejected_logps,
        )
        self._check_inputs(dict(zip(self._names, (*logps, judge_logits), strict=True)), None)
        chosen, rejected = self.log_ratios(*logps)
        return (chosen - rejected).sign() * judge_logits.sign() > 0

    def _check_inputs(self, inputs: dict[str, Any], weight: Tensor | None) -> None:
        super()._check_inputs(inputs, weight)
        if "judge_logits" in inputs:
            check_floating("judge_logits", inputs["judge_logits"])
            check_like("judge_logits", inputs["judge_logits"], LOGPS[0], inputs[LOGPS[0]])

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        other = "but in the chosen answer alone it depends on what the judge says"
        js = self.divergence == "js"
        # A bounded function that is not constant is not convex; the other one bends with the judge.
        ends, judge = ((-1010.0, 1000.0), 20.0) if js else ((-4.0, -2.0), 20.0)
        a, b = (x / self.beta for x in ends)
        judge *= 1.0 + self.entropy_weight
        return Properties(
            convex=False,
            smoothness=math.inf,
            minimiser="p = q, for lambda > 0 both of them certain",
            limits=(("'js', entropy_weight = 1", "the entropy of (p + q)/2"),),
            counterexamples={"convex": (a, b, 0.0, 0.0, 0.0, judge)},
            unknown={
                "lower": f"0, {other}",
                "upper": f"{'finite' if js else 'inf'}, {other}",
                "lipschitz": f"finite, {other}",
            },
            source="ours, after a paper of 2025",
        )


def _entropy(z: Tensor) -> Tensor:
    """Return the entropy of sigmoid(z): 0 where z is infinite."""
    z = z.clamp(-1e3, 1e3)
    return torch.sigmoid(z) * softplus(-z) + torch.sigmoid(-z) * softplus(z)


def _symmetric_kl(z: Tensor, g: Tensor) -> Tensor:
    """Return (KL(p, q) + KL(q, p))/2 = (p - q)(z - g)/2 of p = sigmoid(z), q = sigmoid(g)."""
    # p (1 - q) - (1 - p) q, as p - q has lost its digits where both are near 1.
    difference = torch.sigmoid(z) * torch.sigmoid(-g) - torch.sigmoid(-z) * torch.sigmoid(g)
    return 0.5 * difference * (z - g)


def _jensen_shannon(z: Tensor, g: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence of sigmoid(z) and sigmoid(g).

    With m the mean of p and q, it is m s(log(p/q)/2) + (1 - m) s(log((1 - p)/(1 - q))/2), where
    s(x) = x tanh x - log cosh x: sums of what is positive.
    """
    yes = (torch.sigmoid(z) + torch.sigmoid(g)) * _spread(0.5 * (softplus(-z) - softplus(-g)))
    no = (torch.sigmoid(-z) + torch.sigmoid(-g)) * _spread(0.5 * (softplus(z) - softplus(g)))
    return 0.5 * (yes + no)


def _spread(x: Tensor) -> Tensor:
    """Return x tanh x - log cosh x, from x^2/2 near 0 to log 2 far out."""
    near = x.abs() < 1.0
    small = torch.where(near, x, 0.0)
    t = torch.tanh(small)
    # The logarithm of cosh by that of 1 - tanh^2 = 1/cosh^2.
    by_tanh = small * t + 0.5 * torch.log1p(-t.square())
    large = 2.0 * torch.where(near, 1.0, x).abs().clamp(max=1e3)
    by_entropy = math.log(2.0) - large * torch.sigmoid(-large) - softplus(-large)
    return torch.where(near, by_tanh, by_entropy)


def mcts_label_smoothing(chosen_visits: Tensor, rejected_visits: Tensor) -> Tensor:
    r"""Return the label smoothing of steps that a tree search has compared, from its visits.

    .. math:: \varepsilon = \min\Bigl(1 - c, \tfrac12\Bigr), \qquad
              c = \frac{1}{1 + N_l / \max(1, N_w)}

    The more often the search has gone on from the chosen step than from the rejected one, the surer
    the label. For DPO at the level of steps: cDPO of the two continuations of a common prefix, the
    log-probabilities of that prefix left out, the sums divided by length^p where long steps should
    not count more. Every pair has a smoothing of its own, so that :class:`CREAMLoss` takes it, as
    the consistency 1 - epsilon.

    Args:
        chosen_visits: N_w (...), the visits of the chosen step: integers, float32 or float64, >= 0.
        rejected_visits: N_l of the same shape, likewise of the rejected one.

    Returns:
        epsilon in [0, 1/2], of the same shape, detached, in float64 where a count is, else in
        float32. Equal counts of 1 or more give 1/2, which pulls the margin to 0; a rejected step
        without visits gives 0.

    Raises:
        ValueError: shapes that do not fit; counts that are negative or not finite (on CPU tensors,
            where looking costs nothing).
        TypeError: counts that are no tensors of numbers, or in half precision.

    Reference:
        Xie, Goyal, Zheng, Kan, Lillicrap, Kawaguchi, Shieh, "Monte Carlo Tree Search Boosts
        Reasoning via Iterative Preference Learning", 2024. Verified against the authors' code,
        whose default, the conservative form, this is.

    Example:
        >>> import torch
        >>> from lossary import CREAMLoss, mcts_label_smoothing
        >>> smoothing = mcts_label_smoothing(torch.tensor([6, 3, 1]), torch.tensor([2, 3, 0]))
        >>> smoothing
        tensor([0.2500, 0.5000, 0.0000])
        >>> suffix = torch.tensor([[-2.0, -3.0, -1.0], [-4.0, -3.0, -2.0]])
        >>> CREAMLoss(beta=1.0)(*suffix, *torch.full((2, 3), -3.0), 1.0 - smoothing)
        tensor(0.5444)
    """
    for name, x in (("chosen_visits", chosen_visits), ("rejected_visits", rejected_visits)):
        check_tensor(name, x)
        if x.dtype is torch.bool or x.dtype.is_complex or x.dtype in HALF:
            raise TypeError(f"{name}: expected integers, float32 or float64, got {x.dtype}")
        check_like(name, x, "chosen_visits", chosen_visits)
        if readable(x):
            wrong = ~((x >= 0) & (x < math.inf))
            if bool(wrong.any()):
                found = float(x.detach()[wrong][0])
                raise ValueError(f"{name}: expected finite counts >= 0, got {found:g}")
    double = torch.float64 in (chosen_visits.dtype, rejected_visits.dtype)
    dtype = torch.float64 if double else torch.float32
    won, lost = (x.detach().to(dtype) for x in (chosen_visits, rejected_visits))
    # 1 - c = N_l/(N_l + max(1, N_w)), without the difference.
    return (lost / (lost + won.clamp(min=1.0))).clamp(max=0.5)


class RegretLoss(Loss):
    r"""Regret of an online decision maker, over sequences of losses: training without labels.

    .. math:: \ell = \frac{\sum_j h(R_j) \, f(R_j)}{\sum_j f(R_j)}, \qquad
              R_j = \sum_t \langle \ell_{j,t}, \pi_{j,t} \rangle - \min_a \sum_t \ell_{j,t,a},
              \qquad f(R) = e^{k R} \text{ or } R^k \, \mathbb{1}[R > 0]

    A language model, or any sequence model, plays T rounds of a repeated game: pi_t is its mixed
    action after the losses of the rounds before. The regret R_j is what the best fixed action would
    have saved. Least regret on the worst of J sequences needs no examples of good play; the weights
    f are a soft maximum over the sequences.

    Args:
        k: k > 0, finite: how much the worst sequences count. Default 1.
        h: ``"relu"`` (default), max(0, R), ``"relu2"``, its square, or ``"identity"``, R. The
            paper's conditions, h >= 0, nondecreasing and continuously differentiable, hold for
            ``"relu2"`` alone.
        weighting: f: ``"exp"`` (default), a softmax of k R, or ``"power"``, R^k of the positive
            regrets alone.
        reduction: see :class:`lossary.Loss`.

    Shape:
        losses, policies (B, J, T, A): B batches of J sequences of T rounds of A >= 2 actions;
        policies on the simplex along the last axis. Values (B,).

    Properties:
        Continuous, with kinks where the best action changes; not convex for J >= 2. Gradient flows
        through the weights w too, dl/dR_j = w_j (h'(R_j) + (h(R_j) - l) (log f)'(R_j)), so that a
        regret far below the others is better left to grow. l >= 0 but for ``"identity"`` with
        ``"exp"``. Unchanged when a round's losses all move by the same number.

    Limits:
        J = 1: h(R), for ``"power"`` where R > 0. k -> inf: max_j h(R_j). k -> 0: the mean of
        h(R_j), over the positive regrets with ``"power"``.

    Note:
        Losses are taken relative to the mean of their round, so that a common offset costs no
        digits. The weights are a softmax, of k log R for ``"power"``: no overflow for any k. With
        ``"power"``, no positive regret at all would be 0/0: the value is 0, and so is the gradient.

    Raises:
        ValueError: ``k`` not positive and finite, unknown ``h`` or ``weighting``; inputs of shapes
            that do not fit, J or T of 0, A < 2; policies that are negative or do not sum to 1 (on
            CPU tensors, where looking costs nothing).
        TypeError: ``k`` not a number; inputs not floating point.

    Reference:
        Park, Liu, Ozdaglar, Zhang, "Do LLM Agents Have Regret? A Case Study in Online Learning and
        Games", 2024. There is no official code; the definition and the conditions on h and f are
        RECALLED, the limits were checked.

    Example:
        >>> import torch
        >>> from lossary import RegretLoss
        >>> losses = torch.tensor([[[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]]])
        >>> policies = torch.tensor([[[[0.5, 0.5], [0.25, 0.75], [0.5, 0.5]]]])
        >>> RegretLoss()(losses, policies)
        tensor(0.7500)
    """

    def __init__(
        self,
        k: float = 1.0,
        h: str = "relu",
        weighting: str = "exp",
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(**options)
        self.k = check_positive("k", k)
        check_choice("h", h, ("relu", "relu2", "identity"))
        self.h = h
        check_choice("weighting", weighting, ("exp", "power"))
        self.weighting = weighting

    def per_sample(self, losses: Tensor, policies: Tensor) -> Tensor:
        """Return the loss of every batch of sequences, unreduced."""
        # An offset of a round cancels, but its digits would not.
        relative = losses - losses.mean(-1, keepdim=True)
        regret = (relative * policies).sum((-1, -2)) - relative.sum(-2).amin(-1)
        values = regret if self.h == "identity" else torch.relu(regret)
        values = values.square() if self.h == "relu2" else values
        if self.weighting == "exp":
            return (torch.softmax(self.k * regret, -1) * values).sum(-1)
        positive = regret > 0.0
        some = positive.any(-1, keepdim=True)
        scores = self.k * torch.where(positive, regret, 1.0).log()
        weights = torch.softmax(scores.masked_fill(~positive & some, -math.inf), -1)
        return (weights * torch.where(positive, values, 0.0)).sum(-1)

    def _values(
        self, inputs: tuple[Any, ...], weight: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        losses, policies = inputs
        check_floating("losses", losses)
        if losses.dim() != 4 or 0 in losses.shape[1:] or losses.shape[-1] < 2:
            raise ValueError(
                "losses: expected shape (B, J, T, A), J and T >= 1, A >= 2, "
                f"got {tuple(losses.shape)}"
            )
        check_floating("policies", policies)
        check_like("policies", policies, "losses", losses)
        check_sample_weight(weight, losses.shape[:1], losses)
        self._check_policies(policies, weight)
        return super()._values(inputs, weight)

    @staticmethod
    def _check_policies(policies: Tensor, weight: Tensor | None) -> None:
        if not readable(policies) or policies.numel() == 0:
            return
        # Probabilities that were once in half precision sum to 1 only up to that rounding.
        total = policies.detach().sum(-1, dtype=torch.float64)
        good = (policies >= 0).all(-1) & ((total - 1.0).abs() <= 2e-2)
        if weight is not None:
            good = good | (weight == 0).reshape(-1, 1, 1)
        if not bool(good.all()):
            row = policies.detach()[~good][0]
            raise ValueError(
                "policies: expected probabilities, non-negative with sum 1 over the last axis, "
                f"got a row with minimum {float(row.min()):g} and sum {float(row.sum()):g}"
            )

    def properties(self) -> Properties:
        """Return what this instance guarantees, in the losses of the sequences."""
        exp, k = self.weighting == "exp", self.k
        # Two sequences of two rounds, of a player who takes the other action each time: times any
        # number, these losses have that number for a regret.
        turns = torch.tensor([[0.0, -1.0], [-1.0, 0.0]], dtype=torch.float64)
        policies = torch.eye(2, dtype=torch.float64).expand(1, 2, 2, 2)

        def regrets(one: float, other: float) -> Tensor:
            return torch.stack((one * turns, other * turns)).unsqueeze(0)

        high = 100.0 / k if exp and self.h == "relu2" else 0.0
        ends = ((high + 3.0 / k, high), (high + 6.0 / k, high)) if exp else ((-1.0, 1), (0.5, 1))
        least = self.h == "identity" and exp
        unbounded = {"lipschitz": (regrets(1.0, 1.0), policies)} if self.h == "relu2" else {}
        return Properties(
            convex=False,
            lower=-math.inf if least else 0.0,
            upper=math.inf,
            lipschitz=math.inf if unbounded else None,
            smoothness=0,
            limits=(("J = 1", "h(R)"), ("k -> inf", "max_j h(R_j)")),
            counterexamples={
                "convex": (*(regrets(*x) for x in ends), policies),
                "lower": (regrets(-1.0, -1.0), policies),
                "upper": (regrets(1.0, 1.0), policies),
                **unbounded,
            },
            unknown={} if unbounded else {"lipschitz": "grows with the number of rounds"},
            source="Park et al. 2024, RECALLED; algebra",
        )
