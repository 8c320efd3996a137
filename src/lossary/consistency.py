r"""Consistency training: one network output must follow another from less noise.

.. math:: \ell_n = \lambda_n \, d\bigl(f(x_n + \sigma_{i+1} z_n, \sigma_{i+1}),
          \operatorname{sg}[f(x_n + \sigma_i z_n, \sigma_i)]\bigr)

The losses take what the network returned. The functions are the rest of a step of improved
consistency training (iCT): the grid of noise levels, how fine it is at a step, which interval to
draw, how to weight it, what makes the network the identity at the smallest noise, and which noise
goes with which sample.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Unpack

import torch
from torch import Tensor

from lossary._base import HALF, Loss, LossOptions, _upcast
from lossary._checks import (
    check_choice,
    check_device,
    check_floating,
    check_int,
    check_integers,
    check_like,
    check_number,
    check_positive,
)
from lossary._numerics import log1mexp
from lossary._properties import Properties
from lossary._softmax import readable
from lossary.robust import PseudoHuberLoss


class ConsistencyLoss(Loss):
    r"""Consistency loss: a distance between two outputs of a network, at neighbouring noise levels.

    .. math:: \ell_n = \lambda_n \, d(\text{prediction}_n, \operatorname{sg}[\text{target}_n])

    One loss for consistency training and distillation (CT, CD, LCD, iCT, sLCT): what differs is the
    distance d, the weights, and where the target comes from. The caller evaluates the network: the
    prediction at the larger noise of an interval, the target at the smaller one. In training (CT,
    iCT) both share sample, noise and dropout mask; in distillation (CD, LCD) the target's point
    comes from the prediction's by one or more solver steps of a teacher.

    Args:
        distance: what gives one value per sample of (prediction, target): a :class:`lossary.Loss`,
            whose reduction is then of no account, or any function or module. ``None``, the default:
            ``PseudoHuberLoss()``, as in iCT. For sLCT ``CauchyLoss(c, mode="vector")``. It is kept
            as the attribute ``distance``.
        detach_target: ``True``, the default: no gradient reaches the target. ``False`` lets it
            through.
        reduction: see :class:`lossary.Loss`.

    Shape:
        prediction (N, ...), target of the same shape, time_weight (N,) or ``None`` for ones:
        non-negative and finite, :func:`ict_weights` of the intervals drawn in iCT. It multiplies
        the values and does not enter the denominator of the mean; to leave a sample out, use
        ``weight``. Values (N,). Half precision is computed in float32; a distance of one's own is
        given float32 there.

    Properties:
        Those of the distance, times time_weight: with the default, convex in the prediction, >= 0,
        and with a gradient whose norm stays below time_weight. 0 iff prediction and target agree,
        if the distance is. Agreement says nothing about the data: a constant network has loss 0,
        were it not for the boundary condition (:func:`consistency_boundary`).

    Limits:
        Squared Euclidean distance: the consistency loss of the first paper. One time step and a
        target that is the data: a denoising loss.

    Note:
        The weights of iCT are largest at the smallest noise: 2400 times those at the largest on 11
        grid points, 8700 times on 1281.

    Raises:
        ValueError: prediction and target of different shapes or devices; a 0-dim prediction;
            ``time_weight`` of another shape than (N,), negative, infinite or nan (on CPU tensors,
            where looking costs nothing); a ``distance`` that does not give one value per sample;
            ``detach_target`` neither ``True`` nor ``False``.
        TypeError: ``distance`` not callable, or not giving a tensor; inputs or ``time_weight`` not
            floating-point tensors.

    Reference:
        Song, Dhariwal, Chen, Sutskever, "Consistency Models", 2023. Song, Dhariwal, "Improved
        Techniques for Training Consistency Models", 2023. Dao, Doan, Liu, Le, Metaxas, "Improved
        Training Technique for Latent Consistency Models", 2025.

    Example:
        >>> import torch
        >>> from lossary import ConsistencyLoss, ict_weights, karras_sigmas
        >>> prediction = torch.tensor([[0.5, 0.0], [1.0, 2.0]])
        >>> target = torch.tensor([[0.5, 0.1], [1.0, 2.0]])
        >>> ConsistencyLoss()(prediction, target)
        tensor(0.0496)
        >>> index = torch.tensor([3, 0])
        >>> time_weight = ict_weights(karras_sigmas(11))[index]
        >>> ConsistencyLoss()(prediction, target, time_weight)
        tensor(0.0767)

        The Cauchy distance follows the curriculum of the grid: the finer it is, the smaller c.

        >>> from lossary import CauchyLoss, adaptive_cauchy_scale, ict_discretization_steps
        >>> loss = ConsistencyLoss(CauchyLoss(adaptive_cauchy_scale(11), mode="vector"))
        >>> for k in range(0, 800, 250):
        ...     num_scales = ict_discretization_steps(k, 800)
        ...     loss.distance.set_scale(adaptive_cauchy_scale(num_scales))
        ...     print(num_scales, round(loss.distance.scale, 5))
        11 0.0345
        41 0.00614
        321 0.00056
        1281 0.00011
    """

    upcast = False
    distance: Callable[..., Tensor]

    def __init__(
        self,
        distance: Callable[..., Tensor] | None = None,
        detach_target: bool = True,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(**options)
        if distance is None:
            distance = PseudoHuberLoss()
        if not callable(distance):
            raise TypeError(
                f"distance: expected a loss or a function, got {type(distance).__name__}"
            )
        check_choice("detach_target", detach_target, (True, False))
        self.distance = distance
        self.detach_target = detach_target

    def per_sample(
        self, prediction: Tensor, target: Tensor, time_weight: Tensor | None = None
    ) -> Tensor:
        """Return the loss of every sample, unreduced."""
        _check_pair("prediction", prediction, target)
        if time_weight is not None:
            _check_time_weight(time_weight, prediction)
        if self.detach_target:
            target = target.detach()
        values = self._distances(prediction, target)
        return values if time_weight is None else values * time_weight.to(values.dtype)

    def _distances(self, prediction: Tensor, target: Tensor) -> Tensor:
        d = self.distance
        if not isinstance(d, Loss) or d.upcast:
            prediction, target = _upcast(prediction), _upcast(target)
        found = (d.per_sample if isinstance(d, Loss) else d)(prediction, target)
        if not isinstance(found, Tensor):
            raise TypeError(f"distance: expected a tensor of values, got {type(found).__name__}")
        if found.shape != prediction.shape[:1]:
            raise ValueError(
                f"distance: expected one value per sample, shape {tuple(prediction.shape[:1])}, "
                f'got {tuple(found.shape)} (for a loss with modes, take mode="vector")'
            )
        return found

    def properties(self) -> Properties:
        """Return what this instance guarantees of its prediction, at time_weight = 1."""
        source = "Song, Dhariwal, Chen, Sutskever 2023; Song, Dhariwal 2023"
        if not isinstance(self.distance, Loss):
            return Properties(source=source)
        of_distance = self.distance.properties()
        return replace(of_distance, source=f"{source}; distance: {of_distance.source}")


class EarlyTimestepDiffusionLoss(Loss):
    r"""Denoising loss on the smallest noise levels of a consistency model's grid.

    .. math:: \ell_n = [\, i_n < \text{fraction} \cdot (\text{num\_scales} - 1) \,] \,
              \frac{1}{d} \sum_{j=1}^{d} (\text{denoised}_{nj} - \text{target}_{nj})^2

    Consistency training learns from its own outputs, and an error at the smallest noise levels
    reaches all others. This term ties the network to clean data there. Added to the consistency
    loss with a weight of 5 it is the loss of improved latent consistency training (sLCT): see the
    example. The target is clean data, so nothing is detached.

    Args:
        fraction: which part of the grid's intervals counts as early, in (0, 1]. Default 0.25. At 1
            all grid points but the last, the largest noise, are in the window.
        reduction: see :class:`lossary.Loss`.

    Shape:
        denoised (N, ...), the network's output; target of the same shape, the clean samples; index
        (N,), integer, the position of each sample's noise level in the ascending grid, 0 for the
        smallest and below num_scales; num_scales, the number of grid points, at least 2: an int, or
        a 0-dim integer tensor, which torch.compile does not compile into the code. Values (N,),
        0 outside the window.

    Properties:
        Convex in denoised, l >= 0, unbounded, gradient 2 (denoised - target)/d. Samples outside
        the window are not there: the mean is that of the window's samples, not of N, and what they
        hold, inf and nan included, reaches neither value nor gradient. With an empty window the
        result is 0, attached to the graph.

    Limits:
        All samples in the window: the mean squared error, ``F.mse_loss(denoised, target)``.

    Raises:
        ValueError: ``fraction`` outside (0, 1]; denoised and target of different shapes or devices;
            a 0-dim denoised; ``index`` of another shape than (N,), or outside [0, num_scales) (on
            CPU tensors, where looking costs nothing); ``num_scales`` below 2 (likewise).
        TypeError: ``fraction`` not a number; denoised or target not floating-point tensors;
            ``index`` not an integer tensor; ``num_scales`` neither an int nor a 0-dim integer
            tensor.

    Reference:
        Dao, Doan, Liu, Le, Metaxas, "Improved Training Technique for Latent Consistency Models",
        2025. Form, fraction and weight were read in the authors' scripts; the values printed in the
        paper are UNVERIFIED.

    Example:
        >>> import torch
        >>> from lossary import CauchyLoss, ConsistencyLoss, EarlyTimestepDiffusionLoss
        >>> clean = torch.zeros(3, 2)
        >>> denoised = torch.tensor([[0.1, 0.3], [0.2, 0.0], [2.0, 1.0]])
        >>> index = torch.tensor([0, 2, 7])
        >>> early = EarlyTimestepDiffusionLoss()
        >>> early(denoised, clean, index, num_scales=11)  # the first two are in the window
        tensor(0.0350)
        >>> consistency = ConsistencyLoss(CauchyLoss(0.0345, mode="vector"))
        >>> consistency(denoised, denoised + 0.01) + 5.0 * early(denoised, clean, index, 11)
        tensor(0.2557)
    """

    def __init__(self, fraction: float = 0.25, **options: Unpack[LossOptions]) -> None:
        super().__init__(**options)
        self.fraction = check_number("fraction", fraction, 0.0, 1.0, low_open=True)

    def per_sample(
        self, denoised: Tensor, target: Tensor, index: Tensor, num_scales: int | Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the loss of every sample, unreduced, and 1 for the samples of the window."""
        _check_pair("denoised", denoised, target)
        num_scales = _checked_num_scales(num_scales)
        _check_index(index, num_scales, denoised)
        if isinstance(num_scales, Tensor):
            inside = index < self.fraction * (num_scales.double() - 1.0)
        else:
            # A whole number: beside one with a fraction torch takes positions for float32.
            inside = index < math.ceil(self.fraction * (num_scales - 1))
        r = _rows(denoised - target).masked_fill(~inside.unsqueeze(1), 0.0)
        values = r.square().sum(1) / max(1, r.shape[1])
        return values, inside.to(values.dtype)

    def properties(self) -> Properties:
        """Return what this instance guarantees of its first input."""
        further = (torch.zeros(1), torch.tensor([0]), 11)
        return Properties(
            convex=True,
            lower=0.0,
            upper=math.inf,
            lipschitz=math.inf,
            smoothness=math.inf,
            limits=(("all samples in the window", "mean squared error"),),
            counterexamples=dict.fromkeys(("upper", "lipschitz"), (torch.ones(1), *further)),
            source="Dao, Doan, Liu, Le, Metaxas 2025",
        )


