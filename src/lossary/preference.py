r"""Preference losses: a policy learns from pairs of answers, of which one is preferred.

.. math:: \rho = \log \frac{\pi(y \mid x)}{\pi_{\text{ref}}(y \mid x)}, \qquad
          z = \beta \, \bigl(s(\rho_w) - s(\rho_l)\bigr)

Every loss is a function of the two log-ratios of a pair, that of the chosen answer w and that of
the rejected answer l. What goes in are log-probabilities of whole sequences, as
:func:`lossary.sequence_logps` returns them, in this order: policy chosen, policy rejected,
reference chosen, reference rejected.
"""

import math
from collections.abc import Callable
from typing import Any, Unpack

import torch
from torch import Tensor

from lossary._base import LossOptions, _upcast
from lossary._checks import check_choice, check_number, check_positive
from lossary._numerics import expm1, softplus
from lossary._properties import Properties
from lossary.sequences import _SequenceLoss

_SOURCE = "Rafailov et al. 2023; Mitchell 2023"
_NAMES = (
    "policy_chosen_logps",
    "policy_rejected_logps",
    "reference_chosen_logps",
    "reference_rejected_logps",
)


class PairwisePreferenceLoss(_SequenceLoss):
    r"""Base class of the losses of a pair of answers, of which one is preferred.

    .. math:: \ell = \operatorname{pair\_loss}(\rho_w, \rho_l), \qquad
              \rho_w = \log \pi(y_w) - \log \pi_{\text{ref}}(y_w), \qquad
              \rho_l = \log \pi(y_l) - \log \pi_{\text{ref}}(y_l)

    A subclass writes one method, ``pair_loss(self, chosen, rejected)``, of the two log-ratios. The
    checks, the differences, weights and reductions are here. A loss of further inputs overrides
    ``per_sample`` instead, with these as the first ones; what it calls ``..._logps`` and
    ``..._lengths`` is checked too.

    Args:
        beta: beta > 0, finite: how strongly the policy is held to the reference; a small beta lets
            it go far. Default 0.1.
        reference_free: take the policy's log-probabilities themselves as log-ratios, and leave the
            reference's unused. Default ``False``; without reference inputs it is so anyway.
        reduction: see :class:`lossary.Loss`.

    Shape:
        policy_chosen_logps, policy_rejected_logps and, both or none, reference_chosen_logps,
        reference_rejected_logps: one shape, (N, ...), one number per sequence. Values likewise.

    Note:
        The inputs are SUMS over the tokens of a completion, unless a loss says otherwise: averages
        are smaller by a factor of hundreds, and so are the gradients. Half precision is cast to
        float32 before any difference: a sum of -1000 has a spacing of 4 in bfloat16, so compute
        sums in float32, as :func:`lossary.sequence_logps` does. The reference is not detached
        here: compute it under ``torch.no_grad()``.

    Raises:
        ValueError: inputs of different shapes or devices, one of the two reference inputs only,
            ``beta`` not positive and finite.
        TypeError: inputs that are not floating-point tensors, ``beta`` not a number.

    Example:
        >>> import torch
        >>> from lossary import PairwisePreferenceLoss
        >>> class SquaredMarginLoss(PairwisePreferenceLoss):
        ...     def pair_loss(self, chosen, rejected):
        ...         return (self.beta * (chosen - rejected) - 1.0).square()
        >>> chosen, rejected = torch.tensor([-12.0, -9.0]), torch.tensor([-14.0, -8.0])
        >>> reference = torch.tensor([-13.0, -9.0]), torch.tensor([-11.0, -11.0])
        >>> loss = SquaredMarginLoss(beta=0.1)
        >>> loss(chosen, rejected, *reference)
        tensor(1.0250)
        >>> loss.implicit_rewards(chosen, rejected, *reference)
        (tensor([0.1000, 0.0000]), tensor([-0.3000,  0.3000]))
    """

    pair_loss: Callable[[Tensor, Tensor], Tensor]

    def __init__(
        self,
        beta: float = 0.1,
        reference_free: bool = False,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(**options)
        self.beta = check_positive("beta", beta)
        check_choice("reference_free", reference_free, (True, False))
        self.reference_free = reference_free

    def per_sample(
        self,
        policy_chosen_logps: Tensor,
        policy_rejected_logps: Tensor,
        reference_chosen_logps: Tensor | None = None,
        reference_rejected_logps: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of every pair, unreduced."""
        ratios = self.log_ratios(
            policy_chosen_logps,
            policy_rejected_logps,
            reference_chosen_logps,
            reference_rejected_logps,
        )
        return self.pair_loss(*ratios)

    def log_ratios(
        self,
        policy_chosen_logps: Tensor,
        policy_rejected_logps: Tensor,
        reference_chosen_logps: Tensor | None = None,
        reference_rejected_logps: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the log-ratios of the chosen and of the rejected answers to the reference."""
        policy = _upcast(policy_chosen_logps), _upcast(policy_rejected_logps)
        if self.reference_free or reference_chosen_logps is None:
            return policy
        return policy[0] - _upcast(reference_chosen_logps), policy[1] - _upcast(
            reference_rejected_logps
        )

    def implicit_rewards(
        self,
        policy_chosen_logps: Tensor,
        policy_rejected_logps: Tensor,
        reference_chosen_logps: Tensor | None = None,
        reference_rejected_logps: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return beta times the log-ratios, chosen and rejected, detached: rewards for logging.

        Their difference is the margin, and where it is positive the pair is ranked right. They are
        not divided by lengths.
        """
        inputs = (
            policy_chosen_logps,
            policy_rejected_logps,
            reference_chosen_logps,
            reference_rejected_logps,
        )
        self._check_inputs(dict(zip(_NAMES, inputs, strict=True)), None)
        chosen, rejected = self.log_ratios(*inputs)
        return self.beta * chosen.detach(), self.beta * rejected.detach()

    def _check_inputs(self, inputs: dict[str, Any], weight: Tensor | None) -> None:
        super()._check_inputs(inputs, weight)
        one, other = (inputs.get(name) for name in _NAMES[2:])
        if (one is None) != (other is None):
            given, missing = _NAMES[2:] if other is None else _NAMES[:1:-1]
            raise ValueError(f"{missing}: expected a tensor, as for {given}, got None")


class DPOLoss(PairwisePreferenceLoss):
    r"""Direct preference optimisation (DPO), with label smoothing (cDPO) and f-divergences.

    .. math:: \ell = -(1 - \varepsilon) \log \sigma(z) - \varepsilon \log \sigma(-z), \qquad
              z = \beta \, \bigl(s(\rho_w) - s(\rho_l)\bigr), \qquad
              \rho = \log \frac{\pi(y \mid x)}{\pi_{\text{ref}}(y \mid x)}

    Logistic regression on preferences, with beta times the log-ratio as the reward: fine-tuning to
    preferences without a reward model. The base of most other losses here. Take
    ``label_smoothing`` where some labels are wrong and the margins should stay finite
    (:class:`RobustDPOLoss` is its unbiased counterpart), a divergence other than the reverse KL
    where the policy loses diversity, ``length_normalize`` where answers grow longer and longer.

    The scores s, up to a constant, and what is held small instead of the reverse KL divergence:

    - ``"reverse_kl"``: s = rho, KL(policy || reference).
    - ``"forward_kl"``: s = -exp(-rho), KL(reference || policy).
    - ``"js"``: s = log sigmoid(rho), Jensen-Shannon.
    - ``"alpha"``: s = exp((alpha - 1) rho)/(alpha - 1), the alpha-divergence.

    Args:
        beta: beta > 0, finite. Default 0.1; 5 or so with ``length_normalize``.
        label_smoothing: the epsilon of cDPO, the share of labels taken to be wrong, in [0, 1).
            Default 0.
        f_divergence: ``"reverse_kl"`` (default), ``"forward_kl"``, ``"js"`` or ``"alpha"``.
        alpha: of ``"alpha"``, any finite number; not used otherwise. Default 0.5.
        reference_free: see :class:`lossary.PairwisePreferenceLoss`.
        length_normalize: divide each log-ratio by the length of its completion first: per token.
        reduction: see :class:`lossary.Loss`.

    Shape:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps,
        reference_rejected_logps (N, ...): SUMS over the tokens of a completion, also with
        ``length_normalize``; the references both or none. chosen_lengths, rejected_lengths of the
        same shape, integers, float32 or float64, with ``length_normalize`` only. Values of the
        same shape.

    Properties:
        Reverse KL: convex in all log-probabilities together, infinitely smooth; the gradient in the
        two of the policy, -beta (sigma(-z) - eps) and its opposite, has a norm below
        sqrt(2) beta max(1 - eps, eps). l >= H(eps), the binary entropy in nats, reached at
        z = log((1 - eps)/eps) for eps > 0 and approached as z -> inf for eps = 0; l = log 2 at
        z = 0. Unchanged when both log-probabilities of the policy, or both of the reference, move
        by the same number. Other divergences: convex in z, not in all log-probabilities together.
        All: exchanging chosen and rejected is exchanging eps and 1 - eps. If w is preferred with
        probability p, the mean is least at sigma(z) = p (1 - eps) + (1 - p) eps: eps is a bias
        towards 1/2.

    Limits:
        alpha -> 1: reverse KL. alpha = 0: forward KL. alpha = 2: chi-square, s = pi/pi_ref.
        label_smoothing = 0: :class:`RobustDPOLoss` with flip_rate 0, :class:`RPOLoss` with eta 0.
        beta -> 0: (l - log 2)/beta -> (eps - 1/2) d.

    Note:
        From softplus, not from the logarithm of a sigmoid: exact at z of hundreds. The exponents of
        ``"forward_kl"`` and ``"alpha"`` stop at 80, or 700 in float64, for \|alpha - 1\| < 1 a
        little earlier: beyond, at log-ratios of hundreds, s is constant and has no gradient.

        Other code: TRL, ``loss_type="sigmoid"``, takes the inputs in this order. Its
        ``label_smoothing`` reached this loss up to 0.24, as in the authors' code; TRL 1.x ignores
        it there, and so does its Liger path. ``alpha`` is that of TRL 1.x; the f-DPO paper and TRL
        up to 0.24 write a = 1 - alpha. ``length_normalize`` is TRL's ``"sigmoid_norm"`` and
        open-instruct's ``dpo_norm``, which averages the log-probabilities instead of the
        log-ratios: that comes to the same.

    Raises:
        ValueError: ``beta`` not positive, ``label_smoothing`` outside [0, 1), unknown
            ``f_divergence``, ``alpha`` not finite; inputs of different shapes, one reference only,
            lengths below 1 (on CPU tensors, where looking costs nothing; elsewhere they count as
            1).
        TypeError: hyper-parameters not numbers; inputs not floating point; lengths missing with
            ``length_normalize``, given without, not numbers, or in half precision.

    Reference:
        Rafailov, Sharma, Mitchell, Ermon, Manning, Finn, "Direct Preference Optimization: Your
        Language Model is Secretly a Reward Model", 2023, eq. 7. Mitchell, "A note on DPO with noisy
        preferences & relationship to IPO", 2023, for ``label_smoothing``. Wang, Jiang, Yang, Liu,
        Chen, "Beyond Reverse KL: Generalizing Direct Preference Optimization with Diverse
        Divergence Constraints", 2023. Lambert et al., "Tulu 3: Pushing Frontiers in Open Language
        Model Post-Training", 2024, for ``length_normalize``. Verified against the authors' code,
        TRL and open-instruct; titles and equation number are RECALLED.

    Example:
        >>> import torch
        >>> from lossary import DPOLoss
        >>> chosen, rejected = torch.tensor([-12.0, -9.0]), torch.tensor([-14.0, -8.0])
        >>> reference = torch.tensor([-13.0, -9.0]), torch.tensor([-11.0, -11.0])
        >>> DPOLoss(beta=0.1)(chosen, rejected, *reference)
        tensor(0.6837)
        >>> loss = DPOLoss(beta=5.0, length_normalize=True)
        >>> lengths = torch.tensor([10, 8]), torch.tensor([12, 6])
        >>> loss(chosen, rejected, *reference, *lengths)
        tensor(1.3696)
    """

    def __init__(
        self,
        beta: float = 0.1,
        label_smoothing: float = 0.0,
        f_divergence: str = "reverse_kl",
        alpha: float = 0.5,
        reference_free: bool = False,
        length_normalize: bool = False,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(beta, reference_free, **options)
        self.label_smoothing = check_number(
            "label_smoothing", label_smoothing, 0.0, 1.0, high_open=True
        )
        check_choice("f_divergence", f_divergence, ("reverse_kl", "forward_kl", "js", "alpha"))
        self.f_divergence = f_divergence
        self.alpha = check_number(
            "alpha", alpha, -math.inf, math.inf, low_open=True, high_open=True
        )
        check_choice("length_normalize", length_normalize, (True, False))
        self.length_normalize = length_normalize

    def per_sample(
        self,
        policy_chosen_logps: Tensor,
        policy_rejected_logps: Tensor,
        reference_chosen_logps: Tensor | None = None,
        reference_rejected_logps: Tensor | None = None,
        chosen_lengths: Tensor | None = None,
        rejected_lengths: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of every pair, unreduced."""
        chosen, rejected = self.log_ratios(
            policy_chosen_logps,
            policy_rejected_logps,
            reference_chosen_logps,
            reference_rejected_logps,
        )
        if chosen_lengths is not None and rejected_lengths is not None:
            chosen = self._per_token(chosen, chosen_lengths)
            rejected = self._per_token(rejected, rejected_lengths)
        return self.pair_loss(chosen, rejected)

    def pair_loss(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the loss of every pair from its two log-ratios, divided by lengths already."""
        d = self._score(chosen) - self._score(rejected)
        return _logistic(self.beta * d, self.label_smoothing)

    def _score(self, ratio: Tensor) -> Tensor:
        """Return s(ratio), less a constant that cancels, so that alpha = 1 needs no limit."""
        if self.f_divergence == "js":
            return -softplus(-ratio)
        a = {"reverse_kl": 0.0, "forward_kl": -1.0}.get(self.f_divergence, self.alpha - 1.0)
        if a == 0.0:
            return ratio
        # Where a is small, the quotient must not overflow either.
        most = (700.0 if ratio.dtype == torch.float64 else 80.0) + min(0.0, math.log(abs(a)))
        return expm1((a * ratio).clamp(max=most)) / a

    def _lengths_needed(self) -> tuple[bool, str]:
        return self.length_normalize, f"length_normalize={self.length_normalize}"

    def properties(self) -> Properties:
        """Return what this instance guarantees; the Lipschitz constant is in the policy's two."""
        eps, name = self.label_smoothing, self.f_divergence
        others = (0.0,) * (1 if self.reference_free else 3) + (1, 1) * self.length_normalize
        linear = name == "reverse_kl" or (name == "alpha" and self.alpha == 1.0)
        steep = name == "alpha" and self.alpha > 1.0
        unknown = {}
        if not linear:
            unknown["convex"] = "convex in z, not in all log-probabilities together"
            unknown["lower"] = "H(eps), but in the chosen answer alone it depends on the other"
        if steep:
            unknown["upper"] = "inf, but bounded in the chosen answer alone"
        if not linear and name != "js":
            unknown["lipschitz"] = "grows like an exponential of the log-ratio, until that stops"
            unknown["smoothness"] = "smooth up to where the exponent stops, with a kink there"
        return Properties(
            convex=True if linear else None,
            lower=_entropy(eps) if linear else None,
            upper=None if steep else math.inf,
            lipschitz=_steepest(self.beta, eps) if linear or name == "js" else None,
            smoothness=math.inf if linear or name == "js" else None,
            minimiser="sigmoid(z) = p (1 - eps) + (1 - p) eps, w preferred with probability p",
            limits=(
                ("alpha -> 1", "reverse KL"),
                ("alpha = 0", "forward KL"),
                ("alpha = 2", "chi-square"),
                ("label_smoothing = 0", "RobustDPOLoss(flip_rate=0)"),
            ),
            counterexamples={"upper": (-1.0, *others)},
            unknown=unknown,
            source=f"{_SOURCE}; Wang et al. 2023",
        )


class RobustDPOLoss(PairwisePreferenceLoss):
    r"""Robust DPO (rDPO): DPO without bias where a known share of the labels is flipped.

    .. math:: \ell = \frac{-(1 - \varepsilon) \log \sigma(z) + \varepsilon \log \sigma(-z)}
                          {1 - 2 \varepsilon}
              = -\log \sigma(z) - \frac{\varepsilon z}{1 - 2 \varepsilon}, \qquad
              z = \beta \, (\rho_w - \rho_l)

    Where preferences were flipped at random, each with probability epsilon, and epsilon is known or
    estimated: in the mean over the flips it is the DPO loss of the clean labels. Not to be mixed up
    with cDPO, ``DPOLoss(label_smoothing=eps)``, which *adds* the flipped loss instead of
    subtracting it: biased, but with a finite margin as its minimum. This loss has no minimum for
    a pair: z = inf is the better, the more so the larger epsilon. Hold the steps or beta, not the
    sign of the loss.

    Args:
        beta: beta > 0, finite. Default 0.1.
        flip_rate: the epsilon above, in [0, 1/2). Default 0.1.
        reduction: see :class:`lossary.Loss`.

    Shape:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps,
        reference_rejected_logps (N, ...): SUMS over the tokens of a completion; the references both
        or none. Values of the same shape.

    Properties:
        Convex in all log-probabilities together, infinitely smooth, unbounded above and, for
        eps > 0, below: values may be negative. The gradient in z is -(sigma(-z) + eps/(1 - 2 eps)),
        which never vanishes; in the two log-probabilities of the policy its norm is below
        sqrt(2) beta (1 - eps)/(1 - 2 eps). (1 - eps) l(z) + eps l(-z) is the DPO loss of z, for
        every z. If w is preferred with probability p and then flipped with eps, the mean is least
        at sigma(z) = p. The price is variance: for the two labels that a pair may have, the
        gradients in z differ by 1/(1 - 2 eps), those of DPO by 1.

    Limits:
        flip_rate = 0: :class:`DPOLoss`. flip_rate -> 1/2: (1 - 2 eps) l -> -z/2, linear.

    Note:
        Computed in the second form: nothing cancels, and no sigmoid is divided by. TRL's
        ``loss_type="robust"``, with ``label_smoothing`` for ``flip_rate``, is the same, factor
        1/(1 - 2 eps) included, from 0.9.6 to 1.x. The copy of TRL in the code of RPO lacks that
        factor: the same minimiser, gradients smaller by 1 - 2 eps.

    Raises:
        ValueError: ``beta`` not positive, ``flip_rate`` outside [0, 1/2), inputs of different
            shapes, one reference only.
        TypeError: hyper-parameters not numbers, inputs not floating point.

    Reference:
        Chowdhury, Kini, Natarajan, "Provably Robust DPO: Aligning Language Models with Noisy
        Feedback", 2024. There is no official code; verified against TRL and by the identity above.
        Title and authors are RECALLED.

    Example:
        >>> import torch
        >>> from lossary import RobustDPOLoss
        >>> chosen, rejected = torch.tensor([-12.0, -9.0]), torch.tensor([-14.0, -8.0])
        >>> reference = torch.tensor([-13.0, -9.0]), torch.tensor([-11.0, -11.0])
        >>> RobustDPOLoss(beta=0.1, flip_rate=0.2)(chosen, rejected, *reference)
        tensor(0.6670)
    """

    def __init__(
        self, beta: float = 0.1, flip_rate: float = 0.1, **options: Unpack[LossOptions]
    ) -> None:
        super().__init__(beta, **options)
        self.flip_rate = check_number("flip_rate", flip_rate, 0.0, 0.5, high_open=True)

    def pair_loss(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the loss of every pair from its two log-ratios."""
        z = self.beta * (chosen - rejected)
        # At flip_rate 0 not 0 * inf, for a sequence that has become impossible.
        return softplus(-z) - self._excess() * z if self.flip_rate else softplus(-z)

    def _excess(self) -> float:
        return self.flip_rate / (1.0 - 2.0 * self.flip_rate)

    def properties(self) -> Properties:
        """Return what this instance guarantees; the Lipschitz constant is in the policy's two."""
        return Properties(
            convex=True,
            lower=-math.inf if self.flip_rate else 0.0,
            upper=math.inf,
            lipschitz=_steepest(self.beta, 0.0) * (1.0 + self._excess()),
            smoothness=math.inf,
            minimiser="sigmoid(z) = p, w preferred with probability p and then flipped",
            limits=(("flip_rate = 0", "DPOLoss"),),
            counterexamples={"lower": (1.0, 0.0, 0.0, 0.0), "upper": (-1.0, 0.0, 0.0, 0.0)},
            source=f"{_SOURCE}; Chowdhury, Kini, Natarajan 2024",
        )


class RPOLoss(PairwisePreferenceLoss):
    r"""Regularised preference optimisation (RPO): DPO plus a likelihood term on the chosen answer.

    .. math:: \text{sum: } \ell_{\text{DPO}}(z) - \eta \, \beta \, \log \pi(y_w), \qquad
              \text{sequence\_mean: }
              \ell_{\text{DPO}}(z) - \eta \, \frac{\log \pi(y_w)}{L_w}, \qquad
              \text{token\_mean: }
              \ell_{\text{DPO}}(z) - \eta \, \frac{N \log \pi(y_w)}{\sum_j L_{w,j}}, \qquad
              z = \beta \, (\rho_w - \rho_l)

    DPO fixes only the difference of two log-probabilities, and in practice both fall. The second
    term keeps the chosen answers likely, also where the pair is ranked right long since. Four
    recipes are in use, and their eta are not comparable:

    - ``nll="sum"``, beta 0.01 or 0.05, eta 0.005: the paper's main text, recommended for chat. The
      term carries beta, and the log-probability is summed.
    - ``nll="sequence_mean"``, beta 0.5, eta 0.2: the paper's Appendix F, recommended for reasoning.
      No beta, and the mean over the tokens of each answer.
    - ``nll="token_mean"``: TRL's ``rpo_alpha``, later ``loss_type=["sigmoid", "sft"]``, with eta
      for its weight. No beta, and the mean over all tokens of the batch. TRL's own example of 0.005
      has the paper's number, not its objective.
    - Iterative reasoning preference optimisation, NLL/length + alpha DPO: alpha times
      ``nll="sequence_mean"`` with eta = 1/alpha. (TRL 0.9 had alpha DPO + NLL too.)

    Args:
        beta: beta > 0, finite. Default 0.01.
        eta: eta >= 0, finite: the weight of the likelihood term. Default 0.005.
        label_smoothing: the epsilon of cDPO in the first term, in [0, 1). Default 0.
        nll: ``"sum"`` (default), ``"token_mean"`` or ``"sequence_mean"``.
        reduction: see :class:`lossary.Loss`.

    Shape:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps,
        reference_rejected_logps (N, ...): SUMS over the tokens of a completion, for every ``nll``;
        the references both or none. chosen_lengths of the same shape, integers, float32 or
        float64, for the two means only. Values of the same shape.

    Properties:
        Convex in all log-probabilities together, infinitely smooth. For eta > 0 unbounded below as
        a function of real numbers, while log-probabilities, being <= 0, keep it above H(eps). With
        ``"sum"`` the gradient in policy_chosen_logps is -beta (sigma(-z) - eps) - eta beta, which
        tends to -eta beta as z -> inf (eps = 0): the chosen answer's likelihood keeps rising. In
        policy_rejected_logps it is that of DPO. Not invariant to shifts of the policy's
        log-probabilities, which is its purpose. ``"token_mean"`` couples the batch: a weight scales
        a pair's own value, its tokens stay in the sum of the lengths, and micro-batches do not add
        up to the batch.

    Limits:
        eta = 0: :class:`DPOLoss`. All lengths equal: the two means are the same.

    Note:
        NVIDIA's "Reward-aware Preference Optimization", also RPO, is another loss. The sum over
        lengths in ``"token_mean"`` is that of this process.

    Raises:
        ValueError: ``beta`` not positive, ``eta`` negative, ``label_smoothing`` outside [0, 1),
            unknown ``nll``; inputs of different shapes, one reference only, lengths below 1 (on CPU
            tensors, where looking costs nothing; elsewhere ``"sequence_mean"`` counts them as 1).
        TypeError: hyper-parameters not numbers; inputs not floating point; lengths missing for a
            mean, given for ``"sum"``, not numbers, or in half precision.

    Reference:
        Liu, Lu, Zhang, Liu, Guo, Yang, Blanchet, Wang, "Provably Mitigating Overoptimization in
        RLHF: Your SFT Loss is Implicitly an Adversarial Regularizer", 2024. Both of its variants
        were verified against the authors' code; Pang et al., "Iterative Reasoning Preference
        Optimization", 2024, is RECALLED.

    Example:
        >>> import torch
        >>> from lossary import RPOLoss
        >>> chosen, rejected = torch.tensor([-12.0, -9.0]), torch.tensor([-14.0, -8.0])
        >>> reference = torch.tensor([-13.0, -9.0]), torch.tensor([-11.0, -11.0])
        >>> RPOLoss(beta=0.1, eta=0.005)(chosen, rejected, *reference)
        tensor(0.6889)
        >>> loss = RPOLoss(beta=0.5, eta=0.2, nll="sequence_mean")
        >>> loss(chosen, rejected, *reference, torch.tensor([10, 8]))
        tensor(1.1467)
    """

    def __init__(
        self,
        beta: float = 0.01,
        eta: float = 0.005,
        label_smoothing: float = 0.0,
        nll: str = "sum",
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(beta, **options)
        self.eta = check_number("eta", eta, 0.0, math.inf, high_open=True)
        self.label_smoothing = check_number(
            "label_smoothing", label_smoothing, 0.0, 1.0, high_open=True
        )
        check_choice("nll", nll, ("sum", "token_mean", "sequence_mean"))
        self.nll = nll
        self.separable = nll != "token_mean"  # type: ignore[misc]

    def per_sample(
        self,
        policy_chosen_logps: Tensor,
        policy_rejected_logps: Tensor,
        reference_chosen_logps: Tensor | None = None,
        reference_rejected_logps: Tensor | None = None,
        chosen_lengths: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of every pair, unreduced."""
        chosen, rejected = self.log_ratios(
            policy_chosen_logps,
            policy_rejected_logps,
            reference_chosen_logps,
            reference_rejected_logps,
        )
        values = self.pair_loss(chosen, rejected)
        # At eta 0 not 0 * inf, for a sequence that has become impossible.
        return values - self._bonus(policy_chosen_logps, chosen_lengths) if self.eta else values

    def pair_loss(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the DPO term of every pair from its two log-ratios."""
        return _logistic(self.beta * (chosen - rejected), self.label_smoothing)

    def _bonus(self, logps: Tensor, lengths: Tensor | None) -> Tensor:
        """Return the likelihood term, of the sign of the log-probabilities."""
        if lengths is None:
            return self.eta * self.beta * logps
        if self.nll == "sequence_mean":
            return self.eta * self._per_token(logps, lengths)
        tokens = lengths.sum().clamp(min=1).to(logps.dtype)
        return self.eta * logps * (logps.numel() / tokens)

    def _lengths_needed(self) -> tuple[bool, str]:
        return self.nll != "sum", f"nll={self.nll!r}"

    def properties(self) -> Properties:
        """Return what this instance guarantees; the Lipschitz constant is in the policy's two."""
        others = (0.0, 0.0, 0.0) if self.nll == "sum" else (0.0, 0.0, 0.0, 1)
        extra = self.eta * (self.beta if self.nll == "sum" else 1.0)
        return Properties(
            convex=True,
            lower=-math.inf if self.eta else _entropy(self.label_smoothing),
            upper=math.inf,
            lipschitz=_steepest(self.beta, self.label_smoothing) + extra,
            smoothness=math.inf,
            limits=(("eta = 0", "DPOLoss"),),
            counterexamples={"lower": (1.0, *others), "upper": (-1.0, *others)},
            source=f"{_SOURCE}; Liu et al. 2024",
        )


def _logistic(z: Tensor, smoothing: float) -> Tensor:
    """Return -(1 - smoothing) log sigmoid(z) - smoothing log sigmoid(-z)."""
    if smoothing == 0.0:  # not 0 * inf, for a sequence that has become impossible
        return softplus(-z)
    return (1.0 - smoothing) * softplus(-z) + smoothing * softplus(z)


def _entropy(p: float) -> float:
    return -p * math.log(p) - (1.0 - p) * math.log1p(-p) if p else 0.0


def _steepest(beta: float, smoothing: float) -> float:
    """Return the largest norm of DPO's gradient in the two log-probabilities of the policy."""
    return math.sqrt(2.0) * beta * max(1.0 - smoothing, smoothing)
