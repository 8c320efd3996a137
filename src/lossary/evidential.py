r"""Evidential learning: a network that says how much it has seen, by a Dirichlet distribution.

.. math:: \alpha_k = e_k + 1, \qquad S = \sum_k \alpha_k, \qquad
          b_k = \frac{e_k}{S}, \qquad u = \frac{K}{S}, \qquad \sum_k b_k + u = 1

The outputs are evidence e >= 0 for each class; what is not believed of any class is uncertainty u.
The divergence from the uniform Dirichlet distribution that all losses here need,

.. math:: \operatorname{KL}(\alpha) = \ln \Gamma(S) - \ln \Gamma(K) - \sum_k \ln \Gamma(\alpha_k)
          + \sum_k (\alpha_k - 1) (\psi(\alpha_k) - \psi(S)),

is a small difference of numbers like S log S: float32 gives -178 for 34.4 at evidence exp(20), and
float64 is off by 0.05 at exp(30). It is computed in float64, from
:math:`g(\alpha) = (\alpha - 1) \psi(\alpha) - \ln \Gamma(\alpha) - \alpha`, whose large parts
cancel on paper: :math:`\operatorname{KL} = \sum_k g(\alpha_k) - g(S) + (K - 1) \psi(S) -
\ln \Gamma(K)`. Nothing cancels there, at any evidence.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from lossary import _softmax
from lossary._base import (
    ClassificationLoss,
    ClassOptions,
    Loss,
    LossOptions,
    check_class_indices,
    checked_counts,
    present_rows,
)
from lossary._checks import (
    check_choice,
    check_device,
    check_floating,
    check_int,
    check_like,
    check_number,
    check_positive,
)
from lossary._numerics import softplus
from lossary._properties import Properties

#: From here on asymptotic series in 1/alpha, whose first term left out is below 2e-15.
_LARGE = math.log(16.0)
#: B_2n / 2n, of the Bernoulli numbers.
_SERIES = tuple(
    b / n
    for b, n in zip(
        (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730), range(2, 14, 2), strict=True
    )
)


def _digamma_excess(log_a: Tensor) -> Tensor:
    """Return psi(a) - log a, for a >= 1."""
    large = log_a >= _LARGE
    near = log_a.masked_fill(large, 0.0)
    v = torch.exp(-log_a)
    series = -0.5 * v
    for n, c in enumerate(_SERIES, 1):
        series = series - c * v ** (2 * n)
    return torch.where(large, series, torch.digamma(near.exp()) - near)


def _divergence_term(log_a: Tensor) -> Tensor:
    """Return g(a) = (a - 1) psi(a) - log Gamma(a) - a, for a >= 1: about -log(a)/2."""
    large = log_a >= _LARGE
    a = log_a.masked_fill(large, 0.0).exp()
    v = torch.exp(-log_a)
    series = -0.5 * log_a - 0.5 * (1.0 + math.log(2.0 * math.pi)) + 0.5 * v
    for n, c in enumerate(_SERIES, 1):
        series = series - c * (2 * n / (2 * n - 1) * v ** (2 * n - 1) - v ** (2 * n))
    return torch.where(large, series, (a - 1.0) * torch.digamma(a) - torch.lgamma(a) - a)


def _divergence(rivals: Tensor, log_s: Tensor, num_classes: int) -> Tensor:
    """Return KL(alpha), of which the target's is 1, from the sum of g over the rivals and log S."""
    whole = (num_classes - 1) * (log_s + _digamma_excess(log_s)) - _divergence_term(log_s)
    return rivals - 1.0 + whole - math.lgamma(num_classes)  # g(1) = -1


def _sum_of_others(x: Tensor) -> Tensor:
    """Return, for every entry of the last axis, the sum of the others: from both sides."""
    zero = torch.zeros_like(x[..., :1])
    before = torch.cat((zero, x[..., :-1].cumsum(-1)), -1)
    after = torch.cat((x[..., 1:].flip(-1).cumsum(-1).flip(-1), zero), -1)
    return before + after


