"""The smooth adversarial comp-sum loss: its formula, its bound, and its numbers where w = 0."""

import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from lossary import CompSumLoss, SmoothAdversarialCompSumLoss
from single_rows import close

F32, F64 = torch.float32, torch.float64
TAUS = (0.0, 0.5, 1.0, 1.5, 2.0)
numbers = st.one_of(st.floats(-8.0, 8.0), st.sampled_from((0.0, 1.0, -1.0, 30.0)))


@st.composite
def batches(draw, most=6, candidates=True):
    """Logits of one row, of its candidates (M, K), and a target."""
    size, m = draw(st.integers(2, most)), draw(st.integers(1, 3 if candidates else 1))
    row = st.lists(numbers, min_size=size, max_size=size)
    f = torch.tensor(draw(row), dtype=F64)
    adv = torch.tensor(draw(st.lists(row, min_size=m, max_size=m)), dtype=F64)
    return f, f + adv * draw(st.sampled_from((1.0, 1.0, 1e-6, 0.0))), draw(st.integers(0, size - 1))


def differences(f, y):
    return torch.stack([f[..., y] - f[..., k] for k in range(f.shape[-1]) if k != y], -1)


def phi(u, tau):
    u = torch.as_tensor(u, dtype=F64)
    return torch.log1p(u) if tau == 1 else ((1 + u) ** (1 - tau) - 1) / (1 - tau)


def reference(f, adv, y, tau, rho, nu):
    """The formula, literally, for one row."""
    first = phi(torch.exp(-differences(f, y) / rho).sum(), tau)
    return first + nu * (differences(adv, y) - differences(f, y)).norm(dim=-1).max()


def value(loss, f, adv, y):
    out = loss(f.unsqueeze(0), adv.unsqueeze(0), torch.tensor([y])).sum()
    assert out.dtype is F64
    return out


settings = st.tuples(
    st.sampled_from(TAUS), st.sampled_from((0.5, 1.0, 3.0)), st.sampled_from((0.0, 0.3, 1.0, 4.0))
)


# The value.


@given(batches(), settings)
def test_value(batch, setting):
    f, adv, y = batch
    loss = SmoothAdversarialCompSumLoss(*setting)
    close(value(loss, f, adv, y), reference(f, adv, y, *setting), rtol=1e-10, atol=1e-12)
    if len(adv) == 1:
        close(value(loss, f, adv[0], y), reference(f, adv, y, *setting), rtol=1e-10, atol=1e-12)


def test_defaults():
    loss = SmoothAdversarialCompSumLoss()
    assert (loss.tau, loss.rho, loss.nu) == (1.0, 1.0, 1.0)
    f, adv = torch.randn(2, 7, 5, dtype=F64)
    y = torch.randint(5, (7,))
    rows = [reference(*x, 1.0, 1.0, 1.0) for x in zip(f, adv.unsqueeze(1), y, strict=True)]
    close(loss(f, adv, y), torch.stack(rows).mean())
    close(loss(target=y, adv_logits=adv, logits=f), loss(f, adv, y))


@given(batches(), settings)
def test_without_the_second_term_it_is_the_comp_sum_loss_of_scaled_logits(batch, setting):
    f, adv, y = batch
    tau, rho, nu = setting
    plain = CompSumLoss(tau)((f / rho).unsqueeze(0), torch.tensor([y]))
    close(value(SmoothAdversarialCompSumLoss(tau, rho, 0.0), f, adv, y), plain)
    close(value(SmoothAdversarialCompSumLoss(tau, rho, nu), f, f.expand_as(adv), y), plain)


def test_without_the_second_term_the_perturbed_logits_do_not_matter():
    f, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 1])
    loss = SmoothAdversarialCompSumLoss(1.5, 0.5, nu=0.0)
    for adv in (torch.full((4, 3), math.nan), torch.full((4, 2, 3), math.inf)):
        torch.testing.assert_close(loss(f, adv, y), CompSumLoss(1.5)(2 * f, y))
        one_hot = torch.eye(3)[y]
        torch.testing.assert_close(loss(f, adv, one_hot), CompSumLoss(1.5)(2 * f, y))


@given(batches(), settings, st.sampled_from((-100.0, 0.7, 16.0)))
def test_constants_added_to_either_change_nothing(batch, setting, c):
    f, adv, y = batch
    loss = SmoothAdversarialCompSumLoss(*setting)
    before = value(loss, f, adv, y)
    close(value(loss, f + c, adv, y), before, rtol=1e-9, atol=1e-12)
    shifts = c * torch.arange(1, len(adv) + 1, dtype=F64).unsqueeze(1)
    close(value(loss, f, adv + shifts, y), before, rtol=1e-9, atol=1e-12)


