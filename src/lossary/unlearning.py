r"""Losses that make a language model forget what it has learnt, and keep the rest.

.. math:: \ell = \tfrac{2}{\beta} \operatorname{softplus}(\beta \rho), \qquad
          \ell = -g^*(P_e) + f^*(g^*(P_f)), \qquad
          \ell = -\log(1 - p_y) + H

Gradient ascent on the likelihood of what is to be forgotten (:class:`GradAscentLoss`) has no end:
past a point it only destroys the model. :class:`GradDiffLoss` has none either, but holds on to data
that is to be kept. The others stop of their own accord, each in its own way: :class:`NPOLoss` and
:class:`SimNPOLoss` saturate, :class:`WGALoss` and :class:`CEULoss` lose interest in a token that
has become unlikely, :class:`FLATLoss` takes no logarithm at all.

What reproduces which, of the code of open-unlearning and of the authors:

==============================================  ================================================
published code                                  here
==============================================  ================================================
GradAscent; TOFU grad_ascent                    GradAscentLoss()
GradDiff; TOFU grad_diff                        GradDiffLoss(gamma, alpha)
GradDiff, retain_loss_type="KL"                 GradDiffLoss, minus the divergences to be kept
NPO, paper and open-unlearning                  NPOLoss(beta), + SequenceNLLLoss of retained data
SimNPO, open-unlearning                         SimNPOLoss(beta, delta), likewise
SimNPO, the paper's gamma                       SimNPOLoss(beta, gamma / beta)
DPO, open-unlearning                            2 / beta * DPOLoss(beta), the template as chosen
CEU                                             CEULoss(class_dim=-1), labels shifted
WGA                                             WGALoss(beta)
FLAT, authors                                   FLATLoss(key, "all"), the batch as one sequence
==============================================  ================================================

Some papers on unlearning need no loss of their own. SalUn is cross-entropy with random wrong labels
on what is to be forgotten plus cross-entropy on the rest, in which only those parameters are
updated whose gradient is large: a mask of parameters. Antidote prunes once. Corrective machine
unlearning is a benchmark. Label-agnostic forgetting works on representations, not on answers. The
refusals of TOFU ("I don't know") are ordinary fine-tuning, :class:`SequenceNLLLoss`.
"""

import math
from collections.abc import Callable
from typing import Any, Unpack

import torch
from torch import Tensor

from lossary._base import (
    ClassificationLoss,
    ClassOptions,
    Loss,
    LossOptions,
    check_sample_weight,
)
from lossary._checks import (
    check_choice,
    check_floating,
    check_in_memory,
    check_number,
    check_positive,
)
from lossary._layouts import Layout
from lossary._numerics import softplus
from lossary._pairwise import normalized_logps
from lossary._properties import Properties
from lossary._sequence_base import (
    SequenceLoss,
    check_log_probability,
    per_token,
    present_tokens,
)
from lossary._softmax import rival_entropy
from lossary.sequences import SequenceNLLLoss

#: How far above 0 a log-probability may lie: those that others compute are differences.
_ROUNDING = 1e-3


def _check_tokens(
    name: str, logps: Any, mask_name: str, mask: Any, dims: int | None, weight: Tensor | None
) -> None:
    """Raise an error unless these are log-probabilities of tokens, and which of them there are."""
    check_floating(name, logps)
    if dims is not None and (logps.dim() != dims or logps.shape[1] == 0):
        raise ValueError(f"{name}: expected shape (N, T), T >= 1, got {tuple(logps.shape)}")
    counts = present_tokens(mask, logps.shape, logps, mask_name)
    if weight is not None:
        counts = counts & (weight != 0).reshape(weight.shape + (1,) * (logps.dim() - weight.dim()))
    check_log_probability(name, logps, counts, _ROUNDING)


# FLAT.


def _itself(v: Tensor) -> Tensor:
    return v


def _half_tanh(v: Tensor) -> Tensor:
    return 0.5 * torch.tanh(v)


def _one_less_exp(v: Tensor) -> Tensor:
    return -torch.expm1(-v)


#: Of every divergence g*(v) and f*(g*(v)), or both plus the same constant, which cancels: so
#: that small probabilities keep their digits.
_DIVERGENCES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "tv": (_half_tanh, _half_tanh),
    "kl": (_itself, lambda v: torch.exp(v - 1.0)),
    # log 2 - softplus(-v) and v + softplus(-v) - log 2, which cancel.
    "js": (
        lambda v: -torch.log1p(torch.expm1(-v) / 2.0),
        lambda v: torch.log1p(torch.expm1(v) / 2.0),
    ),
    "pearson": (_itself, lambda v: v + v.square() / 4.0),
    "jeffrey_taylor": (_itself, lambda v: v * (1.0 + v * (1.0 + v / 4.0) / 4.0)),
    # -exp(-v) and v - 1, each plus 1.
    "reverse_kl": (_one_less_exp, _itself),
    "hellinger": (_one_less_exp, torch.expm1),
    "neyman": (_one_less_exp, lambda v: -2.0 * torch.expm1(-v / 2.0)),
    "reverse_kl_official": (lambda v: -torch.expm1(v), lambda v: -v),
    "hellinger_official": (lambda v: -torch.expm1(v), lambda v: torch.expm1(-v)),
    # The slope of the root is infinite at v = 1.
    "neyman_official": (
        lambda v: -torch.expm1(v),
        lambda v: 2.0 - 2.0 * torch.sqrt((1.0 - v).clamp(min=1e-12)),
    ),
}


