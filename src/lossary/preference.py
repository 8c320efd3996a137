r"""Preference losses: a policy learns from pairs of answers, of which one is preferred.

.. math:: \rho = \log \frac{\pi(y \mid x)}{\pi_{\text{ref}}(y \mid x)}, \qquad
          z = \beta \, \bigl(s(\rho_w) - s(\rho_l)\bigr)

Every loss is a function of the two log-ratios of a pair, that of the chosen answer w and that of
the rejected answer l. What goes in are log-probabilities of whole sequences, as
:func:`lossary.sequence_logps` returns them, in this order: policy chosen, policy rejected,
reference chosen, reference rejected.

Codes call different losses by one name. In all of them the inputs are sums of token
log-probabilities, but for those marked "averages"; what reproduces which:

==============================================  ================================================
published code                                  here
==============================================  ================================================
DPO, authors; TRL "sigmoid"                     DPOLoss()
cDPO, authors; TRL "sigmoid", up to 0.24        DPOLoss(label_smoothing=eps)
TRL "sigmoid_norm"; open-instruct dpo_norm      DPOLoss(5.0, length_normalize=True)
TRL "robust"                                    RobustDPOLoss(flip_rate=label_smoothing)
RPO, authors, chat                              RPOLoss(beta, eta)
RPO, authors, reasoning                         RPOLoss(0.5, 0.2, nll="sequence_mean")
TRL rpo_alpha; ["sigmoid", "sft"]               RPOLoss(beta, rpo_alpha, nll="token_mean")
IPO, the paper; the authors of DPO              IPOLoss(beta)
TRL "ipo"; HALOs                                IPOLoss(beta, length_normalize=True)
RSO; TRL "hinge"                                HingePreferenceLoss(beta)
SLiC-HF                                         HingePreferenceLoss(1, delta, c, True)
RRHF, CycleAlign                                HingePreferenceLoss(1, 0, 0, True), averages
TRL "exo_pair", "nca_pair", "discopop"          EXOLoss, NCALoss, DiscoPOPLoss
TRL "bco_pair", 1.x                             BCOPairLoss(beta)
TRL "bco_pair", up to 0.24                      BCOPairLoss(beta, "running")
SPPO, authors                                   SPPOLoss(1/eta, halve=True), win_prob
TRL "sppo_hard"                                 SPPOLoss(beta)
TRL "apo_zero", "apo_down"                      APOLoss(beta, "zero"), APOLoss(beta, "down")
TRL "apo_zero_unpaired"                         KTOLoss(beta), kl=0.0
TRL "aot"                                       AOTLoss(beta)
TRL "aot_unpaired"; "aot_pair" up to 0.27       AOTLoss(beta, paired=False)
SimPO, authors                                  SimPOLoss(beta, beta * gamma_beta_ratio), averages
TRL simpo_gamma                                 SimPOLoss(beta, simpo_gamma), averages
ORPO in TRL and Liger                           ORPOLoss(beta, "token_mean", average=False)
CPO, the paper                                  CPOLoss(beta)
TRL CPO                                         CPOLoss(beta, cpo_alpha, nll="token_mean")
KTO, authors; TRL                               KTOLoss(beta), kl_policy_logps, ...
TRL "bco"                                       BCOLoss(beta)
WPO in TRL 1.x; 0.19                            WPOWeighting(None); WPOWeighting(1.0)
==============================================  ================================================
"""

import math
from collections.abc import Callable
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from lossary._base import Loss, LossOptions, _check_weight, _upcast
from lossary._checks import (
    check_choice,
    check_device,
    check_floating,
    check_like,
    check_number,
    check_positive,
    check_tensor,
    check_weight_type,
)
from lossary._distributed import check_group, sum_over_ranks
from lossary._numerics import expm1, log1mexp, softplus
from lossary._properties import Properties
from lossary._softmax import readable
from lossary._state import RunningMean
from lossary.sequences import _SequenceLoss

_SOURCE = "Rafailov et al. 2023; Mitchell 2023"
#: The rows of a truth table of two answers, and statements: where they hold, where they fail.
_ROWS = ("TT", "TF", "FT", "FF")
_STATEMENTS = {
    "ce": (("TT", "TF"), ("FT", "FF")),
    "ce_unl": (("TF",), ("TT", "FT", "FF")),
    "cpo": (("TT", "TF"), ("TT", "FT")),
    "orpo": (("TF",), ("FT",)),
    "un_cpo": (("TT", "TF", "FF"), ("FT",)),
    "c_cpo": (("TT", "TF"), ("FT",)),
}
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
        named = dict(zip(_NAMES, inputs, strict=True))
        # Not every loss takes a reference.
        given = {k: x for k, x in named.items() if x is not None or k in _NAMES[:2]}
        self._check_inputs(given, None)
        chosen, rejected = self.log_ratios(*inputs)
        return self.beta * chosen.detach(), self.beta * rejected.detach()

    def _check_inputs(self, inputs: dict[str, Any], weight: Tensor | None) -> None:
        super()._check_inputs(inputs, weight)
        one, other = (inputs.get(name) for name in _NAMES[2:])
        if (one is None) != (other is None):
            given, missing = _NAMES[2:] if other is None else _NAMES[:1:-1]
            raise ValueError(f"{missing}: expected a tensor, as for {given}, got None")


class _PerTokenPreferenceLoss(PairwisePreferenceLoss):
    """A loss of log-ratios that ``length_normalize`` divides by the lengths of the completions."""

    length_normalize: bool

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

    def _lengths_needed(self) -> tuple[bool, str]:
        return self.length_normalize, f"length_normalize={self.length_normalize}"


