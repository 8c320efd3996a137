"""Metrix: the members by their formulas, mixtures by their definition, what is drawn."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta

from lossary import MetrixLoss, MultiSimilarityLoss, ProxyAnchorLoss
from test_pairs import close, draw, of_anchor, units, with_proxies

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

F64 = torch.float64
seeds = st.integers(0, 10**6)
#: rho+, rho-, and what is made of the sums, at scales 3 and 5 and margin 0.3.
MEMBERS = {
    "contrastive": (lambda s: -s, lambda s: max(0.0, s - 0.3), lambda p, n: p + n),
    "contrastive_distance": (
        lambda s: math.sqrt(max(0.0, 2 - 2 * s)),
        lambda s: max(0.0, 0.3 - math.sqrt(max(0.0, 2 - 2 * s))),
        lambda p, n: p + n,
    ),
    "multi_similarity": (
        lambda s: math.exp(-3 * (s - 0.3)),
        lambda s: math.exp(5 * (s - 0.3)),
        lambda p, n: math.log1p(p) / 3 + math.log1p(n) / 5,
    ),
    "binomial": (
        lambda s: math.log1p(math.exp(-3 * (s - 0.3))),
        lambda s: math.log1p(math.exp(5 * (s - 0.3))),
        lambda p, n: p + n,
    ),
    "lifted": (
        lambda s: math.exp(-s),
        lambda s: math.exp(s - 0.3),
        lambda p, n: max(0.0, math.log(p) + math.log(n)) if p and n else 0.0,
    ),
    "nca": (math.exp, math.exp, lambda p, n: math.log(n) - math.log(p) if p and n else 0.0),
}
members = st.sampled_from(sorted(MEMBERS))


def made(base, **options):
    scales = {"pos_scale": 3.0, "neg_scale": 5.0}
    options = {"mix_weight": 0.0, "reduction": "none", **options}
    if base in ("multi_similarity", "binomial", "proxy_anchor"):
        options = {**scales, **options}
    if base != "nca":
        options = {"margin": 0.3, **options}
    return MetrixLoss(base, **options)


def formula(base, s, y):
    """The loss of one anchor, of similarities with soft labels."""
    pull, push, whole = MEMBERS[base]
    return whole(
        sum(w * pull(x) for x, w in zip(s, y, strict=True)),
        sum((1 - w) * push(x) for x, w in zip(s, y, strict=True)),
    )


@given(seeds, members, st.integers(0, 5))
def test_the_members_are_what_the_table_says(seed, base, m):
    generator = torch.Generator().manual_seed(seed)
    s = 2 * torch.rand(3, m, dtype=F64, generator=generator) - 1
    y = torch.rand(3, m, dtype=F64, generator=generator)
    y[0] = (y[0] > 0.5).to(F64)
    mask = torch.rand(3, m, generator=generator) > 0.2
    want = [formula(base, s[i][mask[i]].tolist(), y[i][mask[i]].tolist()) for i in range(3)]
    s[~mask] = math.nan
    close(made(base).generic(s, y, mask), torch.tensor(want, dtype=F64))


@given(seeds, members, st.integers(1, 6))
def test_the_clean_loss_is_that_of_positives_and_negatives(seed, base, n):
    x, y = draw(n, seed=seed)
    e = units(x)
    want = []
    for a in range(n):
        near, far = of_anchor(a, y)
        s = [float(e[a] @ e[j]) for j in near + far]
        want.append(formula(base, s, [1.0] * len(near) + [0.0] * len(far)))
    x.requires_grad_()
    value = made(base)(x, y)
    close(value.detach(), torch.tensor(want, dtype=F64))
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert bool(gradient.isfinite().all())


def test_members_that_are_losses_of_their_own():
    x, y = draw(7)
    close(
        MetrixLoss("multi_similarity", 0.0, reduction="none")(x, y),
        MultiSimilarityLoss(reduction="none")(x, y),
    )
    proxies = with_proxies(4, 3, reduction="none")
    ours = MetrixLoss("proxy_anchor", 0.0, reduction="none")
    close(ours(x, y, proxies.proxies).detach(), proxies(x, y).detach())
    order = torch.tensor([2, 0, 3, 1])
    close(ours(x, y, proxies.proxies[order], order).detach(), proxies(x, y)[order].detach())
    assert ProxyAnchorLoss(2, 2).alpha == MetrixLoss("proxy_anchor").pos_scale


def mixture(e, i, j, lam):
    v = lam * e[i] + (1 - lam) * e[j]
    return v / v.norm()


@given(seeds, members)
def test_a_given_draw_is_what_the_definition_says(seed, base):
    generator = torch.Generator().manual_seed(seed)
    x, _ = draw(6, seed=seed)
    anchor = torch.tensor([4, 0])
    first, second = torch.randint(6, (2, 2, 3), generator=generator)
    lam = torch.rand(2, 3, dtype=F64, generator=generator)
    first[0, 0] = 4
    e = units(x)
    want = []
    for a in range(2):
        s = [
            float(e[anchor[a]] @ mixture(e, first[a, r], second[a, r], lam[a, r])) for r in range(3)
        ]
        want.append(formula(base, s, lam[a].tolist()))
    got = made(base).mixed(x, anchor, first, second, lam)
    close(got, torch.tensor(want, dtype=F64), rtol=1e-9)


@pytest.mark.parametrize("base", sorted(MEMBERS))
def test_at_the_ends_a_mixture_is_one_of_the_two(base):
    x, _ = draw(5)
    e = units(x)
    anchor, first, second = torch.tensor([0]), torch.tensor([[1, 2]]), torch.tensor([[3, 4]])
    for lam, chosen in ((1.0, [1, 2]), (0.0, [3, 4])):
        got = made(base).mixed(x, anchor, first, second, torch.full((1, 2), lam, dtype=F64))
        close(got[0], formula(base, [float(e[0] @ e[j]) for j in chosen], [lam] * 2))


def test_a_draw_has_derivatives():
    x, _ = draw(5)
    index = torch.tensor([[1, 2], [0, 4]]), torch.tensor([[3, 4], [3, 2]])
    lam = torch.tensor([[0.3, 0.9], [0.5, 0.1]], dtype=F64)
    for base in MEMBERS:
        torch.autograd.gradcheck(
            lambda x, base=base: made(base).mixed(x, torch.tensor([0, 1]), *index, lam),
            x.clone().requires_grad_(),
        )


def test_two_that_cancel_have_no_direction():
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [0.0, 0.0]], requires_grad=True)
    value = made("multi_similarity").mixed(
        x,
        torch.tensor([0]),
        torch.tensor([[1, 3]]),
        torch.tensor([[2, 3]]),
        torch.full((1, 2), 0.5),
    )
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert bool(value.isfinite().all())
    assert bool(gradient.isfinite().all())
    close(value[0].detach().double(), formula("multi_similarity", [0, 0], [0.5] * 2), rtol=1e-6)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kinds", [("pos_neg",), ("anchor_neg",)])
def test_what_is_drawn(kinds, monkeypatch):
    # Which mixtures there are, seen by the formula that they are given to.
    x, y = torch.eye(6, dtype=F64), torch.tensor([0, 0, 0, 1, 1, 2])
    loss = MetrixLoss("contrastive", 1.0, kinds)
    seen = []
    member = MetrixLoss._member
    monkeypatch.setattr(
        MetrixLoss, "_member", lambda self, *given: seen.append(given) or member(self, *given)
    )
    lams = []
    generator = seeded()
    for _ in range(200):
        seen.clear()
        loss(x, y, generator=generator)
        s, lam, mask = seen[1]
        for a, n in itertools.product(range(6), range(6)):
            if kinds == ("pos_neg",):
                # The negative is orthogonal to the anchor, and so is its positive.
                assert bool(mask[a, n]) == (y[a] != y[n] and a != 5)
                want = 0.0
            else:
                assert bool(mask[a, n]) == bool(y[a] != y[n])
                want = float(lam[a, n] / (lam[a, n] ** 2 + (1 - lam[a, n]) ** 2).sqrt())
            if mask[a, n]:
                close(s[a, n], want)
        lams.append(lam[mask])
    lams = torch.cat(lams)
    for q in (0.1, 0.5, 0.9):
        assert abs(float(lams.quantile(q)) - beta(2, 2).ppf(q)) < 0.03


def test_every_positive_is_drawn_and_no_other(monkeypatch):
    # Row 0 has the positives 2 and 4, at cosines of their own.
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, -0.8], [0.0, -1.0], [0.8, 0.6]], dtype=F64)
    y = torch.tensor([0, 1, 0, 1, 0])
    loss = MetrixLoss("contrastive", 1.0, ("pos_neg",))
    chosen = []
    member = MetrixLoss._member

    def look(self, s, lam, mask):
        if not bool(((lam == 0) | (lam == 1)).all()):
            for p in range(5):
                v = mixture(x, p, 1, lam[0, 1])
                if abs(float(x[0] @ v - s[0, 1])) < 1e-9:
                    chosen.append(p)
        return member(self, s, lam, mask)

    monkeypatch.setattr(MetrixLoss, "_member", look)
    for seed in range(150):
        loss(x, y, generator=seeded(seed))
    assert set(chosen) == {2, 4}
    assert 60 < chosen.count(2) < 90  # as often as the other


def test_the_mixed_loss_is_added_with_its_weight():
    x, y = draw(8, seed=3)
    clean = MetrixLoss("binomial", 0.0)(x, y)
    one, two = (MetrixLoss("binomial", w)(x, y, generator=seeded()) for w in (0.3, 0.6))
    close(two - clean, 2 * (one - clean))
    assert float(one - clean) > 0.01
    again = MetrixLoss("binomial", 0.3)(x, y, generator=seeded())
    assert torch.equal(one, again)
    assert not torch.equal(one, MetrixLoss("binomial", 0.3)(x, y, generator=seeded(1)))


def test_both_kinds_are_drawn():
    x, y = torch.eye(4, dtype=F64), torch.tensor([0, 0, 1, 1])
    # Mixtures with orthogonal positives have similarity 0, those with the anchor more.
    values = [
        float(MetrixLoss("contrastive", 1.0, margin=-1.0)(x, y, generator=seeded(i)))
        for i in range(60)
    ]
    alone = [
        float(MetrixLoss("contrastive", 1.0, (k,), margin=-1.0)(x, y, generator=seeded(i)))
        for k in ("pos_neg", "anchor_neg")
        for i in range(60)
    ]
    first = sum(v in alone[:60] for v in values)
    assert first + sum(v in alone[60:] for v in values) == 60
    assert 15 < first < 45


@pytest.mark.parametrize("base", sorted(MEMBERS))
@pytest.mark.parametrize("labels", [[], [3], [0, 0, 0], [0, 1, 2]])
def test_mixing_where_there_is_nothing_to_mix(base, labels):
    y = torch.tensor(labels).long()
    x = torch.randn(len(y), 3, dtype=F64, requires_grad=True)
    for kinds in (("pos_neg",), ("anchor_neg",)):
        loss = MetrixLoss(base, 1.0, kinds)
        value = loss(x, y, generator=seeded())
        (gradient,) = torch.autograd.grad(value, x)
        assert bool(gradient.isfinite().all())
        if labels != [0, 1, 2] or kinds == ("pos_neg",):
            close(value.detach(), MetrixLoss(base, 0.0)(x, y).detach())


def test_extreme_scales_and_labels_are_finite():
    s = torch.tensor([[1.0, -1.0, 1.0]], requires_grad=True)
    y = torch.tensor([[0.0, 1.0, 1e-30]])
    loss = MetrixLoss("multi_similarity", pos_scale=500.0, neg_scale=500.0)
    value = loss.generic(s, y, torch.ones(1, 3, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(value.sum(), s)
    close(value[0].detach().double(), 1.5 + 0.5 + math.log(2) / 500, rtol=1e-6)
    assert bool(gradient.isfinite().all())


def test_what_the_parts_refuse():
    loss = MetrixLoss()
    s, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"soft_label: expected numbers in \[0, 1\], got 1.5"):
        loss.generic(s, s + 1.5, mask)
    with pytest.raises(ValueError, match=r"soft_label: expected the shape of similarity.*\(2, 2\)"):
        loss.generic(s, s[:, :2], mask)
    with pytest.raises(TypeError, match=r"mask: expected a bool tensor, got torch\.float32"):
        loss.generic(s, s, s)
    with pytest.raises(ValueError, match=r"similarity: expected shape \(A, M\), got \(3,\)"):
        loss.generic(s[0], s[0], mask[0])
    x, index = torch.eye(3), torch.zeros(2, 2).long()
    lam = torch.full((2, 2), 0.5)
    with pytest.raises(ValueError, match=r"lam: expected numbers in \[0, 1\], got -0.5"):
        loss.mixed(x, index[0], index, index, -lam)
    with pytest.raises(ValueError, match=r"lam: expected shape \(A, R\)"):
        loss.mixed(x, index[0], index, index, lam[0])
    with pytest.raises(ValueError, match="negative_index: expected the shape of lam"):
        loss.mixed(x, index[0], index, index[0], lam)
    with pytest.raises(TypeError, match="positive_index: expected integers"):
        loss.mixed(x, index[0], lam, index, lam)


@pytest.mark.parametrize("base", sorted(MEMBERS))
@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2]])
def test_anchors_without_a_kind_of_pair_have_forward_derivatives(base, labels):
    y = torch.tensor(labels)
    x, along = draw(3)[0], draw(3, seed=1)[0]
    loss = MetrixLoss(base, 0.0)
    _, slope = torch.func.jvp(lambda x: loss(x, y), (x,), (along,))
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf, y), leaf)
    close(slope, (gradient * along).sum())


def test_embeddings_that_agree_are_at_distance_zero_without_a_slope():
    s = torch.tensor([[1.0, 1.0]], dtype=F64, requires_grad=True)
    y, mask = torch.tensor([[1.0, 0.0]], dtype=F64), torch.ones(1, 2, dtype=torch.bool)
    value = made("contrastive_distance").generic(s, y, mask)
    (gradient,) = torch.autograd.grad(value.sum(), s)
    close(value[0].detach(), 0.3)
    assert not gradient.any()
