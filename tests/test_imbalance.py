"""Losses for imbalance against loops and backward passes, in every layout, and their promises."""

import copy
import math
import warnings

import mpmath
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot

from lossary import (
    AdaptiveFeatureScaling,
    BackdoorAdjustment,
    FeatureSeparationLoss,
    GradientSimilarityFocalLoss,
    GuidedLossScaling,
    LinearLogits,
    LogitAdjustmentLoss,
    ShardedLogits,
    SRATLoss,
    _softmax,
    adaptive_threshold,
    gradient_dissimilarity,
    prior_bias_init,
)
from processes import run_processes

F64 = torch.float64
INF, NAN = math.inf, math.nan
seeds = st.integers(0, 10**6)


def close(a, b, rtol=1e-11, atol=1e-13):
    torch.testing.assert_close(
        torch.as_tensor(a, dtype=F64), torch.as_tensor(b, dtype=F64), rtol=rtol, atol=atol
    )


def draw(n=6, k=4, seed=0, width=3):
    generator = torch.Generator().manual_seed(seed)
    z = 2 * torch.randn(n, k, dtype=F64, generator=generator)
    h = torch.randn(n, width, dtype=F64, generator=generator)
    return z, torch.randint(k, (n,), generator=generator), h


# Gradient similarity.


def dissimilarity(z0, y, h, scale):
    """From a backward pass of every sample, and one of the batch, in the head's weight."""
    k, d = z0.shape[1], h.shape[1]

    def gradient(rows):
        # A head whose logits are z0 where its weight is W: W + (what is missing to z0).
        weight = torch.zeros(k, d, dtype=F64, requires_grad=True)
        z = scale[rows] * (h[rows] @ weight.t()) + z0[rows]
        return torch.autograd.grad(cross_entropy(z, y[rows]), weight)[0]

    whole, out = gradient(torch.arange(len(y))), []
    for n in range(len(y)):
        a, b = gradient(torch.tensor([n]))[y[n]], whole[y[n]]
        out.append(1 - torch.cosine_similarity(a, b, dim=0))
    return torch.stack(out)


@given(seeds, st.integers(2, 7), st.booleans())
def test_dissimilarity_is_that_of_the_backward_passes(seed, n, scaled):
    z, y, h = draw(n, seed=seed)
    scale = torch.rand(n, 4, dtype=F64) + 0.3 if scaled else None
    want = dissimilarity(z, y, h, torch.ones(n, 4, dtype=F64) if scale is None else scale)
    got = gradient_dissimilarity(z, y, h, scale)
    close(got, want, rtol=1e-8, atol=1e-10)
    assert ((got >= 0) & (got <= 2)).all()
    close(gradient_dissimilarity(z, y, 37.0 * h, scale), got, rtol=1e-6, atol=1e-8)


@given(seeds, st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([0.0, 0.5, 2.0]))
def test_focal_value_and_gradient(seed, alpha, gamma):
    z, y, h = draw(seed=seed)
    z.requires_grad_()
    h.requires_grad_()
    ign = gradient_dissimilarity(z, y, h)
    assert not ign.requires_grad
    factor = (1 - alpha) + alpha * ign**gamma
    ce = cross_entropy(z, y, reduction="none")
    loss = GradientSimilarityFocalLoss(alpha, gamma, reduction="none")
    out = loss(z, y, h)
    close(out, factor * ce)
    (g,) = torch.autograd.grad(out.sum(), z)
    close(g, factor.unsqueeze(1) * (torch.softmax(z, 1) - one_hot(y, 4)))
    loss.reduction = "mean"
    close(loss(z, y, h), (factor * ce).mean())
    if alpha == 0.0 or gamma == 0.0:
        close(loss(z, y, h), ce.mean())


def test_focal_weighs_every_sample_where_the_release_weighs_the_batch():
    z, y, h = draw(8, seed=1)
    factor = 0.5 + 0.5 * gradient_dissimilarity(z, y, h).square()
    ce = cross_entropy(z, y, reduction="none")
    out = GradientSimilarityFocalLoss()(z, y, h)
    close(out, (factor * ce).mean())
    assert abs(out - factor.mean() * ce.mean()) > 1e-2


def test_focal_of_one_sample_and_of_copies():
    z, y, h = draw(1)
    # A rounding error below 0 has no square root.
    loss = GradientSimilarityFocalLoss(0.3, 0.5)
    for n in (1, 2, 7):
        close(loss(z.expand(n, 4), y.expand(n), h.expand(n, 3)), 0.7 * cross_entropy(z, y),
              rtol=1e-6)  # fmt: skip
    for seed in range(30):
        z, y, h = draw(1, seed=seed)
        assert (gradient_dissimilarity(z.expand(3, 4), y.expand(3), h.expand(3, 3)) >= 0).all()