class DPOLoss(_PerTokenPreferenceLoss):
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

    def pair_loss(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the loss of every pair from its two log-ratios, divided by lengths already."""
        d = self._score(chosen) - self._score(rejected)
        return _logistic(self.beta * d, self.label_smoothing)

    def _score(self, ratio: Tensor) -> Tensor:
        """Return s(ratio), less a constant that cancels, so that alpha = 1 needs no limit."""
        if self.f_divergence == "js":
            return -softplus(-ratio)
        a = {"reverse_kl": 0.0, "forward_kl": -1.0}.get(self.f_divergence, self.alpha - 1.0)
        return _exponential(ratio, a)

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
        return (
            self.eta
            * (self.beta if self.nll == "sum" else 1.0)
            * _likelihood(logps, lengths, self.nll)
        )

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


class IPOLoss(_PerTokenPreferenceLoss):
    r"""Identity preference optimisation (IPO): regression of the log-ratio margin on a fixed gap.

    .. math:: \ell = \Bigl(d - \frac{1}{2 \tau}\Bigr)^2, \qquad d = \rho_w - \rho_l
              \quad\text{or}\quad d = \frac{\rho_w}{L_w} - \frac{\rho_l}{L_l}

    Where preferences are nearly certain, DPO drives the margin to infinity whatever beta is; the
    squared loss stops at a finite one. Smaller tau, wider gap.

    Args:
        tau: tau > 0, finite: the strength of the regularisation, TRL's ``beta``. Default 0.1, a gap
            of 5 in the log-ratio.
        length_normalize: divide each log-ratio by the length of its completion first. Default
            ``False``.
        reduction: see :class:`lossary.Loss`.

    Shape:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps,
        reference_rejected_logps (N, ...): SUMS over the tokens of a completion, also with
        ``length_normalize``; the references both or none. chosen_lengths, rejected_lengths of the
        same shape, integers, float32 or float64, with ``length_normalize`` only. Values of the
        same shape.

    Properties:
        A parabola: convex in all log-probabilities together, infinitely smooth, l >= 0, unbounded
        above, with an unbounded gradient: 2 (d - 1/(2 tau)) in policy_chosen_logps and its opposite
        in policy_rejected_logps (divided by the lengths where d is). If w is preferred with
        probability p, the mean over both orders is least at d = (p - 1/2)/tau, finite also for p of
        0 and 1. Unchanged when both log-probabilities of the policy move by the same number,
        without lengths.

    Limits:
        tau -> inf: d^2. :class:`SPPOLoss` has this target for each answer alone, not for the
        difference.

    Note:
        Which code is which: ``length_normalize=False`` is eq. 17 of the paper and the code of the
        authors of DPO; ``True`` is TRL 1.x and HALOs, where the authors of IPO are said to have
        confirmed it; TRL up to 0.24 averaged the log-probabilities, the same number. The gap
        1/(2 tau) is the same for sums and for averages, which differ by a factor of the length:
        tau has to be chosen anew.

    Raises:
        ValueError: ``tau`` not positive and finite; inputs of different shapes, one reference only,
            lengths below 1 (on CPU tensors, where looking costs nothing; elsewhere they count as
            1).
        TypeError: ``tau`` not a number; inputs not floating point; lengths missing with
            ``length_normalize``, given without, not numbers, or in half precision.

    Reference:
        Azar, Rowland, Piot, Guo, Calandriello, Valko, Munos, "A General Theoretical Paradigm to
        Understand Learning from Human Preferences", 2023, eq. 17. Verified against the code of the
        authors of DPO and against TRL.

    Example:
        >>> import torch
        >>> from lossary import IPOLoss
        >>> chosen, rejected = torch.tensor([-12.0, -9.0]), torch.tensor([-14.0, -8.0])
        >>> reference = torch.tensor([-13.0, -9.0]), torch.tensor([-11.0, -11.0])
        >>> IPOLoss()(chosen, rejected, *reference)
        tensor(32.5000)
        >>> loss = IPOLoss(length_normalize=True)
        >>> loss(chosen, rejected, *reference, torch.tensor([10, 8]), torch.tensor([12, 6]))
        tensor(25.9363)
    """

    def __init__(
        self, tau: float = 0.1, length_normalize: bool = False, **options: Unpack[LossOptions]
    ) -> None:
        tau = check_positive("tau", tau)
        super().__init__(tau, **options)
        self.tau = tau
        check_choice("length_normalize", length_normalize, (True, False))
        self.length_normalize = length_normalize

    def pair_loss(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the loss of every pair from its two log-ratios, divided by lengths already."""
        return (chosen - rejected - 0.5 / self.tau).square()

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        down = ([-1.0], *[[0.0]] * 3, *[[1.0]] * (2 if self.length_normalize else 0))
        return Properties(
            convex=True,
            lower=0.0,
            upper=math.inf,
            lipschitz=math.inf,
            smoothness=math.inf,
            minimiser="d = (p - 1/2)/tau, w preferred with probability p",
            counterexamples={"upper": down, "lipschitz": down},
            source="Azar et al. 2023",
        )


class HingePreferenceLoss(PairwisePreferenceLoss):
    r"""Hinge on the preference margin: SLiC, RSO and, without margin, RRHF.

    .. math:: \ell = \max\bigl(0, m - \beta (\rho_w - \rho_l)\bigr) - c \log \pi(y_w)

    A pair whose margin is wide enough no longer pulls. Four published losses:

    - RSO's "hinge-norm", TRL's ``loss_type="hinge"``: the default.
    - SLiC-HF: ``HingePreferenceLoss(1.0, delta, c, reference_free=True)``, with a likelihood term.
    - RRHF and CycleAlign, the ranking term: ``HingePreferenceLoss(1.0, 0.0, reference_free=True)``
      of AVERAGE log-probabilities.

    Args:
        beta: beta > 0, finite. Default 0.1.
        margin: the m above, >= 0, finite, in units of beta times the log-ratio. Default 1.
        nll_coef: the c above, >= 0, finite: weight of the chosen answer's negative log-likelihood,
            of the number that goes in. Default 0.
        reference_free: see :class:`lossary.PairwisePreferenceLoss`.
        reduction: see :class:`lossary.Loss`.

    Shape:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps,
        reference_rejected_logps (N, ...): SUMS over the tokens of a completion, but averages for
        RRHF; the references both or none. Values of the same shape.

    Properties:
        Convex in all log-probabilities together, with a kink at beta d = m, where the subgradient
        taken is 0 in the hinge. For c = 0 l >= 0, with equality for every pair beyond the margin;
        for c > 0 unbounded below as a function of real numbers, while log-probabilities, being
        <= 0, keep it >= 0. The gradient in the two of the policy has a norm of at most
        sqrt(2) beta + c.

    Limits:
        margin = 0: pairs that are ranked right have no gradient at all. beta -> 0, c = 0: the
        constant m.

    Note:
        The hinge is scaled by beta: the pair stops at d = m/beta, 10 with the defaults.

    Raises:
        ValueError: ``beta`` not positive and finite, ``margin`` or ``nll_coef`` negative or
            infinite; inputs of different shapes, one reference only.
        TypeError: hyper-parameters not numbers; inputs not floating point.

    Reference:
        Zhao, Joshi, Liu, Khalman, Saleh, Liu, "SLiC-HF: Sequence Likelihood Calibration with Human
        Feedback", 2023. Liu et al., "Statistical Rejection Sampling Improves Preference
        Optimization", 2023. Yuan et al., "RRHF: Rank Responses to Align Language Models with Human
        Feedback without tears", 2023. Verified against TRL; SLiC's form was read in HALOs. Titles
        are RECALLED.

    Example:
        >>> import torch
        >>> from lossary import HingePreferenceLoss
        >>> chosen, rejected = torch.tensor([-12.0, -9.0]), torch.tensor([-14.0, -8.0])
        >>> reference = torch.tensor([-13.0, -9.0]), torch.tensor([-11.0, -11.0])
        >>> HingePreferenceLoss()(chosen, rejected, *reference)
        tensor(0.9500)
    """

    def __init__(
        self,
        beta: float = 0.1,
        margin: float = 1.0,
        nll_coef: float = 0.0,
        reference_free: bool = False,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(beta, reference_free, **options)
        self.margin = check_number("margin", margin, 0.0, math.inf, high_open=True)
        self.nll_coef = check_number("nll_coef", nll_coef, 0.0, math.inf, high_open=True)

    def per_sample(
        self,
        policy_chosen_logps: Tensor,
        policy_rejected_logps: Tensor,
        reference_chosen_logps: Tensor | None = None,
        reference_rejected_logps: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of every pair, unreduced."""
        values = self.pair_loss(
            *self.log_ratios(
                policy_chosen_logps,
                policy_rejected_logps,
                reference_chosen_logps,
                reference_rejected_logps,
            )
        )
        return values - self.nll_coef * policy_chosen_logps if self.nll_coef else values

    def pair_loss(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the hinge of every pair from its two log-ratios."""
        return torch.relu(self.margin - self.beta * (chosen - rejected))

    def properties(self) -> Properties:
        """Return what this instance guarantees; the Lipschitz constant is in the policy's two."""
        others = (0.0,) * (1 if self.reference_free else 3)
        return Properties(
            convex=True,
            lower=-math.inf if self.nll_coef else 0.0,
            upper=math.inf,
            lipschitz=_steepest(self.beta, 0.0) + self.nll_coef,
            smoothness=0,
            counterexamples={"lower": (1.0, *others), "upper": (-1.0, *others)},
            source="Zhao et al. 2023; Liu et al. 2023",
        )


class EXOLoss(PairwisePreferenceLoss):
    r"""Efficient exact optimisation (EXO): the reverse KL divergence to a smoothed preference.

    .. math:: \ell = \operatorname{KL}\bigl(\operatorname{Bern}(\sigma(z)) \,\|\,
              \operatorname{Bern}(1 - \varepsilon)\bigr)
              = q \log \frac{q}{1 - \varepsilon} + (1 - q) \log \frac{1 - q}{\varepsilon}, \qquad
              q = \sigma(z), \quad z = \beta (\rho_w - \rho_l)

    DPO takes the divergence the other way round, and is mode-covering; this one seeks the mode.
    It has a finite best margin, and hardly pulls at pairs that are far wrong, be they mislabelled
    or not learnt yet.

    Args:
        beta: beta > 0, finite. Default 0.1.
        label_smoothing: the epsilon above, in (0, 1): the share of labels taken to be wrong. 0 has
            no finite value. Default 0.001.
        reduction: see :class:`lossary.Loss`.

    Shape:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps,
        reference_rejected_logps (N, ...): SUMS over the tokens of a completion; the references both
        or none. Values of the same shape.

    Properties:
        Not convex; infinitely smooth; 0 <= l < max(-log eps, -log(1 - eps)). l = 0 at
        z = log((1 - eps)/eps) alone. dl/dz = sigma(z) sigma(-z) (z - log((1 - eps)/eps)), which
        vanishes at both ends: a pair that is ranked badly wrong gets no signal. Unchanged when both
        log-probabilities of the policy, or both of the reference, move by the same number.

    Limits:
        beta d -> -inf: -log eps. beta d -> inf: -log(1 - eps).

    Note:
        From softplus; log(1 - eps) as log1p. The margin stops at 800 in absolute value, where
        nothing changes any more, so that an answer that has become impossible gives the limit.

    Raises:
        ValueError: ``beta`` not positive and finite, ``label_smoothing`` outside (0, 1); inputs of
            different shapes, one reference only.
        TypeError: hyper-parameters not numbers; inputs not floating point.

    Reference:
        Ji, Lu, Niu, Ke, Wang, Zhu, Tang, Huang, "Towards Efficient and Exact Optimization of
        Language Model Alignment", 2024. Verified against TRL, ``loss_type="exo_pair"``; the
        authors' own code was not run.

    Example:
        >>> import torch
        >>> from lossary import EXOLoss
        >>> chosen, rejected = torch.tensor([-12.0, -9.0]), torch.tensor([-14.0, -8.0])
        >>> reference = torch.tensor([-13.0, -9.0]), torch.tensor([-11.0, -11.0])
        >>> EXOLoss()(chosen, rejected, *reference)
        tensor(2.6929)
    """

    def __init__(
        self, beta: float = 0.1, label_smoothing: float = 1e-3, **options: Unpack[LossOptions]
    ) -> None:
        super().__init__(beta, **options)
        self.label_smoothing = check_number(
            "label_smoothing", label_smoothing, 0.0, 1.0, low_open=True, high_open=True
        )

    def pair_loss(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the loss of every pair from its two log-ratios."""
        # At infinity 0 * inf; beyond 800 the probabilities are 0 and 1 in any precision.
        z = (self.beta * (chosen - rejected)).clamp(-800.0, 800.0)
        eps = self.label_smoothing
        right = torch.sigmoid(z) * (softplus(-z) + math.log1p(-eps))
        wrong = torch.sigmoid(-z) * (softplus(z) + math.log(eps))
        return -right - wrong

    def properties(self) -> Properties:
        """Return what this instance guarantees; the Lipschitz constant is in the policy's two."""
        eps = self.label_smoothing
        # Flat far from the minimum, on the side that is farther from it.
        side = (-1.0 if eps <= 0.5 else 1.0) / self.beta
        gap = abs(math.log1p(-eps) - math.log(eps))
        return Properties(
            convex=False,
            lower=0.0,
            upper=max(-math.log(eps), -math.log1p(-eps)),
            # sigma(z) sigma(-z) is at most 1/4, and times |z| below 0.224.
            lipschitz=math.sqrt(2.0) * self.beta * (0.224 + gap / 4.0),
            smoothness=math.inf,
            minimiser="z = log((1 - eps)/eps)",
            counterexamples={"convex": (20.0 * side, 2.0 * side, 0.0, 0.0, 0.0)},
            source="Ji et al. 2024",
        )


class NCALoss(PairwisePreferenceLoss):
    r"""Noise-contrastive alignment (NCA) of a pair: likelihoods themselves, not their difference.

    .. math:: \ell = -\log \sigma(a) - \tfrac12 \log \sigma(-a) - \tfrac12 \log \sigma(-b), \qquad
              a = \beta \rho_w, \quad b = \beta \rho_l

    DPO fixes the difference of the two rewards, and in practice both fall. Here each answer is
    classified against samples of the reference model: the chosen one's log-ratio has a best value
    of its own, (log 2)/beta.

    Args:
        beta: beta > 0, finite. Default 0.01, as in the authors' code; TRL's is 0.1.
        reduction: see :class:`lossary.Loss`.

    Shape:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps,
        reference_rejected_logps (N, ...): SUMS over the tokens of a completion; the references both
        or none. Values of the same shape.

    Properties:
        Convex in all log-probabilities together, infinitely smooth, unbounded above;
        l > (3/2) log 3 - log 2, approached at a = log 2 for b -> -inf. The gradient is
        3/2 sigma(a) - 1 in a and sigma(b)/2 in b; in the two of the policy its norm is below
        sqrt(5)/2 beta. Not invariant to shifts of the policy's log-probabilities, which is its
        purpose.

    Limits:
        beta -> 0: 2 log 2.

    Note:
        With TRL's ``loss_type="nca_pair"`` the numbers are the same at the same beta.

    Raises:
        ValueError: ``beta`` not positive and finite; inputs of different shapes, one reference
            only.
        TypeError: ``beta`` not a number; inputs not floating point.

    Reference:
        Chen, He, Yuan, Cui, Su, Zhu, "Noise Contrastive Alignment of Language Models with Explicit
        Rewards", 2024. Verified against TRL.

    Example:
        >>> import torch
        >>> from lossary import NCALoss
        >>> chosen, rejected = torch.tensor([-12.0, -9.0]), torch.tensor([-14.0, -8.0])
        >>> reference = torch.tensor([-13.0, -9.0]), torch.tensor([-11.0, -11.0])
        >>> NCALoss(beta=0.1)(chosen, rejected, *reference)
        tensor(1.3803)
    """

    def __init__(self, beta: float = 0.01, **options: Unpack[LossOptions]) -> None:
        super().__init__(beta, **options)

    def pair_loss(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the loss of every pair from its two log-ratios."""
        a, b = self.beta * chosen, self.beta * rejected
        return softplus(-a) + 0.5 * (softplus(a) + softplus(b))

    def properties(self) -> Properties:
        """Return what this instance guarantees; the Lipschitz constant is in the policy's two."""
        return Properties(
            convex=True,
            upper=math.inf,
            lipschitz=math.sqrt(1.25) * self.beta,
            smoothness=math.inf,
            minimiser="a = log 2, b -> -inf",
            counterexamples={"upper": (-1.0, 0.0, 0.0, 0.0)},
            unknown={
                "lower": "1.5 log 3 - log 2, but in the chosen answer alone it depends on the other"
            },
            source="Chen et al. 2024",
        )


class BCOPairLoss(PairwisePreferenceLoss, RunningMean):
    r"""Binary classifier optimisation (BCO) of a pair: each answer is classified by its reward.

    .. math:: \ell = -\log \sigma(a - \delta) - \log \sigma(\delta - b), \qquad
              a = \beta \rho_w, \quad b = \beta \rho_l

    The chosen answer's reward is to be above the threshold delta, the rejected one's below. An
    upper bound of DPO for every delta, the tighter the nearer delta lies between the two. For
    answers that are good or bad without a partner: :class:`BCOLoss`.

    Args:
        beta: beta > 0, finite. Default 0.1.
        delta: the threshold, a finite number, or ``"running"``: the mean of all rewards seen in
            training, chosen and rejected alike, this batch's included. Default 0.
        reduction: see :class:`lossary.Loss`.

    Shape:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps,
        reference_rejected_logps (N, ...): SUMS over the tokens of a completion; the references both
        or none. update: ``False`` leaves the running mean as it is. Values of the same shape.

    Properties:
        Convex in all log-probabilities together, infinitely smooth, l > 0, unbounded above.
        l > -log sigma(a - b), the DPO loss, for every delta. The gradient in the two of the policy
        has a norm below sqrt(2) beta; delta is taken as a constant. Not invariant to shifts of the
        policy's log-probabilities.

    Limits:
        delta -> inf or -inf: one of the two terms is all that is left.

    Note:
        Which code is which: ``delta=0`` is TRL 1.x, ``"running"`` TRL up to 0.24. (TRL's index of
        papers prints the formula of DPO for this loss; its code is as above.) The running mean is
        in the buffers ``delta_mean`` and ``delta_count``, the same on every process: it is written
        before the loss is computed, in training mode with gradients enabled, outside of
        ``torch.func`` and without ``update=False``, over the rewards of all processes of the
        default group, which must all call it. Pairs of weight 0 and infinite rewards do not count.
        ``reset()`` forgets it. Micro-batches see other means than the batch.

    Raises:
        ValueError: ``beta`` not positive and finite, ``delta`` not finite or another word,
            ``update`` neither ``True`` nor ``False``; inputs of different shapes, one reference
            only.
        TypeError: ``beta`` or ``delta`` not numbers; inputs not floating point.

    Reference:
        Jung, Han, Nam, On, "Binary Classifier Optimization for Large Language Model Alignment",
        2024. Verified against TRL, ``loss_type="bco_pair"``.

    Example:
        >>> import torch
        >>> from lossary import BCOPairLoss
        >>> chosen, rejected = torch.tensor([-12.0, -9.0]), torch.tensor([-14.0, -8.0])
        >>> reference = torch.tensor([-13.0, -9.0]), torch.tensor([-11.0, -11.0])
        >>> BCOPairLoss()(chosen, rejected, *reference)
        tensor(1.3731)
        >>> loss = BCOPairLoss(delta="running")
        >>> loss(chosen, rejected, *reference)
        tensor(1.3730)
        >>> loss.delta_mean
        tensor(0.0250)
    """

    delta_mean: Tensor

    def __init__(
        self, beta: float = 0.1, delta: float | str = 0.0, **options: Unpack[LossOptions]
    ) -> None:
        super().__init__(beta, **options)
        if isinstance(delta, str):
            check_choice("delta", delta, ("running",))
            self.delta: float | str = delta
            self._add_mean("delta")
        else:
            self.delta = check_number(
                "delta", delta, -math.inf, math.inf, low_open=True, high_open=True
            )

    def per_sample(
        self,
        policy_chosen_logps: Tensor,
        policy_rejected_logps: Tensor,
        reference_chosen_logps: Tensor | None = None,
        reference_rejected_logps: Tensor | None = None,
        update: bool = True,
    ) -> Tensor:
        """Return the loss of every pair, unreduced."""
        del update
        ratios = self.log_ratios(
            policy_chosen_logps,
            policy_rejected_logps,
            reference_chosen_logps,
            reference_rejected_logps,
        )
        return self.pair_loss(*ratios)

    def pair_loss(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the loss of every pair from its two log-ratios."""
        delta = self.delta if isinstance(self.delta, float) else self.delta_mean.to(chosen.dtype)
        return softplus(delta - self.beta * chosen) + softplus(self.beta * rejected - delta)

    def _evaluate(
        self, inputs: tuple[Any, ...], weight: Tensor | None, normalizer: float | Tensor | None
    ) -> Tensor:
        *logps, update = inputs
        check_choice("update", update, (True, False))
        if self.delta == "running" and self._updates(update, logps[0]):
            # Before the weight is worked into the inputs: who is not there does not count.
            self._check_inputs(dict(zip(self._names, inputs, strict=True)), weight)
            with torch.no_grad():
                rewards = self.beta * torch.stack(self.log_ratios(*logps))
                self._see("delta", rewards, weight)
        return super()._evaluate(inputs, weight, normalizer)

    def properties(self) -> Properties:
        """Return what this instance guarantees; the Lipschitz constant is in the policy's two."""
        return Properties(
            convex=True,
            upper=math.inf,
            lipschitz=_steepest(self.beta, 0.0),
            smoothness=math.inf,
            counterexamples={"upper": (-1.0, 0.0, 0.0, 0.0)},
            unknown={"lower": "0, but in the chosen answer alone it depends on the other"},
            source="Jung et al. 2024",
        )


class SPPOLoss(PairwisePreferenceLoss):
    r"""Self-play preference optimisation (SPPO): each log-ratio is regressed on its win rate.

    .. math:: \ell = \Bigl(\rho_w - \frac{p_w - 1/2}{\beta}\Bigr)^2
                   + \Bigl(\rho_l - \frac{p_l - 1/2}{\beta}\Bigr)^2

    One step of multiplicative weights towards the Nash policy of a preference model: the reference
    is the previous policy, p an answer's probability to beat that policy's answers. Both answers
    get a target of their own, so that the chosen one's likelihood rises.

    Args:
        beta: beta > 0, finite, the inverse of the paper's eta. Default 0.001.
        halve: multiply by 1/2. Default ``False``.
        reduction: see :class:`lossary.Loss`.

    Shape:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps,
        reference_rejected_logps (N, ...): SUMS over the tokens of a completion; the references both
        or none. win_prob of the same shape, or ``None`` for 1: the probability that the chosen
        answer beats the policy, in [0, 1]. lose_prob likewise of the rejected answer, or ``None``
        for 1 - win_prob. Values of the same shape.

    Properties:
        Convex in all log-probabilities together, infinitely smooth, with an unbounded gradient;
        l >= 0, with equality where both log-ratios are at their targets. Not invariant to shifts of
        the policy's log-probabilities. The probabilities are constants: no gradient flows to them.

    Limits:
        Hard labels, p = 1: the targets are 1/(2 beta) and -1/(2 beta), whose difference is twice
        the gap of :class:`IPOLoss` at tau = beta.

    Note:
        Which code is which: ``halve=True`` with win_prob (and lose_prob) is the authors' code;
        ``halve=False`` without is TRL's ``loss_type="sppo_hard"``. The targets are 500 at the
        default beta, and so the values are of the order of 1e5.

    Raises:
        ValueError: ``beta`` not positive and finite, ``halve`` not a bool; inputs of different
            shapes, one reference only, lose_prob without win_prob; probabilities outside [0, 1] (on
            CPU tensors, where looking costs nothing).
        TypeError: ``beta`` not a number; inputs not floating point.

    Reference:
        Wu, Sun, Yuan, Ji, Yang, Gu, "Self-Play Preference Optimization for Language Model
        Alignment", 2024. Verified against the authors' code and TRL.

    Example:
        >>> import torch
        >>> from lossary import SPPOLoss
        >>> chosen, rejected = torch.tensor([-12.0, -9.0]), torch.tensor([-14.0, -8.0])
        >>> reference = torch.tensor([-13.0, -9.0]), torch.tensor([-11.0, -11.0])
        >>> SPPOLoss(beta=0.1)(chosen, rejected, *reference)
        tensor(54.5000)
        >>> win = torch.tensor([0.8, 0.6])
        >>> SPPOLoss(beta=0.1, halve=True)(chosen, rejected, *reference, win)
        tensor(5.2500)
    """

    def __init__(
        self, beta: float = 1e-3, halve: bool = False, **options: Unpack[LossOptions]
    ) -> None:
        super().__init__(beta, **options)
        check_choice("halve", halve, (True, False))
        self.halve = halve

    def per_sample(
        self,
        policy_chosen_logps: Tensor,
        policy_rejected_logps: Tensor,
        reference_chosen_logps: Tensor | None = None,
        reference_rejected_logps: Tensor | None = None,
        win_prob: Tensor | None = None,
        lose_prob: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of every pair, unreduced."""
        chosen, rejected = self.log_ratios(
            policy_chosen_logps,
            policy_rejected_logps,
            reference_chosen_logps,
            reference_rejected_logps,
        )
        if win_prob is None:
            return self.pair_loss(chosen, rejected)
        win = win_prob.detach()
        lose = 1.0 - win if lose_prob is None else lose_prob.detach()
        return self._distance(chosen, rejected, win - 0.5, lose - 0.5)

    def pair_loss(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the loss of every pair from its two log-ratios, for a certain preference."""
        return self._distance(chosen, rejected, 0.5, -0.5)

    def _distance(
        self, chosen: Tensor, rejected: Tensor, win: Tensor | float, lose: Tensor | float
    ) -> Tensor:
        squares = (chosen - win / self.beta).square() + (rejected - lose / self.beta).square()
        return 0.5 * squares if self.halve else squares

    def _check_inputs(self, inputs: dict[str, Any], weight: Tensor | None) -> None:
        super()._check_inputs(inputs, weight)
        win, lose = inputs.get("win_prob"), inputs.get("lose_prob")
        if win is None and lose is not None:
            raise ValueError("win_prob: expected a tensor, as for lose_prob, got None")
        for name, x in (("win_prob", win), ("lose_prob", lose)):
            if x is not None:
                check_floating(name, x)
                check_like(name, x, _NAMES[0], inputs[_NAMES[0]])
                _check_probability(name, x, weight)

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        down = ([-1.0], *[[0.0]] * 3)
        return Properties(
            convex=True,
            upper=math.inf,
            lipschitz=math.inf,
            smoothness=math.inf,
            minimiser="rho_w = (p_w - 1/2)/beta, rho_l = (p_l - 1/2)/beta",
            counterexamples={"upper": down, "lipschitz": down},
            unknown={"lower": "0, but in the chosen answer alone it depends on the other"},
            source="Wu et al. 2024",
        )


class APOLoss(PairwisePreferenceLoss):
    r"""Anchored preference optimisation (APO): where both answers' likelihoods should go.

    .. math:: \text{zero: } \sigma(-a) + \sigma(b), \qquad
              \text{down: } \sigma(a) + \sigma(-(a - b)), \qquad
              a = \beta \rho_w, \quad b = \beta \rho_l

    ``"zero"`` raises the chosen answer and lowers the rejected one: for chosen answers that are
    better than what the policy writes. ``"down"`` lowers both, the rejected one more: for a policy
    that is better than both answers.

    Args:
        beta: beta > 0, finite. Default 0.1.
        variant: ``"zero"`` (default) or ``"down"``.
        reduction: see :class:`lossary.Loss`.

    Shape:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps,
        reference_rejected_logps (N, ...): SUMS over the tokens of a completion; the references both
        or none. Values of the same shape.

    Properties:
        Not convex; infinitely smooth; 0 < l < 2; l = 1 where both log-ratios are 0. The gradient
        vanishes far from there, on both sides, and in the two of the policy its norm is at most
        sqrt(2) beta/4. Not invariant to shifts of the policy's log-probabilities.

    Limits:
        beta -> 0: 1. ``"zero"`` of answers without partners, one term each: :class:`KTOLoss` with
        kl = 0.

    Note:
        TRL's ``loss_type="apo_zero"`` and ``"apo_down"`` give the same numbers.

    Raises:
        ValueError: ``beta`` not positive and finite, unknown ``variant``; inputs of different
            shapes, one reference only.
        TypeError: ``beta`` not a number; inputs not floating point.

    Reference:
        D'Oosterlinck et al., "Anchored Preference Optimization and Contrastive Revisions:
        Addressing Underspecification in Alignment", 2024. Verified against TRL.

    Example:
        >>> import torch
        >>> from lossary import APOLoss
        >>> chosen, rejected = torch.tensor([-12.0, -9.0]), torch.tensor([-14.0, -8.0])
        >>> reference = torch.tensor([-13.0, -9.0]), torch.tensor([-11.0, -11.0])
        >>> APOLoss()(chosen, rejected, *reference)
        tensor(0.9875)
        >>> APOLoss(variant="down")(chosen, rejected, *reference)
        tensor(1.0004)
    """

    def __init__(
        self, beta: float = 0.1, variant: str = "zero", **options: Unpack[LossOptions]
    ) -> None:
        super().__init__(beta, **options)
        check_choice("variant", variant, ("zero", "down"))
        self.variant = variant

    def pair_loss(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the loss of every pair from its two log-ratios."""
        if self.variant == "zero":
            return torch.sigmoid(-self.beta * chosen) + torch.sigmoid(self.beta * rejected)
        return torch.sigmoid(self.beta * chosen) + torch.sigmoid(self.beta * (rejected - chosen))

    def properties(self) -> Properties:
        """Return what this instance guarantees; the Lipschitz constant is in the policy's two."""
        far = 8.0 / self.beta
        bent = (-far, 0.0, 0.0) if self.variant == "zero" else (far, 0.0, 10.0 * far)
        return Properties(
            convex=False,
            lipschitz=math.sqrt(2.0) * self.beta / 4.0,
            smoothness=math.inf,
            counterexamples={"convex": (*bent, 0.0, 0.0)},
            unknown={
                "lower": "0, but in the chosen answer alone it depends on the other",
                "upper": "2, but in the chosen answer alone it depends on the other",
            },
            source="D'Oosterlinck et al. 2024",
        )


class AOTLoss(PairwisePreferenceLoss):
    r"""Alignment by optimal transport (AOT): the distribution of rewards is to dominate another.

    .. math:: \ell_i = -(1 - \varepsilon) \log \sigma(\beta \delta_i)
                       - \varepsilon \log \sigma(-\beta \delta_i), \qquad
              \delta_i = u_{(i)} - v_{(i)}

    with the batch's numbers sorted, each for itself: paired, u the policy's chosen less rejected
    log-probability and v the reference's; unpaired, u the log-ratios of the chosen answers and v
    those of the rejected ones, which then need not belong to the same prompts. First-order
    stochastic dominance over the batch, in place of every pair's own margin.

    Args:
        beta: beta > 0, finite. Default 0.1.
        paired: ``True`` (default) or ``False``, as above.
        label_smoothing: the epsilon above, in [0, 1). Default 0.
        reduction: see :class:`lossary.Loss`; ``"none"`` gives one value per rank, in ascending
            order of u.

    Shape:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps,
        reference_rejected_logps (N,): SUMS over the tokens of a completion; the references both or
        none. Values (N,), of ranks: there is no ``weight``.

    Properties:
        Of the batch: not convex, continuous with kinks where the order changes, l >= H(eps), the
        binary entropy, unbounded above. Unchanged by a permutation of u, and of v, alone. The sum
        over the batch is at most that of :class:`DPOLoss`, as sorting is the cheapest coupling of a
        convex cost on a line.

    Limits:
        N = 1: :class:`DPOLoss`. So is every batch in which u and v are in the same order.

    Note:
        Which code is which: ``paired=True`` is TRL's ``loss_type="aot"`` in every version;
        ``paired=False`` its ``"aot_unpaired"`` since 0.28, which up to 0.27 was called
        ``"aot_pair"``. The batch is that of this process: larger ones transport better, and
        micro-batches do not add up to the batch. Among ties the sort is stable.

    Raises:
        ValueError: ``beta`` not positive and finite, ``paired`` not a bool, ``label_smoothing``
            outside [0, 1); inputs not of one shape (N,), one reference only; a ``weight``.
        TypeError: hyper-parameters not numbers; inputs not floating point.

    Reference:
        Melnyk, Mroueh, Belgodere, Rigotti, Nitsure, Yurochkin, Greenewald, Navratil, Ross,
        "Distributional Preference Alignment of LLMs via Optimal Transport", 2024. Verified against
        TRL.

    Example:
        >>> import torch
        >>> from lossary import AOTLoss
        >>> chosen, rejected = torch.tensor([-12.0, -9.0]), torch.tensor([-14.0, -8.0])
        >>> reference = torch.tensor([-13.0, -9.0]), torch.tensor([-11.0, -11.0])
        >>> AOTLoss()(chosen, rejected, *reference)
        tensor(0.6688)
        >>> AOTLoss(paired=False)(chosen, rejected, *reference)
        tensor(0.6762)
    """

    separable = False

    def __init__(
        self,
        beta: float = 0.1,
        paired: bool = True,
        label_smoothing: float = 0.0,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(beta, **options)
        check_choice("paired", paired, (True, False))
        self.paired = paired
        self.label_smoothing = check_number(
            "label_smoothing", label_smoothing, 0.0, 1.0, high_open=True
        )

    def per_sample(
        self,
        policy_chosen_logps: Tensor,
        policy_rejected_logps: Tensor,
        reference_chosen_logps: Tensor | None = None,
        reference_rejected_logps: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of every rank, unreduced."""
        if not self.paired:
            u, v = self.log_ratios(
                policy_chosen_logps,
                policy_rejected_logps,
                reference_chosen_logps,
                reference_rejected_logps,
            )
            return self.pair_loss(u.sort(stable=True).values, v.sort(stable=True).values)
        u, _ = (_upcast(policy_chosen_logps) - _upcast(policy_rejected_logps)).sort(stable=True)
        if reference_chosen_logps is None:
            return self.pair_loss(u, torch.zeros_like(u))
        v, _ = (_upcast(reference_chosen_logps) - _upcast(reference_rejected_logps)).sort(
            stable=True
        )
        return self.pair_loss(u, v)

    def pair_loss(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the loss of every rank from u and v, sorted already."""
        return _logistic(self.beta * (chosen - rejected), self.label_smoothing)

    def _check_inputs(self, inputs: dict[str, Any], weight: Tensor | None) -> None:
        super()._check_inputs(inputs, weight)
        if weight is not None:
            raise ValueError(
                "weight: expected None, as values are of ranks and not of pairs, got a tensor"
            )
        if inputs[_NAMES[0]].dim() != 1:
            raise ValueError(
                f"{_NAMES[0]}: expected shape (N,), got {tuple(inputs[_NAMES[0]].shape)}"
            )

    def properties(self) -> Properties:
        """Return what this instance guarantees, of a batch of 4."""
        zero, order = [0.0] * 4, [c / self.beta for c in (3.0, -3.0, 3.0, -3.0)]
        others = (zero, order, zero) if self.paired else (order, zero, zero)
        return Properties(
            convex=False,
            lower=_entropy(self.label_smoothing),
            upper=math.inf,
            smoothness=0,
            limits=(("N = 1", "DPOLoss"),),
            counterexamples={
                "convex": (order, [-c for c in order], *others),
                "upper": ([-1.0] * 4, zero, zero, zero),
            },
            unknown={"lipschitz": "of the batch: beta over the root of its size in each input"},
            source="Melnyk et al. 2024",
        )


class DiscoPOPLoss(PairwisePreferenceLoss):
    r"""DiscoPOP: a discovered blend of the logistic and the exponential loss.

    .. math:: \ell = \sigma(-z/\tau) \log(1 + e^{-z}) + \sigma(z/\tau)\, e^{-z}, \qquad
              z = \beta (\rho_w - \rho_l)

    Found by a language model that was asked for preference losses. For pairs that are ranked wrong
    it is DPO, for those ranked right the exponential loss; between them, around z = 0, its slope
    changes sign: pairs just on the wrong side are held there.

    Args:
        beta: beta > 0, finite. Default 0.05.
        tau: the temperature of the blend, in (0, 1). Default 0.05. From 1 on the exponential would
            win on the wrong side, too.
        reduction: see :class:`lossary.Loss`.

    Shape:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps,
        reference_rejected_logps (N, ...): SUMS over the tokens of a completion; the references both
        or none. Values of the same shape.

    Properties:
        Infinitely smooth, l > 0, unbounded above; for small tau not convex and not monotone: for
        tau = 0.05 it rises around z = 0. l = (1 + log 2)/2 at z = 0. The gradient in the two of the
        policy has a norm below sqrt(2) beta max(2, 1/tau). Unchanged when both log-probabilities of
        the policy, or both of the reference, move by the same number.

    Limits:
        tau -> 0: :class:`DPOLoss` for z < 0, the exponential loss for z > 0, with a jump from log 2
        to 1 between them.

    Note:
        Computed as exp(log sigma(z/tau) - z): sigma(z/tau) times exp(-z) is 0 * inf at z of -1000,
        where TRL's ``loss_type="discopop"`` returns nan.

    Raises:
        ValueError: ``beta`` not positive and finite, ``tau`` outside (0, 1); inputs of different
            shapes, one reference only.
        TypeError: hyper-parameters not numbers; inputs not floating point.

    Reference:
        Lu, Holt, Fanconi, Chan, Foerster, van der Schaar, Lange, "Discovering Preference
        Optimization Algorithms with and for Large Language Models", 2024. Verified against TRL.

    Example:
        >>> import torch
        >>> from lossary import DiscoPOPLoss
        >>> chosen, rejected = torch.tensor([-12.0, -9.0]), torch.tensor([-14.0, -8.0])
        >>> reference = torch.tensor([-13.0, -9.0]), torch.tensor([-11.0, -11.0])
        >>> DiscoPOPLoss()(chosen, rejected, *reference)
        tensor(0.8021)
    """

    def __init__(
        self, beta: float = 0.05, tau: float = 0.05, **options: Unpack[LossOptions]
    ) -> None:
        super().__init__(beta, **options)
        self.tau = check_number("tau", tau, 0.0, 1.0, low_open=True, high_open=True)

    def pair_loss(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the loss of every pair from its two log-ratios."""
        z = self.beta * (chosen - rejected)
        # Finite, so that the difference is no inf - inf for an answer that has become impossible.
        far = z.clamp(min=-1e30)
        logistic = torch.sigmoid(-z / self.tau) * softplus(-z)
        return logistic + torch.exp(-softplus(-far / self.tau) - far)

    def properties(self) -> Properties:
        """Return what this instance guarantees; the Lipschitz constant is in the policy's two."""
        bent = self.tau <= 0.1
        return Properties(
            convex=False if bent else None,
            lower=0.0,
            upper=math.inf,
            lipschitz=_steepest(self.beta, 0.0) * max(2.0, 1.0 / self.tau),
            smoothness=math.inf,
            limits=(("tau -> 0, z < 0", "DPOLoss"),),
            counterexamples={
                "convex": (0.0, 6.0 * self.tau / self.beta, 0.0, 0.0, 0.0),
                "upper": (-1.0, 0.0, 0.0, 0.0),
            },
            unknown={} if bent else {"convex": "not for tau up to 0.1; not looked into beyond"},
            source="Lu et al. 2024",
        )


class DPOPLoss(PairwisePreferenceLoss):
    r"""DPO-Positive (DPOP, Smaug): DPO that does not let the chosen answer fall.

    .. math:: \ell = -\log \sigma\bigl(\beta (\rho_w - \rho_l - \lambda \max(0, -\rho_w))\bigr)

    DPO is content where both answers fall, the rejected one further; with pairs that differ in a
    few tokens that is what happens. Here a chosen answer that is less likely than under the
    reference is charged lambda times.

    Args:
        beta: beta > 0, finite. Default 0.1.
        lam: lambda >= 0, finite. Default 50.
        reduction: see :class:`lossary.Loss`.

    Shape:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps,
        reference_rejected_logps (N, ...): SUMS over the tokens of a completion; the references both
        or none. Values of the same shape.

    Properties:
        Convex in all log-probabilities together; a kink where rho_w = 0, for lambda > 0. l > 0,
        unbounded above. l is at least the DPO loss, and equal to it where rho_w >= 0. The gradient
        in the two of the policy has a norm below beta sqrt((1 + lambda)^2 + 1).

    Limits:
        lam = 0: :class:`DPOLoss`.

    Note:
        Without a reference every chosen answer is charged, as its log-probability is below 0.

    Raises:
        ValueError: ``beta`` not positive and finite, ``lam`` negative or infinite; inputs of
            different shapes, one reference only.
        TypeError: hyper-parameters not numbers; inputs not floating point.

    Reference:
        Pal, Karkhanis, Dooley, Roberts, Naidu, White, "Smaug: Fixing Failure Modes of Preference
        Optimisation with DPO-Positive", 2024. Verified against the code of a comparison of margin
        losses, HumainLab/Understand_MarginPO.

    Example:
        >>> import torch
        >>> from lossary import DPOPLoss
        >>> chosen, rejected = torch.tensor([-12.0, -9.2]), torch.tensor([-14.0, -8.0])
        >>> reference = torch.tensor([-13.0, -9.0]), torch.tensor([-11.0, -11.0])
        >>> DPOPLoss()(chosen, rejected, *reference)
        tensor(1.0349)
    """

    def __init__(
        self, beta: float = 0.1, lam: float = 50.0, **options: Unpack[LossOptions]
    ) -> None:
        super().__init__(beta, **options)
        self.lam = check_number("lam", lam, 0.0, math.inf, high_open=True)

    def pair_loss(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the loss of every pair from its two log-ratios."""
        d = chosen - rejected
        # At lam 0 not 0 * inf, for a sequence that has become impossible.
        return softplus(-self.beta * (d - self.lam * torch.relu(-chosen) if self.lam else d))

    def properties(self) -> Properties:
        """Return what this instance guarantees; the Lipschitz constant is in the policy's two."""
        return Properties(
            convex=True,
            lower=0.0,
            upper=math.inf,
            lipschitz=self.beta * math.hypot(1.0 + self.lam, 1.0),
            smoothness=0 if self.lam else math.inf,
            limits=(("lam = 0", "DPOLoss"),),
            counterexamples={"upper": (-1.0, 0.0, 0.0, 0.0)},
            source="Pal et al. 2024",
        )


class RDPOLengthLoss(PairwisePreferenceLoss):
    r"""Length-regularised DPO (R-DPO): a longer winner needs a smaller margin.

    .. math:: \ell = -\log \sigma\bigl(\beta (\rho_w - \rho_l) + \alpha (L_w - L_l)\bigr)

    Annotators like long answers, and DPO learns to write them. Part of the preference is put down
    to the difference in lengths, and the policy need not explain that part. Not to be mixed up with
    rDPO, :class:`RobustDPOLoss`.

    Args:
        beta: beta > 0, finite. Default 0.1.
        alpha: alpha >= 0, finite, per token. Default 0.2.
        reduction: see :class:`lossary.Loss`.

    Shape:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps,
        reference_rejected_logps (N, ...): SUMS over the tokens of a completion. chosen_lengths,
        rejected_lengths of the same shape, integers, float32 or float64, for every alpha. All six
        are needed. Values of the same shape.

    Properties:
        Convex in all log-probabilities together, infinitely smooth, l > 0, unbounded above. The
        gradient in the two of the policy is that of DPO at another margin, of a norm below
        sqrt(2) beta. Unchanged when both log-probabilities of the policy, or both of the reference,
        move by the same number.

    Limits:
        alpha = 0, or equal lengths: :class:`DPOLoss`.

    Note:
        The sign: with the reward r - alpha \|y\| the best policy has r = beta rho + alpha \|y\| +
        const, so that the length stands beside the log-ratio with a plus. Written with a minus it
        would push towards long answers.

    Raises:
        ValueError: ``beta`` not positive and finite, ``alpha`` negative or infinite; inputs of
            different shapes, lengths below 1 (on CPU tensors, where looking costs nothing).
        TypeError: hyper-parameters not numbers; inputs missing or not floating point; lengths
            not numbers, or in half precision.

    Reference:
        Park, Rafailov, Ermon, Finn, "Disentangling Length from Quality in Direct Preference
        Optimization", 2024. Verified against HumainLab/Understand_MarginPO; the sign was derived
        besides.

    Example:
        >>> import torch
        >>> from lossary import RDPOLengthLoss
        >>> chosen, rejected = torch.tensor([-12.0, -9.0]), torch.tensor([-14.0, -8.0])
        >>> reference = torch.tensor([-13.0, -9.0]), torch.tensor([-11.0, -11.0])
        >>> lengths = torch.tensor([10, 8]), torch.tensor([12, 6])
        >>> RDPOLengthLoss()(chosen, rejected, *reference, *lengths)
        tensor(0.6688)
    """

    def __init__(
        self, beta: float = 0.1, alpha: float = 0.2, **options: Unpack[LossOptions]
    ) -> None:
        super().__init__(beta, **options)
        self.alpha = check_number("alpha", alpha, 0.0, math.inf, high_open=True)

    def per_sample(  # type: ignore[override]
        self,
        policy_chosen_logps: Tensor,
        policy_rejected_logps: Tensor,
        reference_chosen_logps: Tensor,
        reference_rejected_logps: Tensor,
        chosen_lengths: Tensor,
        rejected_lengths: Tensor,
    ) -> Tensor:
        """Return the loss of every pair, unreduced."""
        chosen, rejected = self.log_ratios(
            policy_chosen_logps,
            policy_rejected_logps,
            reference_chosen_logps,
            reference_rejected_logps,
        )
        d = chosen - rejected
        # Each cast before the difference: unsigned integers have none below 0.
        longer = chosen_lengths.to(d.dtype) - rejected_lengths.to(d.dtype)
        return softplus(-(self.beta * d + self.alpha * longer))

    def properties(self) -> Properties:
        """Return what this instance guarantees; the Lipschitz constant is in the policy's two."""
        return Properties(
            convex=True,
            lower=0.0,
            upper=math.inf,
            lipschitz=_steepest(self.beta, 0.0),
            smoothness=math.inf,
            limits=(("alpha = 0", "DPOLoss"), ("equal lengths", "DPOLoss")),
            counterexamples={"upper": (-1.0, 0.0, 0.0, 0.0, 1, 1)},
            source="Park et al. 2024",
        )


class SRPOLoss(PairwisePreferenceLoss):
    r"""Self-improving robust preference optimisation (SRPO): answer, and improve an answer.

    .. math:: \ell = (1 - \alpha) \bigl(1 - \beta [R(w|l) + R(w) - R(l|w) - R(l)]\bigr)^2
              + \alpha \Bigl\{ \bigl(\tfrac12 - \beta [R(w|l) - R(l|l)]\bigr)^2
              + \bigl(\tfrac12 - \beta [R(w|w) - R(l|w)]\bigr)^2 \Bigr\}

    with R(a|b) the log-ratio to the reference of writing a when b stands in the prompt as a draft,
    and R(a) that of writing a at once. The policy and its own reviser are trained together; the
    best policy does not depend on who wrote the training answers.

    Args:
        beta: beta > 0, finite. Default 0.1.
        alpha: weight of the improvement term, in [0, 1]. Default 0.5, which is a choice of this
            library: the paper's was not seen, and a community implementation has 0.8.
        reduction: see :class:`lossary.Loss`.

    Shape:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps,
        reference_rejected_logps, and for the model with a draft in its prompt, named answer given
        draft, policy_chosen_given_rejected_logps, policy_rejected_given_rejected_logps,
        policy_chosen_given_chosen_logps, policy_rejected_given_chosen_logps and the same four of
        the reference: twelve tensors (N, ...), SUMS over the tokens of a completion. Values of the
        same shape.

    Properties:
        A sum of squares of linear functions: convex in all log-probabilities together, infinitely
        smooth, with an unbounded gradient. l >= 0, with equality where the three brackets are
        1/beta, 1/(2 beta) and 1/(2 beta).

    Limits:
        alpha = 1: the improvement term alone, which has no gradient in the answers without draft.
        alpha = 0: the generative term alone.

    Note:
        Some texts write 1/2 before the improvement term: another alpha.

    Raises:
        ValueError: ``beta`` not positive and finite, ``alpha`` outside [0, 1]; inputs of different
            shapes.
        TypeError: hyper-parameters not numbers; inputs not floating point, or missing.

    Reference:
        Choi, Ahmadian, Geist, Pietquin, Azar, "Self-Improving Robust Preference Optimization",
        2024. There is no official code; verified against a community implementation and derived
        anew from the min-max objective. The convex combination is that of published reviews.

    Example:
        >>> import torch
        >>> from lossary import SRPOLoss
        >>> policy = torch.tensor([[-12.0], [-14.0]])
        >>> reference = torch.tensor([[-13.0], [-11.0]])
        >>> drafts = torch.tensor([[-8.0], [-9.0], [-7.0], [-11.0]])
        >>> SRPOLoss()(*policy, *reference, *drafts, *(drafts - 1.0))
        tensor(0.4300)
    """

    def __init__(
        self, beta: float = 0.1, alpha: float = 0.5, **options: Unpack[LossOptions]
    ) -> None:
        super().__init__(beta, **options)
        self.alpha = check_number("alpha", alpha, 0.0, 1.0)

    def per_sample(  # type: ignore[override]
        self,
        policy_chosen_logps: Tensor,
        policy_rejected_logps: Tensor,
        reference_chosen_logps: Tensor,
        reference_rejected_logps: Tensor,
        policy_chosen_given_rejected_logps: Tensor,
        policy_rejected_given_rejected_logps: Tensor,
        policy_chosen_given_chosen_logps: Tensor,
        policy_rejected_given_chosen_logps: Tensor,
        reference_chosen_given_rejected_logps: Tensor,
        reference_rejected_given_rejected_logps: Tensor,
        reference_chosen_given_chosen_logps: Tensor,
        reference_rejected_given_chosen_logps: Tensor,
    ) -> Tensor:
        """Return the loss of every pair, unreduced."""
        w, l = self.log_ratios(  # noqa: E741
            policy_chosen_logps,
            policy_rejected_logps,
            reference_chosen_logps,
            reference_rejected_logps,
        )
        w_l, l_l = self.log_ratios(
            policy_chosen_given_rejected_logps,
            policy_rejected_given_rejected_logps,
            reference_chosen_given_rejected_logps,
            reference_rejected_given_rejected_logps,
        )
        w_w, l_w = self.log_ratios(
            policy_chosen_given_chosen_logps,
            policy_rejected_given_chosen_logps,
            reference_chosen_given_chosen_logps,
            reference_rejected_given_chosen_logps,
        )
        generative = (1.0 - self.beta * (w_l + w - l_w - l)).square()
        improvement = (0.5 - self.beta * (w_l - l_l)).square()
        improvement = improvement + (0.5 - self.beta * (w_w - l_w)).square()
        return (1.0 - self.alpha) * generative + self.alpha * improvement

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        down = ([-1.0], *[[0.0]] * 11)
        unknown = {"lower": "0, but in the chosen answer alone it depends on the others"}
        flat = self.alpha == 1.0
        if flat:
            unknown["upper"] = unknown["lipschitz"] = "inf, but constant in the chosen answer alone"
        return Properties(
            convex=True,
            upper=None if flat else math.inf,
            lipschitz=None if flat else math.inf,
            smoothness=math.inf,
            counterexamples={"upper": down, "lipschitz": down},
            unknown=unknown,
            source="Choi et al. 2024",
        )


class _AveragePreferenceLoss(PairwisePreferenceLoss):
    """A loss of average log-probabilities without a reference; of sums and lengths on demand."""

    average: bool

    def per_sample(
        self,
        policy_chosen_logps: Tensor,
        policy_rejected_logps: Tensor,
        chosen_lengths: Tensor | None = None,
        rejected_lengths: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of every pair, unreduced."""
        chosen, rejected = self.log_ratios(policy_chosen_logps, policy_rejected_logps)
        if chosen_lengths is not None and rejected_lengths is not None:
            chosen = self._per_token(chosen, chosen_lengths)
            rejected = self._per_token(rejected, rejected_lengths)
        return self.pair_loss(chosen, rejected)

    def _set_average(self, average: object) -> None:
        check_choice("average", average, (True, False))
        self.average = bool(average)

    def _lengths_needed(self) -> tuple[bool, str]:
        return not self.average, f"average={self.average}"


class SimPOLoss(_AveragePreferenceLoss):
    r"""Simple preference optimisation (SimPO): no reference, per token, with a target margin.

    .. math:: \ell = -(1 - \varepsilon) \log \sigma(m) - \varepsilon \log \sigma(-m), \qquad
              m = \beta (r_w - r_l) - \gamma, \qquad
              r = x \quad\text{or}\quad r = \frac{1 - e^{-\alpha x}}{\alpha}

    with x the average log-probability of a token of the answer. It is the number by which
    decoding ranks, it does not grow with the length, and it saves the reference model. With
    ``alpha`` it is AlphaPO, whose reward is bent: for alpha > 0 unlikely answers count for more.

    Args:
        beta: beta > 0, finite. Default 2.
        gamma: the margin that is asked for, finite. Default 0.5.
        alpha: finite; 0, the default, is SimPO.
        label_smoothing: the epsilon above, in [0, 1). Default 0.
        average: ``True`` (default) where the inputs are averages already, ``False`` where they are
            sums and come with lengths.
        reduction: see :class:`lossary.Loss`.

    Shape:
        policy_chosen_logps, policy_rejected_logps (N, ...): AVERAGES over the tokens of a
        completion, as of ``sequence_logps(..., average=True)``; with ``average=False`` SUMS, and
        chosen_lengths, rejected_lengths of the same shape, integers, float32 or float64. Values of
        the same shape.

    Properties:
        alpha = 0: convex in both together, infinitely smooth, l >= H(eps), the binary entropy,
        unbounded above; the gradient in the two has a norm below sqrt(2) beta max(1 - eps, eps),
        for sums divided by the lengths. Other alpha: convex in m, not in both together. Unchanged
        when both averages move by the same number, for alpha = 0.

    Limits:
        alpha -> 0: SimPO. gamma = 0, alpha = 0: :class:`DPOLoss` with ``reference_free`` of
        averages.

    Note:
        Which code is which: the authors' ``gamma_beta_ratio`` is gamma/beta, 0.25 by default;
        TRL's ``simpo_gamma`` is gamma. From expm1, so that small alpha lose nothing; the exponent
        stops at 80, or 700 in float64, as in :class:`DPOLoss`.

    Raises:
        ValueError: ``beta`` not positive and finite, ``gamma`` or ``alpha`` not finite,
            ``label_smoothing`` outside [0, 1), ``average`` not a bool; inputs of different shapes,
            lengths below 1 (on CPU tensors, where looking costs nothing; elsewhere they count as
            1).
        TypeError: hyper-parameters not numbers; inputs not floating point; lengths missing with
            ``average=False``, given without, not numbers, or in half precision.

    Reference:
        Meng, Xia, Chen, "SimPO: Simple Preference Optimization with a Reference-Free Reward", 2024.
        Gupta et al., "AlphaPO: Reward Shape Matters for LLM Alignment", 2025, for ``alpha``.
        Verified against the authors' code of SimPO and TRL.

    Example:
        >>> import torch
        >>> from lossary import SimPOLoss
        >>> chosen, rejected = torch.tensor([-1.2, -0.9]), torch.tensor([-1.4, -0.8])
        >>> SimPOLoss()(chosen, rejected)
        tensor(0.9238)
        >>> loss = SimPOLoss(average=False)
        >>> loss(10 * chosen, 5 * rejected, torch.tensor([10, 10]), torch.tensor([5, 5]))
        tensor(0.9238)
    """

    def __init__(
        self,
        beta: float = 2.0,
        gamma: float = 0.5,
        alpha: float = 0.0,
        label_smoothing: float = 0.0,
        average: bool = True,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(beta, **options)
        finite = {"low_open": True, "high_open": True}
        self.gamma = check_number("gamma", gamma, -math.inf, math.inf, **finite)
        self.alpha = check_number("alpha", alpha, -math.inf, math.inf, **finite)
        self.label_smoothing = check_number(
            "label_smoothing", label_smoothing, 0.0, 1.0, high_open=True
        )
        self._set_average(average)

    def pair_loss(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the loss of every pair from its two averages."""
        r = _exponential(chosen, -self.alpha) - _exponential(rejected, -self.alpha)
        return _logistic(self.beta * r - self.gamma, self.label_smoothing)

    def properties(self) -> Properties:
        """Return what this instance guarantees; the Lipschitz constant is in the policy's two."""
        eps = self.label_smoothing
        unknown = {}
        if self.alpha:
            unknown = {
                "convex": "convex in m, not in both log-probabilities together",
                "lower": "H(eps), but in the chosen answer alone it depends on the other",
                "upper": "inf, but for alpha < 0 bounded in the chosen answer alone",
                "lipschitz": "grows like an exponential, until that stops",
                "smoothness": "smooth up to where the exponent stops, with a kink there",
            }
        plain = self.alpha == 0.0
        others = ([0.0],) if self.average else ([0.0], [1.0], [1.0])
        return Properties(
            convex=True if plain else None,
            lower=_entropy(eps) if plain else None,
            upper=math.inf if plain else None,
            lipschitz=_steepest(self.beta, eps) if plain else None,
            smoothness=math.inf if plain else None,
            limits=(("alpha -> 0", "SimPO"), ("gamma = 0, alpha = 0", "DPOLoss of averages")),
            counterexamples={"upper": ([-1.0], *others)},
            unknown=unknown,
            source="Meng, Xia, Chen 2024",
        )


class _ProbabilityLoss(_AveragePreferenceLoss):
    """A loss of probabilities and of their complements, which needs log-probabilities below 0."""

    #: A curve through 0 would not be one of these.
    of_probabilities = True

    def _check_inputs(self, inputs: dict[str, Any], weight: Tensor | None) -> None:
        super()._check_inputs(inputs, weight)
        for name, x in inputs.items():
            if name.endswith("logps") and x is not None and readable(x):
                wrong = ~(x <= 0)
                if weight is not None:
                    wrong &= weight != 0
                if bool(wrong.any()):
                    found = float(x.detach()[wrong][0])
                    raise ValueError(f"{name}: expected log-probabilities <= 0, got {found:g}")

    @staticmethod
    def _below_0(x: Tensor) -> Tensor:
        """Return x, but not so near 0 that the odds, or their slope, are infinite."""
        return x.clamp(max=-1e-12 if x.dtype == torch.float64 else -1e-6)


class ORPOLoss(_ProbabilityLoss):
    r"""Odds-ratio preference optimisation (ORPO): fine-tuning and preferences in one stage.

    .. math:: \ell = -x_w - \lambda \log \sigma(o_w - o_l), \qquad
              o = \log \frac{p}{1 - p}, \quad p = e^x

    with x the average log-probability of a token of the answer, so that p is the geometric mean
    of the tokens' probabilities. Neither a reference model nor a fine-tuned one to start from: the
    likelihood term teaches the chosen answers, the odds ratio keeps the rejected ones from being
    learnt beside them.

    Args:
        lam: lambda > 0, finite: the weight of the odds ratio, TRL's ``beta``. Default 0.1.
        nll: the likelihood term: ``"sequence_mean"`` (default), -x of each chosen answer;
            ``"token_mean"``, the mean over all chosen tokens of the batch, which needs
            ``average=False``; ``"none"`` for the odds ratio alone.
        average: ``True`` (default) where the inputs are averages already, ``False`` where they are
            sums and come with lengths.
        reduction: see :class:`lossary.Loss`.

    Shape:
        policy_chosen_logps, policy_rejected_logps (N, ...), <= 0: AVERAGES over the tokens of a
        completion, as of ``sequence_logps(..., average=True)``; with ``average=False`` SUMS, and
        chosen_lengths, rejected_lengths of the same shape, integers, float32 or float64. Values of
        the same shape.

    Properties:
        l > 0, unbounded above, infinitely smooth below 0. Not convex: in the chosen average it is
        concave where the rejected answer has odds above 1. The slope of the log-odds is
        1/(1 - e^x), without bound as the rejected answer becomes certain. ``"token_mean"`` couples
        the batch: a weight scales a pair's own value, its tokens stay in the sum of the lengths.

    Limits:
        Unlikely answers, p -> 0: the log-odds are the log-probabilities, and it is :class:`CPOLoss`
        with beta 1. That is what sums given in the place of averages come to.

    Note:
        Which code is which: TRL and Liger take averages for the odds, and ``nll="token_mean"``. The
        logarithm of 1 - p is exact for p near 0 and near 1; the average stops at -1e-6, or -1e-12
        in float64, where odds would be infinite, and has no gradient beyond.

    Raises:
        ValueError: ``lam`` not positive and finite, unknown ``nll``, ``"token_mean"`` with
            ``average=True``, ``average`` not a bool; inputs of different shapes,
            log-probabilities above 0 or lengths below 1 (on CPU tensors, where looking costs
            nothing).
        TypeError: ``lam`` not a number; inputs not floating point; lengths missing with
            ``average=False``, given without, not numbers, or in half precision.

    Reference:
        Hong, Lee, Thorne, "ORPO: Monolithic Preference Optimization without Reference Model", 2024.
        Verified against TRL and Liger.

    Example:
        >>> import torch
        >>> from lossary import ORPOLoss
        >>> chosen, rejected = torch.tensor([-1.2, -0.9]), torch.tensor([-1.4, -0.8])
        >>> ORPOLoss()(chosen, rejected)
        tensor(1.1175)
    """

    def __init__(
        self,
        lam: float = 0.1,
        nll: str = "sequence_mean",
        average: bool = True,
        **options: Unpack[LossOptions],
    ) -> None:
        lam = check_positive("lam", lam)
        super().__init__(lam, **options)
        self.lam = lam
        check_choice("nll", nll, ("sequence_mean", "token_mean", "none"))
        self._set_average(average)
        if self.average and nll == "token_mean":
            raise ValueError("average: expected False with nll='token_mean', got True")
        self.nll = nll
        self.separable = nll != "token_mean"  # type: ignore[misc]

    def per_sample(
        self,
        policy_chosen_logps: Tensor,
        policy_rejected_logps: Tensor,
        chosen_lengths: Tensor | None = None,
        rejected_lengths: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of every pair, unreduced."""
        chosen, rejected = self.log_ratios(policy_chosen_logps, policy_rejected_logps)
        likelihood = chosen
        if chosen_lengths is not None and rejected_lengths is not None:
            likelihood = _likelihood(chosen, chosen_lengths, self.nll)
            chosen = self._per_token(chosen, chosen_lengths)
            rejected = self._per_token(rejected, rejected_lengths)
        values = self.pair_loss(chosen, rejected)
        return values if self.nll == "none" else values - likelihood

    def pair_loss(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the odds-ratio term of every pair from its two averages."""
        chosen, rejected = self._below_0(chosen), self._below_0(rejected)
        odds = (chosen - log1mexp(chosen)) - (rejected - log1mexp(rejected))
        return self.lam * softplus(-odds)

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        further = () if self.average else ([1.0], [1.0])
        unknown = {
            "lipschitz": "without bound as the rejected answer becomes certain, not in the chosen",
            "lower": "0, where log-probabilities are",
        }
        return Properties(
            convex=False,
            upper=math.inf,
            smoothness=math.inf,
            limits=(("p -> 0", "CPOLoss with beta 1"),),
            counterexamples={
                "convex": ([-5.0], [-0.02], [math.log(0.9)], *further),
                "upper": ([-1.0], [-1.0], *further),
            },
            unknown=unknown,
            source="Hong, Lee, Thorne 2024",
        )


class CPOLoss(PairwisePreferenceLoss):
    r"""Contrastive preference optimisation (CPO): DPO without a reference, plus a likelihood term.

    .. math:: \ell = f(\log \pi(y_w) - \log \pi(y_l)) + c \operatorname{NLL}(y_w), \qquad
              f(d) = -(1 - \varepsilon) \log \sigma(\beta d) - \varepsilon \log \sigma(-\beta d),
              \quad \max(0, 1 - \beta d) \quad\text{or}\quad \Bigl(d - \frac{1}{2 \beta}\Bigr)^2

    DPO with a uniform reference, which halves memory and time; the likelihood of the chosen answer
    takes the reference's place in holding the policy. Proposed for machine translation, where
    several good translations differ little.

    Args:
        beta: beta > 0, finite. Default 0.1.
        bc_coef: the c above, >= 0, finite, TRL's ``cpo_alpha``. Default 1.
        loss_type: f: ``"sigmoid"`` (default), ``"hinge"`` or ``"ipo"``.
        label_smoothing: the epsilon above, in [0, 1), of ``"sigmoid"`` only. Default 0.
        nll: ``"sum"`` (default), ``"token_mean"`` or ``"sequence_mean"``: as in :class:`RPOLoss`.
        reduction: see :class:`lossary.Loss`.

    Shape:
        policy_chosen_logps, policy_rejected_logps (N, ...): SUMS over the tokens of a completion,
        for every ``nll``. chosen_lengths of the same shape, integers, float32 or float64, for the
        two means only. Values of the same shape.

    Properties:
        Convex in both log-probabilities together; infinitely smooth, with a kink for ``"hinge"``.
        For c > 0 unbounded below as a function of real numbers (not ``"ipo"``), while
        log-probabilities, being <= 0, keep it >= 0. ``"token_mean"`` couples the batch: a weight
        scales a pair's own value, its tokens stay in the sum of the lengths.

    Limits:
        bc_coef = 0: :class:`DPOLoss`, :class:`HingePreferenceLoss` and :class:`IPOLoss` (at
        tau = beta) without a reference.

    Note:
        Which code is which: the paper's likelihood term is ``"sum"``, TRL's ``"token_mean"``. For
        ``loss_type="ipo"`` TRL averages the log-probabilities: give averages in the place of the
        sums. There is no reference to give: ``DPOLoss(reference_free=True)`` has the same first
        term.

    Raises:
        ValueError: ``beta`` not positive and finite, ``bc_coef`` negative or infinite, unknown
            ``loss_type`` or ``nll``, ``label_smoothing`` outside [0, 1) or not 0 with another
            ``loss_type``; inputs of different shapes, lengths below 1 (on CPU tensors, where
            looking costs nothing; elsewhere ``"sequence_mean"`` counts them as 1).
        TypeError: hyper-parameters not numbers; inputs not floating point; lengths missing for a
            mean, given for ``"sum"``, not numbers, or in half precision.

    Reference:
        Xu, Sharaf, Chen, Tan, Shen, Van Durme, Murray, Kim, "Contrastive Preference Optimization:
        Pushing the Boundaries of LLM Performance in Machine Translation", 2024. Verified against
        TRL; that the paper sums its likelihood term is RECALLED.

    Example:
        >>> import torch
        >>> from lossary import CPOLoss
        >>> chosen, rejected = torch.tensor([-12.0, -9.0]), torch.tensor([-14.0, -8.0])
        >>> CPOLoss(bc_coef=0.1)(chosen, rejected)
        tensor(1.7213)
        >>> CPOLoss(nll="token_mean")(chosen, rejected, torch.tensor([10, 8]))
        tensor(1.8379)
    """

    def __init__(
        self,
        beta: float = 0.1,
        bc_coef: float = 1.0,
        loss_type: str = "sigmoid",
        label_smoothing: float = 0.0,
        nll: str = "sum",
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(beta, **options)
        self.bc_coef = check_number("bc_coef", bc_coef, 0.0, math.inf, high_open=True)
        check_choice("loss_type", loss_type, ("sigmoid", "hinge", "ipo"))
        self.loss_type = loss_type
        self.label_smoothing = check_number(
            "label_smoothing", label_smoothing, 0.0, 1.0, high_open=True
        )
        if label_smoothing and loss_type != "sigmoid":
            raise ValueError(
                f"label_smoothing: expected 0 with loss_type={loss_type!r}, got {label_smoothing}"
            )
        check_choice("nll", nll, ("sum", "token_mean", "sequence_mean"))
        self.nll = nll
        self.separable = nll != "token_mean"  # type: ignore[misc]

    def per_sample(  # type: ignore[override]
        self,
        policy_chosen_logps: Tensor,
        policy_rejected_logps: Tensor,
        chosen_lengths: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of every pair, unreduced."""
        chosen, rejected = self.log_ratios(policy_chosen_logps, policy_rejected_logps)
        values = self.pair_loss(chosen, rejected)
        # At 0 not 0 * inf, for a sequence that has become impossible.
        if self.bc_coef == 0.0:
            return values
        return values - self.bc_coef * _likelihood(chosen, chosen_lengths, self.nll)

    def pair_loss(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the contrastive term of every pair from its two log-probabilities."""
        d = chosen - rejected
        if self.loss_type == "hinge":
            return torch.relu(1.0 - self.beta * d)
        if self.loss_type == "ipo":
            return (d - 0.5 / self.beta).square()
        return _logistic(self.beta * d, self.label_smoothing)

    def _lengths_needed(self) -> tuple[bool, str]:
        return self.nll != "sum", f"nll={self.nll!r}"

    def properties(self) -> Properties:
        """Return what this instance guarantees; the Lipschitz constant is in the policy's two."""
        further = ([0.0],) if self.nll == "sum" else ([0.0], [1.0])
        ipo = self.loss_type == "ipo"
        lower: float | None = _entropy(self.label_smoothing)
        unknown = {}
        if self.bc_coef:
            lower = None if ipo else -math.inf
            unknown = {"lower": "depends on the rejected answer and the weight"} if ipo else {}
        slope = _steepest(self.beta, self.label_smoothing) + self.bc_coef
        return Properties(
            convex=True,
            lower=0.0 if ipo and lower is not None else lower,
            upper=math.inf,
            lipschitz=math.inf if ipo else slope,
            smoothness=0 if self.loss_type == "hinge" else math.inf,
            limits=(("bc_coef = 0", "DPOLoss, HingePreferenceLoss or IPOLoss of the policy"),),
            counterexamples={
                "lower": ([1.0], *further),
                "upper": ([-1.0], *further),
                "lipschitz": ([-1.0], *further),
            },
            unknown=unknown,
            source="Xu et al. 2024",
        )


class LogicPreferenceLoss(_ProbabilityLoss):
    r"""Preference losses compiled from statements about which answer is good.

    .. math:: \ell = -\log \sigma(\beta \rho), \qquad
              \rho = \log \frac{\sum_{\text{numerator}} P}{\sum_{\text{denominator}} P}

    The two answers are taken to be good independently, with the probabilities p = pi(w) and
    q = pi(l): the rows of the truth table have TT = p q, TF = p (1 - q), FT = (1 - p) q and
    FF = (1 - p)(1 - q). A loss says in which rows its statement holds and in which it fails. By
    name:

    - ``"ce"``: w is good. exp(rho) = p/(1 - p), l = -log p for beta = 1.
    - ``"ce_unl"``, unlikelihood: w is good and l is not. l = -log p - log(1 - q).
    - ``"cpo"``, the core of CPO, SLiC and RRHF: p/q.
    - ``"orpo"``: p (1 - q)/((1 - p) q), the odds ratio.
    - ``"un_cpo"``: l implies w. (1 - (1 - p) q)/((1 - p) q).
    - ``"c_cpo"``: p/((1 - p) q).

    Args:
        name: one of the above, or ``None`` with rows of one's own. Default ``"orpo"``.
        numerator: rows where the statement holds, a tuple of ``"TT"``, ``"TF"``, ``"FT"`` and
            ``"FF"``, with ``name=None``.
        denominator: rows where it fails, likewise. A row may stand in both.
        beta: beta > 0, finite. Default 1.
        average: ``True`` (default) where the inputs are averages already, ``False`` where they are
            sums and come with lengths.
        reduction: see :class:`lossary.Loss`.

    Shape:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps,
        reference_rejected_logps (N, ...), <= 0: AVERAGES over the tokens of a completion; with
        ``average=False`` SUMS, and chosen_lengths, rejected_lengths of the same shape, integers,
        float32 or float64. The references both or none. Values of the same shape.

    Properties:
        l > 0, infinitely smooth below 0. Fewer rows that fail, or more that hold, lower the loss
        everywhere: un_cpo <= c_cpo <= cpo and orpo <= ce_unl. With references, rho at the
        reference's probabilities is subtracted.

    Limits:
        ``"cpo"`` with references: :class:`DPOLoss`, of averages. ``"orpo"`` without:
        :class:`ORPOLoss` without its likelihood term, at lam = 1.

    Note:
        All in the logarithm, with that of 1 - p exact for p near 0 and near 1. Log-probabilities
        stop at -1e-6, or -1e-12 in float64. Of sums p and q are practically 0, and the losses that
        differ in 1 - p or 1 - q are the same.

    Raises:
        ValueError: unknown ``name`` or rows, rows beside a name, none without; ``beta`` not
            positive and finite, ``average`` not a bool; inputs of different shapes, one reference
            only, log-probabilities above 0 or lengths below 1 (on CPU tensors, where looking costs
            nothing).
        TypeError: ``beta`` not a number; inputs not floating point; lengths missing with
            ``average=False``, given without, not numbers, or in half precision.

    Reference:
        Richardson, Srikumar, Sabharwal, "Understanding the Logic of Direct Preference Alignment
        through Logic", 2024. There is no official code: every formula was derived from the truth
        table and checked against its closed form; the names ``"un_cpo"`` and ``"c_cpo"`` are
        RECALLED, UNVERIFIED.

    Example:
        >>> import torch
        >>> from lossary import LogicPreferenceLoss
        >>> chosen, rejected = torch.tensor([-1.2, -0.9]), torch.tensor([-1.4, -0.8])
        >>> LogicPreferenceLoss()(chosen, rejected)
        tensor(0.6747)
        >>> LogicPreferenceLoss(None, ("TT", "TF"), ("FT", "FF"))(chosen, rejected)
        tensor(1.0500)
    """

    def __init__(
        self,
        name: str | None = "orpo",
        numerator: tuple[str, ...] | None = None,
        denominator: tuple[str, ...] | None = None,
        beta: float = 1.0,
        average: bool = True,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(beta, **options)
        check_choice("name", name, (*_STATEMENTS, None))
        for argument, rows in (("numerator", numerator), ("denominator", denominator)):
            if name is not None and rows is not None:
                raise ValueError(f"{argument}: expected None with name={name!r}, got {rows!r}")
            if name is None and (
                not isinstance(rows, tuple | list) or not rows or not set(rows) <= set(_ROWS)
            ):
                raise ValueError(f"{argument}: expected some of {_ROWS}, got {rows!r}")
        self.name = name
        self.numerator, self.denominator = numerator, denominator
        self._set_average(average)

    def per_sample(  # type: ignore[override]
        self,
        policy_chosen_logps: Tensor,
        policy_rejected_logps: Tensor,
        reference_chosen_logps: Tensor | None = None,
        reference_rejected_logps: Tensor | None = None,
        chosen_lengths: Tensor | None = None,
        rejected_lengths: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of every pair, unreduced."""

        def ratio(chosen: Tensor, rejected: Tensor) -> Tensor:
            chosen, rejected = _upcast(chosen), _upcast(rejected)
            if chosen_lengths is not None and rejected_lengths is not None:
                chosen = self._per_token(chosen, chosen_lengths)
                rejected = self._per_token(rejected, rejected_lengths)
            return self._log_odds(chosen, rejected)

        rho = ratio(policy_chosen_logps, policy_rejected_logps)
        if reference_chosen_logps is not None and reference_rejected_logps is not None:
            rho = rho - ratio(reference_chosen_logps, reference_rejected_logps)
        return softplus(-self.beta * rho)

    def _log_odds(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the logarithm of the numerator's rows over the denominator's."""
        p, q = self._below_0(chosen), self._below_0(rejected)
        not_p, not_q = log1mexp(p), log1mexp(q)
        rows = {"TT": p + q, "TF": p + not_q, "FT": not_p + q, "FF": not_p + not_q}
        # Two rows that make up a whole, such as p q + p (1 - q), without the rounding of their sum.
        wholes = {("TT", "TF"): p, ("FT", "FF"): not_p, ("TT", "FT"): q, ("TF", "FF"): not_q}

        def log_sum(names: tuple[str, ...]) -> Tensor:
            left, terms = set(names), []
            for pair, whole in wholes.items():
                if left >= set(pair):
                    left -= set(pair)
                    terms.append(whole)
            terms += [rows[name] for name in sorted(left)]
            return terms[0] if len(terms) == 1 else torch.stack(terms).logsumexp(0)

        statement = (self.numerator or (), self.denominator or ())
        above, below = statement if self.name is None else _STATEMENTS[self.name]
        return log_sum(above) - log_sum(below)

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        alone = "depends on the statement, and in the chosen answer alone on the other"
        return Properties(
            smoothness=math.inf,
            limits=(("cpo, with references", "DPOLoss"), ("orpo", "ORPOLoss without likelihood")),
            unknown=dict.fromkeys(("convex", "lower", "upper", "lipschitz"), alone),
            source="Richardson, Srikumar, Sabharwal 2024",
        )


class _UnpairedPreferenceLoss(_SequenceLoss):
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

    def _evaluate(
        self, inputs: tuple[Any, ...], weight: Tensor | None, normalizer: float | Tensor | None
    ) -> Tensor:
        *pair, policy, reference = inputs
        if policy is not None:
            # Before the weight is worked into the inputs: who is not there does not count.
            self._check_inputs(dict(zip(self._names, inputs, strict=True)), weight)
            kl = self._divergence(policy, reference, weight)
            inputs = (*pair[:-1], kl, None, None)
        return super()._evaluate(inputs, weight, normalizer)

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

    def _evaluate(
        self, inputs: tuple[Any, ...], weight: Tensor | None, normalizer: float | Tensor | None
    ) -> Tensor:
        policy, reference, _, update = inputs
        check_choice("update", update, (True, False))
        if self._updates(update, policy):
            # Before the weight is worked into the inputs: who is not there does not count.
            self._check_inputs(dict(zip(self._names, inputs, strict=True)), weight)
            with torch.no_grad():
                self._see("delta", self._rewards(policy, reference), weight)
        return super()._evaluate(inputs, weight, normalizer)

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
        -\|a - mu\|^2 for a log-density, without the 1/2. Their form of all pairs of a batch ordered
        by scores is not here: give the pairs.

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
        values = y * softplus(self.bias * one - two) + (1.0 - y) * softplus(self.bias * two - one)
        if self.bc_coef == 0.0:
            return values
        return values - self.bc_coef * 0.5 * (logps_1.mean(1) + logps_2.mean(1))

    def _advantage(self, logps: Tensor, reference: Tensor | None) -> Tensor:
        ratio = logps if reference is None else logps - reference
        if self.gamma == 1.0:
            return self.alpha * ratio.sum(1)
        steps = torch.arange(ratio.shape[1], dtype=ratio.dtype, device=ratio.device)
        return self.alpha * (ratio * self.gamma**steps).sum(1)

    def _evaluate(
        self, inputs: tuple[Any, ...], weight: Tensor | None, normalizer: float | Tensor | None
    ) -> Tensor:
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
        if weight is not None:
            check_weight_type("weight", weight)
            _check_weight(weight, label.shape, label)
        _check_probability("label", label, weight)
        return super()._evaluate(inputs, weight, normalizer)

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


class WPOWeighting(nn.Module):
    r"""Weights of pairs by how likely the policy would have written them (WPO).

    .. math:: v = \exp\Bigl(\frac{1}{L} \sum_t \bigl(\log p_t - \log \sum_k p_{t,k}^2\bigr)\Bigr),
              \qquad w = \min(c, v_w \, v_l)

    with p_t the policy's probability of the token at position t and p_(t,k) that of token k there.
    Preferences collected from other models are off-policy; weighing each pair by the likelihood of
    both its answers makes them resemble those of the policy's own. Divided by the expected
    probability of a sampled token, an answer sampled from the policy weighs about 1, whatever the
    entropy.

    Args:
        clamp: the c above, > 0, finite, or ``None`` for no bound. Default 1.

    Shape:
        chosen_token_logps (N, T), chosen_mask (N, T), bool or numbers 0 and 1, chosen_log_squares
        (N, T): log sum p^2 of every position; the same of the rejected answers, whose T may differ.
        Returns the weights (N,), detached, in float32 for half precision: the ``weight`` of a
        preference loss with ``reduction="batchmean"``; with ``"mean"`` they would be divided by
        their sum. ``log_squares(logits)`` makes (..., T) of logits (..., T, K), which are those of
        :func:`lossary.token_logps`, shifted as its result is.

    Properties:
        Positive, at most c, without a gradient. Without bound, v exceeds 1 where the tokens written
        are likelier than the average one, up to 1/p of the mode per token. An answer without tokens
        has v = 1. What the mask leaves out may be infinite or nan.

    Limits:
        A uniform distribution over K tokens: v = 1 for every answer. log_squares of 0: v is the
        geometric mean of the tokens' probabilities, as in open-instruct.

    Note:
        Which code is which: ``clamp=None`` is TRL 1.x, ``clamp=1.0`` TRL 0.19, which bounds the
        pair's weight as here. open-instruct leaves out the sum of squares and clamps.

    Raises:
        ValueError: ``clamp`` not positive and finite; shapes that do not fit; a mask other than 0
            and 1 (on CPU tensors, where looking costs nothing).
        TypeError: ``clamp`` not a number; log-probabilities not floating point; a complex mask.

    Reference:
        Zhou et al., "WPO: Enhancing RLHF with Weighted Preference Optimization", 2024. Verified
        against TRL.

    Example:
        >>> import torch
        >>> from lossary import WPOWeighting
        >>> logits = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]])
        >>> squares = WPOWeighting.log_squares(logits)
        >>> logps = torch.log_softmax(logits, -1)
        >>> mask = torch.ones(1, 2, dtype=torch.bool)
        >>> chosen, rejected = (logps[..., 0], mask, squares), (logps[..., 1], mask, squares)
        >>> WPOWeighting()(*chosen, *rejected)
        tensor([0.2997])
    """

    def __init__(self, clamp: float | None = 1.0) -> None:
        super().__init__()
        self.clamp = None if clamp is None else check_positive("clamp", clamp)

    @torch.no_grad()
    def forward(
        self,
        chosen_token_logps: Tensor,
        chosen_mask: Tensor,
        chosen_log_squares: Tensor,
        rejected_token_logps: Tensor,
        rejected_mask: Tensor,
        rejected_log_squares: Tensor,
    ) -> Tensor:
        """Return the weight of every pair."""
        chosen = self._log_weight("chosen", chosen_token_logps, chosen_mask, chosen_log_squares)
        rejected = self._log_weight(
            "rejected", rejected_token_logps, rejected_mask, rejected_log_squares
        )
        if chosen.shape != rejected.shape:
            raise ValueError(
                f"rejected_token_logps: expected {len(chosen)} rows, as chosen_token_logps has, "
                f"got {len(rejected)}"
            )
        weight = torch.exp(chosen + rejected)
        return weight if self.clamp is None else weight.clamp(max=self.clamp)

    @staticmethod
    def log_squares(logits: Tensor) -> Tensor:
        """Return log sum_k p_k^2 of every row of logits, without a gradient."""
        check_floating("logits", logits)
        f = _upcast(logits.detach())
        return torch.logsumexp(2.0 * f, -1) - 2.0 * torch.logsumexp(f, -1)

    @staticmethod
    def _log_weight(which: str, logps: Tensor, mask: Tensor, squares: Tensor) -> Tensor:
        """Return the mean excess of the log-probabilities of an answer's tokens."""
        name = f"{which}_token_logps"
        check_floating(name, logps)
        if logps.dim() != 2:
            raise ValueError(f"{name}: expected shape (N, T), got {tuple(logps.shape)}")
        check_floating(f"{which}_log_squares", squares)
        check_like(f"{which}_log_squares", squares, name, logps)
        present = _SequenceLoss._present(mask, logps, f"{which}_mask")
        excess = torch.where(present, _upcast(logps) - _upcast(squares), 0.0)
        lengths = present.sum(1).clamp(min=1).to(excess.dtype)
        return excess.sum(1) / lengths


def _logistic(z: Tensor, smoothing: float) -> Tensor:
    """Return -(1 - smoothing) log sigmoid(z) - smoothing log sigmoid(-z)."""
    if smoothing == 0.0:  # not 0 * inf, for a sequence that has become impossible
        return softplus(-z)
    return (1.0 - smoothing) * softplus(-z) + smoothing * softplus(z)


def _exponential(x: Tensor, a: float) -> Tensor:
    """Return (exp(a x) - 1)/a, or x itself at a = 0, which is its limit."""
    if a == 0.0:
        return x
    # Where a is small, the quotient must not overflow either.
    most = (700.0 if x.dtype == torch.float64 else 80.0) + min(0.0, math.log(abs(a)))
    return expm1((a * x).clamp(max=most)) / a


def _likelihood(logps: Tensor, lengths: Tensor | None, nll: str) -> Tensor:
    """Return log-probabilities as sums, per token, or so that their mean is that of all tokens."""
    if nll == "sum" or lengths is None:
        return logps
    if nll != "token_mean":
        return _SequenceLoss._per_token(logps, lengths)
    tokens = lengths.sum().clamp(min=1).to(logps.dtype)
    return logps * (logps.numel() / tokens)


def _entropy(p: float) -> float:
    return -p * math.log(p) - (1.0 - p) * math.log1p(-p) if p else 0.0


def _steepest(beta: float, smoothing: float) -> float:
    """Return the largest norm of DPO's gradient in the two log-probabilities of the policy."""
    return math.sqrt(2.0) * beta * max(1.0 - smoothing, smoothing)


def _check_probability(name: str, x: Tensor, weight: Tensor | None) -> None:
    """Raise an error for a number outside [0, 1], where it can be seen and counts."""
    if readable(x):
        wrong = ~((x >= 0) & (x <= 1))
        if weight is not None:
            wrong &= weight != 0
        if bool(wrong.any()):
            found = float(x.detach()[wrong][0])
            raise ValueError(f"{name}: expected probabilities in [0, 1], got {found:g}")
