"""The contrastive losses in tiles: equal to the dense form, in memory far below the matrix."""

import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from lossary import (
    BatchSoftmaxLoss,
    DCLLoss,
    FeatureSeparationLoss,
    GlobalContrastiveLoss,
    HardContrastiveLoss,
    InfoNCELoss,
    MultiSimilarityLoss,
    NTXentLoss,
    SigLIPLoss,
    SupConLoss,
    TCMLoss,
    TwoWayGlobalContrastiveLoss,
    _similarity,
)

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

F64 = torch.float64
GLOBAL = (GlobalContrastiveLoss, TwoWayGlobalContrastiveLoss)
LABELLED = (TCMLoss, SupConLoss, MultiSimilarityLoss)
LOWEST = torch.finfo(F64).min
seeds = st.integers(0, 10**6)
sizes = st.integers(0, 7)
tile_sizes = st.sampled_from([1, 2, 3, 5, 64])
temperatures = st.sampled_from([0.01, 0.07, 0.5])


def close(a, b, rtol=1e-10, atol=1e-10):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def gradients(value, inputs, seed=0):
    """The gradients of the values with cotangents that differ."""
    along = draw(*value.shape, seed=seed + 1)
    out = torch.autograd.grad((value * along).sum(), inputs, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(out, inputs, strict=True)]


# The kernel, beside the matrix.


def matrix(q, k, masked):
    """The similarities, -inf where masked."""
    out = (masked.unsqueeze(2) == torch.arange(len(k))).any(1)
    return (q @ k.t()).masked_fill(out, -math.inf)


def sums(s, axis):
    return (
        s.logsumexp(axis).clamp(min=LOWEST) if s.numel() else s.new_full(s.sum(axis).shape, LOWEST)
    )


def slopes(s, along, axis):
    """The derivative of the sums in the similarities: nothing where nothing is left."""
    if not s.numel():
        return torch.zeros_like(s)
    return (along.unsqueeze(axis) * torch.softmax(s, axis)).nan_to_num(nan=0.0)


@given(seeds, sizes, sizes, tile_sizes, st.integers(0, 2), st.booleans(), st.booleans())
def test_sums_of_rows_and_columns(seed, n, m, tile_size, c, columns, bounded):
    q, k = draw(n, 3, seed=seed).requires_grad_(), draw(m, 3, seed=seed + 1).requires_grad_()
    # Columns beyond the keys, or before them, mask nothing.
    chosen = torch.Generator().manual_seed(seed)
    masked = torch.randint(-1, m + 2, (n, c), generator=chosen)
    got = _similarity.log_sum_exp(
        q,
        k,
        _similarity.Mask(masked),
        tile_size=tile_size,
        bound=1.0 if bounded else math.inf,
        columns=columns,
    )
    s = matrix(q, k, masked).detach()
    slope, value = torch.zeros_like(s), 0.0
    assert len(got) == 1 + columns
    for axis, x in zip((1, 0), got, strict=False):
        close(x.detach(), sums(s, axis))
        along = draw(len(x), seed=seed + 2 + axis)
        value = value + (along * x).sum()
        slope += slopes(s, along, axis)
    for x, y in zip(torch.autograd.grad(value, (q, k)), (slope @ k, slope.t() @ q), strict=True):
        close(x, y.detach())


@given(seeds, st.integers(0, 5), tile_sizes, st.booleans())
def test_sums_of_rows_with_each_other(seed, n, tile_size, bounded):
    z = draw(2 * n, 3, seed=seed).requires_grad_()
    rows = torch.arange(2 * n)
    masked = torch.stack((rows, rows.roll(n)), 1)
    got = _similarity.self_log_sum_exp(
        z, _similarity.Mask(masked), tile_size=tile_size, bound=1.0 if bounded else math.inf
    )
    s = matrix(z, z, masked).detach()
    close(got.detach(), sums(s, 1))
    along = draw(2 * n, seed=seed + 2)
    slope = slopes(s, along, 1)
    (gradient,) = torch.autograd.grad((along * got).sum(), z)
    close(gradient, ((slope + slope.t()) @ z).detach())


