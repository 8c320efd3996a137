r"""Alternatives to the softmax: other ways from logits to a loss, which cannot saturate.

.. math:: \ell(f, y) = -\log \frac{w(f_y)}{\sum_k w(f_k)} = \operatorname{CE}(\log w(f), y), \qquad
          w(x) = x^2 + \epsilon, \quad 1 + x + x^2/2, \quad
          \begin{cases} x + 1 & x \ge 0 \\ 1/(1 - x) & x < 0 \end{cases}

Where the softmax takes exp, these take a function that grows like a power, so that no logit of
float32 makes the gradient of a correct row exactly 0. They are cross-entropy of transformed logits,
and are computed as such. The Z-loss standardises the logits of a row instead.
"""

import math
from typing import Any, Unpack

import torch
from torch import Tensor

from lossary._base import ClassificationLoss, ClassOptions, _upcast, present_rows
from lossary._checks import check_number, check_positive
from lossary._numerics import softplus
from lossary._properties import Properties

_WHAT = "an alternative to the softmax"


def _log_square_sum(x: Tensor, c: float) -> Tensor:
    """Return log(x^2 + c^2): the square itself would overflow, or lose c."""
    return 2.0 * torch.hypot(x, torch.full((), c, dtype=x.dtype, device=x.device)).log()


