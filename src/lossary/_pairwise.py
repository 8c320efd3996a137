"""PairwisePreferenceLoss: what losses of pairs of answers share."""

import math
from collections.abc import Callable
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from lossary._base import LossOptions, _upcast
from lossary._checks import check_choice, check_floating, check_like, check_positive
from lossary._numerics import expm1, softplus
from lossary._sequence_base import SequenceLoss, check_log_probability, check_range, per_token

SOURCE_OF_DPO = "Rafailov et al. 2023; Mitchell 2023"
#: The inputs of every pairwise loss.
LOGPS = (
    "policy_chosen_logps",
    "policy_rejected_logps",
    "reference_chosen_logps",
    "reference_rejected_logps",
)


class PairwisePreferenceLoss(SequenceLoss):
    r"""Base class of the losses of a pair of answers, of which one is preferred.

    .. math:: \ell = \operatorname{pair\_loss}(\rho_w, \rho_l), \qquad
              \rho_w = \log \pi(y_w) - \log \pi_{\text{ref}}(y_w), \qquad
              \rho_l = \log \pi(y_l) - \log \pi_{\text{ref}}(y_l)

    A subclass writes one method, ``pair_loss(self, chosen, rejected)``, of the two log-ratios. The
    checks, the differences, weights and reductions are here, and so are labels that may be wrong:
    with ``label_smoothing`` epsilon, which says how probably, the loss is

    .. math:: (1 - \varepsilon) \operatorname{pair\_loss}(\rho_w, \rho_l)
              + \varepsilon \operatorname{pair\_loss}(\rho_l, \rho_w)

    unless a subclass overrides ``smoothed_loss(self, chosen, rejected, label_smoothing)``. A loss
    of further inputs overrides ``per_sample`` instead, with the four as the first ones and
    ``label_smoothing``, if it takes that, as the last; what it calls ``..._logps`` and
    ``..._lengths`` is checked too.

    Args:
        beta: beta > 0, finite: how strongly the policy is held to the reference; a small beta lets
            it go far. Default 0.1.
        reference_free: take the policy's log-probabilities themselves as log-ratios, and leave the
            reference's unused. Default ``False``; without reference inputs it is so anyway.
        reduction: see :class:`lossary.Loss`.

    Shape:
        policy_chosen_logps, policy_rejected_logps and, both or none, reference_chosen_logps,
        reference_rejected_logps: one shape, (N, ...), one number per sequence. label_smoothing of
        the same shape, floating point, in [0, 1], or ``None``: per pair, the probability that its
        label is wrong, in the place of the constructor's number where a loss has one. No gradient
        flows to it. Values likewise.

    Note:
        The inputs are SUMS over the tokens of a completion, unless a loss says otherwise: averages
        are smaller by a factor of hundreds, and so are the gradients. Half precision is cast to
        float32 before any difference: a sum of -1000 has a spacing of 4 in bfloat16, so compute
        sums in float32, as :func:`lossary.sequence_logps` does. The reference is not detached
        here: compute it under ``torch.no_grad()``. At a ``label_smoothing`` of 0 the exchanged
        pair is not there, even where it is infinite. What a loss declares of itself is declared
        without ``label_smoothing``. Confidences C of labels, as in CREAM, are
        ``label_smoothing=1 - C``; of two answers that a tree search visited N_w and N_l times,
        MCTS-DPO has ``label_smoothing`` min(1 - c, 1/2), c = 1/(1 + N_l/max(1, N_w)).

    Raises:
        ValueError: inputs of different shapes or devices, one of the two reference inputs only,
            ``beta`` not positive and finite, ``label_smoothing`` out of its range (on CPU tensors,
            where looking costs nothing).
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
        >>> loss(chosen, rejected, *reference, label_smoothing=torch.tensor([0.0, 0.4]))
        tensor(0.7850)
        >>> loss.implicit_rewards(chosen, rejected, *reference)
        (tensor([0.1000, 0.0000]), tensor([-0.3000,  0.3000]))
    """

    pair_loss: Callable[[Tensor, Tensor], Tensor]
    #: The probability that a label is wrong, where none is given per pair.
    label_smoothing: float = 0.0
    #: Its range, per pair.
    _smoothings: ClassVar[tuple[str, Callable[[Tensor], Tensor]]] = (
        "[0, 1]",
        lambda x: (x >= 0.0) & (x <= 1.0),
    )

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
        label_smoothing: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of every pair, unreduced."""
        ratios = self.log_ratios(
            policy_chosen_logps,
            policy_rejected_logps,
            reference_chosen_logps,
            reference_rejected_logps,
        )
        return self.smoothed_loss(*ratios, self._smoothing(label_smoothing, ratios[0]))

    def smoothed_loss(
        self, chosen: Tensor, rejected: Tensor, label_smoothing: float | Tensor
    ) -> Tensor:
        """Return the loss of every pair whose label is wrong with a probability."""
        wrong = label_smoothing
        if not isinstance(wrong, Tensor) and wrong == 0.0:
            return self.pair_loss(chosen, rejected)
        right = 1.0 - wrong
        as_labelled = self.pair_loss(counted(chosen, right), counted(rejected, right))
        exchanged = self.pair_loss(counted(rejected, wrong), counted(chosen, wrong))
        return right * as_labelled + wrong * exchanged

    def _smoothing(self, label_smoothing: Tensor | None, like: Tensor) -> float | Tensor:
        """Return the probabilities that labels are wrong: these, or the constructor's number."""
        if label_smoothing is None:
            return self.label_smoothing
        return label_smoothing.detach().to(like.dtype)

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
        named = dict(zip(LOGPS, inputs, strict=True))
        # Not every loss takes a reference.
        given = {k: x for k, x in named.items() if x is not None or k in LOGPS[:2]}
        self._check_inputs(given, None)
        chosen, rejected = self.log_ratios(*inputs)
        return self.beta * chosen.detach(), self.beta * rejected.detach()

    def _check_inputs(self, inputs: dict[str, Any], weight: Tensor | None) -> None:
        super()._check_inputs(inputs, weight)
        one, other = (inputs.get(name) for name in LOGPS[2:])
        if (one is None) != (other is None):
            given, missing = LOGPS[2:] if other is None else LOGPS[:1:-1]
            raise ValueError(f"{missing}: expected a tensor, as for {given}, got None")
        eps = inputs.get("label_smoothing")
        if eps is not None:
            check_floating("label_smoothing", eps)
            check_like("label_smoothing", eps, LOGPS[0], inputs[LOGPS[0]])
            interval, inside = self._smoothings
            check_range("label_smoothing", eps, weight, inside, f"probabilities in {interval}")