@given(seeds, sizes, sizes, tile_sizes, st.integers(0, 2), st.booleans())
def test_means_and_weighted_sums(seed, n, m, tile_size, c, bounded):
    q, k = draw(n, 3, seed=seed).requires_grad_(), draw(m, 3, seed=seed + 1).requires_grad_()
    chosen = torch.Generator().manual_seed(seed)
    masked = torch.randint(-1, m + 2, (n, c), generator=chosen)
    options = {"tile_size": tile_size, "bound": 1.0 if bounded else math.inf}
    lse, mean = _similarity.log_sum_exp_and_mean(q, k, _similarity.Mask(masked), **options)
    s = matrix(q, k, masked).detach()
    p = slopes(s, torch.ones(n, dtype=F64), 1)
    close(lse, sums(s, 1))
    close(mean, (p * (q @ k.t())).sum(1).detach())
    assert not lse.requires_grad
    assert not mean.requires_grad
    # Weights of another norm, whose sum is not 1.
    log_norm = draw(n, seed=seed + 3)
    weights = torch.exp(s - log_norm.unsqueeze(1))
    given_value = draw(n, seed=seed + 4)
    value = _similarity.weighted_sum(
        q, k, _similarity.Mask(masked), log_norm, given_value, **options
    )
    close(value.detach(), given_value, rtol=0, atol=0)
    got = gradients(value, (q, k), seed)
    want = gradients((weights * (q @ k.t())).sum(1), (q, k), seed)
    for x, y in zip(got, want, strict=True):
        close(x, y)


def test_one_side_that_is_asked_for_leaves_the_other_alone():
    q, k = draw(5, 3).requires_grad_(), draw(4, 3, seed=1)
    (rows,) = _similarity.log_sum_exp(q, k, _similarity.Mask(), tile_size=2)
    (gradient,) = torch.autograd.grad(rows.sum(), q)
    close(gradient, torch.softmax(q @ k.t(), 1).detach() @ k)
    _, columns = _similarity.log_sum_exp(q, k, _similarity.Mask(), tile_size=2, columns=True)
    (gradient,) = torch.autograd.grad(columns.sum(), q)
    close(gradient, torch.softmax(q @ k.t(), 0).detach() @ k)