def test_dissimilarity_of_what_is_fitted_and_of_masked_classes():
    z, y, h = draw(5)
    z[0] = 800.0 * one_hot(y[0], 4)
    got = gradient_dissimilarity(z, y, h)
    assert got[0] == 1.0
    assert got.isfinite().all()
    masked = torch.cat((z, torch.full((5, 2), -INF, dtype=F64)), 1)
    close(gradient_dissimilarity(masked, y, h), got)
    close(GradientSimilarityFocalLoss()(masked, y, h), GradientSimilarityFocalLoss()(z, y, h))


def test_focal_weight_does_not_change_the_batch():
    z, y, h = draw()
    weight = torch.tensor([1.0, 0.0, 2.0, 0.0, 1.0, 1.0], dtype=F64)
    values = GradientSimilarityFocalLoss(reduction="none")(z, y, h)
    out = GradientSimilarityFocalLoss()(z, y, h, weight=weight)
    close(out, (weight * values).sum() / weight.sum())


# Adaptive feature scaling.


@given(seeds, st.sampled_from([0.1, 0.5, 3.0]))
def test_feature_scaling(seed, margin):
    w, y, f = draw(seed=seed, k=3)
    weight = w[:4]
    y = y.clamp(max=3)
    module = AdaptiveFeatureScaling(margin)
    f.requires_grad_()
    weight = weight.clone().requires_grad_()
    out = module(f, y, weight)
    for n in range(len(f)):
        a, b = weight[y[n]].detach(), f[n].detach()
        cps = 1 - (a @ b) / (a.norm() * b.norm()) + margin
        assert margin <= cps <= 2 + margin
        close(out[n], b / cps)
    v = torch.randn(out.shape, dtype=F64)
    g, of_weight = torch.autograd.grad((v * out).sum(), [f, weight], allow_unused=True)
    close(g, v * (out / f).detach())
    assert of_weight is None
    assert module.eval()(f, y, weight) is f


def test_feature_scaling_of_orthogonal_and_aligned_features():
    weight = torch.tensor([[0.0, 2.0], [1.0, 0.0]])
    f = torch.tensor([[3.0, 0.0], [3.0, 0.0]])
    out = AdaptiveFeatureScaling(1e-6)(f, torch.tensor([0, 1]), weight)
    torch.testing.assert_close(out[0], f[0], rtol=1e-5, atol=0.0)
    torch.testing.assert_close(out[1], f[1] * 1e6)
    for dtype in (torch.float16, torch.bfloat16):
        half = AdaptiveFeatureScaling()(f.to(dtype), torch.tensor([0, 1]), weight)
        assert half.dtype is dtype
        torch.testing.assert_close(half.float(), torch.tensor([[2.0, 0], [6.0, 0]]))


# Detectors.


@given(st.floats(1e-6, 1e6), st.floats(0.0, 1e6), st.floats(1e-3, 1e3))
def test_guided_scaling(cls, reg, factor):
    x = torch.tensor(cls, dtype=F64, requires_grad=True)
    r = torch.tensor(reg, dtype=F64, requires_grad=True)
    y = 3.0 * x.square()
    out = GuidedLossScaling()(y, r)
    close(out, reg)
    g, of_r = torch.autograd.grad(out, [x, r], allow_unused=True)
    assert of_r is None
    close(g, reg / (3 * cls**2) * 6 * cls)
    again = GuidedLossScaling()(factor * 3.0 * x.square(), r)
    close(again, reg)
    close(torch.autograd.grad(again, x)[0], g)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_guided_scaling_of_nothing(dtype):
    x = torch.zeros((), dtype=dtype, requires_grad=True)
    out = GuidedLossScaling()(x * 2.0, torch.tensor(3.0, dtype=dtype))
    assert out == 0.0
    assert torch.autograd.grad(out, x)[0] == 2.0
    tiny = torch.tensor(1e-15, dtype=dtype)
    torch.testing.assert_close(GuidedLossScaling()(tiny, tiny + 3.0), tiny + 3.0)
    assert GuidedLossScaling()(tiny, tiny * 0) == 0.0
    before = tiny.clone()
    GuidedLossScaling()(tiny, tiny)
    assert tiny == before
    assert GuidedLossScaling()(tiny.half(), tiny.half()).dtype is torch.float32


