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
CREAM, consistency C of a pair                  DPOLoss(), label_smoothing=1 - C
MCTS-DPO, visits N_w and N_l                    DPOLoss(), label_smoothing=min(1 - c, 1/2),
                                                c = 1/(1 + N_l/max(1, N_w))
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
ORPO in Liger                                   ORPOLoss(beta, "token_mean", average=False)
ORPO in TRL                                     ORPOLoss(beta, "none") + SequenceNLLLoss(),
                                                the latter of prompts and answers
CPO, the paper                                  CPOLoss(beta)
TRL CPO                                         CPOLoss(beta, cpo_alpha, nll="token_mean")
KTO, authors; TRL                               KTOLoss(beta), kl_policy_logps, ...
TRL "bco"                                       BCOLoss(beta)
WPO in TRL 1.x; 0.19                            WPOWeighting(None); WPOWeighting(1.0)
==============================================  ================================================
"""

import math
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from lossary._base import Loss, LossOptions, _upcast, check_sample_weight
from lossary._checks import (
    check_choice,
    check_device,
    check_floating,
    check_like,
    check_number,
    check_positive,
    check_weight_type,
)
from lossary._numerics import softplus
from lossary._pairwise import (
    LOGPS,
    SOURCE_OF_DPO,
    PairwisePreferenceLoss,
    PerTokenPreferenceLoss,
    binary_entropy,
    counted,
    exponential,
    logistic,
    normalized_logps,
    steepest,
)
from lossary._properties import Properties
from lossary._sequence_base import check_probabilities, check_probability, present_tokens
from lossary._state import RunningMean


class DPOLoss(PerTokenPreferenceLoss):
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
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
        (N, ...): SUMS over the tokens of a completion, also with ``length_normalize``; the
        references both or none. chosen_lengths, rejected_lengths of the same shape, integers,
        float32 or float64, with ``length_normalize`` only. label_smoothing of the same shape,
        floating point, in [0, 1], or ``None`` for the constructor's number: per pair, and a
        constant. Values of the same shape.

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
        """Return the loss of every pair from its two log-ratios, without smoothing."""
        return softplus(-self.beta * (self._score(chosen) - self._score(rejected)))

    def _score(self, ratio: Tensor) -> Tensor:
        """Return s(ratio), less a constant that cancels, so that alpha = 1 needs no limit."""
        if self.f_divergence == "js":
            return -softplus(-ratio)
        a = {"reverse_kl": 0.0, "forward_kl": -1.0}.get(self.f_divergence, self.alpha - 1.0)
        return exponential(ratio, a)

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
            lower=binary_entropy(eps) if linear else None,
            upper=None if steep else math.inf,
            lipschitz=steepest(self.beta, eps) if linear or name == "js" else None,
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
            source=f"{SOURCE_OF_DPO}; Wang et al. 2023",
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
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
        (N, ...): SUMS over the tokens of a completion; the references both or none. label_smoothing
        of the same shape, floating point, in [0, 1/2), or ``None`` for ``flip_rate``: per pair, and
        a constant. Values of the same shape.

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
        ValueError: ``beta`` not positive, ``flip_rate`` outside [0, 1/2), ``label_smoothing`` out
            of its range, inputs of different shapes, one reference only.
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

    _smoothings = ("[0, 0.5)", lambda x: (x >= 0.0) & (x < 0.5))

    def __init__(
        self, beta: float = 0.1, flip_rate: float = 0.1, **options: Unpack[LossOptions]
    ) -> None:
        super().__init__(beta, **options)
        self.flip_rate = check_number("flip_rate", flip_rate, 0.0, 0.5, high_open=True)

    def smoothed_loss(
        self, chosen: Tensor, rejected: Tensor, label_smoothing: float | Tensor
    ) -> Tensor:
        """Return the loss of every pair from its two log-ratios and its flip rate."""
        z, eps = self.beta * (chosen - rejected), label_smoothing
        return softplus(-z) - eps / (1.0 - 2.0 * eps) * counted(z, eps)

    def _smoothing(self, label_smoothing: Tensor | None, like: Tensor) -> float | Tensor:
        if label_smoothing is None:
            return self.flip_rate
        return super()._smoothing(label_smoothing, like)

    def properties(self) -> Properties:
        """Return what this instance guarantees; the Lipschitz constant is in the policy's two."""
        excess = self.flip_rate / (1.0 - 2.0 * self.flip_rate)
        return Properties(
            convex=True,
            lower=-math.inf if self.flip_rate else 0.0,
            upper=math.inf,
            lipschitz=steepest(self.beta, 0.0) * (1.0 + excess),
            smoothness=math.inf,
            minimiser="sigmoid(z) = p, w preferred with probability p and then flipped",
            limits=(("flip_rate = 0", "DPOLoss"),),
            counterexamples={"lower": (1.0, 0.0, 0.0, 0.0), "upper": (-1.0, 0.0, 0.0, 0.0)},
            source=f"{SOURCE_OF_DPO}; Chowdhury, Kini, Natarajan 2024",
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
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
        (N, ...): SUMS over the tokens of a completion, for every ``nll``; the references both or
        none. chosen_lengths of the same shape, integers, float32 or float64, for the two means
        only. label_smoothing of the same shape, floating point, in [0, 1], or ``None`` for the
        constructor's number: per pair, and a constant. Values of the same shape.

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
        lengths in ``"token_mean"`` is that of this process. The likelihood term is not smoothed.

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

    def per_sample(  # type: ignore[override]
        self,
        policy_chosen_logps: Tensor,
        policy_rejected_logps: Tensor,
        reference_chosen_logps: Tensor | None = None,
        reference_rejected_logps: Tensor | None = None,
        chosen_lengths: Tensor | None = None,
        label_smoothing: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of every pair, unreduced."""
        values = super().per_sample(
            policy_chosen_logps,
            policy_rejected_logps,
            reference_chosen_logps,
            reference_rejected_logps,
            label_smoothing,
        )
        # At eta 0 not 0 * inf, for a sequence that has become impossible.
        return values - self._bonus(policy_chosen_logps, chosen_lengths) if self.eta else values

    def pair_loss(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the DPO term of every pair from its two log-ratios, without smoothing."""
        return softplus(-self.beta * (chosen - rejected))

    def _bonus(self, logps: Tensor, lengths: Tensor | None) -> Tensor:
        """Return the likelihood term, of the sign of the log-probabilities."""
        return (
            self.eta
            * (self.beta if self.nll == "sum" else 1.0)
            * normalized_logps(logps, lengths, self.nll)
        )

    def _lengths_needed(self) -> tuple[bool, str]:
        return self.nll != "sum", f"nll={self.nll!r}"

    def properties(self) -> Properties:
        """Return what this instance guarantees; the Lipschitz constant is in the policy's two."""
        others = (0.0, 0.0, 0.0) if self.nll == "sum" else (0.0, 0.0, 0.0, 1)
        extra = self.eta * (self.beta if self.nll == "sum" else 1.0)
        return Properties(
            convex=True,
            lower=-math.inf if self.eta else binary_entropy(self.label_smoothing),
            upper=math.inf,
            lipschitz=steepest(self.beta, self.label_smoothing) + extra,
            smoothness=math.inf,
            limits=(("eta = 0", "DPOLoss"),),
            counterexamples={"lower": (1.0, *others), "upper": (-1.0, *others)},
            source=f"{SOURCE_OF_DPO}; Liu et al. 2024",
        )


class IPOLoss(PerTokenPreferenceLoss):
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
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
        (N, ...): SUMS over the tokens of a completion, also with ``length_normalize``; the
        references both or none. chosen_lengths, rejected_lengths of the same shape, integers,
        float32 or float64, with ``length_normalize`` only. label_smoothing of the same shape,
        floating point, in [0, 1], or ``None`` for 0: see :class:`lossary.PairwisePreferenceLoss`.
        Values of the same shape.

    Properties:
        A parabola: convex in all log-probabilities together, infinitely smooth, l >= 0, unbounded
        above, with an unbounded gradient: 2 (d - 1/(2 tau)) in policy_chosen_logps and its opposite
        in policy_rejected_logps (divided by the lengths where d is). If w is preferred with
        probability p, the mean over both orders is least at d = (p - 1/2)/tau, finite also for p of
        0 and 1; of one pair with label_smoothing eps at d = (1 - 2 eps)/(2 tau), which is that of p
        = 1 - eps. Unchanged when both log-probabilities of the policy move by the same number,
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
        ValueError: ``tau`` not positive and finite; ``label_smoothing`` out of its range; inputs of
            different shapes, one reference only, lengths below 1 (on CPU tensors, where looking
            costs nothing; elsewhere they count as 1).
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
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
        (N, ...): SUMS over the tokens of a completion, but averages for RRHF; the references both
        or none. label_smoothing of the same shape, floating point, in [0, 1], or ``None`` for 0:
        see :class:`lossary.PairwisePreferenceLoss`. Values of the same shape.

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
        The hinge is scaled by beta: the pair stops at d = m/beta, 10 with the defaults. The
        likelihood term is not smoothed.

    Raises:
        ValueError: ``beta`` not positive and finite, ``margin`` or ``nll_coef`` negative or
            infinite; ``label_smoothing`` out of its range; inputs of different shapes, one
            reference only.
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
        label_smoothing: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of every pair, unreduced."""
        values = super().per_sample(
            policy_chosen_logps,
            policy_rejected_logps,
            reference_chosen_logps,
            reference_rejected_logps,
            label_smoothing,
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
            lipschitz=steepest(self.beta, 0.0) + self.nll_coef,
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
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
        (N, ...): SUMS over the tokens of a completion; the references both or none. label_smoothing
        of the same shape, floating point, in (0, 1), or ``None`` for the constructor's number: per
        pair, and a constant. Values of the same shape.

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

    _smoothings = ("(0, 1)", lambda x: (x > 0.0) & (x < 1.0))

    def __init__(
        self, beta: float = 0.1, label_smoothing: float = 1e-3, **options: Unpack[LossOptions]
    ) -> None:
        super().__init__(beta, **options)
        self.label_smoothing = check_number(
            "label_smoothing", label_smoothing, 0.0, 1.0, low_open=True, high_open=True
        )

    def smoothed_loss(
        self, chosen: Tensor, rejected: Tensor, label_smoothing: float | Tensor
    ) -> Tensor:
        """Return the loss of every pair from its two log-ratios and its smoothing."""
        # At infinity 0 * inf; beyond 800 the probabilities are 0 and 1 in any precision.
        z, eps = (self.beta * (chosen - rejected)).clamp(-800.0, 800.0), label_smoothing
        logs: tuple[float | Tensor, float | Tensor]
        if isinstance(eps, Tensor):
            logs = torch.log1p(-eps), torch.log(eps)
        else:
            logs = math.log1p(-eps), math.log(eps)
        right = torch.sigmoid(z) * (softplus(-z) + logs[0])
        wrong = torch.sigmoid(-z) * (softplus(z) + logs[1])
        return -right - wrong

    def _without_absent(self, inputs: tuple[Any, ...], weight: Tensor) -> tuple[Any, ...]:
        *logps, eps = super()._without_absent(inputs, weight)
        # At a smoothing of 0 the loss is infinite.
        return *logps, None if eps is None else eps.masked_fill(weight == 0, 0.5)

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
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
        (N, ...): SUMS over the tokens of a completion; the references both or none. label_smoothing
        of the same shape, floating point, in [0, 1], or ``None`` for 0: see
        :class:`lossary.PairwisePreferenceLoss`. Values of the same shape.

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
        ValueError: ``beta`` not positive and finite; ``label_smoothing`` out of its range; inputs
            of different shapes, one reference only.
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
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
        (N, ...): SUMS over the tokens of a completion; the references both or none. update:
        ``False`` leaves the running mean as it is. label_smoothing of the same shape, floating
        point, in [0, 1], or ``None`` for 0: see :class:`lossary.PairwisePreferenceLoss`. Values of
        the same shape.

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
            ``update`` neither ``True`` nor ``False``; ``label_smoothing`` out of its range; inputs
            of different shapes, one reference only.
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

    def per_sample(  # type: ignore[override]
        self,
        policy_chosen_logps: Tensor,
        policy_rejected_logps: Tensor,
        reference_chosen_logps: Tensor | None = None,
        reference_rejected_logps: Tensor | None = None,
        update: bool = True,
        label_smoothing: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of every pair, unreduced."""
        del update
        return super().per_sample(
            policy_chosen_logps,
            policy_rejected_logps,
            reference_chosen_logps,
            reference_rejected_logps,
            label_smoothing,
        )

    def pair_loss(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the loss of every pair from its two log-ratios."""
        delta = self.delta if isinstance(self.delta, float) else self.delta_mean.to(chosen.dtype)
        return softplus(delta - self.beta * chosen) + softplus(self.beta * rejected - delta)

    def _values(
        self, inputs: tuple[Any, ...], weight: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        *logps, update, _ = inputs
        check_choice("update", update, (True, False))
        if self.delta == "running" and self._updates(update, logps[0]):
            # Before the weight is worked into the inputs: who is not there does not count.
            self._check_inputs(dict(zip(self._names, inputs, strict=True)), weight)
            with torch.no_grad():
                rewards = self.beta * torch.stack(self.log_ratios(*logps))
                self._see("delta", rewards, weight)
        return super()._values(inputs, weight)

    def properties(self) -> Properties:
        """Return what this instance guarantees; the Lipschitz constant is in the policy's two."""
        return Properties(
            convex=True,
            upper=math.inf,
            lipschitz=steepest(self.beta, 0.0),
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
        default beta, and so the values are of the order of 1e5. There is no label_smoothing:
        win_prob = 1 - eps has the gradient of the two hard labels, mixed.

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
                check_probabilities(name, x, LOGPS[0], inputs[LOGPS[0]], weight)

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
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
        (N, ...): SUMS over the tokens of a completion; the references both or none. label_smoothing
        of the same shape, floating point, in [0, 1], or ``None`` for 0: see
        :class:`lossary.PairwisePreferenceLoss`. Values of the same shape.

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
        ValueError: ``beta`` not positive and finite, unknown ``variant``; ``label_smoothing`` out
            of its range; inputs of different shapes, one reference only.
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
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
        (N,): SUMS over the tokens of a completion; the references both or none. Values (N,), of
        ranks: there is no ``weight``, and no label_smoothing per pair.

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

    def per_sample(  # type: ignore[override]
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
            return self._of_ranks(u.sort(stable=True).values, v.sort(stable=True).values)
        u, _ = (_upcast(policy_chosen_logps) - _upcast(policy_rejected_logps)).sort(stable=True)
        if reference_chosen_logps is None:
            return self._of_ranks(u, torch.zeros_like(u))
        v, _ = (_upcast(reference_chosen_logps) - _upcast(reference_rejected_logps)).sort(
            stable=True
        )
        return self._of_ranks(u, v)

    def _of_ranks(self, u: Tensor, v: Tensor) -> Tensor:
        """Return the loss of every rank from u and v, sorted already."""
        return logistic(self.beta * (u - v), self.label_smoothing)

    def _check_inputs(self, inputs: dict[str, Any], weight: Tensor | None) -> None:
        super()._check_inputs(inputs, weight)
        if weight is not None:
            raise ValueError(
                "weight: expected None, as values are of ranks and not of pairs, got a tensor"
            )
        if inputs[LOGPS[0]].dim() != 1:
            raise ValueError(
                f"{LOGPS[0]}: expected shape (N,), got {tuple(inputs[LOGPS[0]].shape)}"
            )

    def properties(self) -> Properties:
        """Return what this instance guarantees, of a batch of 4."""
        zero, order = [0.0] * 4, [c / self.beta for c in (3.0, -3.0, 3.0, -3.0)]
        others = (zero, order, zero) if self.paired else (order, zero, zero)
        return Properties(
            convex=False,
            lower=binary_entropy(self.label_smoothing),
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
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
        (N, ...): SUMS over the tokens of a completion; the references both or none. label_smoothing
        of the same shape, floating point, in [0, 1], or ``None`` for 0: see
        :class:`lossary.PairwisePreferenceLoss`. Values of the same shape.

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
        ValueError: ``beta`` not positive and finite, ``tau`` outside (0, 1); ``label_smoothing``
            out of its range; inputs of different shapes, one reference only.
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
            lipschitz=steepest(self.beta, 0.0) * max(2.0, 1.0 / self.tau),
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
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
        (N, ...): SUMS over the tokens of a completion; the references both or none. label_smoothing
        of the same shape, floating point, in [0, 1], or ``None`` for 0: see
        :class:`lossary.PairwisePreferenceLoss`. Values of the same shape.

    Properties:
        Convex in all log-probabilities together; a kink where rho_w = 0, for lambda > 0. l > 0,
        unbounded above. l is at least the DPO loss, and equal to it where rho_w >= 0. The gradient
        in the two of the policy has a norm below beta sqrt((1 + lambda)^2 + 1).

    Limits:
        lam = 0: :class:`DPOLoss`.

    Note:
        Without a reference every chosen answer is charged, as its log-probability is below 0.

    Raises:
        ValueError: ``beta`` not positive and finite, ``lam`` negative or infinite;
            ``label_smoothing`` out of its range; inputs of different shapes, one reference only.
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
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
        (N, ...): SUMS over the tokens of a completion. chosen_lengths, rejected_lengths of the same
        shape, integers, float32 or float64, for every alpha. All six are needed. label_smoothing of
        the same shape, floating point, in [0, 1], or ``None`` for 0: see
        :class:`lossary.PairwisePreferenceLoss`. Values of the same shape.

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
        ValueError: ``beta`` not positive and finite, ``alpha`` negative or infinite;
            ``label_smoothing`` out of its range; inputs of different shapes, lengths below 1 (on
            CPU tensors, where looking costs nothing).
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
        label_smoothing: Tensor | None = None,
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
        # Exchanging the answers exchanges their lengths, too.
        return logistic(self.beta * d + self.alpha * longer, self._smoothing(label_smoothing, d))

    def properties(self) -> Properties:
        """Return what this instance guarantees; the Lipschitz constant is in the policy's two."""
        return Properties(
            convex=True,
            lower=0.0,
            upper=math.inf,
            lipschitz=steepest(self.beta, 0.0),
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
        Some texts write 1/2 before the improvement term: another alpha. There is no
        label_smoothing: exchanged labels would exchange drafts, too.

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


class SparsePreferenceLoss(Loss):
    r"""DPO of the tokens that a mask keeps, with a price for every token that it keeps.

    .. math:: \ell = -\log \sigma(z) + \lambda \sum_t (m_{w,t} + m_{l,t}), \qquad
              z = \beta \Bigl(\sum_t m_{w,t} \, \rho_{w,t} - \sum_t m_{l,t} \, \rho_{l,t}\Bigr)

    with rho_t the log-ratio of policy and reference at token t, and m_t in [0, 1] its share. Two
    answers that have most tokens in common pull at the same parameters, and the likelihoods of both
    fall together (gradient entanglement). Masks that keep the few tokens that tell them apart undo
    that; where a model makes the masks, they are learnt with the policy.

    Args:
        beta: beta > 0, finite. Default 0.1.
        lam: lambda >= 0, finite: the price of a token. Default 0.01, which is a choice of this
            library.
        reduction: see :class:`lossary.Loss`.

    Shape:
        policy_chosen_token_logps, reference_chosen_token_logps, chosen_mask (N, T):
        log-probabilities of tokens, of :func:`lossary.token_logps`, neither summed nor averaged,
        and the masks in [0, 1], floating point or bool; policy_rejected_token_logps,
        reference_rejected_token_logps, rejected_mask (N, S). Padding has mask 0. label_smoothing
        (N,), floating point, in [0, 1], or ``None`` for 0: see
        :class:`lossary.PairwisePreferenceLoss`. Values (N,).

    Properties:
        Convex in all log-probabilities together and, at given log-probabilities, in the masks, but
        not in both; infinitely smooth, l > 0, unbounded above. The gradient in the chosen answer's
        log-probabilities is -beta sigma(-z) m_w, and in its mask -beta sigma(-z) rho_w + lambda: a
        token is kept where it tells more than it costs. Gradient flows to the masks.

    Limits:
        All masks 1, lam = 0: :class:`DPOLoss` of the sums. All masks 0: log 2, with a gradient in
        the masks alone.

    Note:
        The norm is a sum over tokens, so that long answers cost more. A token of mask 0 with an
        infinite or undefined log-ratio is not there; with a finite one, its mask still has a
        gradient.

    Raises:
        ValueError: ``beta`` not positive and finite, ``lam`` negative or infinite; shapes that do
            not fit; masks or ``label_smoothing`` outside [0, 1] (on CPU tensors, where looking
            costs nothing).
        TypeError: hyper-parameters not numbers; log-probabilities not floating point; masks neither
            floating point nor bool.

    Reference:
        Yuan, Zeng, Wu, Wang, Wang, Leqi, "A Common Pitfall of Margin-based Language Model
        Alignment: Gradient Entanglement", 2024. The sparse loss is named in its summaries; formula
        and authors are RECALLED, and how the masks are made is UNVERIFIED: the authors' repository
        does not contain it.

    Example:
        >>> import torch
        >>> from lossary import SparsePreferenceLoss
        >>> chosen, rejected = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.0, -4.0, 0.0]])
        >>> reference = torch.tensor([[-1.5, -3.0]]), torch.tensor([[-1.5, -3.0, 0.0]])
        >>> masks = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 1.0, 0.0]])
        >>> SparsePreferenceLoss()(chosen, rejected, *reference, *masks)
        tensor(0.6181)
    """

    def __init__(
        self, beta: float = 0.1, lam: float = 0.01, **options: Unpack[LossOptions]
    ) -> None:
        super().__init__(**options)
        self.beta = check_positive("beta", beta)
        self.lam = check_number("lam", lam, 0.0, math.inf, high_open=True)

    def per_sample(
        self,
        policy_chosen_token_logps: Tensor,
        policy_rejected_token_logps: Tensor,
        reference_chosen_token_logps: Tensor,
        reference_rejected_token_logps: Tensor,
        chosen_mask: Tensor,
        rejected_mask: Tensor,
        label_smoothing: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of every pair, unreduced."""
        chosen, kept = self._kept(
            policy_chosen_token_logps, reference_chosen_token_logps, chosen_mask
        )
        rejected, kept_too = self._kept(
            policy_rejected_token_logps, reference_rejected_token_logps, rejected_mask
        )
        z = self.beta * (chosen - rejected)
        eps = 0.0 if label_smoothing is None else label_smoothing.detach().to(z.dtype)
        values = logistic(z, eps)
        return values + self.lam * (kept + kept_too) if self.lam else values

    @staticmethod
    def _kept(policy: Tensor, reference: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-ratios of an answer's tokens that are kept, summed, and how many are."""
        ratio = policy - reference
        mask = mask.to(ratio.dtype)
        ratio = ratio.masked_fill((mask == 0.0) & ~ratio.isfinite(), 0.0)
        return (mask * ratio).sum(1), mask.sum(1)

    def _values(
        self, inputs: tuple[Any, ...], weight: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        *tokens, eps = inputs
        names = [name.replace("_logps", "_token_logps") for name in LOGPS]
        names += ["chosen_mask", "rejected_mask"]
        first = tokens[0]
        check_floating(names[0], first)
        if first.dim() != 2:
            raise ValueError(f"{names[0]}: expected shape (N, T), got {tuple(first.shape)}")
        check_floating(names[1], tokens[1])
        if tokens[1].dim() != 2 or len(tokens[1]) != len(first):
            shape = tuple(tokens[1].shape)
            raise ValueError(f"{names[1]}: expected shape ({len(first)}, S), got {shape}")
        check_device(names[1], tokens[1], first)
        check_sample_weight(weight, first.shape[:1], first)
        for i in range(2, 6):
            name, x = names[i], tokens[i]
            (check_floating if i < 4 else check_weight_type)(name, x)
            check_like(name, x, names[i % 2], tokens[i % 2])
            if i >= 4:
                check_probability(name, x, None if weight is None else weight.unsqueeze(1))
        if eps is not None:
            check_floating("label_smoothing", eps)
            check_like("label_smoothing", eps, "the pairs", first.new_empty(len(first)))
            check_probability("label_smoothing", eps, weight)
        return super()._values(inputs, weight)

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        down = [[-1.0]], *[[[0.0]]] * 3, [[1.0]], [[1.0]]
        return Properties(
            convex=True,
            upper=math.inf,
            smoothness=math.inf,
            limits=(("all masks 1, lam = 0", "DPOLoss"),),
            counterexamples={"upper": down},
            unknown={
                "lower": "0, but more at given masks",
                "lipschitz": "beta times the norm of the masks",
            },
            source="Yuan et al. 2024",
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
        present = present_tokens(mask, logps.shape, logps, f"{which}_mask")
        excess = torch.where(present, _upcast(logps) - _upcast(squares), 0.0)
        lengths = present.sum(1).clamp(min=1).to(excess.dtype)
        return excess.sum(1) / lengths
