"""ALDR-KL: the adaptive temperature, its fixed point, its bounds, and its memory."""

import itertools
import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossary import ALDRKLLoss, ClassificationLoss, LDRKLLoss, Properties
from lossary.testing import CHECKS, check_loss
from single_rows import close, rows


def gaps(f, y, margin):
    z = f - f[y] + margin
    z[y] = 0.0
    return z


def divergence(z, lam):
    """KL(softmax(z/lam) || 1/K)."""
    log_r = torch.log_softmax(z / lam, 0)
    return float((log_r.exp() * log_r).sum()) + math.log(len(z))


def plain(z, lam, lam0, alpha):
    """The value at one temperature, as the formula has it."""
    k = len(z)
    value = lam * (torch.logsumexp(z / lam, 0) - math.log(k))
    return float(value - alpha * math.log(k) / (2 * lam0) * (lam - lam0) ** 2)


def step(z, lam, lam0, alpha):
    return lam0 - lam0 / (alpha * math.log(len(z))) * divergence(z, lam)


def train(loss, f, y, index=0):
    return loss(f.unsqueeze(0), torch.tensor([y]), torch.tensor([index]))


def double(*args, **options):
    loss = ALDRKLLoss(*args, **options).double()
    loss.reset()  # 0.2 in float64, not the float32 next to it
    return loss


lams = st.sampled_from([0.2, 1.0, 3.0, 10.0])
alphas = st.sampled_from([1.01, 1.5, 2.0, 10.0])


@given(rows(), lams, alphas)
def test_one_step_is_the_formula(row, lam, alpha):
    f, y = row
    loss = double(3, lam, alpha, margin=0.3)
    z = gaps(f.clone(), y, 0.3)
    at = step(z, lam, lam, alpha)
    close(train(loss, f, y, 1), plain(z, at, lam, alpha), rtol=1e-9, atol=1e-10)
    close(loss.sample_lam, [lam, at, lam], rtol=1e-9)


@given(rows(), lams, alphas)
def test_the_temperature_falls_to_a_fixed_point_within_its_bounds(row, lam, alpha):
    f, y = row
    loss = double(1, lam, alpha)
    seen = [lam]
    for _ in range(12):
        train(loss, f, y)
        seen.append(float(loss.sample_lam))
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(seen))
    assert lam * (1 - 1 / alpha) <= seen[-1] <= lam
    fixed = double(1, lam, alpha, n_iter=400)
    train(fixed, f, y)
    at = float(fixed.sample_lam)
    z = gaps(f.clone(), y, 0.1)
    close(step(z, at, lam, alpha), at, rtol=1e-5)


@given(rows(), lams, alphas)
def test_values_are_in_order(row, lam, alpha):
    f, y = row
    first = float(train(double(1, lam, alpha, margin=0.3), f, y))
    last = float(train(double(1, lam, alpha, margin=0.3, n_iter=500), f, y))
    below = float(LDRKLLoss(lam, 0.3)(f.unsqueeze(0), torch.tensor([y])))
    above = float(LDRKLLoss(0.0, 0.3)(f.unsqueeze(0), torch.tensor([y])))
    slack = 1e-9 * (1 + abs(above) + lam)
    assert below <= first + slack
    assert first <= last + slack
    assert last <= above + slack


@given(rows(), st.sampled_from([0.5, 2.0]), st.sampled_from([1.2, 3.0]))
def test_the_fixed_point_is_the_maximum_over_temperatures(row, lam, alpha):
    f, y = row
    value = float(train(double(1, lam, alpha, n_iter=400), f, y))
    z = gaps(f.clone(), y, 0.1)
    tried = [plain(z, lam * s, lam, alpha) for s in (x / 500 for x in range(1, 1001))]
    assert max(tried) <= value + 1e-9 * (1 + abs(value))
    assert max(tried) >= value - 1e-2 * (1 + abs(value))


def test_near_alpha_one_the_steps_may_stop_at_a_lower_maximum():
    f = torch.tensor([0.0, -0.67, -0.78, -0.66], dtype=torch.float64)
    loss = double(1, 0.5, 1.1, margin=0.0, n_iter=2000)
    value = float(train(loss, f, 0))
    lowest = plain(f, 0.5 * (1 - 1 / 1.1), 0.5, 1.1)
    assert float(loss.sample_lam) > 0.3
    assert float(lowest) - value > 0.02