@given(batches(), settings, st.floats(0.0, 5.0))
def test_nondecreasing_in_nu(batch, setting, more):
    f, adv, y = batch
    tau, rho, nu = setting
    low, high = (
        value(SmoothAdversarialCompSumLoss(tau, rho, x), f, adv, y) for x in (nu, nu + more)
    )
    assert low <= high
    norm = (differences(adv, y) - differences(f, y)).norm(dim=-1).max()
    close(high, low + more * norm, rtol=1e-9)


@given(batches(), settings)
def test_the_farthest_of_several_candidates_counts(batch, setting):
    f, adv, y = batch
    loss = SmoothAdversarialCompSumLoss(*setting)
    single = [value(loss, f, x, y) for x in adv]
    close(value(loss, f, adv, y), max(single), rtol=1e-14)


# The bound.


@given(
    batches(), st.sampled_from(TAUS), st.sampled_from((0.5, 1.0, 2.5)), st.sampled_from((1.0, 2.0))
)
def test_it_bounds_the_adversarial_margin_loss_and_the_adversarial_error(batch, tau, rho, factor):
    f, adv, y = batch
    nu = factor * math.sqrt(len(f) - 1) / rho
    loss = value(SmoothAdversarialCompSumLoss(tau, rho, nu), f, adv, y)
    margins = differences(adv, y)
    ramp = (1 - margins / rho).clamp(0.0, 1.0)
    margin_loss = phi(ramp.sum(-1), tau).max()
    assert loss >= margin_loss * (1 - 1e-12) - 1e-12
    if bool((margins <= 0).any()):
        assert margin_loss >= phi(1.0, tau)
        assert loss >= phi(1.0, tau) * (1 - 1e-12)


def test_a_smaller_nu_is_not_enough():
    # From a small margin to a tie with all rivals: there exp(-v) is closest to the ramp.
    size, rho = 10, 2.0
    f, adv = torch.zeros(2, size, dtype=F64)
    f[0] = 0.1 * rho
    for factor, enough in ((0.9, False), (1.0, True)):
        nu = factor * math.sqrt(size - 1) / rho
        loss = value(SmoothAdversarialCompSumLoss(0.0, rho, nu), f, adv, 0)
        assert bool(loss >= size - 1) is enough


# The gradient.


@given(batches(), settings)
def test_gradients(batch, setting):
    f, adv, y = batch
    tau, rho, nu = setting
    moved = (differences(adv, y) - differences(f, y)).norm(dim=-1)
    distinct = moved.sort(descending=True).values
    if moved.max() < 1e-9 or (len(adv) > 1 and distinct[0] - distinct[1] < 1e-6 * distinct[0]):
        return
    m = int(moved.argmax())
    w = differences(adv[m], y) - differences(f, y)
    u = w / w.norm()
    norm_slope = torch.zeros_like(f)
    norm_slope[[k for k in range(len(f)) if k != y]] = -u
    norm_slope[y] = u.sum()
    f, adv = f.clone().requires_grad_(), adv.clone().requires_grad_()
    out = value(SmoothAdversarialCompSumLoss(tau, rho, nu), f, adv, y)
    of_f, of_adv = torch.autograd.grad(out, (f, adv), materialize_grads=True)
    expected = torch.zeros_like(adv)
    expected[m] = nu * norm_slope
    close(of_adv, expected, rtol=1e-8, atol=1e-8 * nu)
    first = value(SmoothAdversarialCompSumLoss(tau, rho, 0.0), f, adv, y)
    (alone,) = torch.autograd.grad(first, f)
    scale = 1.0 + alone.abs().max().item()
    close(of_f, alone - nu * norm_slope, rtol=1e-8, atol=1e-8 * scale)
    bound = math.sqrt(2.0) / rho + nu * math.sqrt(len(f)) if tau >= 1 else math.inf
    assert of_f.norm() <= bound * (1 + 1e-12)
    assert of_adv.norm() <= nu * math.sqrt(len(f)) * (1 + 1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, F32, F64])
@pytest.mark.parametrize("soft", [False, True])
def test_where_nothing_has_moved_the_norm_has_gradient_0(dtype, soft):
    f = torch.randn(4, 3).to(dtype).requires_grad_()
    y = torch.tensor([0, 1, 2, 1])
    target = torch.eye(3)[y] if soft else y
    plain = CompSumLoss(1.5)(f, target)
    (expected,) = torch.autograd.grad(plain, f)
    for adv in (f.detach(), torch.stack((f, f), 1).detach()):
        adv = adv.requires_grad_()
        loss = SmoothAdversarialCompSumLoss(1.5, 1.0, 3.0)(f, adv, target)
        of_f, of_adv = torch.autograd.grad(loss, (f, adv))
        torch.testing.assert_close(loss, plain)
        torch.testing.assert_close(of_f, expected)
        assert of_f.dtype is of_adv.dtype is dtype
        assert bool((of_adv == 0).all())