@pytest.mark.parametrize("bound", [1.0, math.inf])
@pytest.mark.parametrize("columns", [False, True])
def test_what_is_masked_may_be_out_of_the_range_of_exp(bound, columns):
    # Positives far above the negatives: their exponential must not be in the way.
    q = torch.cat((torch.tensor([[900.0, 0.0]]), torch.zeros(1, 2))).double().requires_grad_()
    k = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], dtype=F64)
    masked = torch.tensor([[0], [-1]])
    rows, *others = _similarity.log_sum_exp(
        q, k, _similarity.Mask(masked), tile_size=2, bound=bound, columns=columns
    )
    close(rows.detach(), torch.tensor([2.0, 3.0], dtype=F64).log())
    (gradient,) = torch.autograd.grad(sum(x.sum() for x in (rows, *others)), q)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_running_maximum_where_exp_would_overflow(dtype):
    # Rising and falling maxima over the tiles, in rows and columns.
    q = torch.tensor([[-500.0], [300.0], [0.0], [800.0]], dtype=dtype).requires_grad_()
    k = torch.tensor([[1.0], [-1.0], [2.0], [0.5], [-2.0]], dtype=dtype)
    got = _similarity.log_sum_exp(q, k, _similarity.Mask(), tile_size=1, columns=True)
    s = q @ k.t()
    want = (s.logsumexp(1), s.logsumexp(0))
    for x, y in zip(got, want, strict=True):
        close(x.detach(), y.detach(), rtol=1e-6, atol=0)
        (a,), (b,) = (torch.autograd.grad(v.sum(), q, retain_graph=True) for v in (x, y))
        close(a, b, rtol=1e-6, atol=1e-30)
    lse, mean = _similarity.log_sum_exp_and_mean(q, k, _similarity.Mask(), tile_size=1)
    close(lse, want[0].detach(), rtol=1e-6, atol=0)
    close(mean, (torch.softmax(s, 1) * s).sum(1).detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bound", [29.9, 30.1])
def test_both_ways_at_the_border_between_them(bound):
    # All similarities of a row at either end of the range.
    q = torch.tensor([[1.0], [-1.0]]).mul(bound).requires_grad_()
    k = torch.ones(1000, 1)
    (rows,) = _similarity.log_sum_exp(q, k, _similarity.Mask(), tile_size=300, bound=bound)
    want = torch.tensor([bound, -bound]) + math.log(1000)
    close(rows.detach(), want, rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(rows.sum(), q)
    close(gradient, torch.ones(2, 1), rtol=1e-5, atol=0)


def test_a_row_in_which_nothing_is_left_has_no_gradient():
    q = draw(2, 3).requires_grad_()
    masked = torch.tensor([[0, 1], [0, -1]])
    for bound in (1.0, math.inf):
        (rows,) = _similarity.log_sum_exp(
            q, q.detach(), _similarity.Mask(masked), tile_size=1, bound=bound
        )
        assert rows[0] == LOWEST
        (gradient,) = torch.autograd.grad(rows.sum(), q)
        close(gradient, torch.stack((torch.zeros(3, dtype=F64), q[1].detach())))


def labelled(seed, n, m, equal):
    chosen = torch.Generator().manual_seed(seed)
    rows, columns = (torch.randint(0, 3, (x,), generator=chosen) for x in (n, m))
    pairs = rows.unsqueeze(1) == columns
    return _similarity.Mask(None, rows, columns, equal=equal), pairs if equal else ~pairs


@given(seeds, sizes, sizes, tile_sizes, st.booleans(), st.booleans(), st.booleans())
def test_sums_over_pairs_of_labels(seed, n, m, tile_size, equal, bounded, columns):
    q, k = draw(n, 3, seed=seed).requires_grad_(), draw(m, 3, seed=seed + 1).requires_grad_()
    mask, out = labelled(seed, n, m, equal)
    got = _similarity.log_sum_exp(
        q, k, mask, tile_size=tile_size, bound=1.0 if bounded else math.inf, columns=columns
    )
    s = (q @ k.t()).masked_fill(out, -math.inf).detach()
    slope, value = torch.zeros_like(s), 0.0
    for axis, x in zip((1, 0), got, strict=False):
        close(x.detach(), sums(s, axis))
        along = draw(len(x), seed=seed + 2 + axis)
        value = value + (along * x).sum()
        slope += slopes(s, along, axis)
    for x, y in zip(torch.autograd.grad(value, (q, k)), (slope @ k, slope.t() @ q), strict=True):
        close(x, y.detach())


@given(seeds, st.integers(0, 6), tile_sizes, st.booleans(), st.booleans())
def test_sums_of_rows_with_each_other_by_labels(seed, n, tile_size, equal, bounded):
    z = draw(n, 3, seed=seed).requires_grad_()
    labels = torch.randint(0, 2, (n,), generator=torch.Generator().manual_seed(seed))
    mask = _similarity.Mask(torch.arange(n).unsqueeze(1), labels, labels, equal=equal)
    out = (labels.unsqueeze(1) == labels) == equal
    s = (z @ z.t()).masked_fill(out | torch.eye(n, dtype=torch.bool), -math.inf).detach()
    got = _similarity.self_log_sum_exp(
        z, mask, tile_size=tile_size, bound=1.0 if bounded else math.inf
    )
    close(got.detach(), sums(s, 1))
    along = draw(n, seed=seed + 2)
    slope = slopes(s, along, 1)
    (gradient,) = torch.autograd.grad((along * got).sum(), z)
    close(gradient, ((slope + slope.t()) @ z).detach())


@given(seeds, st.integers(1, 6), st.integers(1, 7), tile_sizes, st.integers(1, 8), st.booleans())
def test_the_largest_and_what_is_at_least_as_large(seed, n, m, tile_size, kth, bounded):
    q, k = draw(n, 3, seed=seed).requires_grad_(), draw(m, 3, seed=seed + 1).requires_grad_()
    k.data[0] = k.data[-1]  # a tie
    mask, out = labelled(seed, n, m, True)
    s = (q @ k.t()).masked_fill(out, -math.inf).detach()
    least = _similarity.kth_largest(q, k, mask, kth, tile_size=tile_size)
    want = s.sort(descending=True).values[:, kth - 1] if kth <= m else s.new_full((n,), -math.inf)
    close(least, want)
    assert not least.requires_grad
    kept = mask._replace(least=least)
    (rows,) = _similarity.log_sum_exp(
        q, k, kept, tile_size=tile_size, bound=1.0 if bounded else math.inf
    )
    # The tie is one of the sums too, whatever the order in which its products were added up.
    s = s.masked_fill(s < (want - 1e-12).unsqueeze(1), -math.inf)
    close(rows.detach(), sums(s, 1))
    along = draw(n, seed=seed + 2)
    slope = slopes(s, along, 1)
    got = torch.autograd.grad((along * rows).sum(), (q, k))
    for x, y in zip(got, (slope @ k, slope.t() @ q), strict=True):
        close(x, y.detach())


@given(seeds, st.integers(0, 6), sizes, tile_sizes, st.integers(0, 3), st.integers(1, 8))
def test_the_largest_where_some_similarities_are_given(seed, n, m, tile_size, e, kth):
    q, k, beside = draw(n, 3, seed=seed), draw(m, 3, seed=seed + 1), draw(n, e, seed=seed + 2)
    mask, out = labelled(seed, n, m, True)
    s = torch.cat(((q @ k.t()).masked_fill(out, -math.inf), beside), 1)
    got = _similarity.kth_largest(q, k, mask, kth, tile_size=tile_size, beside=beside)
    want = (
        s.sort(descending=True).values[:, kth - 1] if kth <= m + e else s.new_full((n,), -math.inf)
    )
    close(got, want)


TERMS = {
    "softplus": (_similarity.Softplus(), torch.nn.functional.softplus),
    "identity": (_similarity.Identity(), torch.clone),
    "above": (_similarity.Hinge(0.3, 1, False), lambda s: (s - 0.3).relu()),
    "below": (_similarity.Hinge(0.3, -1, False), lambda s: (0.3 - s).relu()),
}


@given(seeds, sizes, sizes, tile_sizes, st.sampled_from(sorted(TERMS)), st.booleans())
def test_sums_of_terms(seed, n, m, tile_size, name, equal):
    q, k = draw(n, 3, seed=seed).requires_grad_(), draw(m, 3, seed=seed + 1).requires_grad_()
    terms, function = TERMS[name]
    mask, out = labelled(seed, n, m, equal)
    mask = mask._replace(columns=torch.zeros(n, 1, dtype=torch.long))
    out = out | (torch.arange(m) == 0)
    total, count = _similarity.term_sums(q, k, mask, terms, tile_size=tile_size)
    values = function(q @ k.t()).masked_fill(out, 0.0)
    close(total, values.sum(1))
    if name != "softplus":
        counts = ~out if name == "identity" else (values > 0) & ~out
        close(count, counts.sum(1).to(F64))
    for x, y in zip(
        gradients(total, (q, k), seed), gradients(values.sum(1), (q, k), seed), strict=True
    ):
        close(x, y)


@pytest.mark.parametrize(("sign", "margin"), [(1, -1.0), (-1, 1.0)])
def test_a_hinge_at_its_margin_counts_and_rounding_does_not_take_it_away(sign, margin):
    # In float32 this cosine of a row with itself is above 1, with its opposite below -1.
    z = torch.nn.functional.normalize(torch.full((1, 3), 1.0)) * (1.0 + 2e-7)
    assert float(z @ z.t()) > 1.0
    terms = _similarity.Hinge(margin, sign, True)
    total, count = _similarity.term_sums(
        -z if sign > 0 else z, z, _similarity.Mask(), terms, tile_size=4
    )
    assert (float(total), float(count)) == (0.0, 1.0)


def test_labels_that_change_between_forward_and_backward_are_noticed():
    q = draw(3, 2).requires_grad_()
    labels = torch.tensor([0, 1, 0])
    mask = _similarity.Mask(None, labels, labels)
    (rows,) = _similarity.log_sum_exp(q, q.detach(), mask, tile_size=2)
    labels[0] = 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        rows.sum().backward()


# The losses, beside their dense form.


def pair(make, tile_size, **options):
    return [make(tile_size=t, reduction="none", **options).double() for t in (None, tile_size)]


def same(dense, tiled, inputs, seed, *others):
    values = [loss(*inputs, *others) for loss in (dense, tiled)]
    close(values[1], values[0])
    leaves = [x for x in inputs if x is not None]
    found = [
        gradients(value, [*leaves, *loss.parameters()], seed)
        for value, loss in zip(values, (dense, tiled), strict=True)
    ]
    for x, y in zip(*found, strict=True):
        # Relative to the largest: a gradient in log(1/tau) is of the size of s/tau.
        close(x, y, atol=1e-10 * (1.0 + float(x.abs().max()) if x.numel() else 1.0))


@given(
    seeds, sizes, tile_sizes, temperatures, st.booleans(), st.booleans(), st.booleans(),
    st.sampled_from(["none", "shared", "own", "empty"]),
)  # fmt: skip
def test_info_nce(seed, n, tile_size, tau, symmetric, normalize, learnt, negatives):
    shapes = {"none": None, "shared": (4, 3), "own": (n, 2, 3), "empty": (0, 3)}
    a, b = draw(2, n, 3, seed=seed)
    shape = shapes[negatives]
    far = None if shape is None else draw(*shape, seed=seed + 5).requires_grad_()
    inputs = (a.requires_grad_(), b.requires_grad_(), far)
    for in_batch in (True, False):
        if in_batch is False and (symmetric or far is None):
            continue
        losses = pair(
            lambda **o: InfoNCELoss(tau, **o), tile_size, symmetric=symmetric, in_batch=in_batch,
            normalize=normalize, learnable_temperature=learnt,
        )  # fmt: skip
        same(*losses, inputs, seed)


@given(seeds, sizes, tile_sizes, temperatures, st.booleans())
def test_nt_xent(seed, n, tile_size, tau, normalize):
    inputs = [x.requires_grad_() for x in draw(2, n, 3, seed=seed)]
    same(*pair(lambda **o: NTXentLoss(tau, normalize, **o), tile_size), inputs, seed)


@given(
    seeds, st.sampled_from([0, 2, 3, 6]), tile_sizes, st.sampled_from([0.02, 0.3]), st.booleans(),
    st.booleans(), st.sampled_from(GLOBAL),
)  # fmt: skip
def test_five_steps_of_the_global_losses(seed, n, tile_size, tau, learns, normalize, loss):
    modules = [
        loss(
            8, tau, 0.6, learns, 0.01, 0.5, 0.3, beta=0.5, normalize=normalize, tile_size=t,
            state_dtype=F64, reduction="none",
        )
        for t in (None, tile_size)
    ]  # fmt: skip
    chosen = torch.Generator().manual_seed(seed)
    for step in range(5):
        index = torch.randperm(8, generator=chosen)[:n]
        z = [x.requires_grad_() for x in draw(2, n, 3, seed=seed + step)]
        objectives = [m.objective(*z, index) for m in modules]
        close(*objectives, rtol=1e-9)
        values = [m(*z, index) for m in modules]
        close(*values, rtol=1e-9)
        for x, y in zip(*(gradients(v, z, step) for v in values), strict=True):
            close(x, y, rtol=1e-9)
        for name, x in modules[0].state_dict().items():
            close(modules[1].state_dict()[name], x, rtol=1e-9)


@given(seeds, sizes, tile_sizes, st.sampled_from([(0.9, 0.1), (1.0, -1.0), (0.2, 0.6)]))
def test_threshold_consistent_margins(seed, n, tile_size, margins):
    z = draw(n, 3, seed=seed)
    z[1:2] = z[:1]  # cosines of 1, up to rounding
    labels = torch.randint(0, 3, (n,), generator=torch.Generator().manual_seed(seed))
    for normalize in (True, False):
        losses = pair(lambda **o: TCMLoss(*margins, 0.5, 2.0, **o), tile_size, normalize=normalize)
        same(*losses, (z.requires_grad_(),), seed, labels)


@given(
    seeds, st.sampled_from([0, 2, 3, 6]), tile_sizes, temperatures, st.booleans(),
    st.sampled_from([None, "vmf"]),
)  # fmt: skip
def test_decoupled(seed, n, tile_size, tau, normalize, weighting):
    inputs = [x.requires_grad_() for x in draw(2, n, 3, seed=seed)]
    losses = pair(lambda **o: DCLLoss(tau, weighting, 0.3, normalize, **o), tile_size)
    same(*losses, inputs, seed)


@given(
    seeds, sizes, tile_sizes, temperatures, st.booleans(), st.booleans(), st.booleans(),
    st.sampled_from([0.01, 0.4, 1.0, 3]), st.sampled_from(["none", "shared", "own", "empty"]),
)  # fmt: skip
def test_hard_negatives(seed, n, tile_size, tau, normalize, simple, in_batch, share, negatives):
    shapes = {"none": None, "shared": (4, 3), "own": (n, 2, 3), "empty": (n, 0, 3)}
    a, b = draw(2, n, 3, seed=seed)
    shape = shapes[negatives] if in_batch or negatives != "none" else (4, 3)
    far = None if shape is None else draw(*shape, seed=seed + 5).requires_grad_()
    of = {"num_hard": share} if share == 3 else {"alpha": share}
    losses = pair(
        lambda **o: HardContrastiveLoss(
            tau, simple=simple, lambda_simple=0.3, normalize=normalize, in_batch=in_batch, **of, **o
        ),
        tile_size,
    )
    same(*losses, (a.requires_grad_(), b.requires_grad_(), far), seed)


@given(seeds, sizes, tile_sizes, temperatures, st.booleans(), st.booleans())
def test_batch_softmax(seed, n, tile_size, tau, normalize, corrected):
    log_q = draw(n, seed=seed + 5).requires_grad_() if corrected else None
    inputs = [*(x.requires_grad_() for x in draw(2, n, 3, seed=seed)), log_q]
    same(*pair(lambda **o: BatchSoftmaxLoss(tau, normalize, **o), tile_size), inputs, seed)


def test_batch_softmax_of_items_that_hardly_ever_come():
    a, b = draw(2, 5, 3)
    log_q = torch.tensor([-300.0, 0.0, -150.0, -299.0, 200.0], dtype=F64)
    want = BatchSoftmaxLoss(reduction="none")(a, b, log_q)
    got = BatchSoftmaxLoss(tile_size=2, reduction="none")(a.float(), b.float(), log_q.float())
    close(got.double(), want, rtol=1e-5, atol=1e-4)


@given(seeds, sizes, tile_sizes, st.booleans(), st.booleans())
def test_sigmoids(seed, n, tile_size, normalize, learns):
    inputs = [x.requires_grad_() for x in draw(2, n, 3, seed=seed)]
    same(*pair(lambda **o: SigLIPLoss(3.0, -2.0, learns, normalize, **o), tile_size), inputs, seed)


@given(
    seeds, sizes, tile_sizes, temperatures, st.booleans(), st.integers(1, 4),
    st.sampled_from(["out", "in"]), st.sampled_from(["skip", "zero"]), st.booleans(),
)  # fmt: skip
def test_supervised(seed, n, tile_size, tau, normalize, classes, variant, no_positive, two):
    a, b = (x.requires_grad_() for x in draw(2, n, 3, seed=seed))
    labels = torch.randint(-1, classes, (n,), generator=torch.Generator().manual_seed(seed))
    losses = pair(lambda **o: SupConLoss(tau, 0.1, variant, no_positive, normalize, **o), tile_size)
    if not two:
        same(*losses, (a,), seed, labels)
        assert losses[0].per_sample(a, labels)[1].equal(losses[1].per_sample(a, labels)[1])
        return
    for loss in losses:
        loss.forward = lambda x, y, call=loss.forward: call(x, labels, y)
    same(*losses, (a, b), seed)


def test_feature_separation():
    z = draw(7, 3).requires_grad_()
    same(*pair(lambda **o: FeatureSeparationLoss(0.2, **o), 3), (z,), 0, torch.arange(7) % 4)


@given(
    seeds, sizes, tile_sizes, st.sampled_from([None, 0.0, 0.1, 5.0]),
    st.sampled_from([(2.0, 50.0), (40.0, 3.0)]),
)  # fmt: skip
def test_multi_similarity(seed, n, tile_size, eps, sharpness):
    z = draw(n, 3, seed=seed)
    labels = torch.randint(0, 3, (n,), generator=torch.Generator().manual_seed(seed))
    for normalize in (True, False):
        losses = pair(
            lambda **o: MultiSimilarityLoss(*sharpness, 0.3, eps, **o),
            tile_size,
            normalize=normalize,
        )
        same(*losses, (z.requires_grad_(),), seed, labels)


def test_two_indices_in_tiles():
    z = draw(2, 4, 3).requires_grad_()
    index, index2 = torch.tensor([0, 1, 2, 3]), torch.tensor([7, 6, 5, 4])
    modules = [
        TwoWayGlobalContrastiveLoss(8, 0.3, individualized=True, tau_max=0.5, tile_size=t)
        for t in (None, 3)
    ]
    close(*(m(*z, index, index2) for m in modules))
    for name, x in modules[0].state_dict().items():
        close(modules[1].state_dict()[name], x, rtol=1e-6)


@pytest.mark.parametrize("near", [0.02, 1.0])
def test_float32_at_a_temperature_of_a_hundredth(near):
    # Tiny values, whose digits only the log-odds keep, and large ones.
    a, b = draw(2, 40, 16)
    b = a + near * b
    for make in (
        lambda **o: InfoNCELoss(0.01, True, reduction="none", **o),
        lambda **o: NTXentLoss(0.01, reduction="none", **o),
    ):
        exact = make()(a, b)
        got = make(tile_size=7)(a.float(), b.float())
        assert got.dtype is torch.float32
        close(got.double(), exact, rtol=1e-4, atol=1e-30)
        leaves = [x.clone().requires_grad_() for x in (a, b)]
        want = torch.autograd.grad(make()(*leaves).sum(), leaves)
        small = [x.detach().float().requires_grad_() for x in leaves]
        got = torch.autograd.grad(make(tile_size=7)(*small).sum(), small)
        for x, y in zip(got, want, strict=True):
            close(x.double(), y, rtol=1e-3, atol=1e-4 * float(y.abs().max()))


def test_half_precision_and_autocast():
    a, b = draw(2, 9, 4)
    loss, dense = InfoNCELoss(tile_size=4), InfoNCELoss()
    half = [x.half().requires_grad_() for x in (a, b)]
    assert loss(*half).dtype is torch.float32
    close(loss(*half), dense(*half), rtol=1e-5)
    (x,), (y,) = (torch.autograd.grad(f(*half), half[:1]) for f in (loss, dense))
    assert x.dtype is torch.float16
    close(x, y, rtol=2e-3, atol=1e-6)
    full = [x.float().requires_grad_() for x in (a, b)]
    (want,) = torch.autograd.grad(loss(*full), full[:1])
    with torch.autocast("cpu", torch.bfloat16):
        (got,) = torch.autograd.grad(loss(*full), full[:1])
    assert torch.equal(got, want)


LOSSES = [
    InfoNCELoss(tile_size=4),
    InfoNCELoss(symmetric=True, learnable_temperature=True, tile_size=4),
    NTXentLoss(tile_size=4),
    *(loss(9, 0.1, tile_size=4) for loss in GLOBAL),
    TCMLoss(tile_size=4),
    DCLLoss(weighting="vmf", tile_size=4),
    HardContrastiveLoss(alpha=0.5, tile_size=4),
    pytest.param(HardContrastiveLoss(alpha=0.5, simple=True, tile_size=4), marks=pytest.mark.wide),
    pytest.param(BatchSoftmaxLoss(tile_size=4), marks=pytest.mark.wide),
    SigLIPLoss(tile_size=4),
    SupConLoss(tile_size=4),
    pytest.param(SupConLoss(variant="in", tile_size=4), marks=pytest.mark.wide),
    MultiSimilarityLoss(mining_eps=0.1, tile_size=4),
]
every_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda x: type(x).__name__)


LABELS = torch.arange(9) % 3


def inputs_of(loss, a, b):
    """What the loss takes of two batches of embeddings."""
    if isinstance(loss, LABELLED):
        return a + b, LABELS
    return (a, b, torch.arange(9)) if isinstance(loss, GLOBAL) else (a, b)


def call(loss, a, b):
    return loss(*inputs_of(loss, a, b))


# What the tiled form does not have, it says.


@every_loss
def test_second_derivatives_are_refused(loss):
    a, b = (x.requires_grad_() for x in draw(2, 9, 3))
    value = call(loss, a, b)
    (gradient,) = torch.autograd.grad(value, a, create_graph=True)
    says = "tile_size: expected None for second derivatives.*got 4"
    with pytest.raises(RuntimeError, match=says):
        gradient.square().sum().backward()
    # First order is as it was with create_graph, and may be had twice.
    (again,) = torch.autograd.grad(call(loss.eval(), a, b), a)
    loss.train()
    if not isinstance(loss, GLOBAL):
        close(gradient.detach(), again)


@every_loss
def test_backward_may_run_twice(loss):
    a, b = (x.requires_grad_() for x in draw(2, 9, 3))
    value = call(loss, a, b)
    (first,) = torch.autograd.grad(value, a, retain_graph=True)
    (second,) = torch.autograd.grad(value, a)
    assert torch.equal(first, second)


@every_loss
def test_transforms_are_refused_or_right(loss):
    a, b = draw(2, 9, 3)
    with pytest.raises(RuntimeError, match="tile_size: expected None for forward-mode"):
        torch.func.jvp(lambda x: call(loss, x, b), (a,), (a,))
    with pytest.raises(RuntimeError, match=r"tile_size: expected None for .*vmap"):
        torch.func.vmap(lambda x: call(loss, x, b))(torch.stack((a, b)))
    got = torch.func.grad(lambda x: call(loss.eval(), x, b))(a)
    x = a.clone().requires_grad_()
    (want,) = torch.autograd.grad(call(loss, x, b), x)
    loss.train()
    close(got, want)


@every_loss
def test_batched_gradients_are_refused(loss):
    a, b = draw(2, 9, 3)
    a.requires_grad_()
    value = loss.eval().per_sample(*inputs_of(loss, a, b))
    value = value[0] if isinstance(value, tuple) else value
    loss.train()
    eye = torch.eye(9, dtype=F64)
    with pytest.raises(RuntimeError, match="tile_size: expected None for"):
        torch.autograd.grad(value, a, eye, is_grads_batched=True)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # of torch's guards
@every_loss
def test_it_leaves_a_compiled_graph_and_gives_the_same(loss, fresh_compiler):
    a, b = (x.requires_grad_() for x in draw(2, 9, 3))
    want = call(loss.eval(), a, b)
    got = torch.compile(loss, backend="eager")(*inputs_of(loss, a, b))
    loss.train()
    close(got, want)
    for x, y in zip(*(torch.autograd.grad(v, (a, b)) for v in (got, want)), strict=True):
        close(x, y)


@every_loss
def test_it_travels(loss):
    other = pickle.loads(pickle.dumps(loss))
    assert other.tile_size == 4
    assert "tile_size=4" in repr(other)


# Memory.


def peak(call):
    """The peak of what torch's allocator gave out during a call, in bytes."""
    call()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@pytest.mark.parametrize(
    ("make", "rows"),
    [
        (lambda t: InfoNCELoss(tile_size=t), 1024),
        (lambda t: InfoNCELoss(symmetric=True, tile_size=t), 1024),
        (lambda t: NTXentLoss(tile_size=t), 512),
        (lambda t: GlobalContrastiveLoss(1024, tile_size=t), 1024),
        (lambda t: TwoWayGlobalContrastiveLoss(1024, tile_size=t), 1024),
        (lambda t: TCMLoss(tile_size=t), 1024),
        (lambda t: DCLLoss(tile_size=t), 512),
        pytest.param(lambda t: BatchSoftmaxLoss(tile_size=t), 1024, marks=pytest.mark.wide),
        (lambda t: SigLIPLoss(tile_size=t), 1024),
        (lambda t: SupConLoss(tile_size=t), 1024),
        pytest.param(lambda t: SupConLoss(variant="in", tile_size=t), 1024, marks=pytest.mark.wide),
        (lambda t: MultiSimilarityLoss(tile_size=t), 1024),
    ],
)
def test_memory_far_below_the_matrix(make, rows):
    a, b = (x.float().requires_grad_() for x in draw(2, rows, 8))
    if isinstance(make(None), LABELLED):
        inputs = (torch.cat((a, b))[:1024], torch.arange(1024) % 50)
    else:
        inputs = (a, b, *((torch.arange(rows),) if isinstance(make(None), GLOBAL) else ()))
    size = 4 * 1024**2

    def step(loss):
        return lambda: torch.autograd.grad(loss(*inputs), (a, b), allow_unused=True)

    assert peak(step(make(64))) < 0.15 * size
    assert peak(step(make(None))) > size
    if type(make(None)) is InfoNCELoss and not make(None).symmetric:
        # One way, one tile is all: here a quarter of the matrix.
        assert peak(step(make(512))) < 0.35 * size
    # From forward to backward there are the rows, and nothing of the size of a tile.
    held = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: held.append(x.nbytes) or x, lambda x: x
    ):
        make(64)(*inputs)
    assert max(held) <= 2 * a.nbytes