@pytest.mark.parametrize(("some", "every", "k"), [(100, 10_000, 80), (3, 7, 1), (2.5, 2.5, 3)])
def test_prior_bias(some, every, k):
    b = prior_bias_init(some, every, k)
    prior = some / every / k
    close(1 / (1 + math.exp(-b)), prior)
    close(adaptive_threshold(some, every), k * prior)
    # The stationary point of the summed cross-entropy of a constant.
    logit = torch.tensor(b, dtype=F64, requires_grad=True)
    one, zero = (
        binary_cross_entropy_with_logits(logit, torch.tensor(t, dtype=F64)) for t in (1.0, 0.0)
    )
    risk = some * one + (every * k - some) * zero
    assert abs(float(torch.autograd.grad(risk, logit)[0])) < 1e-9 * every


# Feature separation, SRAT.


def separation(f, y, tau):
    u = f / f.norm(dim=1, keepdim=True)
    out = []
    for i in range(len(f)):
        s = {k: float(u[i] @ u[k]) / tau for k in range(len(f)) if k != i}
        near = [k for k in s if y[k] == y[i]]
        with mpmath.workdps(40):
            lse = mpmath.log(mpmath.fsum(mpmath.exp(v) for v in s.values())) if s else 0
            out.append(float(lse - mpmath.fsum(s[k] for k in near) / len(near)) if near else 0.0)
    return torch.tensor(out, dtype=F64)


@given(seeds, st.integers(0, 8), st.sampled_from([0.01, 0.1, 1.0]))
def test_separation_is_what_the_formula_says(seed, n, tau):
    _, y, f = draw(n, 3, seed)
    values = FeatureSeparationLoss(tau, reduction="none")(f, y)
    close(values, separation(f, y, tau), rtol=1e-10, atol=1e-11)
    alike = torch.tensor([int((y == t).sum()) - 1 for t in y], dtype=F64)
    assert (values >= alike.clamp(min=1).log() - 1e-11).all()
    close(FeatureSeparationLoss(tau)(f, y), values.sum() / max(n, 1), rtol=1e-10, atol=1e-11)


def test_separation_of_equal_features_and_of_the_lonely():
    f = torch.ones(5, 3, dtype=F64)
    close(FeatureSeparationLoss()(f, torch.zeros(5).long()), math.log(4))
    x = torch.randn(4, 3, dtype=F64, requires_grad=True)
    for y in (torch.arange(4), torch.tensor([7])):
        out = FeatureSeparationLoss(0.01)(x[: len(y)], y)
        assert out == 0.0
        (g,) = torch.autograd.grad(out, x, retain_graph=True)
        assert (g == 0).all()
    # Nor is there a nan on the way, which anomaly detection would stop at.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.autograd.detect_anomaly():
            FeatureSeparationLoss()(x[:1], torch.tensor([7])).backward()
    # The lonely stay in the mean, with 0.
    y = torch.tensor([0, 0, 1, 2])
    values = FeatureSeparationLoss(reduction="none")(x, y)
    assert (values[2:] == 0).all()
    close(FeatureSeparationLoss()(x, y), values[:2].sum() / 4)


def test_separation_does_not_know_lengths_and_rotations():
    _, y, f = draw(7, 3)
    q, _ = torch.linalg.qr(torch.randn(3, 3, dtype=F64))
    want = FeatureSeparationLoss()(f, y)
    close(FeatureSeparationLoss()(f @ q, y), want)
    close(FeatureSeparationLoss()(f * torch.rand(7, 1, dtype=F64), y), want)
    close(FeatureSeparationLoss()(f, 5 - 2 * y), want)


@given(seeds, st.sampled_from([0.0, 0.5, 1.0]), st.booleans())
def test_srat_is_what_the_formula_says(seed, lam, weighted):
    z, y, f = draw(seed=seed)
    w = torch.tensor([0.5, 1.0, 3.0, 0.0], dtype=F64) if weighted else None
    loss = SRATLoss(w, lam, 0.2, reduction="none")
    ce = cross_entropy(z, y, reduction="none") * (1.0 if w is None else w[y])
    want = ce + lam * separation(f, y, 0.2)
    close(loss(z, y, f), want, rtol=1e-10, atol=1e-12)
    loss.reduction = "mean"  # by the number of samples: the weights are of one term alone
    close(loss(z, y, f), want.mean(), rtol=1e-10)