def karras_sigmas(
    num_scales: int,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    r"""Return the noise levels of a consistency or diffusion model, in ascending order.

    .. math:: \sigma_i = \Bigl(\sigma_{\min}^{1/\rho} + \frac{i - 1}{N - 1}
              \bigl(\sigma_{\max}^{1/\rho} - \sigma_{\min}^{1/\rho}\bigr)\Bigr)^{\rho},
              \qquad i = 1, \dots, N

    Evenly spaced in sigma^(1/rho): with rho = 7 most of the grid lies at small noise. With rho = 1
    the levels are evenly spaced, towards rho = inf their logarithms are.

    Args:
        num_scales: the number N of grid points, >= 1; 1 gives sigma_min alone.
            :func:`ict_discretization_steps` says how many at a step of training.
        sigma_min: the smallest noise level, > 0, in units of the data. Default 0.002.
        sigma_max: the largest, above sigma_min. Default 80.
        rho: how much of the grid lies at small noise, > 0. Default 7.
        dtype: of the result, floating point. Default: torch's default dtype. The grid is computed
            in float64 and rounded once.
        device: of the result.

    Returns:
        The noise levels (num_scales,), strictly increasing as far as the dtype tells them apart;
        the first and the last are sigma_min and sigma_max, rounded.

    Raises:
        ValueError: ``num_scales`` below 1; ``sigma_min`` or ``rho`` not positive and finite;
            ``sigma_max`` not above ``sigma_min``, or infinite.
        TypeError: ``num_scales`` not an int, the others not numbers; ``dtype`` not floating point.

    Reference:
        Karras, Aittala, Aila, Laine, "Elucidating the Design Space of Diffusion-Based Generative
        Models", 2022, equation 5 in ascending order.

    Example:
        >>> from lossary import karras_sigmas
        >>> karras_sigmas(5)
        tensor([2.0000e-03, 1.6975e-01, 2.5152e+00, 1.7528e+01, 8.0000e+01])
    """
    check_int("num_scales", num_scales, 1)
    sigma_min = check_positive("sigma_min", sigma_min)
    sigma_max = check_positive("sigma_max", sigma_max, sigma_min)
    rho = check_positive("rho", rho)
    if dtype is not None and not dtype.is_floating_point:
        raise TypeError(f"dtype: expected a floating-point dtype, got {dtype}")
    # The same formula in logarithms, of which nothing cancels or overflows for any rho.
    left = torch.arange(num_scales - 1, -1, -1, dtype=torch.float64) / max(1, num_scales - 1)
    span = math.expm1((math.log(sigma_min) - math.log(sigma_max)) / rho)
    sigmas = sigma_max * (rho * (left * span).log1p()).exp()
    sigmas[0] = sigma_min
    return sigmas.to(dtype=dtype or torch.get_default_dtype(), device=device)


def ict_discretization_steps(k: int, total_steps: int, s0: int = 10, s1: int = 1280) -> int:
    r"""Return how many grid points improved consistency training uses at step k.

    .. math:: N(k) = \min\bigl(s_0 \, 2^{\lfloor k / K' \rfloor}, s_1\bigr) + 1, \qquad
              K' = \Bigl\lfloor \frac{K}{\log_2 \lfloor s_1 / s_0 \rfloor + 1} \Bigr\rfloor

    The curriculum: the number of intervals doubles from s0 to s1 in stages of equal length. On a
    coarse grid the loss has a small variance and a large bias, on a fine one the reverse.

    Args:
        k: the step of training, from 0 on. Steps beyond ``total_steps`` go on by the formula.
        total_steps: the length K of the training, at least the number of stages.
        s0: the intervals of the first stage, >= 1. Default 10.
        s1: the intervals that the last stage may have, >= ``s0``. Default 1280.

    Returns:
        The number of grid points, one more than that of the intervals: 11, 21, 41, ..., 1281 with
        the defaults. Never decreasing in k, s0 + 1 at k = 0, and s1 + 1 at the last step where
        s1/s0 is a power of 2. For other ratios the last step may stay below: s0 = 10, s1 = 15 has
        one stage, of 11 points.

    Raises:
        ValueError: ``k`` negative, ``total_steps`` shorter than the number of stages, ``s0`` below
            1, ``s1`` below ``s0``.
        TypeError: an argument that is not an int.

    Reference:
        Song, Dhariwal, "Improved Techniques for Training Consistency Models", 2023. There is no
        official code; three independent implementations agree.

    Example:
        >>> from lossary import ict_discretization_steps
        >>> [ict_discretization_steps(k, 800) for k in (0, 99, 100, 799)]
        [11, 11, 21, 1281]
    """
    check_int("k", k, 0)
    check_int("total_steps", total_steps, 1)
    check_int("s0", s0, 1)
    check_int("s1", s1, s0)
    stages = math.log2(s1 // s0) + 1.0
    length = math.floor(total_steps / stages)
    if length == 0:
        raise ValueError(
            f"total_steps: expected at least {math.ceil(stages)}, one step for every stage, "
            f"got {total_steps}"
        )
    return min(s0 << min(k // length, (s1 // s0).bit_length()), s1) + 1


def lognormal_index_probabilities(
    sigmas: Tensor, p_mean: float = -1.1, p_std: float = 2.0
) -> Tensor:
    r"""Return with which probability each interval of the noise grid is drawn.

    .. math:: p_i \propto \operatorname{erf}\Bigl(\frac{\ln \sigma_{i+1} - P_\text{mean}}
              {\sqrt 2 \, P_\text{std}}\Bigr) - \operatorname{erf}\Bigl(\frac{\ln \sigma_i -
              P_\text{mean}}{\sqrt 2 \, P_\text{std}}\Bigr), \qquad i = 1, \dots, N - 1

    A lognormal distribution of the noise level, cut into the intervals of the grid: most draws fall
    on middling noise. ``i = torch.multinomial(p, n, replacement=True)`` draws the positions,
    0-based, of the lower ends: the prediction is made at ``sigmas[i + 1]``, the target at
    ``sigmas[i]``.

    Args:
        sigmas: the noise levels (N,), N >= 2, positive and strictly increasing:
            :func:`karras_sigmas`.
        p_mean: the mean of ln(sigma), finite. Default -1.1.
        p_std: its standard deviation, > 0. Default 2.

    Returns:
        Probabilities (N - 1,) of sum 1, in the dtype of ``sigmas``, float32 at least. Computed in
        float64, from logarithms of the tails: differences of erf are 0 where both ends lie a few
        standard deviations out. No probability is 0: what would underflow is the smallest normal
        number.

    Raises:
        ValueError: ``sigmas`` not 1-dim or of fewer than 2 levels, or not positive, finite and
            strictly increasing (on CPU tensors, where looking costs nothing); ``p_mean`` or
            ``p_std`` infinite or nan, ``p_std`` not positive.
        TypeError: ``sigmas`` not a floating-point tensor, ``p_mean`` or ``p_std`` not a number.

    Reference:
        Song, Dhariwal, "Improved Techniques for Training Consistency Models", 2023. There is no
        official code; three independent implementations agree.

    Example:
        >>> from lossary import karras_sigmas, lognormal_index_probabilities
        >>> lognormal_index_probabilities(karras_sigmas(5))
        tensor([0.3659, 0.4799, 0.1333, 0.0209])
    """
    _check_sigmas(sigmas)
    p_mean = check_positive("p_mean", p_mean, -math.inf)
    p_std = check_positive("p_std", p_std)
    z = (sigmas.double().log() - p_mean) / p_std
    a, b = z[:-1], z[1:]
    # In the upper tail both ends have a probability of 1 to all digits: mirrored they keep them.
    upper = a + b > 0.0
    a, b = torch.where(upper, -b, a), torch.where(upper, -a, b)
    high = torch.special.log_ndtr(b)
    p = torch.softmax(high + log1mexp(torch.special.log_ndtr(a) - high), 0)
    dtype = torch.float32 if sigmas.dtype in HALF else sigmas.dtype
    return p.clamp(min=torch.finfo(dtype).tiny).to(dtype)


def ict_weights(sigmas: Tensor) -> Tensor:
    r"""Return the weight of each interval of the noise grid in improved consistency training.

    .. math:: \lambda_i = \frac{1}{\sigma_{i+1} - \sigma_i}, \qquad i = 1, \dots, N - 1

    The ``time_weight`` of :class:`ConsistencyLoss` at the interval i is ``ict_weights(sigmas)[i]``.

    Args:
        sigmas: the noise levels (N,), N >= 2, positive and strictly increasing:
            :func:`karras_sigmas`.

    Returns:
        Weights (N - 1,), in units of 1/sigma, in the dtype of ``sigmas``, float32 at least. On a
        Karras grid strictly decreasing for rho > 1 and constant for rho = 1.

    Raises:
        ValueError: ``sigmas`` not 1-dim or of fewer than 2 levels, or not positive, finite and
            strictly increasing (on CPU tensors, where looking costs nothing).
        TypeError: ``sigmas`` not a floating-point tensor.

    Reference:
        Song, Dhariwal, "Improved Techniques for Training Consistency Models", 2023. There is no
        official code; three independent implementations agree.

    Example:
        >>> from lossary import ict_weights, karras_sigmas
        >>> ict_weights(karras_sigmas(5))
        tensor([5.9612, 0.4264, 0.0666, 0.0160])
    """
    _check_sigmas(sigmas)
    return _upcast(sigmas).diff().reciprocal()  # type: ignore[no-any-return]


def consistency_boundary(
    net_output: Tensor,
    x_t: Tensor,
    sigma: Tensor | float,
    sigma_data: float = 0.5,
    sigma_min: float = 0.002,
    *,
    variant: str = "edm",
    timestep_scaling: float = 10.0,
) -> Tensor:
    r"""Return the output of a consistency model that is the identity at the smallest noise.

    .. math:: f(x_t, \sigma) = c_\text{skip}(\sigma)\, x_t + c_\text{out}(\sigma)\, F(x_t, \sigma)

    .. math:: \text{edm: } c_\text{skip} = \frac{\sigma_d^2}{(\sigma - \sigma_{\min})^2 +
              \sigma_d^2}, \quad c_\text{out} = \frac{\sigma_d (\sigma - \sigma_{\min})}
              {\sqrt{\sigma^2 + \sigma_d^2}}

    .. math:: \text{lcm: } c_\text{skip} = \frac{\sigma_d^2}{\tau^2 + \sigma_d^2}, \quad
              c_\text{out} = \frac{\tau}{\sqrt{\tau^2 + \sigma_d^2}}, \quad \tau = 10\, t

    Without it a constant network would have no consistency loss. F is the network as it stands, f
    what the losses compare.

    Args:
        net_output: F (N, ...), floating point.
        x_t: the noisy samples, of the same shape.
        sigma: their noise levels, >= 0: (N,), or a number or 0-dim tensor for all. For ``"lcm"``
            the time t, in whatever units the model counts it.
        sigma_data: the standard deviation of the data, > 0. Default 0.5.
        sigma_min: the noise level of the boundary, >= 0; of no account for ``"lcm"``, whose
            boundary is t = 0. Default 0.002.
        variant: ``"edm"``, the default, or ``"lcm"``, the form of latent consistency models, whose
            c_out lacks the factor sigma_data.
        timestep_scaling: the factor from t to tau, > 0, for ``"lcm"`` only. Default 10.

    Returns:
        f, of the shape of ``x_t``, in the wider dtype of ``net_output`` and ``x_t``, float32 at
        least: rounded to half precision, outputs at neighbouring noise would agree. At sigma =
        sigma_min, or t = 0, it is x_t exactly. Gradient flows to all tensors.

    Raises:
        ValueError: ``net_output`` and ``x_t`` of different shapes or devices, 0-dim; ``sigma``
            neither (N,) nor 0-dim, negative or nan (on CPU tensors, where looking costs nothing);
            ``sigma_data`` or ``timestep_scaling`` not positive and finite, ``sigma_min`` negative
            or infinite; unknown ``variant``.
        TypeError: tensors that are not floating point; ``sigma`` neither a tensor nor a number;
            the others not numbers.

    Reference:
        Song, Dhariwal, Chen, Sutskever, "Consistency Models", 2023. Luo, Tan, Huang, Li, Zhao,
        "Latent Consistency Models", 2023. Both forms agree with public code.

    Example:
        >>> import torch
        >>> from lossary import consistency_boundary
        >>> x_t = torch.tensor([[1.0, -1.0], [1.0, -1.0]])
        >>> consistency_boundary(torch.ones(2, 2), x_t, torch.tensor([0.002, 0.5]))
        tensor([[ 1.0000, -1.0000],
                [ 0.8541, -0.1499]])
    """
    _check_pair("net_output", net_output, x_t, "x_t")
    sigma_data = check_positive("sigma_data", sigma_data)
    sigma_min = check_number("sigma_min", sigma_min, 0.0, math.inf, high_open=True)
    check_choice("variant", variant, ("edm", "lcm"))
    scaling = check_positive("timestep_scaling", timestep_scaling)
    dtype = torch.promote_types(net_output.dtype, x_t.dtype)
    dtype = torch.float32 if dtype in HALF else dtype
    s = _checked_sigma(sigma, x_t, dtype)
    # In the precision of sigma, in which sigma_min is what it was rounded to on the grid.
    least = s.new_full((), sigma_min)
    wide = torch.promote_types(s.dtype, dtype)
    s, least = s.to(wide), least.to(wide)
    data = torch.full_like(s, sigma_data)
    if variant == "edm":
        far, size, out = s - least, s, sigma_data
    else:
        far, size, out = s * scaling, s * scaling, 1.0
    # A quotient of lengths, squared, as the squares may overflow; 1 exactly at the boundary.
    c_skip = (sigma_data / torch.hypot(far, data)).square()
    c_out = out * (far / torch.hypot(size, data))
    shape = (-1, *[1] * (x_t.dim() - 1))
    c_skip, c_out = c_skip.to(dtype).reshape(shape), c_out.to(dtype).reshape(shape)
    return c_skip * x_t.to(dtype) + c_out * net_output.to(dtype)


def minibatch_ot_coupling(x: Tensor, noise: Tensor, method: str = "exact") -> Tensor:
    r"""Return which noise goes with which sample: exact optimal transport within a minibatch.

    .. math:: \pi = \arg\min_{\pi \in S_N} \sum_{i=1}^N \lVert x_i - \text{noise}_{\pi(i)} \rVert^2

    ``noise[perm]`` goes with ``x``: straighter paths from noise to data, and less variance in what
    a consistency or flow model is asked for. Labels stay with ``x``.

    Args:
        x: the samples (N, ...), floating point.
        noise: of the same shape, on the same device.
        method: ``"exact"``, the only one.

    Returns:
        perm (N,), int64, on the device of ``noise``: a permutation. Unless several are equally
        good, permuting x permutes perm, permuting noise relabels it, and a vector added to all
        noise changes nothing. No gradient. The assignment runs on the CPU, which waits for the
        device, in time that grows like N^3: call it outside compiled code.

    Raises:
        ValueError: ``x`` and ``noise`` of different shapes or devices, 0-dim, or not finite;
            unknown ``method``.
        TypeError: ``x`` or ``noise`` not floating-point tensors.
        ImportError: scipy, of the extra ``lossary[scipy]``, is missing.

    Reference:
        Pooladian, Ben-Hamu, Domingo-Enrich, Amos, Lipman, Chen, "Multisample Flow Matching:
        Straightening Flows with Minibatch Couplings", 2023. Tong, Fatras, Malkin, Huguet, Zhang,
        Rector-Brooks, Wolf, Bengio, "Improving and Generalizing Flow-Based Generative Models with
        Minibatch Optimal Transport", 2023; their code draws from the plan, which for samples of
        equal number is this permutation. Used in Dao, Doan, Liu, Le, Metaxas, "Improved Training
        Technique for Latent Consistency Models", 2025.

    Example:
        >>> import torch
        >>> from lossary import minibatch_ot_coupling
        >>> x, noise = torch.tensor([0.0, 5.0, 9.0]), torch.tensor([4.0, 0.5, 8.0])
        >>> perm = minibatch_ot_coupling(x, noise)
        >>> perm, noise[perm]
        (tensor([1, 0, 2]), tensor([0.5000, 4.0000, 8.0000]))
    """
    _check_pair("x", x, noise, "noise")
    check_choice("method", method, ("exact",))
    try:
        from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]
    except ImportError:
        raise ImportError(
            "minibatch_ot_coupling: expected scipy, got none: it comes with "
            '`pip install "lossary[scipy]"`'
        ) from None
    # Norms add a constant to a row or a column, which moves no assignment; without the means the
    # products cancel less.
    rows = [_rows(t.detach().to("cpu", torch.float64)) for t in (x, noise)]
    for name, t in zip(("x", "noise"), rows, strict=True):
        if not bool(t.isfinite().all()):
            raise ValueError(f"{name}: expected finite numbers, got inf or nan")
    a, b = (t - t.mean(0) for t in rows)
    _, columns = linear_sum_assignment((a @ b.T).numpy(), maximize=True)
    return torch.as_tensor(columns, dtype=torch.long, device=noise.device)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(len(x), math.prod(x.shape[1:]))


# What the inputs are checked for.


def _check_pair(first: str, x: Tensor, y: Tensor, second: str = "target") -> None:
    check_floating(first, x)
    check_floating(second, y)
    if x.dim() == 0:
        raise ValueError(f"{first}: expected samples along an axis 0, got a 0-dim tensor")
    check_like(second, y, first, x)


def _check_time_weight(w: Tensor, prediction: Tensor) -> None:
    check_floating("time_weight", w)
    if w.shape != prediction.shape[:1]:
        raise ValueError(
            f"time_weight: expected shape {tuple(prediction.shape[:1])}, got {tuple(w.shape)}"
        )
    check_device("time_weight", w, prediction)
    good = (w >= 0) & w.isfinite()
    if readable(good) and not bool(good.all()):
        raise ValueError(
            f"time_weight: expected finite numbers >= 0, got {float(w.detach()[~good][0]):g}"
        )


def _is_integer(x: Tensor) -> bool:
    return not (x.dtype.is_floating_point or x.dtype.is_complex or x.dtype is torch.bool)


def _checked_num_scales(n: int | Tensor) -> int | Tensor:
    """Return num_scales, as a number where it can be read."""
    if not isinstance(n, Tensor):
        check_int("num_scales", n, 2)
        return n
    if n.dim() != 0 or not _is_integer(n):
        raise TypeError(
            f"num_scales: expected an int or a 0-dim integer tensor, "
            f"got shape {tuple(n.shape)} of {n.dtype}"
        )
    if readable(n):
        check_int("num_scales", int(n), 2)
        return int(n)
    return n


def _check_index(index: Tensor, num_scales: int | Tensor, denoised: Tensor) -> None:
    check_integers("index", index)
    if index.shape != denoised.shape[:1]:
        raise ValueError(
            f"index: expected shape {tuple(denoised.shape[:1])}, got {tuple(index.shape)}"
        )
    check_device("index", index, denoised)
    if isinstance(num_scales, int) and readable(index):
        wrong = (index < 0) | (index >= num_scales)
        if bool(wrong.any()):
            raise ValueError(
                f"index: expected positions in [0, {num_scales}), got {int(index[wrong][0])}"
            )


def _check_sigmas(sigmas: Tensor) -> None:
    check_floating("sigmas", sigmas)
    if sigmas.dim() != 1 or len(sigmas) < 2:
        raise ValueError(f"sigmas: expected shape (N,) with N >= 2, got {tuple(sigmas.shape)}")
    good = (sigmas > 0).all() & (sigmas.diff() > 0).all() & sigmas.isfinite().all()
    if readable(good) and not bool(good):
        raise ValueError(
            f"sigmas: expected finite, strictly increasing numbers > 0, got {sigmas.detach()}"
        )


def _checked_sigma(sigma: Tensor | float, x_t: Tensor, dtype: torch.dtype) -> Tensor:
    """Return sigma as a tensor, (N,) or 0-dim."""
    if not isinstance(sigma, Tensor):
        sigma = check_number("sigma", sigma, 0.0, math.inf, high_open=True)
        return x_t.new_full((), sigma, dtype=dtype)
    check_floating("sigma", sigma)
    if sigma.dim() and sigma.shape != x_t.shape[:1]:
        raise ValueError(
            f"sigma: expected shape {tuple(x_t.shape[:1])} or a single number, "
            f"got {tuple(sigma.shape)}"
        )
    check_device("sigma", sigma, x_t)
    good = sigma >= 0
    if readable(good) and not bool(good.all()):
        raise ValueError(f"sigma: expected numbers >= 0, got {float(sigma.detach()[~good][0]):g}")
    return sigma
