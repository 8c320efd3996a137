r"""What a small surrogate loss says about the error rate: H-consistency bounds as functions.

Under class probabilities q, a row of logits f has a zero-one regret, max q - q_{argmax f}, and, for
a comp-sum loss (:class:`lossary.CompSumLoss`), a surrogate regret, its conditional risk less the
least one, C*(q). The transform T ties them together,

.. math:: T(\text{zero-one regret}) \le \text{surrogate regret}, \qquad
          \text{zero-one regret} \le \Gamma(\text{surrogate regret}), \quad \Gamma = T^{-1}

and as T is convex the same holds for averages over inputs.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lossary._base import HALF
from lossary._checks import check_floating, check_int, check_number
from lossary._numerics import softplus
from lossary._softmax import all_log_odds, readable


def comp_sum_transform(beta: float | Tensor, tau: float, num_classes: int) -> Tensor:
    r"""Return the least comp-sum regret that a zero-one regret of beta can go with.

    .. math:: T(\beta) = \begin{cases}
              \dfrac{2^{1-\tau}}{1-\tau} \, (1 - M), & 0 \le \tau < 1 \\[1ex]
              \tfrac12 \bigl[(1+\beta) \log(1+\beta) + (1-\beta) \log(1-\beta)\bigr], & \tau = 1 \\
              \dfrac{M - 1}{(\tau-1) \, n^{\tau-1}}, & 1 < \tau < 2 \\[1ex]
              \dfrac{\beta}{(\tau-1) \, n^{\tau-1}}, & \tau \ge 2
              \end{cases} \qquad
              M = \Bigl[\tfrac12 (1+\beta)^{\frac{1}{2-\tau}}
                  + \tfrac12 (1-\beta)^{\frac{1}{2-\tau}}\Bigr]^{2-\tau}

    with n = num_classes. T(zero-one regret) <= regret of :class:`lossary.CompSumLoss`, for every
    row of logits and all class probabilities, and for averages of both over inputs. Use it to say
    what a reduction of the error rate must cost in the surrogate, to compare members of the family,
    or to test a surrogate; :func:`comp_sum_gamma` is the bound read the other way.

    Args:
        beta: zero-one regret, in [0, 1]. A number is taken as a float64 tensor.
        tau: the loss's parameter, tau >= 0, finite.
        num_classes: n >= 2. It matters for tau > 1 only.

    Shape:
        beta of any shape, entry by entry; the result has the same.

    Returns:
        A regret in the units of the loss (nats at tau = 1), in the dtype of beta; half precision is
        computed in float32. Differentiable to any order, in reverse mode.

    Properties:
        T(0) = 0, increasing, convex. T >= beta^2/(2^tau (2 - tau)) for tau < 1, and
        T >= beta^2/(2 n^(tau-1)) for 1 <= tau < 2. There the expansion at 0,
        beta^2/(2 (2 - tau) n^(tau-1)), is larger, but a lower bound only up to tau = 4/3.
        Tight for tau <= 1, and for 1 < tau <= 2 with two classes: probabilities (1 + beta)/2 and
        (1 - beta)/2 on two classes whose logits are tied, the others far below, reach equality.
        Loose for tau > 2.

    Limits:
        tau = 0: 1 - sqrt(1 - beta^2). tau -> 1 and tau -> 2: continuous. T(1) is the loss at a
        tie of two, (2^(1-tau) - 1)/(1 - tau), for tau <= 1.

    Note:
        In float64 right to 1e-14, in float32 to 1e-6, relative to T itself: where beta is tiny, and
        for tau next to 1 and to 2, too. At beta = 1 and tau <= 1 the slope is infinite.

    Raises:
        ValueError: ``beta`` outside [0, 1] or nan (on CPU tensors, where looking costs nothing),
            ``tau`` negative, infinite or nan, ``num_classes`` below 2.
        TypeError: ``beta`` neither a number nor a floating-point tensor, ``tau`` not a number,
            ``num_classes`` not an int.

    Reference:
        Mao, Mohri, Zhong, "Cross-Entropy Loss Functions: Theoretical Analysis and Applications",
        2023. The pieces tau = 0 and tau = 1 agree with a digest of the authors' follow-up paper;
        the others are RECALLED. That digest has beta^2/n at tau = 2, which is weaker than the
        linear form here. The inequality, the convexity and the tightness were checked numerically.

    Example:
        >>> from lossary import comp_sum_transform
        >>> comp_sum_transform(0.1, tau=1.0, num_classes=10)
        tensor(0.0050, dtype=torch.float64)
    """
    b = _numbers("beta", beta, 1.0)
    tau, n = _parameters(tau, num_classes)
    return _transform(b, tau, n)


def comp_sum_gamma(t: float | Tensor, tau: float, num_classes: int) -> Tensor:
    r"""Return the largest zero-one regret that a comp-sum regret of t can go with.

    .. math:: \Gamma(t) = \min(T^{-1}(t), 1), \qquad
              R_{01}(h) - R_{01}^* + M_{01} \le \Gamma(R_\tau(h) - R_\tau^* + M_\tau)

    with T from :func:`comp_sum_transform`. R is a risk, R* the best in the hypothesis set, M the
    minimizability gap: best-in-class risk less the mean of the pointwise minima, 0 for the set of
    all functions. Where the least risk is known or can be estimated, this turns an average training
    loss into a bound on the error rate above the best one.

    Args:
        t: comp-sum regret, >= 0; ``inf`` is allowed. A number is taken as a float64 tensor. A
            regret computed as a difference may come out as -1e-17: clamp it.
        tau: the loss's parameter, tau >= 0, finite.
        num_classes: n >= 2. It matters for tau > 1 only.

    Shape:
        t of any shape, entry by entry; the result has the same.

    Returns:
        A zero-one regret, a probability in [0, 1], in the dtype of t; half precision is computed in
        float32. Differentiable to any order, in reverse mode; the slope is infinite at t = 0 for
        tau < 2, and 0 where clipped.

    Properties:
        Gamma(0) = 0, increasing, concave, 1 from T(1) on.
        Gamma <= sqrt(2^tau (2 - tau) t) for tau < 1, sqrt(2 n^(tau-1) t) for 1 <= tau < 2;
        (tau - 1) n^(tau-1) t, clipped, for tau >= 2. Tight where T is.

    Limits:
        tau = 0: sqrt(t (2 - t)) for t <= 1. tau -> 1 and tau -> 2: continuous.

    Note:
        By bisection over the floating-point numbers, in a fixed number of steps: as accurate as T,
        at every size of t.

    Raises:
        ValueError: ``t`` negative or nan (on CPU tensors, where looking costs nothing), ``tau``
            negative, infinite or nan, ``num_classes`` below 2.
        TypeError: ``t`` neither a number nor a floating-point tensor, ``tau`` not a number,
            ``num_classes`` not an int.

    Reference:
        Mao, Mohri, Zhong, "Cross-Entropy Loss Functions: Theoretical Analysis and Applications",
        2023. tau = 0 and the bound sqrt(2t) at tau = 1 agree with a digest of the authors'
        follow-up paper; the rest is RECALLED.

    Example:
        >>> from lossary import comp_sum_gamma
        >>> comp_sum_gamma(0.005, tau=1.0, num_classes=10)
        tensor(0.0999, dtype=torch.float64)
    """
    t = _numbers("t", t, math.inf)
    tau, n = _parameters(tau, num_classes)
    if tau < 2.0:
        return _gamma(t, tau, n)
    most = _scale(tau, n) / (tau - 1.0)
    if most < torch.finfo(t.dtype).tiny:  # any t in sight is beyond T(1); 0/0 where it underflows
        return torch.where(t > 0.0, 1.0, t)
    return (t / most).clamp(max=1.0)


def comp_sum_conditional_minimum(q: Tensor, tau: float) -> Tensor:
    r"""Return the least conditional risk of a comp-sum loss under the class probabilities q.

    .. math:: C^*(q) = \inf_f \sum_k q_k \, \ell_\tau(f, k) = \begin{cases}
              \dfrac{\bigl(\sum_k q_k^{1/(2-\tau)}\bigr)^{2-\tau} - 1}{1 - \tau},
              & 0 \le \tau < 2, \ \tau \ne 1 \\
              -\sum_k q_k \log q_k, & \tau = 1 \\
              \dfrac{1 - \max_k q_k}{\tau - 1}, & \tau \ge 2 \end{cases}

    What remains of the loss when nothing is left to learn: with it a risk becomes a regret, the
    argument of :func:`comp_sum_gamma`. Its mean over inputs is the Bayes risk of the loss.

    Args:
        q: class probabilities, non-negative with sum 1; zeros are allowed. Where rounding lets the
            sum miss 1, the result is the infimum for q as it stands, homogeneous of degree 1.
        tau: the loss's parameter, tau >= 0, finite.

    Shape:
        q (..., K), K >= 2. The result has q's shape without the last axis.

    Returns:
        A risk in the units of the loss (nats at tau = 1), in the dtype of q; half precision is
        computed in float32. Differentiable: the slope in q_k is the loss of class k at the
        minimiser, infinite at q_k = 0 for tau <= 1.

    Properties:
        Concave, 0 iff q is one-hot, largest at the uniform q, (K^(1-tau) - 1)/(1 - tau) for
        tau <= 2. Attained for tau < 2 at softmax(f)_k proportional to q_k^(1/(2-tau)), where all
        q_k > 0; for tau >= 2 only approached.

    Limits:
        tau = 0: (sum_k sqrt(q_k))^2 - 1. tau = 1: the entropy of q. tau -> 2: continuous.

    Note:
        Computed as the risk of the minimiser: a sum of terms >= 0, in which errors of the minimiser
        count in second order only. Nothing cancels next to tau = 1 or next to a one-hot q.

    Raises:
        ValueError: fewer than 2 classes; ``q`` negative, nan or not of sum 1 to within 0.02 (on CPU
            tensors, where looking costs nothing); ``tau`` negative, infinite or nan.
        TypeError: ``q`` not a floating-point tensor, ``tau`` not a number.

    Reference:
        Mao, Mohri, Zhong, "Cross-Entropy Loss Functions: Theoretical Analysis and Applications",
        2023. RECALLED; checked against numerical minimisation.

    Example:
        >>> import torch
        >>> from lossary import comp_sum_conditional_minimum
        >>> comp_sum_conditional_minimum(torch.tensor([0.5, 0.25, 0.25]), tau=1.0)
        tensor(1.0397)
    """
    tau = check_number("tau", tau, 0.0, math.inf, high_open=True)
    q = _probabilities(q)
    if tau < 2.0:
        return _least_risk(q, tau)
    # The sum over the others, as 1 - max q has few digits left where q is nearly one-hot.
    classes = torch.arange(q.shape[-1], device=q.device)
    top = classes == q.detach().argmax(-1, keepdim=True)
    return torch.where(top, 0.0, q).sum(-1) / (tau - 1.0)


def logistic_regret_bound(ce_regret: float | Tensor) -> Tensor:
    r"""Return the largest zero-one regret that a regret in cross-entropy can go with, in short.

    .. math:: R_{01}(h) - R_{01}^* + M_{01} \le
              \min\bigl(\sqrt{2 \, (R_{CE}(h) - R_{CE}^* + M_{CE})}, \, 1\bigr)

    How many points of accuracy can be left when cross-entropy is so close to its least value. With
    p = softmax(f), the regret in cross-entropy is KL(q || p), and
    zero-one regret <= ||q - p||_1 <= sqrt(2 KL(q || p)). The sharper form, which no function of the
    regret improves on, is ``comp_sum_gamma(ce_regret, 1.0, num_classes)``.

    Args:
        ce_regret: cross-entropy less its least value, in nats, >= 0; ``inf`` is allowed. A number
            is taken as a float64 tensor.

    Shape:
        ce_regret of any shape, entry by entry; the result has the same.

    Returns:
        A zero-one regret, a probability in [0, 1], in the dtype of ce_regret; half precision is
        computed in float32. Differentiable; the slope is infinite at 0, and 0 where clipped.

    Properties:
        0 at 0, increasing, concave, 1 from 1/2 on; never below ``comp_sum_gamma`` at tau = 1, and
        equal to it at 0 and from log 2 on.

    Limits:
        ce_regret -> 0: the ratio to the sharper form tends to 1.

    Raises:
        ValueError: ``ce_regret`` negative or nan (on CPU tensors, where looking costs nothing).
        TypeError: ``ce_regret`` neither a number nor a floating-point tensor.

    Reference:
        Zheng, Wu, Bao, Cao, Li, Zhu, "Revisiting Discriminative vs. Generative Classifiers: Theory
        and Implications", 2023. The form sqrt(2t) agrees with a digest of the papers on
        H-consistency; the inequality was checked on random pairs (q, p).

    Example:
        >>> from lossary import logistic_regret_bound
        >>> logistic_regret_bound(0.005)
        tensor(0.1000, dtype=torch.float64)
    """
    t = _numbers("ce_regret", ce_regret, math.inf)
    return (2.0 * t.clamp(max=0.5)).sqrt()


# Checking the arguments.


def _numbers(name: str, value: float | Tensor, high: float) -> Tensor:
    """Return numbers in [0, high] as a tensor of the dtype to compute in."""
    if not isinstance(value, Tensor):
        return torch.tensor(check_number(name, value, 0.0, high), dtype=torch.float64)
    if not value.dtype.is_floating_point:
        raise TypeError(f"{name}: expected a number or floating-point tensor, got {value.dtype}")
    if readable(value):
        wrong = ~((value.detach() >= 0.0) & (value.detach() <= high))
        if bool(wrong.any()):
            found = float(value.detach()[wrong][0])
            raise ValueError(f"{name}: expected numbers in [0, {high:g}], got {found:.8g}")
    return value.float() if value.dtype in HALF else value


def _parameters(tau: float, num_classes: int) -> tuple[float, int]:
    tau = check_number("tau", tau, 0.0, math.inf, high_open=True)
    return tau, check_int("num_classes", num_classes, 2)


def _probabilities(q: Tensor) -> Tensor:
    check_floating("q", q)
    if q.dim() == 0 or q.shape[-1] < 2:
        shape = tuple(q.shape)
        raise ValueError(f"q: expected a last axis of at least 2 classes, got shape {shape}")
    if readable(q):
        rows = q.detach().double()
        total = rows.sum(-1)
        # As for probability targets: those once in half precision miss 1 by that rounding.
        good = (rows >= 0.0).all(-1) & ((total - 1.0).abs() <= 2e-2)
        if not bool(good.all()):
            row = rows[~good][0]
            raise ValueError(
                "q: expected class probabilities, non-negative with sum 1 over the last axis, got "
                f"a row with minimum {float(row.min()):g} and sum {float(row.sum()):g}"
            )
    return q.float() if q.dtype in HALF else q


# The transform. With a = tau - 1, s = 1/(2 - tau), d = s - 1 = a/(2 - tau), r = atanh(b), and M the
# power mean of 1 + b and 1 - b of order s,
#
#     1 +- b = exp(+-r) / cosh(r),    M^s = cosh(s r) / cosh(r)^s,
#     (log M)/a = log(cosh(d r) + b sinh(d r))/d - log cosh(r).
#
# The textbook form of (M - 1)/a loses all digits where M rounds to 1, next to a = 0 as well as next
# to b = 0; here each term is of the size of the result, b^2, and the limit a -> 0 is that of each.


def _transform(b: Tensor, tau: float, n: int) -> Tensor:
    if tau >= 2.0:
        return b * (_scale(tau, n) / (tau - 1.0))
    return _mean_excess(b, tau) * _scale(tau, n)


def _mean_excess(b: Tensor, tau: float) -> Tensor:
    """Return (M - 1)/a."""
    return _with_slope(b, lambda b: _mean_value(b, tau), lambda b: _mean_slope(b, tau))


def _scale(tau: float, n: int) -> float:
    """Return what (M - 1)/a is multiplied by."""
    return math.pow(2.0 if tau < 1.0 else n, 1.0 - tau)


def _quotient(fn: Callable[[Tensor], Tensor], x: Tensor, first: float, second: float) -> Tensor:
    """Return fn(x)/x, which next to 0 is 1 + first * x + second * x^2: neither 0/0 nor underflow.

    What the series leaves out is of third order: below 1e-15.
    """
    near = x.abs() < 1e-5
    small, large = torch.where(near, x, 0.0), torch.where(near, 1.0, x)
    return torch.where(near, 1.0 + small * (first + small * second), fn(large) / large)


def _over_expm1(x: Tensor) -> Tensor:
    return _quotient(torch.expm1, x, 1.0 / 2.0, 1.0 / 6.0)


def _over_log1p(x: Tensor) -> Tensor:
    return _quotient(torch.log1p, x, -1.0 / 2.0, 1.0 / 3.0)


def _over_sinh(x: Tensor) -> Tensor:
    return _quotient(torch.sinh, x, 0.0, 1.0 / 6.0)


def _mean_value(b: Tensor, tau: float) -> Tensor:
    """Return (M - 1)/a, without a gradient of its own: at b = 1 terms that cancel are infinite."""
    a = tau - 1.0
    d = a / (2.0 - tau)
    # The largest number below 1 gives r a value to be multiplied by 1 - b = 0.
    r = torch.atanh(b.clamp(max=1.0 - torch.finfo(b.dtype).eps / 2.0))
    x = d * r
    half = _over_sinh(x / 2.0)
    y = r * (x / 2.0 * half * half + b * _over_sinh(x))
    near = y * _over_log1p(d * y) + 0.5 * torch.log1p(-b * b)
    # Far from b = 0 as 1 - b^2 loses digits, and where d r is large as cosh(d r) overflows: with
    # the larger of the powers taken out, log(1 + b) + log1p((1 - b)/2 expm1(-2 d r))/d.
    z = (b - 1.0) * r * _over_expm1(-2.0 * x)
    far = torch.log1p(b) + z * _over_log1p(d * z)
    log_mean = torch.where((b < 0.5) & (x < 1.0), near, far)
    return log_mean * _over_expm1(a * log_mean)


def _mean_slope(b: Tensor, tau: float) -> Tensor:
    """Return the derivative of (M - 1)/a, M tanh(d r) / (1 + b tanh(d r)) / a; at b = 1 its limit.

    It is 0 at b = 0 and at b = 1 finite for tau > 1 and infinite otherwise: true, and never nan.
    """
    a = tau - 1.0
    r = torch.atanh(b)
    if a == 0.0:
        return r
    x = a / (2.0 - tau) * r
    # tanh(x)/a with the limit r/(2 - tau), in which a has left; 1 + tanh(x) is 2 sigmoid(2 x).
    near = x.abs() < 1e-4
    small = torch.where(near, r, 0.0)
    limit = small * (1.0 - torch.where(near, x, 0.0).square() / 3.0) / (2.0 - tau)
    rate = torch.where(near, limit, torch.tanh(torch.where(near, 1.0, x)) / a)
    mean = 1.0 + a * _mean_excess(b, tau)
    return mean * rate / ((1.0 - b) + 2.0 * b * torch.sigmoid(2.0 * x))


def _bisect(t: Tensor, tau: float, n: int) -> Tensor:
    """Return the least b with T(b) >= t, or 1.

    By bisection, not by Newton's method: T has slope 0 at b = 0 and for tau <= 1 an infinite one at
    b = 1. Over the bit patterns of the floating-point numbers in [0, 1], which are in the order of
    the numbers: halving the interval of the numbers themselves would take hundreds of steps to the
    first digit of b = 1e-150; this takes 62 for all digits, without a look at the values.
    """
    # The pattern of 1, that of 0 being 0, and as many steps as it has bits.
    wide = t.dtype == torch.float64
    bits, one, steps = (
        (torch.int64, 0x3FF0000000000000, 62) if wide else (torch.int32, 0x3F800000, 30)
    )
    high = torch.full_like(t, one, dtype=bits)
    low = torch.zeros_like(high)
    for _ in range(steps):
        middle = low + (high - low) // 2
        enough = _mean_value(middle.view(t.dtype), tau) * _scale(tau, n) >= t
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return high.view(t.dtype)


def _gamma(t: Tensor, tau: float, n: int) -> Tensor:
    def slope(t: Tensor) -> Tensor:
        b = _gamma(t, tau, n)
        inside = b < 1.0
        t_slope = _mean_slope(torch.where(inside, b, 0.5), tau) * _scale(tau, n)
        return torch.where(inside, 1.0 / t_slope, 0.0)

    return _with_slope(t, lambda t: _bisect(t, tau, n), slope)


# The conditional minimum.


def _least_risk(q: Tensor, tau: float) -> Tensor:
    """Return the risk of the minimiser, whose own dependence on q adds nothing to the slope."""

    def shares(q: Tensor) -> Tensor:
        return torch.where(q > 0.0, q * _least_losses(q, tau), 0.0)

    return _with_slope(q, shares, lambda q: _least_losses(q, tau)).sum(-1)


def _least_losses(q: Tensor, tau: float) -> Tensor:
    """Return the loss of every class at the minimiser p_k ~ q_k^(1/(2-tau)), for tau < 2."""
    possible = q > 0.0
    z = torch.where(possible, q, 1.0).log() / (2.0 - tau)
    surprise = softplus(all_log_odds(torch.where(possible, z, -math.inf), class_dim=-1))
    surprise = torch.where(possible, surprise, 0.0)
    # (p^(tau-1) - 1)/(1 - tau) of -log p, and its limit for p -> 0.
    losses = surprise * _over_expm1((1.0 - tau) * surprise)
    return torch.where(possible, losses, 1.0 / (tau - 1.0) if tau > 1.0 else math.inf)


# A value and its derivative, each in a form that is accurate for it.

_Map = Callable[[Tensor], Tensor]


class _WithSlope(torch.autograd.Function):
    """value(x), of which slope(x) is the derivative, entry by entry.

    Without a forward mode: of a custom one torch takes the derivative, in forward mode again, for
    zero. Better an error.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, value: _Map, slope: _Map) -> Tensor:
        return value(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, _Map, _Map], output: Tensor) -> None:
        x, _, ctx.slope = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        return g * ctx.slope(*ctx.saved_tensors), None, None


def _with_slope(x: Tensor, value: _Map, slope: _Map) -> Tensor:
    out: Tensor = _WithSlope.apply(x, value, slope)  # type: ignore[no-untyped-call]
    return out