# Bad input.


@pytest.mark.parametrize(
    "make",
    [
        InfoNCELoss,
        SigLIPLoss,
        SupConLoss,
        TCMLoss,
        MultiSimilarityLoss,
        *(lambda loss=loss, **o: loss(8, **o) for loss in GLOBAL),
    ],
)
@pytest.mark.parametrize(
    ("tile_size", "error", "says"),
    [
        (0, ValueError, "at least 1, got 0"),
        (-4, ValueError, "at least 1, got -4"),
        (512.0, TypeError, r"an int, got float \(512.0\)"),
        (True, TypeError, "an int, got bool"),
        ("auto", TypeError, "an int, got str"),
    ],
)
def test_tile_sizes_that_are_none(make, tile_size, error, says):
    with pytest.raises(error, match=f"tile_size: expected {says}"):
        make(tile_size=tile_size)


def test_memory_of_hard_negatives_grows_as_the_rows():
    a, b = (x.float().requires_grad_() for x in draw(2, 1024, 8))
    loss = HardContrastiveLoss(num_hard=20, tile_size=32)
    # Some whole rows, of 32 queries, are sorted at a time.
    assert peak(lambda: torch.autograd.grad(loss(a, b), (a, b))) < 0.25 * 4 * 1024**2


def test_symmetric_beside_negatives_that_are_shared():
    inputs = [
        draw(*shape, seed=i).requires_grad_() for i, shape in enumerate([(5, 3), (5, 3), (4, 3)])
    ]
    same(*pair(lambda **o: InfoNCELoss(0.1, True, **o), 2), inputs, 0)


def test_one_temperature_out_of_many_that_needs_the_maximum():
    a, b = (x.float() for x in draw(2, 6, 3))
    a[1] = a[0]
    values = []
    for t in (None, 4):
        loss = GlobalContrastiveLoss(6, 0.7, 0.9, True, 0.005, 0.7, tile_size=t, reduction="none")
        loss.tau[0] = 0.005
        values.append(loss(a, b, torch.arange(6)))
    close(values[1], values[0], rtol=1e-4, atol=1e-4)
