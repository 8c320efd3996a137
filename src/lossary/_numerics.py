"""Scalar functions that keep their digits where the textbook forms lose them."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def softplus(x: Tensor, beta: float = 1.0) -> Tensor:
    """Return log(1 + exp(beta x))/beta.

    ``F.softplus`` returns x itself beyond its threshold: where log1p(exp(-x)) is below half a
    spacing of x, from 40 on in float64 and from 20 on in float32, nothing is lost. No later than
    that, because its backward computes (g exp(x))/(exp(x) + 1), which overflows for large g.
    """
    return F.softplus(x, beta, 40.0 if x.dtype == torch.float64 else 20.0)


def binary_cross_entropy(y: Tensor, log_odds: Tensor) -> Tensor:
    """Return -y log p - (1 - y) log(1 - p), p the probability of these log-odds."""
    return y * softplus(-log_odds) + (1.0 - y) * softplus(log_odds)


def expm1(x: Tensor) -> Tensor:
    """Return exp(x) - 1, with the slope exp(x) to full relative accuracy.

    ``torch.expm1`` takes its slope as result + 1, which for x << 0 has lost every digit of exp(x).
    """
    slope = torch.exp(x)
    return torch.expm1(x.detach()) + (slope - slope.detach())


def exp_remainder(x: Tensor) -> Tensor:
    """Return exp(x) - 1 - x, which is x^2/2 near 0, and its slope to full relative accuracy."""
    near = x.abs() < 0.5
    y = torch.where(near, x, 0.0)
    series = torch.ones_like(y)
    for n in range(15, 2, -1):  # 0.5^14/16! is below the rounding of 1/2
        series = 1.0 + series * y / n
    return torch.where(near, y.square() / 2.0 * series, torch.exp(x) - 1.0 - x)


def log1mexp(x: Tensor) -> Tensor:
    """Return log(1 - exp(x)) for x <= 0, to full relative accuracy, -inf at 0.

    Near 0, 1 - exp(x) needs expm1; far below, the logarithm of a number near 1 needs log1p. Each
    branch is fed an argument that is harmless to it where the other is chosen, so that no infinite
    slope of the branch not taken turns into 0 * inf = nan in the gradient.
    """
    near = x > -math.log(2.0)
    # 0 - expm1, not -expm1: at x = 0 the latter is -0.0, and the slope infinitely upwards.
    by_expm1 = torch.log(0.0 - torch.expm1(torch.where(near, x, -1.0)))
    by_log1p = torch.log1p(-torch.exp(torch.where(near, -1.0, x)))
    return torch.where(near, by_expm1, by_log1p)


def normalized(x: Tensor) -> Tensor:
    """Return the rows of ``x``, along the last axis, at Euclidean norm 1.

    A row of norm below 1e-6 (1e-12 in float64) is divided by that instead: the plain quotient has
    slope nan at 0, and a smaller bound a slope that is the end of training.
    """
    least = 1e-12 if x.dtype == torch.float64 else 1e-6
    # The norm of a row relative to its largest entry cannot overflow, as its square could.
    top = x.detach().abs().amax(-1, keepdim=True)
    x = x / torch.where(top > least, top, 1.0)
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / norm.clamp(min=least)


def divergence_terms(log_q: Tensor, log_p: Tensor) -> Tensor:
    """Return terms >= 0, whose sum over a pair of distributions is KL(q || p).

    They are p - q - q log(p/q), q (exp(d) - 1 - d) with d = log(p/q): where the two nearly agree,
    q log(q/p) has terms of both signs that cancel.
    """
    d = log_p - log_q
    near = d.abs() < 0.5
    q = torch.exp(log_q)
    return torch.where(
        near, q * exp_remainder(torch.where(near, d, 0.0)), torch.exp(log_p) - q - q * d
    )


def one_minus_cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return 1 - cos of vectors along the last axis, also near 0, where it would cancel.

    For unit vectors it is half the squared distance, which does not cancel; a vector of zeros has
    cosine 0 with all others.
    """
    u, v = normalized(a), normalized(b)
    short = torch.minimum(u.detach().square().sum(-1), v.detach().square().sum(-1)) < 0.99
    return torch.where(short, 1.0 - (u * v).sum(-1), 0.5 * (u - v).square().sum(-1))