class PerTokenPreferenceLoss(PairwisePreferenceLoss):
    """A loss of log-ratios that ``length_normalize`` divides by the lengths of the completions."""

    length_normalize: bool

    def per_sample(  # type: ignore[override]
        self,
        policy_chosen_logps: Tensor,
        policy_rejected_logps: Tensor,
        reference_chosen_logps: Tensor | None = None,
        reference_rejected_logps: Tensor | None = None,
        chosen_lengths: Tensor | None = None,
        rejected_lengths: Tensor | None = None,
        label_smoothing: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of every pair, unreduced."""
        chosen, rejected = self.log_ratios(
            policy_chosen_logps,
            policy_rejected_logps,
            reference_chosen_logps,
            reference_rejected_logps,
        )
        if chosen_lengths is not None and rejected_lengths is not None:
            chosen = per_token(chosen, chosen_lengths)
            rejected = per_token(rejected, rejected_lengths)
        eps = self._smoothing(label_smoothing, chosen)
        return self.smoothed_loss(chosen, rejected, eps)

    def _lengths_needed(self) -> tuple[bool, str]:
        return self.length_normalize, f"length_normalize={self.length_normalize}"


class AveragePreferenceLoss(PairwisePreferenceLoss):
    """A loss of average log-probabilities without a reference; of sums and lengths on demand."""

    average: bool

    def per_sample(
        self,
        policy_chosen_logps: Tensor,
        policy_rejected_logps: Tensor,
        chosen_lengths: Tensor | None = None,
        rejected_lengths: Tensor | None = None,
        label_smoothing: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of every pair, unreduced."""
        chosen, rejected = self.log_ratios(policy_chosen_logps, policy_rejected_logps)
        if chosen_lengths is not None and rejected_lengths is not None:
            chosen = per_token(chosen, chosen_lengths)
            rejected = per_token(rejected, rejected_lengths)
        eps = self._smoothing(label_smoothing, chosen)
        return self.smoothed_loss(chosen, rejected, eps)

    def _set_average(self, average: object) -> None:
        check_choice("average", average, (True, False))
        self.average = bool(average)

    def _lengths_needed(self) -> tuple[bool, str]:
        return not self.average, f"average={self.average}"


class ProbabilityPreferenceLoss(AveragePreferenceLoss):
    """A loss of probabilities and of their complements, which needs log-probabilities below 0."""

    #: A curve through 0 would not be one of these.
    of_probabilities = True

    def _check_inputs(self, inputs: dict[str, Any], weight: Tensor | None) -> None:
        super()._check_inputs(inputs, weight)
        for name, x in inputs.items():
            if name.endswith("logps") and x is not None:
                check_log_probability(name, x, weight)

    @staticmethod
    def _below_0(x: Tensor) -> Tensor:
        """Return x, but not so near 0 that the odds, or their slope, are infinite."""
        return x.clamp(max=-1e-12 if x.dtype == torch.float64 else -1e-6)


def logistic(z: Tensor, smoothing: float | Tensor) -> Tensor:
    """Return -(1 - smoothing) log sigmoid(z) - smoothing log sigmoid(-z)."""
    right, wrong = 1.0 - smoothing, smoothing
    return right * softplus(-counted(z, right)) + wrong * softplus(counted(z, wrong))


def counted(x: Tensor, share: float | Tensor) -> Tensor:
    """Return x, but 0 where its share is 0.

    Not 0 * inf, for a sequence that has become impossible.
    """
    if isinstance(share, Tensor):
        return x.masked_fill(share == 0.0, 0.0)
    return x if share else torch.zeros_like(x)


def exponential(x: Tensor, a: float) -> Tensor:
    """Return (exp(a x) - 1)/a, or x itself at a = 0, which is its limit."""
    if a == 0.0:
        return x
    # Where a is small, the quotient must not overflow either.
    most = (700.0 if x.dtype == torch.float64 else 80.0) + min(0.0, math.log(abs(a)))
    return expm1((a * x).clamp(max=most)) / a


def normalized_logps(logps: Tensor, lengths: Tensor | None, nll: str) -> Tensor:
    """Return log-probabilities as sums, per token, or so that their mean is that of all tokens."""
    if nll == "sum" or lengths is None:
        return logps
    if nll != "token_mean":
        return per_token(logps, lengths)
    tokens = lengths.sum().clamp(min=1).to(logps.dtype)
    return logps * (logps.numel() / tokens)


def binary_entropy(p: float) -> float:
    return -p * math.log(p) - (1.0 - p) * math.log1p(-p) if p else 0.0


def steepest(beta: float, smoothing: float) -> float:
    """Return the largest norm of DPO's gradient in the two log-probabilities of the policy."""
    return math.sqrt(2.0) * beta * max(1.0 - smoothing, smoothing)