class FLATLoss(Loss):
    r"""Forgetting by loss adjustment (FLAT): a template answer up, the one to forget down.

    .. math:: \ell = -g^*(P_e) + f^*\bigl(g^*(P_f)\bigr), \qquad
              P = \frac{\sum_t m_t\, e^{\log \pi(y_t \mid x, y_{<t})}}{\sum_t m_t}

    with P_e the average probability of a token of a template answer, a refusal say, and P_f that of
    the answer to forget, to the same prompt. The variational form of an f-divergence, which
    training drives up, between the model's confidence in the one and in the other. Neither data to
    be kept nor a reference model are needed.

    g* and f* of g*, as functions of v = P:

    - ``"tv"``, total variation: tanh(v)/2 and tanh(v)/2.
    - ``"kl"``: v and exp(v - 1).
    - ``"js"``, Jensen-Shannon: log 2 - softplus(-v) and v + softplus(-v) - log 2.
    - ``"pearson"``: v and v + v^2/4.
    - ``"jeffrey_taylor"``: v and v + v^2/4 + v^3/16.
    - ``"reverse_kl"``: -exp(-v) and v - 1.
    - ``"hellinger"``, squared: 1 - exp(-v) and exp(v) - 1.
    - ``"neyman"``: 1 - exp(-v) and 2 - 2 exp(-v/2).

    Args:
        divergence: one of the above, or an ``"..._official"`` of the note. Default ``"tv"``, as in
            the authors' configuration.
        denominator: ``"valid"`` (default), the average over the tokens that count; ``"all"``, their
            sum over all T positions, as in the authors' code, where padding makes P small.
        reduction: see :class:`lossary.Loss`.

    Shape:
        template_logps (N, T), forget_logps (N, T'): log-probabilities of the tokens, as
        :func:`token_logps` and :func:`linear_token_logps` return them, <= 0. template_mask (N, T),
        forget_mask (N, T'): which of them count, bool or numbers 0 and 1. The masks are needed:
        where a label is ignored, the log-probability is 0, which is that of a sure token. Values
        (N,).

    Properties:
        For the divergences without ``"_official"`` dl/dP_e < 0 < dl/dP_f on [0, 1], so that l lies
        between its values at (P_e, P_f) = (1, 0) and (0, 1). Not convex. Infinitely smooth. The
        gradient in the log-probability of a token is that in P times p_t/T, and vanishes as p_t
        -> 0: an answer that is forgotten is left alone, where gradient ascent goes on. The norm of
        the gradient in template_logps is at most 1, or 1/2 for ``"tv"`` and ``"js"``; in
        forget_logps it is at most 1/2 for ``"tv"``, 1 for ``"kl"``, ``"reverse_kl"`` and
        ``"neyman"``, 0.74 for ``"js"``, 1.5 for ``"pearson"``, 1.6875 for ``"jeffrey_taylor"`` and
        e for ``"hellinger"``. P_e = P_f: l >= 0, by Fenchel's inequality at 1.

    Limits:
        Small P: l -> (P_f - P_e)/2 for ``"tv"`` and ``"js"``, P_f - P_e for the others but
        ``"kl"``, there 1/e + P_f/e - P_e. ``"jeffrey_taylor"`` is ``"pearson"`` plus P_f^3/16.

    Note:
        A pair in which one side has no token that counts is left out of the mean with ``"valid"``;
        with ``"all"`` its P is 0. Log-probabilities count as 0 where they are above, by rounding.

        Other code: the authors average P over the whole batch before they take the divergence:
        ``FLATLoss(key, "all")`` of inputs and masks reshaped to (1, N T) is their number. Their g*
        has the wrong sign of v for the reverse KL, the squared Hellinger and Neyman's divergence,
        which *lowers* P_e when minimised; in the first two it *raises* P_f as well. As they are,
        for reproduction only, they are ``"reverse_kl_official"`` (-exp(v), -1 - v),
        ``"hellinger_official"`` (1 - exp(v), exp(-v) - 1) and ``"neyman_official"`` (1 - exp(v),
        2 - 2 sqrt(1 - v)). Jeffrey's conjugate has no elementary form; with W of Lambert it is
        W(exp(1 - v)) + 1/W(exp(1 - v)) + v - 2, of which ``"jeffrey_taylor"`` is the Taylor
        polynomial at 0: too small by less than 0.018 on [0, 1].

    Raises:
        ValueError: unknown ``divergence`` or ``denominator``; inputs of shapes that do not fit,
            T = 0; a mask other than 0 and 1, or log-probabilities above 0 by more than 1e-3 (on
            CPU tensors, where looking costs nothing).
        TypeError: inputs not floating point; masks missing or complex.

    Reference:
        Wang et al., "LLM Unlearning via Loss Adjustment with Only Forget Data", 2024. Verified
        against the authors' code; the conjugates were checked by Fenchel's inequality. That the
        paper takes the divergence of every pair, and not of the batch, is RECALLED.

    Example:
        >>> import torch
        >>> from lossary import FLATLoss
        >>> template = torch.tensor([[0.2, 0.1], [0.4, 0.3]]).log()
        >>> forget = torch.tensor([[0.9, 0.8, 0.7], [0.9, 0.5, 1.0]]).log()
        >>> mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
        >>> FLATLoss()(template, forget, torch.ones(2, 2), mask)
        tensor(0.1958)
        >>> FLATLoss("kl", "all")(template, forget, torch.ones(2, 2), mask)
        tensor(0.4527)

        From logits, whose labels are -100 where there is nothing to learn:

        >>> from lossary import token_logps
        >>> labels = torch.tensor([[-100, 3, 1, 4], [-100, 2, 0, -100]])
        >>> logps, mask = token_logps(torch.ones(2, 4, 5), labels), labels[:, 1:] != -100
        >>> FLATLoss()(template, logps, torch.ones(2, 2), mask)
        tensor(-0.0226)

        From the average probabilities of the answers, above 0, where those are there already:

        >>> P_e, P_f = torch.tensor([[0.15], [0.35]]), torch.tensor([[0.8], [0.7]])
        >>> FLATLoss()(P_e.log(), P_f.log(), P_e > 0, P_f > 0)
        tensor(0.1958)
    """

    def __init__(
        self, divergence: str = "tv", denominator: str = "valid", **options: Unpack[LossOptions]
    ) -> None:
        super().__init__(**options)
        check_choice("divergence", divergence, tuple(_DIVERGENCES))
        check_choice("denominator", denominator, ("valid", "all"))
        self.divergence = divergence
        self.denominator = denominator

    def per_sample(
        self,
        template_logps: Tensor,
        forget_logps: Tensor,
        template_mask: Tensor,
        forget_mask: Tensor,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the loss of every pair, unreduced, and with ``"valid"`` which pairs there are."""
        output, conjugate = _DIVERGENCES[self.divergence]
        p_e, some_e = self._confidence(template_logps, template_mask.bool())
        p_f, some_f = self._confidence(forget_logps, forget_mask.bool())
        values = conjugate(p_f) - output(p_e)
        if self.denominator == "all":
            return values
        there = some_e & some_f
        return torch.where(there, values, 0.0), there.to(values.dtype)

    def _confidence(self, logps: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the average probability of every sequence's tokens, and if it has any."""
        p = torch.exp(logps.clamp(max=0.0).masked_fill(~mask, -math.inf)).sum(1)
        count = mask.sum(1)
        if self.denominator == "all":
            return p / mask.shape[1], count > 0
        return per_token(p, count), count > 0

    def _values(
        self, inputs: tuple[Any, ...], weight: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        template, forget, template_mask, forget_mask = inputs
        check_floating("template_logps", template)
        check_sample_weight(weight, template.shape[:1], template)
        _check_tokens("template_logps", template, "template_mask", template_mask, 2, weight)
        check_floating("forget_logps", forget)
        if forget.shape[:1] != template.shape[:1]:
            raise ValueError(
                f"forget_logps: expected {len(template)} rows, as in template_logps, "
                f"got shape {tuple(forget.shape)}"
            )
        _check_tokens("forget_logps", forget, "forget_mask", forget_mask, 2, weight)
        return super()._values(inputs, weight)

    def properties(self) -> Properties:
        """Return what this instance guarantees; all of it is in template_logps."""
        official = self.divergence.endswith("_official")
        unknown = dict.fromkeys(("lower", "upper"), "depends on the answer to forget")
        if official:
            unknown["convex"] = "reproduces published code, which has a wrong sign"
        other = ([[-1.0]], [[True]], [[True]])
        return Properties(
            convex=None if official else False,
            lipschitz=math.e if official else 0.5 if self.divergence in ("tv", "js") else 1.0,
            smoothness=math.inf,
            limits=(("P -> 0", "(P_f - P_e)/2 for tv and js, P_f - P_e for most others"),),
            counterexamples={"convex": ([[0.0]], [[-20.0]], *other)},
            unknown=unknown,
            source="Wang et al. 2024",
        )


class NPOLoss(SequenceLoss):
    r"""Negative preference optimisation (NPO): forget until the reference finds it likelier.

    .. math:: \ell = \frac{2}{\beta} \operatorname{softplus}(\beta \rho), \qquad
              \rho = \log \frac{\pi(y \mid x)}{\pi_{\text{ref}}(y \mid x)}

    of sequences to forget: DPO with rejected answers only. Gradient ascent whose steps die out for
    what has become less likely than under the reference, the model before unlearning; it collapses
    later, and slower, than gradient ascent does.

    Args:
        beta: beta > 0, finite: how soon it stops. Default 0.1, as in the paper (1 in the class of
            open-unlearning).
        reduction: see :class:`lossary.Loss`.

    Shape:
        policy_logps, reference_logps (N, ...): SUMS over the tokens of a sequence, of
        :func:`sequence_logps`. Values of the same shape.

    Properties:
        Convex in the log-probabilities, infinitely smooth, l > 0, unbounded above. The gradient in
        policy_logps is 2 sigma(beta rho), below 2, with 1 at the reference and 0 for
        rho -> -inf, where it saturates.

    Limits:
        beta -> 0: l - (2/beta) log 2 -> rho, gradient ascent. beta -> inf: 2 max(0, rho). With a
        template as the chosen answer: :class:`DPOLoss` times 2/beta, and this is that loss for a
        template whose log-ratio is 0.

    Note:
        Add :class:`SequenceNLLLoss` of data to be kept, as open-unlearning does by default. The
        reference is not detached here: compute it under ``torch.no_grad()``. The value starts at
        (2/beta) log 2 and is large for small beta, while differences are not: compute the sums in
        float32, as :func:`sequence_logps` does.

    Raises:
        ValueError: ``beta`` not positive and finite; inputs of different shapes.
        TypeError: ``beta`` not a number; inputs not floating point.

    Reference:
        Zhang, Lin, Bai, Mei, "Negative Preference Optimization: From Catastrophic Collapse to
        Effective Unlearning", 2024. Verified against open-unlearning; title and authors are
        RECALLED.

    Example:
        >>> import torch
        >>> from lossary import NPOLoss
        >>> policy, reference = torch.tensor([-30.0, -9.0]), torch.tensor([-14.0, -8.0])
        >>> NPOLoss()(policy, reference)
        tensor(8.2830)
    """

    def __init__(self, beta: float = 0.1, **options: Unpack[LossOptions]) -> None:
        super().__init__(**options)
        self.beta = check_positive("beta", beta)

    def per_sample(self, policy_logps: Tensor, reference_logps: Tensor) -> Tensor:
        """Return the loss of every sequence, unreduced."""
        return 2.0 * softplus(policy_logps - reference_logps, self.beta)

    def properties(self) -> Properties:
        """Return what this instance guarantees; the Lipschitz constant is in the policy's."""
        return Properties(
            convex=True,
            lower=0.0,
            upper=math.inf,
            lipschitz=2.0,
            smoothness=math.inf,
            limits=(
                ("beta -> 0", "gradient ascent, plus (2/beta) log 2"),
                ("beta -> inf", "2 max(0, rho)"),
            ),
            counterexamples={"upper": (1.0, 0.0)},
            source="Zhang, Lin, Bai, Mei 2024",
        )


class SimNPOLoss(SequenceLoss):
    r"""Simple negative preference optimisation (SimNPO): NPO per token, without a reference.

    .. math:: \ell = \frac{2}{\beta} \operatorname{softplus}\bigl(\beta (r + \delta)\bigr)

    with r the average log-probability of a token of a sequence to forget. Against NPO no reference
    model is held, and long and short sequences are forgotten alike: NPO is guided by how easy a
    sequence is for the reference, and by its length.

    Args:
        beta: beta > 0, finite. Default 2.5.
        delta: the log-probability per token at which forgetting slackens is -delta; finite.
            Default 0. The paper's margin gamma is beta delta.
        average: ``True`` (default) where the inputs are averages already, ``False`` where they are
            sums and come with lengths.
        reduction: see :class:`lossary.Loss`.

    Shape:
        policy_logps (N, ...): AVERAGES over the tokens of a sequence, as of
        ``sequence_logps(..., average=True)``; with ``average=False`` SUMS, and lengths of the same
        shape, integers, float32 or float64. Values of the same shape.

    Properties:
        Convex, infinitely smooth, l > 0, unbounded above (where log-probabilities are <= 0, at most
        (2/beta) softplus(beta delta)). The gradient in r is 2 sigma(beta (r + delta)), below 2.

    Limits:
        beta -> 0: l - (2/beta) log 2 -> r + delta, gradient ascent per token.
        :class:`NPOLoss` of averages, against a reference that is -delta.

    Note:
        open-unlearning has delta as here (default beta 1 in its class), and counts labels before
        the shift: the same unless the first token belongs to the answer. Add
        :class:`SequenceNLLLoss` of data to be kept.

    Raises:
        ValueError: ``beta`` not positive and finite, ``delta`` not finite, ``average`` not a bool;
            lengths of another shape, or below 1 (on CPU tensors, where looking costs nothing;
            elsewhere they count as 1).
        TypeError: hyper-parameters not numbers; inputs not floating point; lengths missing with
            ``average=False``, given without, not numbers, or in half precision.

    Reference:
        Fan et al., "Simplicity Prevails: Rethinking Negative Preference Optimization for LLM
        Unlearning", 2024. Verified against open-unlearning; the title is RECALLED.

    Example:
        >>> import torch
        >>> from lossary import SimNPOLoss
        >>> SimNPOLoss()(torch.tensor([-0.3, -4.0]))
        tensor(0.1548)
        >>> SimNPOLoss(average=False)(torch.tensor([-3.0, -80.0]), torch.tensor([10, 20]))
        tensor(0.1548)
    """

    def __init__(
        self,
        beta: float = 2.5,
        delta: float = 0.0,
        average: bool = True,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(**options)
        self.beta = check_positive("beta", beta)
        self.delta = check_number(
            "delta", delta, -math.inf, math.inf, low_open=True, high_open=True
        )
        check_choice("average", average, (True, False))
        self.average = bool(average)

    def per_sample(self, policy_logps: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return the loss of every sequence, unreduced."""
        r = policy_logps if lengths is None else per_token(policy_logps, lengths)
        return 2.0 * softplus(r + self.delta, self.beta)

    def _lengths_needed(self) -> tuple[bool, str]:
        return not self.average, f"average={self.average}"

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        return Properties(
            convex=True,
            lower=0.0,
            upper=math.inf,
            lipschitz=2.0,
            smoothness=math.inf,
            limits=(("beta -> 0", "gradient ascent per token, plus (2/beta) log 2 + delta"),),
            counterexamples={"upper": (1.0,) if self.average else (1.0, 1)},
            source="Fan et al. 2024",
        )


class GradAscentLoss(SequenceNLLLoss):
    r"""Gradient ascent: the log-likelihood of what is to be forgotten, minimised.

    .. math:: \text{token: } \frac{\sum_i \log \pi_i}{\sum_i L_i}, \qquad
              \text{sequence: } \frac{1}{N} \sum_i \frac{\log \pi_i}{L_i}, \qquad
              \text{sum: } \frac{1}{N} \sum_i \log \pi_i

    The opposite of :class:`SequenceNLLLoss`, and the baseline of every paper on unlearning. It is
    unbounded below: it never says that enough is forgotten, unlikely tokens get the steepest
    gradients in the logits, and a run that is not stopped in time leaves a model that can nothing.
    Use :class:`NPOLoss` or :class:`WGALoss` for anything but a comparison.

    Args:
        normalize: ``"token"`` (default), ``"sequence"`` or ``"sum"``.
        reduction: see :class:`lossary.Loss`. The formulas are those of ``"mean"``.

    Shape:
        policy_logps (N, ...): SUMS of token log-probabilities, of :func:`sequence_logps`; lengths
        of the same shape: how many tokens they are sums of, integers, float32 or float64; only
        where they are used: ``None`` with ``"sum"``. Values of the same shape.

    Properties:
        Linear in the log-probabilities, unbounded below; <= 0 where they are. The gradient is at
        most 1 per sequence in absolute value, and does not vanish.

    Limits:
        :class:`NPOLoss` with beta -> 0 (for ``"sum"``), :class:`SimNPOLoss` with beta -> 0 (for
        ``"sequence"``), :class:`WGALoss` with beta = 0 (for ``"token"``).

    Note:
        Denominators and weights are those of :class:`SequenceNLLLoss`. The ``"token"`` form is
        minus the loss that a language model returns, as TOFU and open-unlearning have it.

    Raises:
        ValueError: unknown ``normalize``; lengths of another shape, or below 1 (on CPU tensors,
            where looking costs nothing; elsewhere they count as 1 in ``"sequence"``).
        TypeError: log-probabilities not floating point; lengths missing, not numbers, in half
            precision, which cannot count to 300, or given though not used.

    Reference:
        Maini, Feng, Schwarzschild, Lipton, Kolter, "TOFU: A Task of Fictitious Unlearning for
        LLMs", 2024. Verified against open-unlearning; title and authors are RECALLED.

    Example:
        >>> import torch
        >>> from lossary import GradAscentLoss
        >>> logps, lengths = torch.tensor([-4.0, -30.0]), torch.tensor([4, 10])
        >>> GradAscentLoss()(logps, lengths)
        tensor(-2.4286)
    """

    def per_sample(
        self, policy_logps: Tensor, lengths: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the value of every sequence, unreduced; for ``"token"`` with the denominators."""
        out = super().per_sample(policy_logps, lengths)
        return (-out[0], out[1]) if isinstance(out, tuple) else -out

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        further = () if self.normalize == "sum" else (1,)
        return Properties(
            convex=True,
            lower=-math.inf,
            upper=math.inf,
            lipschitz=1.0,
            smoothness=math.inf,
            limits=(("all lengths equal", "'token' and 'sequence' are the same"),),
            counterexamples={"lower": (-1.0, *further), "upper": (1.0, *further)},
            source="Maini et al. 2024",
        )


class GradDiffLoss(SequenceLoss):
    r"""Gradient difference: ascent on what is to be forgotten, descent on what is to be kept.

    .. math:: \ell = -\gamma \operatorname{NLL}_{\text{forget}}
              + \alpha \operatorname{NLL}_{\text{retain}}

    Each likelihood is normalised on its own. Unbounded below, as :class:`GradAscentLoss` is:
    the descent only holds what its data covers.

    Args:
        gamma: gamma > 0, finite. Default 1.
        alpha: alpha >= 0, finite. Default 1.
        normalize: ``"token"`` (default), each NLL the mean over all of its tokens in the batch;
            ``"sequence"``, of every sequence over its own tokens; ``"sum"``.
        reduction: see :class:`lossary.Loss`.

    Shape:
        forget_logps, retain_logps (N, ...): SUMS of token log-probabilities, of
        :func:`sequence_logps`, as many to keep as to forget. forget_lengths, retain_lengths of the
        same shape: how many tokens they are sums of, integers, float32 or float64; ``None`` with
        ``"sum"``. Values of the same shape, one per pair.

    Properties:
        Linear in the log-probabilities, unbounded below and, for alpha > 0, above. The norm of the
        gradient is at most sqrt(gamma^2 + alpha^2) per pair. ``"token"`` couples the batch: a
        weight scales a pair's own value, its tokens stay in the sums of the lengths.

    Limits:
        alpha = 0: gamma times :class:`GradAscentLoss`.

    Note:
        Where the two batches differ in size, write
        ``gamma * GradAscentLoss()(...) + alpha * SequenceNLLLoss()(...)``: of equal sizes it is the
        same number. To keep the output distribution instead of the likelihood
        (``retain_loss_type="KL"`` in open-unlearning), pass minus the sums over positions of
        KL(reference || policy) as retain_logps, with the number of positions as retain_lengths,
        padding included if open-unlearning's number is wanted.

    Raises:
        ValueError: ``gamma`` not positive and finite, ``alpha`` negative or infinite, unknown
            ``normalize``; inputs of different shapes, lengths below 1 (on CPU tensors, where
            looking costs nothing; elsewhere ``"sequence"`` counts them as 1).
        TypeError: hyper-parameters not numbers; inputs not floating point; lengths missing, given
            with ``"sum"``, not numbers, or in half precision.

    Reference:
        Maini, Feng, Schwarzschild, Lipton, Kolter, "TOFU: A Task of Fictitious Unlearning for
        LLMs", 2024. Verified against open-unlearning; title and authors are RECALLED.

    Example:
        >>> import torch
        >>> from lossary import GradDiffLoss
        >>> forget, retain = torch.tensor([-4.0, -30.0]), torch.tensor([-9.0, -6.0])
        >>> lengths = torch.tensor([4, 10]), torch.tensor([8, 12])
        >>> GradDiffLoss()(forget, retain, *lengths)
        tensor(-1.6786)
    """

    def __init__(
        self,
        gamma: float = 1.0,
        alpha: float = 1.0,
        normalize: str = "token",
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(**options)
        self.gamma = check_positive("gamma", gamma)
        self.alpha = check_number("alpha", alpha, 0.0, math.inf, high_open=True)
        check_choice("normalize", normalize, ("token", "sequence", "sum"))
        self.normalize = normalize
        self.separable = normalize != "token"  # type: ignore[misc]

    def per_sample(
        self,
        forget_logps: Tensor,
        retain_logps: Tensor,
        forget_lengths: Tensor | None = None,
        retain_lengths: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of every pair, unreduced."""
        nll = "sum" if self.normalize == "sum" else f"{self.normalize}_mean"
        values = self.gamma * normalized_logps(forget_logps, forget_lengths, nll)
        # At 0 not 0 * inf, for a sequence that has become impossible.
        if self.alpha == 0.0:
            return values
        return values - self.alpha * normalized_logps(retain_logps, retain_lengths, nll)

    def _lengths_needed(self) -> tuple[bool, str]:
        return self.normalize != "sum", f"normalize={self.normalize!r}"

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        others = ([0.0],) if self.normalize == "sum" else ([0.0], [1.0], [1.0])
        return Properties(
            convex=True,
            lower=-math.inf,
            upper=math.inf,
            lipschitz=math.hypot(self.gamma, self.alpha),
            smoothness=math.inf,
            limits=(("alpha = 0", "gamma times GradAscentLoss"),),
            counterexamples={"lower": ([-1.0], *others), "upper": ([1.0], *others)},
            source="Maini et al. 2024",
        )


class WGALoss(Loss):
    r"""Weighted gradient ascent (WGA): ascent on tokens, in proportion to how likely they are.

    .. math:: \ell_t = \operatorname{sg}[p_t^\beta] \log p_t

    with p_t the probability of a token to forget, and sg a constant to the gradient. Gradient
    ascent is steepest, in the logits, on tokens that are forgotten already; here they are left
    alone.

    Args:
        beta: beta >= 0, finite. Default 1.
        reduction: see :class:`lossary.Loss`.

    Shape:
        token_logps (N, T) or any other: log-probabilities of the tokens, as :func:`token_logps` and
        :func:`linear_token_logps` return them, <= 0. mask of the same shape: which of them count,
        bool or numbers 0 and 1. Values of the same shape, one per token; ``"mean"`` is over the
        tokens that count, ``weight`` of shape (N, 1) is per sequence.

    Properties:
        The gradient in log p is p^beta, at most 1; the weight carries none, in second derivatives
        neither. The value, p^beta log p, lies in [-1/(e beta), 0] where log-probabilities are <= 0,
        with the minimum at log p = -1/beta: beyond, the value rises again while the gradient goes
        on. It measures nothing that training could be judged by. Not convex for beta > 0.

    Limits:
        beta = 0: gradient ascent, :class:`GradAscentLoss` per token, unbounded below.

    Note:
        An impossible token, log p = -inf, has value and gradient 0 for beta > 0.
        The weight is 1 where log-probabilities are above 0, by rounding. The number of
        open-unlearning.

    Raises:
        ValueError: ``beta`` negative or not finite; a mask of another shape, or other than 0 and 1;
            log-probabilities above 0 by more than 1e-3 (values are looked at on CPU tensors, where
            that costs nothing).
        TypeError: ``beta`` not a number; inputs not floating point; the mask missing or complex.

    Reference:
        Wang et al., "Rethinking LLM Unlearning Objectives: A Gradient Perspective and Go Beyond",
        2025. Verified against open-unlearning; the title is RECALLED.

    Example:
        >>> import torch
        >>> from lossary import WGALoss
        >>> logps = torch.tensor([[0.5, 0.1, 1.0]]).log()
        >>> WGALoss()(logps, torch.tensor([[1, 1, 0]]))
        tensor(-0.2884)
    """

    def __init__(self, beta: float = 1.0, **options: Unpack[LossOptions]) -> None:
        super().__init__(**options)
        self.beta = check_number("beta", beta, 0.0, math.inf, high_open=True)

    def per_sample(self, token_logps: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the value of every token, unreduced, and which tokens there are."""
        present = mask.bool()
        lowest = torch.finfo(token_logps.dtype).min  # 0 * -inf is nan
        weight = torch.exp(self.beta * token_logps.detach().clamp(lowest, 0.0))
        # Where the weight is 0, what it weighs may be infinite.
        there = present & (weight > 0.0)
        values = torch.where(there, weight, 0.0) * torch.where(there, token_logps, 0.0)
        return values, present.to(values.dtype)

    def _values(
        self, inputs: tuple[Any, ...], weight: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        logps, mask = inputs
        check_floating("token_logps", logps)
        check_sample_weight(weight, logps.shape, logps)
        _check_tokens("token_logps", logps, "mask", mask, None, weight)
        return super()._values(inputs, weight)

    def properties(self) -> Properties:
        """Return what this instance guarantees; above 0 the weight is 1."""
        b = self.beta
        far = -3.0 / b if b else 0.0
        return Properties(
            convex=not b,
            lower=-1.0 / (math.e * b) if b else -math.inf,
            upper=math.inf,
            lipschitz=1.0,
            smoothness=math.inf,
            limits=(("beta = 0", "GradAscentLoss per token"),),
            counterexamples={
                "convex": (far, 3.0 * far, True),
                "lower": (-1.0, True),
                "upper": (1.0, True),
            },
            source="Wang et al. 2025",
        )


class CEULoss(ClassificationLoss):
    r"""Cross-entropy unlearning (CE-U): learn the model's own distribution, less the label.

    .. math:: \ell = -\sum_{k \neq y} r_k \log p_k = -\log(1 - p_y) + H(r), \qquad
              r = \operatorname{sg}\Bigl[\frac{p_k}{1 - p_y}\Bigr]_{k \neq y}

    with p = softmax(f), sg a constant to the gradient and H the entropy: cross-entropy to the
    softmax of the logits with that of the label at -inf. The gradient is that of the unlikelihood
    -log(1 - p_y) alone, p_y (e_y - r): it fades where the label is forgotten, and the other classes
    keep their proportions.

    Args:
        entropy: add H(r), a number that carries no gradient, as the paper does. ``False`` leaves
            the unlikelihood: the same gradient from any layout of logits. Default ``True``.
        reduction, class_weight, ignore_index, class_dim: see :class:`ClassificationLoss`.

    Shape:
        logits (N, K), (N, K, d1, ...) or any with ``class_dim``; target (N, ...) the classes to
        forget, -100 for none. For a language model (N, T, V), ``class_dim=-1``, with the labels
        shifted. Values (N, ...). With ``entropy=False`` in memory, streamed or sharded
        (:class:`lossary.LinearLogits`, :class:`lossary.ShardedLogits`), else in memory.

    Properties:
        l > 0, unbounded above as p_y -> 1, infinitely smooth and shift-invariant. The norm of the
        gradient is below sqrt(2). Convex for K = 2 only. Minimising it makes the target unlikely:
        by design neither calibrated nor proper.

    Limits:
        K = 2: cross-entropy of the other class. p_y -> 0: l -> H(r), with slope p_y.

    Note:
        Not from the distributions: -log(1 - p_y) is the softplus of the log-odds, exact for p_y
        near 0 and near 1. Second derivatives are those of the gradient above, in which r moves; a
        graph through the cross-entropy itself would hold r fixed there too. open-unlearning leaves
        out the first token of every answer: set its label to -100. A vocabulary of one word has
        nothing else to learn, and is an error.

    Raises:
        ValueError: ``entropy`` not a bool; otherwise as :class:`ClassificationLoss`.
        TypeError: streamed or sharded logits with ``entropy=True``; otherwise as
            :class:`ClassificationLoss`.

    Reference:
        Yang, "CE-U: Cross Entropy Unlearning", 2025. Verified against the code in open-unlearning;
        the author is RECALLED. That the gradient is the unlikelihood's was derived and checked
        here.

    Example:
        >>> import torch
        >>> from lossary import CEULoss
        >>> logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]])
        >>> CEULoss()(logits, torch.tensor([0, -100]))
        tensor(1.6765)
        >>> CEULoss(entropy=False)(logits, torch.tensor([0, -100]))
        tensor(1.0943)
    """

    def __init__(self, entropy: bool = True, **options: Unpack[ClassOptions]) -> None:
        super().__init__(**options)
        check_choice("entropy", entropy, (True, False))
        self.entropy = bool(entropy)

    def per_sample(self, logits: Tensor, target: Tensor | None) -> Tensor:
        """Return the loss of every row, for every class where there is no target."""
        if self.entropy and isinstance(logits, Layout):
            check_in_memory(logits, "the entropy of the other classes (entropy=True)")
        values = softplus(-self.log_odds(logits, target))
        if not self.entropy:
            return values
        return values + rival_entropy(logits, target, class_dim=self._class_axis(logits))

    def properties(self, num_classes: int = 10) -> Properties:
        """Return what this instance guarantees on ``num_classes`` classes."""
        k = num_classes
        rest = [0.0] * (k - 2)
        # The least risk: 0 where another class has all, or p_k = 1 - (K - 1) q_k.
        told = ([0.6, 0.4, *rest], [0.0] * (k - 1) + [40.0])
        if k == 2:
            told = ([0.6, 0.4], [math.log(0.4), math.log(0.6)])
        step = 0.5 / (k * (k - 1))
        q = [1.0 / k + step, 1.0 / k - step, *[1.0 / k] * (k - 2)]
        p = [0.5 / k, 1.5 / k, *[1.0 / k] * (k - 2)]
        one = [1.0] + [0.0] * (k - 1)
        counterexamples: dict[str, tuple[Any, ...]] = {
            "upper": (one, 0),
            "symmetric": ([0.0] * k, [5.0 * x for x in one]),
            "calibrated": told,
            "rank_consistent": told,
            "proper": (q, [math.log(x) for x in p]),
        }
        if k > 2:
            counterexamples["convex"] = (
                [10.0, 4.0, -4.0, *rest[1:]],
                [10.0, -4.0, 4.0, *rest[1:]],
                0,
            )
        return Properties(
            convex=k == 2,
            lower=0.0,
            upper=math.inf,
            lipschitz=math.sqrt(2.0),
            smoothness=math.inf,
            symmetric=False,
            shift_invariant=True,
            calibrated=False,
            rank_consistent=False,
            proper=False,
            limits=(("K = 2", "cross-entropy of the other class"),),
            counterexamples=counterexamples,
            source="Yang 2025",
        )