@given(rows())
def test_at_the_fixed_point_the_gradient_is_that_of_the_maximum(row):
    f, y = row
    loss = double(1, 1.0, 2.0, n_iter=400)
    f.requires_grad_()
    (gradient,) = torch.autograd.grad(train(loss, f, y), f)
    z = gaps(f.detach().clone(), y, 0.1)
    expected = torch.softmax(z / loss.sample_lam.double(), 0)
    expected[y] -= 1.0
    close(gradient, expected, atol=1e-9)
    # The envelope theorem: moving f moves the maximum by this gradient, its temperature included.
    direction = torch.linspace(-1.0, 1.0, len(f), dtype=torch.float64)
    h = 1e-5
    ends = [
        float(train(double(1, 1.0, 2.0, n_iter=400), f.detach() + s * direction, y))
        for s in (h, -h)
    ]
    close((ends[0] - ends[1]) / (2 * h), gradient @ direction, atol=1e-7)


def test_the_gradient_does_not_pass_through_the_temperature():
    f = torch.tensor([[0.3, 2.0, -1.0]], dtype=torch.float64, requires_grad=True)
    loss = double(1)
    train_value = loss(f, torch.tensor([0]), torch.tensor([0]))
    (gradient,) = torch.autograd.grad(train_value, f)
    r = torch.softmax(gaps(f[0].detach().clone(), 0, 0.1) / loss.sample_lam, 0)
    r[0] -= 1.0
    close(gradient[0], r)


def test_limits_of_the_temperature():
    loss = double(3, 2.0, 4.0, margin=0.0)
    index = torch.arange(3)
    logits = torch.zeros(3, 6, dtype=torch.float64)
    logits[1, 2] = 1e3  # one rival far ahead
    logits[2, 0] = 1e3  # the label far ahead
    loss(logits, torch.zeros(3, dtype=torch.long), index)
    close(loss.sample_lam, [2.0, 1.5, 1.5])