class StableMaxCrossEntropyLoss(ClassificationLoss):
    r"""Cross-entropy with StableMax, a softmax that cannot saturate.

    .. math:: \ell(f, y) = -\log \frac{s(f_y)}{\sum_k s(f_k)}, \qquad
              s(x) = \begin{cases} x + 1 & x \ge 0 \\ 1/(1 - x) & x < 0 \end{cases}

    Trained long without regularization, networks drive cross-entropy to where the softmax rounds to
    0 and 1 and the gradient vanishes: learning stops, and with it the delayed generalization that
    is called grokking. s grows linearly, so that the gradient stays. The remedy of the same paper
    for the other half of the problem, growth along the weights, is :func:`perp_grad_`.

    Args:
        reduction, class_weight, ignore_index, class_dim: see :class:`lossary.ClassificationLoss`.

    Shape:
        logits (N, K, ...), target (N, ...) class indices or (N, K, ...) probabilities; K >= 2.
        Values (N, ...). Logits in memory (dense layout).

    Properties:
        Cross-entropy of g(f), g(x) = log s(x) = sign(x) log(1 + \|x\|), which maps the real line
        onto itself in its order. So l > 0, unbounded (like a logarithm), calibrated and
        rank-consistent: the minimiser is any f with s(f) proportional to q. Not proper: it is not
        softmax(f) = q. Gradient (s(f_k)/sum s - [k = y])/(1 + \|f_k\|), of norm at most sqrt(2).
        Not convex, not shift-invariant; one continuous derivative, as g bends at 0.

    Limits:
        All logits equal: log K at f = 0. Scaling a correct row up does not bring the loss to 0:
        with all f_k >= 0 it tends to -log(f_y / sum f).

    Note:
        g is computed by its own branch on each side of 0, with the slope 1 at 0 that sign(x)
        log(1 + \|x\|) and log(1 + relu(x)) miss there. The published code divides by 1 - x + 1e-30
        in the branch that is not taken, which in float32 makes the gradient nan at a logit of
        exactly 1, and hides it by a cast to float64; here float32 stays float32.

    Raises:
        TypeError: logits that are not in memory.

    Reference:
        Prieto, Barsbey, Mediano, Birdal, "Grokking at the Edge of Numerical Stability", 2025.

    Example:
        >>> import torch
        >>> from lossary import StableMaxCrossEntropyLoss
        >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> StableMaxCrossEntropyLoss()(logits, torch.tensor([0, 2]))
        tensor(1.0075)
    """

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of every sample, unreduced."""
        f = _upcast(present_rows(logits, target, self._class_axis(logits), _WHAT))
        g = torch.where(f >= 0.0, torch.log1p(f.clamp(min=0.0)), -torch.log1p((-f).clamp(min=0.0)))
        return softplus(self.log_odds(g, target))

    def properties(self, num_classes: int = 10) -> Properties:
        """Return what this instance guarantees on ``num_classes`` classes."""
        q = (0.5, 0.3, 0.2)
        return Properties(
            convex=False,
            lower=0.0,
            upper=math.inf,
            lipschitz=math.sqrt(2.0),
            smoothness=1,
            symmetric=False,
            shift_invariant=False,
            calibrated=True,
            rank_consistent=True,
            proper=False,
            minimiser="s(f) proportional to q",
            counterexamples={
                # In the logit of a rival it grows like log(2 + f_k).
                "convex": ((0.0, 0.0), (0.0, 10.0), 0),
                "upper": ((-1.0, 0.0, 0.0), 0),
                "symmetric": ((0.0, 0.0, 0.0), (3.0, 0.0, -1.0)),
                "shift_invariant": ((2.0, 0.0, -1.0), 1.0),
                "proper": (q, tuple(1.0 - 1.0 / x for x in q)),
            },
            source="Prieto, Barsbey, Mediano, Birdal 2025; algebra",
        )


class SphericalSoftmaxLoss(ClassificationLoss):
    r"""Log loss of the spherical softmax, which takes the squares of the logits for weights.

    .. math:: \ell(f, y) = -\log \frac{f_y^2 + \epsilon}{\sum_k (f_k^2 + \epsilon)}

    A loss of the spherical family: it depends on sum_k f_k, sum_k f_k^2 and f_y alone, so that with
    a very large output layer it and its gradient can be had without computing every logit. Here it
    is computed from the logits; use it to compare. The predicted class is the one of the largest
    \|f_k\|, not of the largest f_k.

    Args:
        eps: epsilon > 0, what a logit of 0 weighs; finite. Default 1e-3 (UNVERIFIED: not known to
            be the paper's).
        reduction, class_weight, ignore_index, class_dim: see :class:`lossary.ClassificationLoss`.

    Shape:
        logits (N, K, ...), target (N, ...) class indices or (N, K, ...) probabilities; K >= 2.
        Values (N, ...). Logits in memory (dense layout).

    Properties:
        l > 0, unbounded. Even in every logit: the sign says nothing, so the loss is not calibrated
        in the sense of the largest f_k, though its own probabilities are: the minimisers are all f
        with f^2 + eps proportional to q. Gradient 2 f_k/(f_k^2 + eps) (p_k - [k = y]), with p_k the
        weights over their sum; its norm is at most sqrt(2/eps). It vanishes at f = 0. Not convex,
        not shift-invariant.

    Limits:
        f = 0: log K. eps -> 0: unchanged by scaling all logits, and infinite at f_y = 0.
        ``eps=1`` of f + 1 is :class:`TaylorSoftmaxLoss` of f.

    Note:
        From log(f^2 + eps) by a hypotenuse: the square itself overflows float32 beyond 1e19.

    Raises:
        ValueError: ``eps`` not positive or not finite.
        TypeError: ``eps`` not a number, logits that are not in memory.

    Reference:
        de Brébisson, Vincent, "An Exploration of Softmax Alternatives Belonging to the Spherical
        Loss Family", 2016. There is no official code; the definition is that of a summary.

    Example:
        >>> import torch
        >>> from lossary import SphericalSoftmaxLoss
        >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> SphericalSoftmaxLoss()(logits, torch.tensor([0, 1]))
        tensor(0.1648)
    """

    def __init__(self, eps: float = 1e-3, **options: Unpack[ClassOptions]) -> None:
        super().__init__(**options)
        self.eps = check_positive("eps", eps)

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of every sample, unreduced."""
        f = _upcast(present_rows(logits, target, self._class_axis(logits), _WHAT))
        return softplus(self.log_odds(_log_square_sum(f, math.sqrt(self.eps)), target))

    def properties(self, num_classes: int = 10) -> Properties:
        """Return what this instance guarantees on ``num_classes`` classes."""
        return _even(math.sqrt(self.eps), 0.0, math.sqrt(2.0 / self.eps))


class TaylorSoftmaxLoss(ClassificationLoss):
    r"""Log loss of the Taylor softmax: the exponential to second order.

    .. math:: \ell(f, y) = -\log \frac{1 + f_y + f_y^2/2}{\sum_k (1 + f_k + f_k^2/2)}

    A loss of the spherical family, as :class:`SphericalSoftmaxLoss`, and near 0 the same as
    cross-entropy. Its weight is least at f = -1, 1/2: below that a logit gains weight again, so a
    logit far below -1 is as good as one far above.

    Args:
        reduction, class_weight, ignore_index, class_dim: see :class:`lossary.ClassificationLoss`.

    Shape:
        logits (N, K, ...), target (N, ...) class indices or (N, K, ...) probabilities; K >= 2.
        Values (N, ...). Logits in memory (dense layout).

    Properties:
        l > 0, unbounded. The same at f_k and -2 - f_k: not calibrated in the sense of the largest
        f_k, though its own probabilities are: the minimisers are all f whose weights are
        proportional to q. The predicted class is the one of the largest \|f_k + 1\|. Gradient
        (1 + f_k)/(1 + f_k + f_k^2/2) (p_k - [k = y]), of norm at most sqrt(2). Not convex, not
        shift-invariant.

    Limits:
        f = 0: log K. Near 0 cross-entropy, up to terms of third order. It is
        :class:`SphericalSoftmaxLoss` of f + 1 with ``eps=1``.

    Note:
        The weight is ((1 + f)^2 + 1)/2, whose logarithm a hypotenuse gives without overflow.

    Raises:
        TypeError: logits that are not in memory.

    Reference:
        de Brébisson, Vincent, "An Exploration of Softmax Alternatives Belonging to the Spherical
        Loss Family", 2016. There is no official code; the definition is that of a summary.

    Example:
        >>> import torch
        >>> from lossary import TaylorSoftmaxLoss
        >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> TaylorSoftmaxLoss()(logits, torch.tensor([0, 2]))
        tensor(1.0475)
    """

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of every sample, unreduced."""
        f = _upcast(present_rows(logits, target, self._class_axis(logits), _WHAT))
        return softplus(self.log_odds(_log_square_sum(1.0 + f, 1.0), target))

    def properties(self, num_classes: int = 10) -> Properties:
        """Return what this instance guarantees on ``num_classes`` classes."""
        return _even(1.0, -1.0, math.sqrt(2.0))


def _even(c: float, middle: float, lipschitz: float) -> Properties:
    """State the facts of -log((x_y^2 + c^2)/sum_k (x_k^2 + c^2)) of x = f - middle."""
    q = (0.5, 0.3, 0.2)
    # Of the two logits with the right weight, the larger, and of the top class the smaller.
    right = tuple(middle + c * math.sqrt(2.0 * x / min(q) - 1.0) for x in q)
    misled = (2.0 * middle - right[0], *right[1:])
    return Properties(
        convex=False,
        lower=0.0,
        upper=math.inf,
        lipschitz=lipschitz,
        smoothness=math.inf,
        symmetric=False,
        shift_invariant=False,
        calibrated=False,
        rank_consistent=False,
        proper=False,
        minimiser="weights of the logits proportional to q",
        counterexamples={
            "convex": ((middle + c, middle, middle), (middle - c, middle, middle), 0),
            "upper": ((0.0, 1.0, 0.0), 0),
            "symmetric": ((middle, middle, middle), (middle + 3.0 * c, middle, middle)),
            "shift_invariant": ((middle + 2.0 * c, middle, middle), 2.0 * c),
            "calibrated": (q, misled),
            "rank_consistent": (q, misled),
            "proper": (q, right),
        },
        source="de Brébisson, Vincent 2016; algebra",
    )


class ZLoss(ClassificationLoss):
    r"""Softplus of the standardised logit of the target, unchanged by shift and scale.

    .. math:: \ell(f, y) = \frac1a \log\bigl(1 + e^{a (b - z_y)}\bigr), \qquad
              z_y = \frac{f_y - \mu}{\sigma}, \quad \mu = \frac1K \sum_k f_k, \quad
              \sigma^2 = \frac1K \sum_k (f_k - \mu)^2 + \epsilon

    A loss of the spherical family, for very many classes: it depends on sum_k f_k, sum_k f_k^2 and
    f_y alone. Since scale is taken out it says which class, not how sure: it is no likelihood. Not
    to be confused with the penalty on log Z of language models, which is also called z-loss.

    Args:
        a: > 0, finite: how sharply the loss bends at z_y = b. Required.
        b: finite: the standardised logit that is asked of the target, of which sqrt(K - 1) is the
            largest there is. Required. The authors' example has a = 1, b = 0; tuned values are
            UNVERIFIED.
        eps: epsilon >= 0, added to the variance; finite. Default 0, the paper's.
        reduction, class_weight, ignore_index, class_dim: see :class:`lossary.ClassificationLoss`.

    Shape:
        logits (N, K, ...), target (N, ...) class indices or (N, K, ...) probabilities; K >= 2.
        Values (N, ...). Logits in memory (dense layout).

    Properties:
        With softplus_a(x) = log(1 + exp(a x))/a it lies between softplus_a(b - sqrt(K - 1)), where
        f_y alone stands out above, and softplus_a(b + sqrt(K - 1)), where it does below. Gradient
        -sigmoid(a (b - z_y)) ([k = y] - 1/K - z_y z_k/K)/sigma: orthogonal to the all-ones vector
        and, for eps = 0, to f. Not convex.

        For eps = 0 it is unchanged by f -> c f + d with c > 0; the gradient grows as 1/sigma, and a
        row of equal logits, which has no sigma, is given z_y = 0 and no gradient. There the loss
        jumps, and under class probabilities near uniform that row has the least risk: not
        calibrated. For eps > 0 it is smooth, with gradient norm at most sqrt((K - 1)/(K eps)),
        unchanged by shift alone, and calibrated; where a class is very probable its logits grow
        without end.

    Limits:
        a -> inf: the hinge max(0, b - z_y).

    Note:
        The logits are taken relative to the largest of their row and to its spread, so that neither
        the mean nor the square cancels or overflows. The authors' code has sigma from the mean
        square less the squared mean, which has no correct digit for logits of 5 + O(1e-7), and adds
        1e-12 to sigma instead of eps to its square. A start at equal logits (a head of zeros) has
        no gradient for eps = 0: start at random, or with eps > 0.

    Raises:
        ValueError: ``a`` not positive, ``eps`` negative, any of them infinite.
        TypeError: a hyper-parameter that is not a number, logits that are not in memory.

    Reference:
        de Brébisson, Vincent, "The Z-loss: a shift and scale invariant classification loss
        belonging to the Spherical Family", 2016.

    Example:
        >>> import torch
        >>> from lossary import ZLoss
        >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> ZLoss(a=1.0, b=0.0)(logits, torch.tensor([0, 2]))
        tensor(0.7988)
    """

    def __init__(
        self, *, a: float, b: float, eps: float = 0.0, **options: Unpack[ClassOptions]
    ) -> None:
        super().__init__(**options)
        self.a = check_positive("a", a)
        self.b = check_number("b", b, low_open=True, high_open=True)
        self.eps = check_number("eps", eps, 0.0, high_open=True)

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of every sample, unreduced."""
        axis = self._class_axis(logits)
        z = self._standardised(_upcast(present_rows(logits, target, axis, _WHAT)), axis)
        if target is not None:
            z = z.gather(axis, target.clamp(min=0).unsqueeze(axis)).squeeze(axis)
        return softplus(self.a * (self.b - z)) / self.a

    def _standardised(self, f: Tensor, axis: int) -> Tensor:
        """Return z along the axis; what is subtracted and divided by drops out of it."""
        f = f - f.detach().amax(axis, keepdim=True)
        spread = -f.detach().amin(axis, keepdim=True)
        flat = spread <= 0.0 if self.eps == 0.0 else torch.zeros_like(spread, dtype=torch.bool)
        spread = torch.where(flat, 1.0, spread.clamp(min=math.sqrt(self.eps)))
        x = f / spread
        x = x - x.mean(axis, keepdim=True)
        variance = x.square().mean(axis, keepdim=True) + (math.sqrt(self.eps) / spread).square()
        # Twice where: the slope of sqrt at 0, times 0, would be nan.
        return torch.where(flat, 0.0, x / torch.where(flat, 1.0, variance).sqrt())

    def properties(self, num_classes: int = 10) -> Properties:
        """Return what this instance guarantees on ``num_classes`` classes."""
        reach = math.sqrt(num_classes - 1)
        best, near, zero, far, worst = (
            _softplus(self.a * (self.b - z)) / self.a for z in (reach, 1.0, 0.0, -1.0, -reach)
        )
        size = 1e3 * max(1.0, math.sqrt(self.eps))
        counterexamples: dict[str, tuple[Any, ...]] = {
            # Of two classes z is -1 or 1, and jumps where they are equal.
            "convex": ((size, 0.0), (-2.0 * size, 0.0), 0),
            "symmetric": ((size, -size, 0.0, 0.0), (size, size, -size, -size)),
        }
        unknown = {}
        if self.eps > 0.0:
            unknown["rank_consistent"] = "in the order of q, but infinite where q is far from even"
            unknown["proper"] = "z is what it fits, not softmax(f)"
        else:
            # Up to this much more than 1/2 for the first of two classes, equal logits are better.
            more = (0.5 * (near + far) - zero) / (far - near) / 2.0
            misled = ((0.5 + more, 0.5 - more), (0.0, 0.0))
            counterexamples |= dict.fromkeys(("calibrated", "rank_consistent", "proper"), misled)
            unknown = dict.fromkeys(("lipschitz", "smoothness"), "not continuous at equal logits")
        return Properties(
            convex=False,
            lower=best,
            upper=worst,
            lipschitz=math.sqrt((1.0 - 1.0 / num_classes) / self.eps) if self.eps else None,
            smoothness=math.inf if self.eps else None,
            symmetric=False,
            shift_invariant=True,
            calibrated=self.eps > 0.0,
            rank_consistent=None if self.eps else False,
            proper=None if self.eps else False,
            minimiser="z in the order of q" if self.eps else None,
            limits=(("a -> inf", "hinge of the standardised logit"),),
            counterexamples=counterexamples,
            unknown=unknown,
            source="de Brébisson, Vincent 2016; algebra",
        )


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))