@pytest.mark.parametrize("c", [0.1, -1e3 / 3, 1e-20])
def test_a_constant_moves_nothing_exactly(c):
    adv = torch.full((4, 3), c, requires_grad=True)
    loss = SmoothAdversarialCompSumLoss()(torch.zeros(4, 3), adv, torch.tensor([0, 1, 2, 1]))
    close(loss, math.log(3), rtol=1e-6)
    assert bool((torch.autograd.grad(loss, adv)[0] == 0).all())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's use of itself
def test_second_derivatives_and_forward_mode_where_nothing_has_moved():
    f = torch.randn(2, 3, dtype=F64)
    y = torch.tensor([0, 2])

    def at(adv, f):
        return SmoothAdversarialCompSumLoss()(f, adv, y)

    for i in (0, 1):
        h = torch.autograd.functional.hessian(at, (f, f))[i][i]
        assert bool(h.isfinite().all())
        tangents = (torch.ones_like(f), torch.randn_like(f))
        _, slope = torch.func.jvp(at, (f, f), tangents)
        _, plain = torch.func.jvp(lambda f: CompSumLoss()(f, y), (f,), tangents[1:])
        close(slope, plain)
    assert bool((torch.autograd.functional.hessian(at, (f, f))[0][0] == 0).all())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's use of itself
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 4)])
def test_derivatives(shape, soft):
    f = torch.randn(3, 4, dtype=F64, requires_grad=True)
    adv = torch.randn(shape, dtype=F64, requires_grad=True)
    y = torch.tensor([0, 3, -100])
    if soft:
        y = torch.softmax(torch.randn(3, 4, dtype=F64), 1)

    def loss(f, adv):
        return SmoothAdversarialCompSumLoss(0.7, 0.5, 2.0)(f, adv, y)

    assert gradcheck(loss, (f, adv), check_forward_ad=True)
    assert gradgradcheck(loss, (f, adv), check_fwd_over_rev=True)


def test_at_a_tie_between_candidates_the_gradient_goes_to_one():
    f, adv = torch.zeros(1, 3), torch.tensor([[[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]])
    adv.requires_grad_()
    (g,) = torch.autograd.grad(SmoothAdversarialCompSumLoss()(f, adv, torch.tensor([0])), adv)
    assert sorted(g[0].abs().amax(1).tolist()) == [0.0, pytest.approx(math.sqrt(2.0))]


# Numbers.


@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e-20, 1e-8, 1.0, 1e8, 1e20, 1e30, 1e37])
def test_sizes_that_squares_cannot_take(size):
    # In float32: the clean logits 0, so that the first term is log K.
    move = torch.tensor([[1.0, 0.0, -2.0, 0.5]], dtype=F64)
    adv = (move * size).float().requires_grad_()
    y = torch.tensor([2])
    loss = SmoothAdversarialCompSumLoss(reduction="none")
    exact = adv.detach().double()
    norm = differences(exact, 2).norm(dim=-1)
    close(loss._movement(torch.zeros(1, 4), adv, y), norm, rtol=1e-6)
    close(loss._movement(torch.zeros(1, 4), adv, None)[:, 2], norm, rtol=1e-6)
    out = loss(torch.zeros(1, 4), adv, y)
    close(out, norm + math.log(4), rtol=1e-6)
    (g,) = torch.autograd.grad(out.sum(), adv)
    u = differences(exact / size, 2)
    u = (u / u.norm())[0]
    close(g[0], torch.stack((-u[0], -u[1], u.sum(), -u[2])), rtol=1e-6, atol=1e-7)


@given(batches(most=6), st.sampled_from((1e-9, 1.0, 1e6)))
def test_every_class_at_once_has_the_digits_of_each_alone(batch, scale):
    f, adv, _ = batch
    loss = SmoothAdversarialCompSumLoss(1.0, 1.0, 1.0)
    moved = f + scale * (adv - f)
    found = loss._movement(f.unsqueeze(0), moved.unsqueeze(0), None)[0]
    with mpmath.workdps(60):
        d = [[mpmath.mpf(x) - mpmath.mpf(z) for x, z in zip(row, f.tolist(), strict=True)]
             for row in moved.tolist()]  # fmt: skip
        for y in range(len(f)):
            true = max(mpmath.sqrt(mpmath.fsum((row[y] - x) ** 2 for x in row)) for row in d)
            slack = 1e-15 * max(map(abs, [*f.tolist(), *moved.flatten().tolist()]))
            assert abs(found[y].item() - true) <= 1e-14 * true + slack
            alone = loss._movement(f.unsqueeze(0), moved.unsqueeze(0), torch.tensor([y]))
            close(found[y], alone[0], rtol=1e-14, atol=0)