def test_srat_state():
    w = torch.tensor([0.5, 2.0])
    loss = SRATLoss(w)
    assert set(loss.state_dict()) == {"class_weight"}
    other = SRATLoss(torch.ones(2))
    other.load_state_dict(loss.state_dict())
    z, y, f = draw(k=2)
    close(other(z, y, f), loss(z, y, f))


def made(name, **options):
    if name == "separation":
        return FeatureSeparationLoss(0.3, **options)
    return SRATLoss(torch.tensor([0.5, 2.0, 1.0], dtype=F64), 0.7, 0.3, **options)


def step(name, rows, **options):
    z, y, f = draw(9, 3, 11)
    turn = torch.eye(3, dtype=F64, requires_grad=True)
    features = (f @ turn)[rows]
    inputs = (features, y[rows]) if name == "separation" else (z[rows] @ turn, y[rows], features)
    out = made(name, **options)(*inputs)
    return torch.autograd.grad(out, turn)[0]


def check_gathered(rank, world_size):
    for name in ("separation", "srat"):
        for reduction in ("mean", "batchmean"):
            for bounds in ([0, 3, 9], [0, 9, 9]):
                g = step(name, slice(bounds[rank], bounds[rank + 1]), reduction=reduction)
                dist.all_reduce(g)
                want = step(name, slice(None), reduction=reduction, gather=False)
                close(g / world_size, want)


# Logit adjustment.

COUNTS = torch.tensor([500.0, 90.0, 20.0, 3.0], dtype=F64)


@pytest.fixture(params=["stock", "tiled"])
def path(request):
    if request.param == "tiled":
        request.getfixturevalue("tiles")


@pytest.mark.parametrize("tau", [0.0, 1.0, -0.5, 2.0])
def test_logit_adjustment_is_cross_entropy_of_shifted_logits(path, tau):
    z, y, _ = draw(20)
    z.requires_grad_()
    loss = LogitAdjustmentLoss(COUNTS, tau=tau)
    shifted = z + tau * (COUNTS / COUNTS.sum()).log()
    close(loss(z, y), cross_entropy(shifted, y))
    (g,) = torch.autograd.grad(loss(z, y), z)
    close(g, (torch.softmax(shifted, 1) - one_hot(y, 4)) / 20)
    q = torch.rand(20, 4, dtype=F64)
    q = q / q.sum(1, keepdim=True)
    close(loss(z, q), cross_entropy(shifted, q))
    # Entries that are not there.
    z2 = torch.cat((z.detach(), torch.full((2, 4), NAN, dtype=F64)))
    close(loss(z2, torch.cat((y, torch.full((2,), -100)))), cross_entropy(shifted, y))


def test_logit_adjustment_knows_shares_alone():
    z, y, _ = draw()
    want = LogitAdjustmentLoss(COUNTS)(z, y)
    for other in (
        LogitAdjustmentLoss(COUNTS * 7.3),
        LogitAdjustmentLoss(class_prior=COUNTS / COUNTS.sum()),
        LogitAdjustmentLoss(class_prior=COUNTS),
    ):
        close(other(z, y), want)
    for given_counts in (COUNTS.long(), [500, 90, 20, 3], (500.0, 90.0, 20.0, 3.0)):
        close(LogitAdjustmentLoss(given_counts)(z, y), want, rtol=1e-6)
    close(LogitAdjustmentLoss([7, 7, 7, 7])(z, y), cross_entropy(z, y), rtol=1e-6)
    assert abs(float(want - cross_entropy(z, y))) > 0.1


def test_logit_adjustment_keeps_digits_of_small_losses():
    z = torch.tensor([[30.0, 0.0, 0.0, 0.0]])
    loss = LogitAdjustmentLoss(COUNTS)(z, torch.tensor([3]))
    assert float(loss) > 30
    loss = LogitAdjustmentLoss(COUNTS)(z, torch.tensor([0]))
    exact = mpmath.log1p(113 / mpmath.mpf(500) * mpmath.exp(-30))
    assert float(loss) == pytest.approx(float(exact), rel=1e-5, abs=0)


@given(seeds)
def test_logit_adjustment_is_consistent_for_the_balanced_error(seed):
    generator = torch.Generator().manual_seed(seed)
    q = torch.rand(4, dtype=F64, generator=generator) + 0.05
    q = q / q.sum()
    z = (q / COUNTS).log().requires_grad_()
    loss = LogitAdjustmentLoss(COUNTS)
    (g,) = torch.autograd.grad(loss(z.unsqueeze(0), q.unsqueeze(0)), z)
    assert g.abs().max() < 1e-12


