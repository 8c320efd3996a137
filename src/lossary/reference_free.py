r"""Preference losses without a reference: averages, odds, statements about the two answers.

.. math:: z = \beta \, \bigl(r(y_w) - r(y_l)\bigr) - \gamma

with r(y) a function of the policy's own log-probability of an answer, mostly its average over the
tokens. Which argument reproduces which published code: see :mod:`lossary.preference`.
"""

import math
from typing import Unpack

import torch
from torch import Tensor

from lossary._base import LossOptions, _upcast
from lossary._checks import check_choice, check_number, check_positive
from lossary._numerics import log1mexp, softplus
from lossary._pairwise import (
    AveragePreferenceLoss,
    PairwisePreferenceLoss,
    ProbabilityPreferenceLoss,
    binary_entropy,
    exponential,
    logistic,
    normalized_logps,
    steepest,
)
from lossary._properties import Properties
from lossary._sequence_base import per_token

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


class SimPOLoss(AveragePreferenceLoss):
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
        chosen_lengths, rejected_lengths of the same shape, integers, float32 or float64.
        label_smoothing of the same shape, floating point, in [0, 1], or ``None`` for the
        constructor's number: per pair, and a constant. Values of the same shape.

    Properties:
        alpha = 0: convex in both together, infinitely smooth, l >= H(eps), the binary entropy,
        unbounded above; the gradient in the two has a norm below sqrt(2) beta max(1 - eps, eps),
        for sums divided by the lengths. Other alpha: convex in m, not in both together. Unchanged
        when both averages move by the same number, for alpha = 0.

    Limits:
        alpha -> 0: SimPO. gamma = 0, alpha = 0: :class:`DPOLoss` with ``reference_free`` of
        averages.

    Note:
        Which code is which: the authors' ``gamma_beta_ratio`` is gamma/beta, 0.25 by default; TRL's
        ``simpo_gamma`` is gamma. From expm1, so that small alpha lose nothing; the exponent stops
        at 80, or 700 in float64, as in :class:`DPOLoss`. Smoothing turns the sign of m, margin
        included, as in the authors' code: for gamma other than 0 that is not the loss of the
        exchanged pair.

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

    def smoothed_loss(
        self, chosen: Tensor, rejected: Tensor, label_smoothing: float | Tensor
    ) -> Tensor:
        """Return the loss of every pair from its two averages and its smoothing."""
        r = exponential(chosen, -self.alpha) - exponential(rejected, -self.alpha)
        # Not that of the exchanged pair, whose margin would be asked for the other way round.
        return logistic(self.beta * r - self.gamma, label_smoothing)

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
            lower=binary_entropy(eps) if plain else None,
            upper=math.inf if plain else None,
            lipschitz=steepest(self.beta, eps) if plain else None,
            smoothness=math.inf if plain else None,
            limits=(("alpha -> 0", "SimPO"), ("gamma = 0, alpha = 0", "DPOLoss of averages")),
            counterexamples={"upper": ([-1.0], *others)},
            unknown=unknown,
            source="Meng, Xia, Chen 2024",
        )