def test_small_perturbations_of_large_logits_keep_their_digits_in_single_precision():
    f = torch.tensor([[100.0, 50.0, -30.0, 7.0]])
    step = torch.tensor([[2.0**-15, 0.0, 2.0**-17, -(2.0**-16)]])  # f + step is exact
    norm = differences(step[0].double(), 0).norm()
    found = SmoothAdversarialCompSumLoss()._movement(f, f + step, torch.tensor([0]))
    close(found[0], norm, rtol=1e-6)


def test_tiny_rho_and_large_logits():
    f = torch.tensor([[0.0, -40.0, 3.0], [5.0, 1.0, -1.0]], requires_grad=True)
    for tau in TAUS:
        out = SmoothAdversarialCompSumLoss(tau, 1e-6, reduction="none")(f, f, torch.tensor([0, 0]))
        assert not bool(out.isnan().any())
        assert out[1] == 0.0
        assert not bool(torch.autograd.grad(out.sum(), f)[0].isnan().any())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype):
    f, adv = torch.randn(6, 5).to(dtype), torch.randn(6, 2, 5).to(dtype)
    y = torch.randint(5, (6,))
    loss = SmoothAdversarialCompSumLoss(0.5, 0.7, 1.3)
    grads = []
    for a, b in ((f, adv), (f.float(), adv.float()), (f, adv.float()), (f.float(), adv)):
        for target in (y, torch.eye(5)[y]):
            a, b = (x.detach().requires_grad_() for x in (a, b))
            out = loss(a, b, target)
            assert out.dtype is F32
            torch.testing.assert_close(out, loss(f.float(), adv.float(), y), rtol=1e-5, atol=0)
            grads.append(torch.autograd.grad(out, (a, b)))
            assert [g.dtype for g in grads[-1]] == [a.dtype, b.dtype]
    for half, full in zip(grads[0], grads[2], strict=True):
        eps = torch.finfo(dtype).eps
        assert bool(((half.float() - full).abs() <= 0.51 * eps * full.abs() + 1e-6).all())


# What is not there.