def test_logit_adjustment_state():
    loss = LogitAdjustmentLoss(COUNTS)
    assert set(loss.state_dict()) == {"log_prior"}
    close(loss.log_prior.exp(), COUNTS / COUNTS.sum())
    z, y, _ = draw()
    other = LogitAdjustmentLoss([1, 1, 1, 1])
    other.load_state_dict(loss.state_dict())
    close(other(z, y), loss(z, y), rtol=1e-6)


LAYERS = {"plain": {}, "temperature": {"temperature": 0.6}, "no bias": {"bias": None}}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("dtype", [F64, torch.bfloat16])
def test_logit_adjustment_of_streamed_logits(layer, dtype):
    h, w, b = (torch.randn(s, dtype=F64).to(dtype).requires_grad_() for s in ((9, 5), (4, 5), (4,)))
    options = {"bias": b} | LAYERS[layer]
    y = torch.randint(4, (9,))
    y[3] = -100
    loss = LogitAdjustmentLoss(COUNTS, tau=0.7)
    logits = LinearLogits(h, w, tile_size=2, **options)
    leaves = [x for x in (h, w, options["bias"]) if x is not None]
    got, want = loss(logits, y), loss(logits.in_memory(), y)
    tol = {"rtol": 1e-11 if dtype is F64 else 1e-5}
    close(got, want, **tol)
    pairs = (torch.autograd.grad(x, leaves) for x in (got, want))
    for a, c in zip(*pairs, strict=True):
        assert a.dtype is dtype
        torch.testing.assert_close(a.double(), c.double(), rtol=1e-9 if dtype is F64 else 2e-2,
                                   atol=1e-11 if dtype is F64 else 1e-3)  # fmt: skip
    assert logits.bias is options["bias"]  # what was given is as it was


def test_logit_adjustment_of_capped_logits_is_refused():
    h, w = torch.randn(3, 5), torch.randn(4, 5)
    logits = LinearLogits(h, w, softcap=5.0)
    with pytest.raises(TypeError, match="logits: expected a tensor, as one number per class added"):
        LogitAdjustmentLoss(COUNTS)(logits, torch.tensor([0, 1, 2]))
    LogitAdjustmentLoss(COUNTS)(logits.in_memory(), torch.tensor([0, 1, 2]))


def check_processes(rank, world_size):
    check_gathered(rank, world_size)
    z, y, _ = draw(7, 4, 5)
    y[2] = -100
    loss = LogitAdjustmentLoss(COUNTS, tau=1.5)
    z.requires_grad_()
    want = loss(z, y)
    (g,) = torch.autograd.grad(want, z)
    own = slice(0, 1) if rank == 0 else slice(1, 4)
    local = z.detach()[:, own].clone().requires_grad_()
    sharded = ShardedLogits(local)
    got = loss(sharded, y)
    close(got, want)
    close(torch.autograd.grad(got, local)[0], g[:, own])
    assert sharded.local_logits is local


def test_gathered_features_and_sharded_logits(tmp_path):
    run_processes(check_processes, 2, tmp_path)


def test_logit_adjustment_holds_no_copy_of_the_logits():
    # One number per class where a matrix of margins would be.
    seen = []
    statistics = _softmax.row_statistics

    def spy(logits, *args, margin=None, **options):
        seen.append((logits.data_ptr(), margin.stride(), margin.shape))
        return statistics(logits, *args, margin=margin, **options)

    z, y, _ = draw()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_softmax, "row_statistics", spy)
        LogitAdjustmentLoss(COUNTS)(z, y)
    assert seen == [(z.data_ptr(), (0, 1), (4, 4))]


# Backdoor adjustment.


def test_backdoor_adjustment():
    z = torch.randn(3, 5, 4, dtype=F64)
    mean = BackdoorAdjustment()(list(z))
    close(mean, z.mean(0))
    assert (mean.argmax(1) == z.sum(0).argmax(1)).all()
    close(BackdoorAdjustment()(z), z.mean(0))
    weighted = BackdoorAdjustment([2.0, 0.0, 6.0])
    spoiled = z.clone()
    spoiled[1] = NAN
    close(weighted(tuple(spoiled)), 0.25 * z[0] + 0.75 * z[2])
    close(copy.deepcopy(weighted)(list(z)), 0.25 * z[0] + 0.75 * z[2])
    assert BackdoorAdjustment()([z[0].half()]).dtype is torch.float32
    assert torch.autograd.gradcheck(lambda *x: weighted(x), tuple(z.clone().requires_grad_()))