class ORPOLoss(ProbabilityPreferenceLoss):
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
        chosen_lengths, rejected_lengths of the same shape, integers, float32 or float64.
        label_smoothing of the same shape, floating point, in [0, 1], or ``None`` for 0: see
        :class:`lossary.PairwisePreferenceLoss`. Values of the same shape.

    Properties:
        l > 0, unbounded above, infinitely smooth below 0. Not convex: in the chosen average it is
        concave where the rejected answer has odds above 1. The slope of the log-odds is
        1/(1 - e^x), without bound as the rejected answer becomes certain. ``"token_mean"`` couples
        the batch: a weight scales a pair's own value, its tokens stay in the sum of the lengths.

    Limits:
        Unlikely answers, p -> 0: the log-odds are the log-probabilities, and it is :class:`CPOLoss`
        with beta 1. That is what sums given in the place of averages come to.

    Note:
        Which code is which: TRL and Liger take averages for the odds. Liger's likelihood term is
        ``nll="token_mean"``; TRL's is the mean over all tokens of the prompts and the chosen
        answers: ``nll="none"`` plus :class:`SequenceNLLLoss` of both. The logarithm of 1 - p is
        exact for p near 0 and near 1; the average stops at -1e-6, or -1e-12 in float64, where odds
        would be infinite, and has no gradient beyond. The likelihood term is not smoothed.

    Raises:
        ValueError: ``lam`` not positive and finite, unknown ``nll``, ``"token_mean"`` with
            ``average=True``, ``average`` not a bool; ``label_smoothing`` out of its range; inputs
            of different shapes, log-probabilities above 0 or lengths below 1 (on CPU tensors, where
            looking costs nothing).
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
        label_smoothing: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of every pair, unreduced."""
        values = super().per_sample(
            policy_chosen_logps,
            policy_rejected_logps,
            chosen_lengths,
            rejected_lengths,
            label_smoothing,
        )
        if self.nll == "none":
            return values
        return values - normalized_logps(_upcast(policy_chosen_logps), chosen_lengths, self.nll)

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
        two means only. label_smoothing of the same shape, floating point, in [0, 1], for every
        ``loss_type``, or ``None`` for the constructor's number: per pair, and a constant. Values of
        the same shape.

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
        term. The likelihood term is not smoothed.

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
        label_smoothing: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of every pair, unreduced."""
        chosen, rejected = self.log_ratios(policy_chosen_logps, policy_rejected_logps)
        values = self.smoothed_loss(chosen, rejected, self._smoothing(label_smoothing, chosen))
        # At 0 not 0 * inf, for a sequence that has become impossible.
        if self.bc_coef == 0.0:
            return values
        return values - self.bc_coef * normalized_logps(chosen, chosen_lengths, self.nll)

    def pair_loss(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the contrastive term of every pair, without smoothing."""
        d = chosen - rejected
        if self.loss_type == "hinge":
            return torch.relu(1.0 - self.beta * d)
        if self.loss_type == "ipo":
            return (d - 0.5 / self.beta).square()
        return softplus(-self.beta * d)

    def _lengths_needed(self) -> tuple[bool, str]:
        return self.nll != "sum", f"nll={self.nll!r}"

    def properties(self) -> Properties:
        """Return what this instance guarantees; the Lipschitz constant is in the policy's two."""
        further = ([0.0],) if self.nll == "sum" else ([0.0], [1.0])
        ipo = self.loss_type == "ipo"
        lower: float | None = binary_entropy(self.label_smoothing)
        unknown = {}
        if self.bc_coef:
            lower = None if ipo else -math.inf
            unknown = {"lower": "depends on the rejected answer and the weight"} if ipo else {}
        slope = steepest(self.beta, self.label_smoothing) + self.bc_coef
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


class LogicPreferenceLoss(ProbabilityPreferenceLoss):
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
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
        (N, ...), <= 0: AVERAGES over the tokens of a completion; with ``average=False`` SUMS, and
        chosen_lengths, rejected_lengths of the same shape, integers, float32 or float64. The
        references both or none. label_smoothing of the same shape, floating point, in [0, 1], or
        ``None`` for 0: see :class:`lossary.PairwisePreferenceLoss`. Values of the same shape.

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
            positive and finite, ``average`` not a bool; ``label_smoothing`` out of its range;
            inputs of different shapes, one reference only, log-probabilities above 0 or lengths
            below 1 (on CPU tensors, where looking costs nothing).
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
        label_smoothing: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of every pair, unreduced."""
        chosen = _rows(policy_chosen_logps, reference_chosen_logps)
        rejected = _rows(policy_rejected_logps, reference_rejected_logps)
        if chosen_lengths is not None and rejected_lengths is not None:
            chosen = per_token(chosen, chosen_lengths)
            rejected = per_token(rejected, rejected_lengths)
        return self.smoothed_loss(chosen, rejected, self._smoothing(label_smoothing, chosen))

    def pair_loss(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the loss of every pair, from the policy's row and, if any, the reference's."""
        odds = self._log_odds(chosen, rejected)
        return softplus(-self.beta * (odds[0] - odds[1] if len(odds) == 2 else odds[0]))

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


def _rows(policy: Tensor, reference: Tensor | None) -> Tensor:
    return torch.stack([_upcast(x) for x in (policy, reference) if x is not None])