@pytest.mark.parametrize("lost", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("shape", [(4, 3), (4, 2, 3)])
@pytest.mark.parametrize("how", ["ignored", "weight", "soft", "class_weight"])
def test_absent_rows_touch_neither_value_nor_gradient(how, shape, lost):
    f, adv = torch.randn(4, 3, dtype=F64), torch.randn(shape, dtype=F64)
    y = torch.tensor([0, 1, 2, 1])
    kept = torch.tensor([True, True, False, True])
    options, keywords = {}, {}
    target = y.clone()
    if how == "ignored":
        target[2] = -100
    elif how == "class_weight":
        options["class_weight"] = torch.tensor([1.0, 1.0, 0.0])
    else:
        keywords["weight"] = kept
        target = torch.eye(3, dtype=F64)[y] if how == "soft" else y
    expected = SmoothAdversarialCompSumLoss(1.5, 0.5, 2.0)(f[kept], adv[kept], y[kept])
    f[2], adv[2] = lost, lost
    f.requires_grad_()
    adv.requires_grad_()
    for reduction in ("mean", "none"):
        loss = SmoothAdversarialCompSumLoss(1.5, 0.5, 2.0, reduction=reduction, **options)
        out = loss(f, adv, target, **keywords)
        if reduction == "none":
            assert out[2] == 0.0
            out = out.sum() / 3
        close(out, expected)
        for g in torch.autograd.grad(out, (f, adv)):
            assert bool((g[2] == 0).all())
            assert bool(g.isfinite().all())
            assert bool((g[kept] != 0).any())


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_absent_rows_where_no_value_is_looked_at(value):
    # As under torch.compile and vmap.
    f, adv = torch.randn(4, 3, dtype=F64), torch.randn(4, 3, dtype=F64)
    y = torch.tensor([0, -1, 2, -1])
    kept = y >= 0
    loss = SmoothAdversarialCompSumLoss()
    expected = loss.per_sample(f[kept], adv[kept], y[kept])
    f[~kept], adv[~kept] = value, value

    def one(f, adv, y):
        out = loss.per_sample(f.unsqueeze(0), adv.unsqueeze(0), y.unsqueeze(0))
        return torch.where(y >= 0, out.sum(), 0.0)

    torch.testing.assert_close(torch.vmap(one)(f, adv, y)[kept], expected)
    for g in torch.vmap(torch.func.grad(one, argnums=(0, 1)))(f, adv, y):
        assert bool((g[~kept] == 0).all())
        assert bool(g.isfinite().all())


# Shapes and targets.


@pytest.mark.parametrize("class_dim", [0, 1, 2, -1, -2])
@pytest.mark.parametrize("candidates", [0, 1, 3])
def test_the_candidates_stand_right_before_the_class_axis(class_dim, candidates):
    f = torch.randn(2, 3, 4, dtype=F64)
    axis = class_dim % 3
    size = f.shape[axis]
    rows = f.movedim(axis, -1)
    m = max(candidates, 1)
    adv_rows = torch.randn(*rows.shape[:-1], m, size, dtype=F64)
    adv = adv_rows.movedim(-1, axis).movedim(-1, axis)
    assert adv.shape == (*f.shape[:axis], m, *f.shape[axis:])
    y = torch.randint(size, rows.shape[:-1])
    q = torch.softmax(torch.randn(rows.shape, dtype=F64), -1)
    loss = SmoothAdversarialCompSumLoss(1.5, 0.5, 2.0, class_dim=class_dim, reduction="none")
    flat = SmoothAdversarialCompSumLoss(1.5, 0.5, 2.0, reduction="none")
    adv = adv if candidates else adv.squeeze(axis)
    for target, flat_target in (
        (y, y.reshape(-1)),
        (q.movedim(-1, axis), q.reshape(-1, size)),
    ):
        expected = flat(rows.reshape(-1, size), adv_rows.reshape(-1, m, size), flat_target)
        torch.testing.assert_close(loss(f, adv, target), expected.view(y.shape))


def test_one_row():
    f, adv = torch.randn(3), torch.randn(2, 3)
    loss = SmoothAdversarialCompSumLoss()
    y = torch.tensor(1)
    for x in (adv, adv[0]):
        torch.testing.assert_close(loss(f, x, y), loss(f[None], x[None], y[None]))


@given(batches(), settings)
def test_probabilities_are_expectations(batch, setting):
    f, adv, _ = batch
    q = torch.softmax(torch.arange(len(f), dtype=F64), 0)
    loss = SmoothAdversarialCompSumLoss(*setting)
    out = loss(f.unsqueeze(0), adv.unsqueeze(0), q.unsqueeze(0))
    every = torch.stack([value(loss, f, adv, y) for y in range(len(f))])
    close(out, q @ every, rtol=1e-11)


# What it claims.


@given(batches(), batches(), st.floats(0.0, 1.0), st.sampled_from((0.0, 0.5, 1.0)))
def test_convex_in_both_inputs_together(one, other, share, tau):
    size, m = min(len(one[0]), len(other[0])), min(len(one[1]), len(other[1]))
    (f, adv), (g, bdv) = ((x[0][:size], x[1][:m, :size]) for x in (one, other))
    loss = SmoothAdversarialCompSumLoss(tau, 1.0, 0.7)
    middle = value(loss, share * f + (1 - share) * g, share * adv + (1 - share) * bdv, 0)
    chord = share * value(loss, f, adv, 0) + (1 - share) * value(loss, g, bdv, 0)
    assert middle <= chord * (1 + 1e-12)


def test_properties():
    for tau in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0):
        for nu in (0.0, 0.5):
            p = SmoothAdversarialCompSumLoss(tau, 0.5, nu).properties(7)
            assert p.convex is (tau <= 1)
            assert p.lower == 0.0
            assert p.upper == (1 / (tau - 1) if nu == 0 and tau > 1 else math.inf)
            slope = 2 * math.sqrt(2.0) + nu * math.sqrt(7)
            assert p.lipschitz == (pytest.approx(slope) if tau >= 1 else math.inf)
            assert p.shift_invariant is True
            assert p.calibrated is p.symmetric is p.proper is p.rank_consistent is None


def test_the_lipschitz_constant_of_the_norm_is_reached():
    f, adv = torch.zeros(2, 1, 6, dtype=F64)
    adv[0, 2] = 5.0
    adv.requires_grad_()
    (g,) = torch.autograd.grad(SmoothAdversarialCompSumLoss(nu=3.0)(f, adv, torch.tensor([2])), adv)
    close(g.norm(), 3 * math.sqrt(6))