@given(rows(), lams)
def test_a_large_alpha_is_ldr_kl(row, lam):
    f, y = row
    value = train(double(1, lam, 1e10), f, y)
    close(value, LDRKLLoss(lam)(f.unsqueeze(0), torch.tensor([y])), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(
    ("normalize", "eps"), [(None, 1e-5), (None, 0.1), ("l1", 1e-5), ("softplus-l1", 1e-5)]
)
def test_three_steps_of_the_published_algorithm(normalize, eps):
    # The temperature sees the logits without the margin, its softmax smoothed.
    generator = torch.Generator().manual_seed(1)
    loss = double(
        8, 1.5, 3.0, margin=2.0, normalize=normalize, margin_in_update=False, prob_eps=eps
    )
    lam = torch.full((8,), 1.5, dtype=torch.float64)
    index = torch.tensor([5, 0, 3, 6])
    k = 5
    for _ in range(3):
        raw = torch.randn(4, k, generator=generator, dtype=torch.float64).requires_grad_()
        target = torch.randint(k, (4,), generator=generator)
        f = raw
        if normalize == "softplus-l1":
            f = torch.nn.functional.softplus(f)
        if normalize is not None:
            f = k * f / f.abs().sum(1, keepdim=True)
        r = torch.softmax(f.detach() / lam[index, None], 1) + eps
        r = r / r.sum(1, keepdim=True)
        kl = (r * (r * k).log()).sum(1)
        lam[index] = 1.5 - 1.5 / (3.0 * math.log(k)) * kl
        own = f.gather(1, target[:, None])
        z = (f - own + 2.0).scatter(1, target[:, None], 0.0)
        at = lam[index]
        value = at * (torch.logsumexp(z / at[:, None], 1) - math.log(k))
        value = (value - 3.0 * math.log(k) / 3.0 * (at - 1.5) ** 2).mean()
        (want,) = torch.autograd.grad(value, raw)
        got = loss(raw, target, index)
        (gradient,) = torch.autograd.grad(got, raw)
        close(got, value.detach(), rtol=1e-9)
        close(gradient, want, rtol=1e-8, atol=1e-12)
        close(loss.sample_lam, lam, rtol=1e-9)


def test_without_the_margin_in_the_update_the_order_of_values_fails():
    # Why that is not the default: the step is no ascent of the loss any more.
    f, y = torch.tensor([0.0, 3.0], dtype=torch.float64), 1
    first = train(double(1, 1.0, 2.0, margin=3.0, margin_in_update=False), f, y)
    assert float(first) < float(LDRKLLoss(1.0, 3.0)(f.unsqueeze(0), torch.tensor([y])))


class FixedPoint(ClassificationLoss):
    """ALDR-KL with its temperature at the fixed point, as a loss without memory."""

    def __init__(self, lam, alpha):
        super().__init__()
        self.lam, self.alpha = lam, alpha

    def per_sample(self, logits, target):
        axis = self._class_axis(logits)
        shape = logits.select(axis, 0).shape
        index = torch.arange(math.prod(shape)).view(shape)

        def value(y):
            loss = ALDRKLLoss(index.numel(), self.lam, self.alpha, n_iter=40).to(logits.dtype)
            return loss.per_sample(logits, y, index)

        if target is not None:
            return value(target)
        every = [value(torch.full(shape, k)) for k in range(logits.shape[axis])]
        return torch.stack(every, axis)

    def properties(self, num_classes=10):
        declared = ALDRKLLoss(1, self.lam, self.alpha).properties(num_classes)
        k = math.log(num_classes)
        return Properties(
            convex=declared.convex,
            lower=-self.lam * k * (1 - 0.5 / self.alpha),
            calibrated=declared.calibrated,
            rank_consistent=declared.rank_consistent,
            lipschitz=declared.lipschitz,
            counterexamples=declared.counterexamples,
        )


@pytest.mark.parametrize(
    ("lam", "alpha"),
    [(1.0, 2.0), pytest.param(0.5, 1.5, marks=pytest.mark.wide)],
)
def test_what_is_claimed_holds_at_the_fixed_point(lam, alpha):
    def inputs(n, dtype, generator):
        logits = torch.randn(n, 4, dtype=dtype, generator=generator)
        return logits, torch.randint(4, (n,), generator=generator)

    claims = [name for name in CHECKS if name.startswith("property:")]
    check_loss(FixedPoint(lam, alpha), inputs, exclude=set(CHECKS) - {"runs", *claims})


# Digits.


@pytest.mark.parametrize("lam", [0.01, 1.0, 5.0, 1e4])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e3])
def test_against_mpmath_in_float32(lam, size):
    f = torch.tensor([[0.3, -1.2, 0.7, 0.1]]) * size
    loss = ALDRKLLoss(1, lam, 2.0)
    value = float(loss(f, torch.tensor([0]), torch.tensor([0])))
    at = float(loss.sample_lam)
    with mpmath.workdps(50):
        z = [mpmath.mpf(float(x)) - mpmath.mpf(float(f[0, 0])) + mpmath.mpf(0.1) for x in f[0]]
        z[0] = mpmath.mpf(0)

        def kl(t):
            e = [mpmath.exp((x - max(z)) / t) for x in z]
            r = [x / sum(e) for x in e]
            return sum(p * mpmath.log(p) for p in r if p > 0) + mpmath.log(4)

        exact = lam - lam / (2 * mpmath.log(4)) * kl(mpmath.mpf(lam))
        assert abs(at - exact) <= 1e-6 * exact
        t = mpmath.mpf(at)
        top = max(z)
        mean = top + t * mpmath.log(sum(mpmath.exp((x - top) / t) for x in z) / 4)
        penalty = 2 * mpmath.log(4) / (2 * lam) * (t - lam) ** 2
        scale = abs(mean) + penalty
        assert abs(value - (mean - penalty)) <= 2e-6 * scale


def test_a_temperature_near_0_stays_positive():
    loss = ALDRKLLoss(2, 1.0, 1.0000001)
    f = torch.tensor([[0.0, 50.0], [50.0, 0.0]], requires_grad=True)
    out = loss(f, torch.tensor([0, 0]), torch.tensor([0, 1]))
    (gradient,) = torch.autograd.grad(out, f)
    assert (loss.sample_lam > 0).all()
    assert out.isfinite()
    assert gradient.isfinite().all()


def test_temperatures_keep_their_bounds_whatever_the_rounding():
    # Of K classes one is certain: KL is log K up to rounding, and lam (1 - 1/alpha) is nearly 0.
    alpha = 1.0 + 1e-7
    for k in range(2, 60):
        loss = ALDRKLLoss(1, 1.0, alpha)
        logits = torch.zeros(1, k)
        logits[0, 0] = 100.0
        loss(logits, torch.tensor([0]), torch.tensor([0]))
        assert 1.0 - 1.0 / alpha <= float(loss.sample_lam.double()) * (1 + 1e-6) < 1e-6
    # Kept in bfloat16, 0.1 is stored as 0.1001: it is used as 0.1.
    kept = ALDRKLLoss(1, 0.1).bfloat16().eval()
    assert float(kept.sample_lam) > 0.1
    logits, target = torch.randn(1, 5, dtype=torch.float64), torch.tensor([0])
    close(kept(logits, target, torch.tensor([0])), LDRKLLoss(0.1)(logits, target))