# What is refused.

Z, Y, H, W = torch.zeros(4, 3), torch.tensor([0, 1, 2, 0]), torch.ones(4, 2), torch.ones(3, 2)
ONE = torch.tensor(1.0)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: AdaptiveFeatureScaling(0.0), ValueError, r"margin: expected .*\(0, inf\), got 0"),
        (lambda: AdaptiveFeatureScaling()(H[0], Y, W), ValueError, r"features: .*got \(2,\)"),
        (lambda: AdaptiveFeatureScaling()(H, Y, Z), ValueError, r"weight: .*\(K, 2\), got \(4, 3"),
        (lambda: AdaptiveFeatureScaling()(H, Y[:3], W), ValueError, r"target: .*got \(3,\)"),
        (lambda: AdaptiveFeatureScaling()(H, Y + 1, W), ValueError, r"target: .*\[0, 3\), got 3"),
        (lambda: AdaptiveFeatureScaling()(H, Y.float(), W), TypeError, "target: .*integer"),
        (lambda: AdaptiveFeatureScaling()(H, Y, W.long()), TypeError, "weight: .*floating"),
        (lambda: GuidedLossScaling()(Z[0], ONE), ValueError, r"cls_loss: .*0-dim.*got shape \(3,"),
        (lambda: GuidedLossScaling()(ONE, Z[0]), ValueError, r"reg_loss: .*0-dim.*got shape \(3,"),
        (lambda: GuidedLossScaling()(-ONE, ONE), ValueError, "cls_loss: .*>= 0, got -1"),
        (lambda: GuidedLossScaling()(ONE, NAN * ONE), ValueError, "reg_loss: .*>= 0, got nan"),
        (lambda: GuidedLossScaling()(1.0, ONE), TypeError, "cls_loss: .*a tensor, got float"),
        (lambda: GuidedLossScaling()(ONE, ONE.long()), TypeError, "reg_loss: .*floating point"),
        (lambda: GuidedLossScaling()(ONE, ONE.to("meta")), ValueError, "reg_loss: .*device cpu"),
        (lambda: prior_bias_init(0, 10, 2), ValueError, r"num_foreground: .*\(0, 10\], got 0"),
        (lambda: prior_bias_init(11, 10, 2), ValueError, r"num_foreground: .*\(0, 10\], got 11"),
        (lambda: prior_bias_init(10, 10, 1), ValueError, "num_foreground: .*fewer than .*got 10"),
        (lambda: prior_bias_init(1, 10, 0), ValueError, "num_classes: .*at least 1, got 0"),
        (lambda: prior_bias_init(1, 10, 2.0), TypeError, "num_classes: .*an int, got float"),
        (lambda: adaptive_threshold(1, 0), ValueError, r"num_total: .*\(0, inf\), got 0"),
        (lambda: adaptive_threshold("1", 3), TypeError, "num_foreground: .*a number, got str"),
        (lambda: BackdoorAdjustment([]), ValueError, "weights: .*at least one number > 0, got"),
        (lambda: BackdoorAdjustment([0.0]), ValueError, "weights: .*at least one number > 0, got"),
        (lambda: BackdoorAdjustment([-1.0]), ValueError, r"weights: .*\[0, inf\), got -1.0"),
        (lambda: BackdoorAdjustment(2.0), TypeError, "weights: .*a sequence.*got float"),
        (lambda: BackdoorAdjustment()([]), ValueError, "logits: .*at least one model, got none"),
        (lambda: BackdoorAdjustment([1, 2])([Z]), ValueError, "logits: .*2 models.*, got 1"),
        (lambda: BackdoorAdjustment()([Z, Z[:2]]), ValueError, r"logits: .*\(4, 3\), got \(2, 3"),
        (lambda: BackdoorAdjustment()([Z.long()]), TypeError, "logits: .*floating point, got"),
        (lambda: BackdoorAdjustment()(3.0), TypeError, "logits: .*a tensor or a seq.*got float"),
        (lambda: gradient_dissimilarity(Z, Y, H[:3]), ValueError, r"features: .*\(4, D\).*\(3, 2"),
        (lambda: gradient_dissimilarity(Z, Y + 1, H), ValueError, r"target: .*\[0, 3\), got 3"),
        (lambda: gradient_dissimilarity(Z, Y, H, Z[0]), ValueError, r"logit_scale: .*got \(3,\)"),
    ],
)
def test_is_refused(call, error, says):
    with pytest.raises(error, match=f"^{says}"):
        call()