def _checked_step(name: str, step: float | Tensor) -> float | Tensor:
    """Return a count of steps or epochs, a number >= 0 or a 0-dim tensor."""
    if not isinstance(step, Tensor):
        return check_number(name, step, 0.0, math.inf, high_open=True)
    if step.dim() != 0 or step.dtype is torch.bool or step.dtype.is_complex:
        raise ValueError(
            f"{name}: expected a number >= 0 or a 0-dim tensor, got shape {tuple(step.shape)} "
            f"of {step.dtype}"
        )
    if _softmax.readable(step):
        check_number(name, float(step), 0.0, math.inf, high_open=True)
    return step.double()  # a quotient of integers is of float32


class EvidentialLoss(ClassificationLoss):
    r"""Evidential deep learning (EDL): the expected loss under a Dirichlet, plus a divergence.

    .. math:: \text{log: } \log S - \log \alpha_y, \qquad
              \text{digamma: } \psi(S) - \psi(\alpha_y), \qquad
              \text{mse: } \sum_k (y_k - m_k)^2 + \frac{m_k (1 - m_k)}{S + 1},
              \ m = \frac{\alpha}{S}

    plus lambda KL, the divergence of the Dirichlet distribution from the uniform one, of alpha with
    the target's own evidence taken out. For classifiers that know when they do not know: u = K/S is
    large where little evidence was found. ``"digamma"`` is the expected cross-entropy under the
    Dirichlet, ``"mse"`` the expected Brier score, ``"log"`` the negative log of the marginal
    likelihood.

    Args:
        kind: ``"digamma"``, the default, ``"log"`` or ``"mse"``.
        evidence: what makes evidence of the logits: ``"softplus"``, the default; ``"relu"``, whose
            gradient is 0 where all logits are negative; ``"exp"``, of logits clamped to [-10, 10];
            ``"identity"`` for inputs that are evidence already, >= 0.
        kl_weight: lambda >= 0. Default ``None``: min(1, step/annealing_steps).
        annealing_steps: steps (epochs, in the paper) until lambda is 1, > 0. Default 10.
        reduction, class_weight, ignore_index, class_dim: see :class:`lossary.ClassificationLoss`.

    Shape:
        logits (N, K, ...), in memory; target (N, ...) class indices or (N, K, ...) probabilities,
        K >= 2; step, a number or 0-dim tensor, how far training is: without it lambda is 1, as
        after the annealing. Values (N, ...).

    Properties:
        l >= 0. ``"log"`` <= ``"digamma"`` (Jensen). KL >= 0, and unchanged by the target's
        evidence. d(log)/d alpha_k = 1/S - [k = y]/alpha_k. Unbounded but for ``"exp"``, and for
        ``"mse"`` with lambda = 0, which is below 2. Not convex in the logits, not symmetric, and
        not unchanged by a shift of them.

    Limits:
        ``"log"`` is cross-entropy of the logits log alpha. No evidence: log K, H_{K-1} =
        1 + 1/2 + ... + 1/(K-1), or (1 - 1/K)(1 + 1/(K+1)) for ``"log"``, ``"digamma"``, ``"mse"``;
        KL = 0. Evidence to infinity in fixed proportions: ``"digamma"`` -> ``"log"``.

    Note:
        Computed in float64, in a form in which nothing cancels: see the module. Gradients come back
        in the dtype of the logits.

    Raises:
        ValueError: unknown ``kind`` or ``evidence``; ``kl_weight`` negative or infinite;
            ``annealing_steps`` not positive; a negative ``step``; negative evidence with
            ``"identity"`` (on CPU tensors, where looking costs nothing).
        TypeError: hyper-parameters that are not numbers; ``step`` beside a ``kl_weight``.

    Reference:
        Sensoy, Kaplan, Kandemir, "Evidential Deep Learning to Quantify Classification
        Uncertainty", 2018, eqs. 3-5.

    Example:
        >>> import torch
        >>> from lossary import EvidentialLoss
        >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> EvidentialLoss()(logits, torch.tensor([0, 2]))
        tensor(1.4708)
        >>> EvidentialLoss()(logits, torch.tensor([0, 2]), step=2)
        tensor(1.2246)
        >>> EvidentialLoss(evidence="identity")(torch.zeros(1, 3), torch.tensor([1]))  # 1 + 1/2
        tensor(1.5000)
    """

    def __init__(
        self,
        kind: str = "digamma",
        evidence: str = "softplus",
        kl_weight: float | None = None,
        annealing_steps: float = 10,
        **options: Unpack[ClassOptions],
    ) -> None:
        super().__init__(**options)
        check_choice("kind", kind, ("digamma", "log", "mse"))
        check_choice("evidence", evidence, ("softplus", "relu", "exp", "identity"))
        self.kind = kind
        self.evidence = evidence
        if kl_weight is not None:
            kl_weight = check_number("kl_weight", kl_weight, 0.0, math.inf, high_open=True)
        self.kl_weight = kl_weight
        self.annealing_steps = check_positive("annealing_steps", annealing_steps)

    def per_sample(
        self, logits: Tensor, target: Tensor, step: float | Tensor | None = None
    ) -> Tensor:
        """Return the loss of every sample, unreduced."""
        axis = self._class_axis(logits)
        weight = self._annealed(step)
        f = present_rows(logits, target, axis, "a loss of every class's evidence")
        z = f.movedim(axis, -1).double()
        evidence = self._evidence(z)
        own = None
        if target is not None:
            classes = torch.arange(z.shape[-1], device=z.device)
            own = target.clamp(min=0).unsqueeze(-1) == classes

        def of_rivals(x: Tensor) -> Tensor:
            return _sum_of_others(x) if own is None else x.masked_fill(own, 0.0).sum(-1)

        log_a = torch.log1p(evidence)
        values = self._expected_loss(log_a, target, of_rivals)
        if weight is not None:
            rivals = of_rivals(_divergence_term(log_a))
            log_s = torch.log1p(of_rivals(1.0 + evidence))
            values = values + weight * _divergence(rivals, log_s, z.shape[-1])
        dtype = _softmax._compute_dtype(logits)
        return (values.movedim(-1, axis) if own is None else values).to(dtype)

    def _expected_loss(
        self, log_a: Tensor, target: Tensor | None, of_rivals: Callable[[Tensor], Tensor]
    ) -> Tensor:
        if target is None:
            odds, own = _softmax.all_log_odds(log_a, class_dim=-1), log_a
        else:
            odds = _softmax.target_log_odds(log_a, target, class_dim=-1)
            own = log_a.gather(-1, target.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        if self.kind == "log":
            return softplus(odds)
        log_s = log_a.logsumexp(-1, keepdim=target is None)
        if self.kind == "digamma":
            return softplus(odds) + _digamma_excess(log_s) - _digamma_excess(own)
        doubt, m = torch.sigmoid(odds), torch.softmax(log_a, -1)
        variance = torch.sigmoid(-odds) * doubt + of_rivals(m * (1.0 - m))
        return doubt.square() + of_rivals(m.square()) + variance * torch.sigmoid(-log_s)

    def _evidence(self, z: Tensor) -> Tensor:
        if self.evidence == "softplus":
            return softplus(z)
        if self.evidence == "relu":
            return torch.relu(z)
        if self.evidence == "exp":
            return z.clamp(-10.0, 10.0).exp()
        good = z >= 0
        if _softmax.readable(good) and not bool(good.all()):
            raise ValueError(
                "logits: expected evidence >= 0 with evidence='identity', "
                f"got {float(z.detach()[~good][0]):g}"
            )
        return z

    def _annealed(self, step: float | Tensor | None) -> float | Tensor | None:
        """Return the weight of the divergence, ``None`` where there is none."""
        if self.kl_weight is not None:
            if step is not None:
                raise TypeError(
                    f"step: expected None with kl_weight={self.kl_weight:g}, got {step!r}"
                )
            return self.kl_weight or None
        if step is None:
            return 1.0
        share = _checked_step("step", step) / self.annealing_steps
        return share.clamp(max=1.0) if isinstance(share, Tensor) else min(1.0, share)

    def properties(self, num_classes: int = 10) -> Properties:
        """Return what this instance guarantees on ``num_classes`` classes, after the annealing."""
        unknown = {
            "lipschitz": "not worked out",
            "calibrated": "not worked out",
            "rank_consistent": "not worked out",
            "proper": "a probability is alpha/S here, not a softmax",
        }
        if self.evidence == "identity":
            claims = ("convex", "lower", "upper", "smoothness", "symmetric", "shift_invariant")
            unknown |= dict.fromkeys(claims, "of evidence, which has a sign")
            return Properties(unknown=unknown, source="Sensoy, Kaplan, Kandemir 2018")
        counterexamples: dict[str, tuple[Any, ...]] = {
            # Of a rival's logit it is concave where it grows like a logarithm, or not at all.
            "convex": ((0.0, 0.0, 0.0), (20.0, 0.0, 0.0), 1),
            "symmetric": ((0.0, 0.0, 0.0), (3.0, 0.0, -1.0)),
            "shift_invariant": ((1.0, 0.0, 0.0), 3.0),
        }
        lower: float | None = 0.0
        upper: float | None = math.inf
        if self.evidence == "exp":
            lower = upper = None
            unknown["lower"] = unknown["upper"] = "finite, of evidence up to exp(10)"
        elif self.kind == "mse" and self.kl_weight == 0.0:
            upper = 2.0
        else:
            counterexamples["upper"] = ((1.0, 0.0), 1)
        return Properties(
            convex=False,
            lower=lower,
            upper=upper,
            smoothness=math.inf if self.evidence == "softplus" else 0,
            symmetric=False,
            shift_invariant=False,
            limits=(("kind = 'log', kl_weight = 0", "cross-entropy of the logits log alpha"),),
            counterexamples=counterexamples,
            unknown=unknown,
            source="Sensoy, Kaplan, Kandemir 2018",
        )


class TLCLoss(Loss):
    r"""Trustworthy long-tailed classification (TLC): margins, evidence and diversity of experts.

    .. math:: \ell_i = a_y \operatorname{CE}(z_i - s\, m_y e_y, y) + \lambda_t \operatorname{KL}_i
              - \delta\, T_m^2 \operatorname{KL}(q \,\|\, \operatorname{softmax}(z_i / T)),
              \qquad q = \operatorname{softmax}(z / T), \qquad
              \lambda_t = \frac{t\, \rho}{t_0 + A}

    for expert i, with margins m_c in proportion to n_c^(-1/4), of at most ``max_margin``; the
    divergence KL_i from the uniform Dirichlet distribution of its evidence exp(z), without the
    target's; and a reward for differing from the combined logits z (T_m is the mean of T). The loss
    is the sum over the experts of their means over the samples that they are engaged in, w_i/max
    w_i > tau. For long-tailed data and an ensemble whose later experts look only at what is
    uncertain: :class:`EvidentialEngagementWeighting` makes the combined logits and the engagement.

    Args:
        class_counts: n, the number of training samples of each class, > 0: a tensor (K,) or a
            sequence.
        max_margin: of the rarest class, >= 0. Default 0.5.
        scale: s > 0 of the margins. Default 30.
        reweight_epoch: t_0 >= 0, the epoch after which classes are weighted by a, by their
            effective numbers (1 - b)/(1 - b^n), b = 0.9999, of mean 1, and temperatures
            T_c = t_c/max t, t_c = K n_c/sum(n) rho + 1 - rho, take the place of 1. Default -1:
            never.
        reweight_factor: rho in [0, 1]. Default 0.05.
        annealing: A, how slowly lambda grows, > 0, with t_0 + A > 0. Default 500. lambda is not
            capped at 1.
        tau: in [0, 1): the engagement, relative to the largest of the batch, that a sample must
            exceed to train an expert. Default 0.54.
        diversity: delta >= 0. Default 0.01.
        max_log_evidence: what logits are clamped to inside of KL; ``None``, the default: not at
            all.
        reduction: see :class:`lossary.Loss`. The formula is ``"mean"``.

    Shape:
        logits (E, N, K) of E experts, target (N,) class indices, combined_logits (N, K),
        engagement (E or more, N) whose first E rows are used, epoch t >= 0, a number or a 0-dim
        tensor. Values (N,), each sample's share of the experts' means, times N. Half precision is
        computed in float32, KL in float64.

    Properties:
        The loss is batch-coupled, through the engagement. It can be negative: diversity is
        subtracted. KL >= 0, unchanged by the target's logit. No gradient reaches combined_logits,
        engagement or the counts. An expert that no sample is engaged in adds 0.

    Limits:
        Equal counts: cross-entropy with a constant margin, s max_margin. Epoch 0, one expert, equal
        to the combined logits: cross-entropy with margins.

    Note:
        In the published code KL is evaluated in float32, where one logit of 20 gives -178 instead
        of 34.4; here it is exact at any logit, also at the 30 that the head's scale allows. With
        ``reweight_epoch=-1`` the published code raises an error; here it means never. Where the
        mask is empty it divides 0 by 0. The likelihood takes exp(z) for evidence, KL and the
        uncertainty exp(z) + 1 for alpha, as published.

    Raises:
        ValueError: counts that are not positive, finite and (K,); hyper-parameters out of range;
            inputs of shapes that do not fit, a target outside [0, K), an ``epoch`` that is
            negative.
        TypeError: inputs that are not floating-point tensors, hyper-parameters that are not
            numbers.

    Reference:
        Li, Han, Li, Fu, Zhang, "Trustworthy Long-Tailed Classification", 2022. Agrees with the
        authors' code where that keeps its digits.

    Example:
        >>> import torch
        >>> from lossary import EvidentialEngagementWeighting, TLCLoss
        >>> logits = torch.tensor([[[2.0, 0.0], [1.0, 1.5]], [[1.0, 0.0], [2.0, 1.0]]])
        >>> weighting = EvidentialEngagementWeighting()
        >>> loss = TLCLoss(torch.tensor([90, 10]), scale=1.0)
        >>> loss(
        ...     logits, torch.tensor([0, 1]), weighting.combine(logits), weighting(logits), epoch=10
        ... )
        tensor(1.4803)
    """

    separable = False
    class_counts: Tensor

    def __init__(
        self,
        class_counts: Tensor | Sequence[float],
        max_margin: float = 0.5,
        scale: float = 30.0,
        reweight_epoch: int = -1,
        reweight_factor: float = 0.05,
        annealing: float = 500,
        tau: float = 0.54,
        diversity: float = 0.01,
        max_log_evidence: float | None = None,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(**options)
        self.register_buffer("class_counts", checked_counts("class_counts", class_counts))
        self.max_margin = check_number("max_margin", max_margin, 0.0, math.inf, high_open=True)
        self.scale = check_positive("scale", scale)
        self.reweight_epoch = check_int("reweight_epoch", reweight_epoch, -1)
        self.reweight_factor = check_number("reweight_factor", reweight_factor, 0.0, 1.0)
        self.annealing = check_positive("annealing", annealing, max(0.0, -reweight_epoch))
        self.tau = check_number("tau", tau, 0.0, 1.0, high_open=True)
        self.diversity = check_number("diversity", diversity, 0.0, math.inf, high_open=True)
        if max_log_evidence is not None:
            max_log_evidence = check_number("max_log_evidence", max_log_evidence)
        self.max_log_evidence = max_log_evidence

    def per_sample(
        self,
        logits: Tensor,
        target: Tensor,
        combined_logits: Tensor,
        engagement: Tensor,
        epoch: float | Tensor,
    ) -> Tensor:
        """Return the share of every sample in the experts' means, times their number."""
        self._check_inputs(logits, target, combined_logits, engagement)
        epoch = torch.as_tensor(_checked_step("epoch", epoch), device=logits.device)
        epoch = epoch.to(logits.dtype)
        if not len(target):
            return logits.sum((0, 2))
        margin, class_weight, temperature = self._of_classes(epoch, logits)
        y = target.expand(logits.shape[:2])
        odds = _softmax.target_log_odds(logits, y, class_dim=-1, margin=margin)
        values = softplus(odds) * class_weight[target]
        lam = epoch * (self.reweight_factor / (self.reweight_epoch + self.annealing))
        values = values + lam * self._kl(logits, target).to(logits.dtype)
        log_p = torch.log_softmax(logits / temperature, -1)
        log_q = torch.log_softmax(combined_logits.detach() / temperature, -1)
        differs = (log_q.exp() * (log_q - log_p)).sum(-1)
        values = values - self.diversity * temperature.mean().square() * differs
        w = engagement.detach()[: len(logits)]
        engaged = w > self.tau * w.amax(1, keepdim=True)
        share = len(target) / engaged.sum(1, keepdim=True).clamp(min=1).to(values.dtype)
        return (torch.where(engaged, values, 0.0) * share).sum(0)

    def _of_classes(self, epoch: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the margins, the class weights and the temperatures, each (K,)."""
        n = self.class_counts.double()
        relative = (n.min() / n) ** 0.25
        margin = self.scale * self.max_margin * relative
        rare = 1.0 / -torch.expm1(n * math.log(0.9999))
        weight = rare * (len(n) / rare.sum())
        t = len(n) * n / n.sum() * self.reweight_factor + 1.0 - self.reweight_factor
        late = (epoch > self.reweight_epoch) & (self.reweight_epoch >= 0)
        weight, t = (torch.where(late, x, 1.0) for x in (weight, t / t.max()))
        return margin.to(like.dtype), weight.to(like.dtype), t.to(like.dtype)

    def _kl(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the divergence from the uniform Dirichlet, (E, N), in float64."""
        z = logits.double()
        z = z if self.max_log_evidence is None else z.clamp(max=self.max_log_evidence)
        own = target.unsqueeze(-1) == torch.arange(z.shape[-1], device=z.device)
        log_a = softplus(z).masked_fill(own, 0.0)
        rivals = _divergence_term(log_a).masked_fill(own, 0.0).sum(-1)
        return _divergence(rivals, log_a.logsumexp(-1), z.shape[-1])

    def _check_inputs(
        self, logits: Tensor, target: Tensor, combined_logits: Tensor, engagement: Tensor
    ) -> None:
        _check_experts(logits)
        experts, n, num_classes = logits.shape
        counts = self._buffers["class_counts"]
        assert counts is not None
        if num_classes != len(counts):
            raise ValueError(
                f"class_counts: expected {num_classes} numbers, one per class of the logits, "
                f"got {len(counts)}"
            )
        check_class_indices(target, logits.shape[1:2], num_classes)
        check_device("target", target, logits)
        check_floating("combined_logits", combined_logits)
        check_like("combined_logits", combined_logits, "the logits of one expert", logits[0])
        check_floating("engagement", engagement)
        if engagement.dim() != 2 or len(engagement) < experts or engagement.shape[1] != n:
            raise ValueError(
                f"engagement: expected shape (E, {n}) with E >= {experts}, "
                f"got {tuple(engagement.shape)}"
            )
        check_device("engagement", engagement, logits)

    def properties(self) -> Properties:
        """Return what this instance guarantees."""
        several = "of several experts, each with its own term"
        return Properties(
            smoothness=math.inf,
            limits=(("one expert, epoch 0, no diversity", "cross-entropy with margins"),),
            unknown=dict.fromkeys(("convex", "lipschitz"), several)
            | dict.fromkeys(("lower", "upper"), "negative where the experts differ much"),
            source="Li, Han, Li, Fu, Zhang 2022",
        )


def _check_experts(logits: Tensor) -> None:
    check_floating("logits", logits)
    if logits.dim() != 3 or len(logits) == 0 or logits.shape[2] < 2:
        raise ValueError(
            f"logits: expected shape (E, N, K), E >= 1, K >= 2, got {tuple(logits.shape)}"
        )


class EvidentialEngagementWeighting(nn.Module):
    r"""How much each expert of an ensemble still has to say: the uncertainty of those before it.

    .. math:: w_0 = 1, \qquad w_{i+1} = \frac{w_i\, u_i}{1 - K_i}, \qquad
              K_i = \sum_{k \ne l} b^{(i-1)}_k b^{(i)}_l, \qquad K_0 = 0

    with belief b and uncertainty u of expert i from its evidence exp(z). A sample on which the
    first experts are sure takes no part in the training of the later ones. ``combine`` mixes their
    logits by it. Made for :class:`TLCLoss`.

    Args:
        reweight_temperature: eta > 0 of the softmax that ``combine`` takes. Default 0.2.

    Shape:
        logits (E, N, K), E >= 1, K >= 2. Returns the weights (E + 1, N): row i < E that of expert
        i, the last one the uncertainty that is left. ``combine(logits)`` returns (N, K), the sum of
        z_i softmax(w_i/eta), the softmax over the batch. Half precision gives float32.

    Properties:
        Weights are detached, in [0, 1], and never grow from an expert to the next. Each sample's
        own, but the softmax over the batch in ``combine`` is not: there outputs depend on what else
        is in the batch, as published. Gradient flows through the logits in ``combine``.

    Limits:
        No evidence (logits to -inf): all weights 1. Confident agreement: the weights after the
        first go to 0.

    Note:
        The conflict K_i is of an expert and the one before it, not of all before it; the full rule
        is :class:`DempsterShaferCombination`. For confident experts that disagree K_i rounds to 1:
        1 - K = sum_k b_k b'_k + u + u' - u u' is evaluated instead, from logarithms, in float64.

    Raises:
        ValueError: ``reweight_temperature`` not positive; logits not (E, N, K).
        TypeError: logits that are not a floating-point tensor.

    Reference:
        Li, Han, Li, Fu, Zhang, "Trustworthy Long-Tailed Classification", 2022. Agrees with the
        authors' code.

    Example:
        >>> import torch
        >>> from lossary import EvidentialEngagementWeighting
        >>> logits = torch.tensor([[[3.0, 0.0], [0.0, 0.0]], [[2.0, 0.0], [1.0, 0.0]]])
        >>> EvidentialEngagementWeighting()(logits)
        tensor([[1.0000, 1.0000],
                [0.0866, 0.5000],
                [0.0188, 0.2088]])
    """

    def __init__(self, reweight_temperature: float = 0.2) -> None:
        super().__init__()
        self.reweight_temperature = check_positive("reweight_temperature", reweight_temperature)

    @torch.no_grad()
    def forward(self, logits: Tensor) -> Tensor:
        """Return the weight of every expert for every sample, and what is left after them."""
        _check_experts(logits)
        z = logits.double()
        log_k = torch.full((), math.log(z.shape[-1]), dtype=z.dtype, device=z.device)
        log_evidence = z.logsumexp(-1)
        log_s = torch.logaddexp(log_evidence, log_k)
        log_b, log_u, log_sure = z - log_s.unsqueeze(-1), log_k - log_s, log_evidence - log_s
        agreed = (log_b[:-1] + log_b[1:]).logsumexp(-1)
        # 1 - K, in which u' (1 - u) stands for u' - u u'.
        open_ = torch.logaddexp(log_u[:-1], log_u[1:] + log_sure[:-1])
        step = torch.cat((log_u[:1], log_u[1:] - torch.logaddexp(agreed, open_)))
        weights = torch.cat((torch.zeros_like(step[:1]), step.cumsum(0))).exp()
        return weights.to(_softmax._compute_dtype(logits))

    def combine(self, logits: Tensor) -> Tensor:
        """Return the logits of all experts as one, (N, K)."""
        w = self(logits)[:-1]
        share = torch.softmax(w / self.reweight_temperature, 1)
        return (logits.to(share.dtype) * share.unsqueeze(-1)).sum(0)


class DempsterShaferCombination(nn.Module):
    r"""Several Dirichlet opinions as one, by the reduced rule of Dempster and Shafer.

    .. math:: b_k = \frac{b^1_k b^2_k + b^1_k u^2 + b^2_k u^1}{1 - C}, \qquad
              u = \frac{u^1 u^2}{1 - C}, \qquad C = \sum_{k \ne l} b^1_k b^2_l

    one after the other. In evidence e = alpha - 1 this is 1 + e_k/K, the product of the same of all
    opinions. For views, modalities or experts that each give evidence for the classes; take the
    result as the alpha of a prediction or of a loss.

    Args:
        None when it is made.

    Shape:
        alpha (V, N, K): the parameters of V opinions, V >= 1, K >= 2, each >= 1. Returns (N, K).
        Half precision gives float32.

    Properties:
        Commutative and associative. alpha = 1, no opinion, changes nothing. The combined
        uncertainty is at most that of any opinion; sum_k b_k + u = 1. Differentiable in all alpha.

    Limits:
        One opinion: itself. Little evidence: the evidence adds up.

    Note:
        1 - C cancels in the ratio b/u, of which evidence is made, so that no digits are lost in
        confident conflict, where the published form subtracts C from 1. In float64; evidence that
        leaves the range of float32 is inf there.

    Raises:
        ValueError: alpha not (V, N, K), or below 1 (on CPU tensors, where looking costs nothing).
        TypeError: alpha not a floating-point tensor.

    Reference:
        Han, Zhang, Fu, Zhou, "Trusted Multi-View Classification", 2021, definition 4. Agrees with
        the authors' code.

    Example:
        >>> import torch
        >>> from lossary import DempsterShaferCombination
        >>> alpha = torch.tensor([[[3.0, 1.0]], [[2.0, 2.0]]])
        >>> DempsterShaferCombination()(alpha)
        tensor([[5., 2.]])
    """

    def __init__(self) -> None:
        super().__init__()

    def forward(self, alpha: Tensor) -> Tensor:
        """Return the parameters of the combined opinion."""
        check_floating("alpha", alpha)
        if alpha.dim() != 3 or len(alpha) == 0 or alpha.shape[2] < 2:
            raise ValueError(
                f"alpha: expected shape (V, N, K), V >= 1, K >= 2, got {tuple(alpha.shape)}"
            )
        good = alpha >= 1
        if _softmax.readable(good) and not bool(good.all()):
            raise ValueError(
                f"alpha: expected parameters >= 1, got {float(alpha.detach()[~good][0]):g}"
            )
        num_classes = alpha.shape[-1]
        factors = torch.log1p((alpha.double() - 1.0) / num_classes)
        combined = 1.0 + num_classes * torch.expm1(factors.sum(0))
        return combined.to(_softmax._compute_dtype(alpha))