def test_an_impossible_rival():
    f = torch.tensor([[0.5, -math.inf, 2.0, 0.1]], dtype=torch.float64, requires_grad=True)
    loss = double(1, margin=0.0)
    out = loss(f, torch.tensor([0]), torch.tensor([0]))
    (gradient,) = torch.autograd.grad(out, f)
    r = torch.softmax(f.detach()[0], 0)
    kl = float((r[r > 0] * r[r > 0].log()).sum()) + math.log(4)
    close(loss.sample_lam, [1 - kl / (2 * math.log(4))])
    expected = torch.softmax(f.detach()[0] / loss.sample_lam, 0)
    expected[0] -= 1.0
    close(gradient[0], expected)


# Memory.


def batch(seed, n=6, k=4):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, k, generator=generator)
    return logits.requires_grad_(), torch.randint(k, (n,), generator=generator)


def test_a_sample_that_occurs_twice_gets_the_mean():
    logits, target = batch(0, n=2)
    alone = ALDRKLLoss(2)
    alone(logits, target, torch.tensor([0, 1]))
    both = ALDRKLLoss(2, reduction="none")
    values = both(logits, target, torch.tensor([1, 1]))
    close(both.sample_lam, [1.0, alone.sample_lam.double().mean()], rtol=1e-6)
    # And both are valued at that temperature.
    held = both.eval()(logits, target, torch.tensor([1, 1]))
    torch.testing.assert_close(values, held)


def test_each_sample_has_its_own_memory():
    loss = ALDRKLLoss(10)
    logits, target = batch(0)
    index = torch.tensor([9, 0, 4, 7, 2, 5])
    loss(logits, target, index)
    touched = (loss.sample_lam < 1.0).nonzero().flatten().tolist()
    assert touched == sorted(index.tolist())


def test_ignored_samples_are_not_remembered():
    loss = ALDRKLLoss(4)
    logits, target = batch(0, n=4)
    target[1] = -100
    index = torch.tensor([0, -1, 2, 3])  # the index of what is not there may be anything
    loss(logits, target, index)
    assert float(loss.sample_lam[1]) == 1.0
    loss(logits, target.clamp(min=0), index.clamp(min=0), weight=torch.tensor([1.0, 0, 1, 1]))
    assert float(loss.sample_lam[1]) == 1.0


def test_update_false_reads_and_does_not_write():
    loss = ALDRKLLoss(6)
    logits, target = batch(0)
    loss(logits, target, torch.arange(6))
    kept = loss.sample_lam.clone()
    first = loss(logits, target, torch.arange(6), update=False)
    assert torch.equal(loss.sample_lam, kept)
    torch.testing.assert_close(first, loss.eval()(logits, target, torch.arange(6)))


def test_activation_checkpointing_with_update_false():
    from torch.utils.checkpoint import checkpoint

    logits, target = batch(0)
    loss = ALDRKLLoss(6)
    out = checkpoint(loss, logits, target, torch.arange(6), False, use_reentrant=False)
    out.backward()
    torch.testing.assert_close(logits.grad, _gradient(loss.eval(), logits, target))


def _gradient(loss, logits, target):
    f = logits.detach().requires_grad_()
    return torch.autograd.grad(loss(f, target, torch.arange(6)), f)[0]


@pytest.mark.parametrize("margin", [0.3, "class", "pair"])
@pytest.mark.parametrize("class_dim", [1, 2])
@pytest.mark.parametrize("in_update", [True, False])
def test_tiles_equal_stock_operations(tiles, monkeypatch, margin, class_dim, in_update):
    from lossary import _softmax

    k = 6
    if margin == "class":
        margin = torch.linspace(0.1, 1.0, k)
    elif margin == "pair":
        margin = torch.linspace(0.0, 1.0, k * k).view(k, k).fill_diagonal_(0.0)
    logits = torch.randn(3, k, k, dtype=torch.float64)
    target = torch.randint(k, (3, k))
    target[0, 0] = -100
    logits.select(class_dim, 0)[0, 0] = math.nan
    index = torch.arange(3 * k).view(3, k)
    found = []
    for threshold in (0, 1 << 40):
        monkeypatch.setattr(_softmax, "TILED_FROM_BYTES", threshold)
        loss = double(
            3 * k,
            0.7,
            margin=margin,
            class_dim=class_dim,
            margin_in_update=in_update,
            prob_eps=1e-3,
        )
        f = logits.clone().requires_grad_()
        out = loss(f, target, index)
        found.append((out.detach(), torch.autograd.grad(out, f)[0], loss.sample_lam))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert float(found[0][2].min()) < 0.7
