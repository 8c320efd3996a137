"""The losses that make a model forget: conjugates, signs, limits, and the published code."""

import math

import mpmath
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mp, mpf
from torch.func import grad, vmap

from lossary import (
    CEULoss,
    CompSumLoss,
    DPOLoss,
    FLATLoss,
    GradAscentLoss,
    GradDiffLoss,
    LinearLogits,
    NPOLoss,
    SequenceNLLLoss,
    SimNPOLoss,
    WGALoss,
    _softmax,
    linear_token_logps,
    sequence_logps,
    token_logps,
)
from lossary._softmax import rival_entropy
from test_preference import F32, F64, INF, NAN, close, each, gradients

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

V = 7
probabilities = st.floats(0, 1)


def told(seed=0, n=3, length=5):
    """Logits of a language model, labels of which the prompt and the padding are ignored."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, length, V, dtype=F64, generator=generator)
    labels = torch.randint(V, (n, length), generator=generator)
    labels[:, 0] = labels[0, -1] = labels[1, -2:] = -100
    return logits, labels


def scored(seed=0, **size):
    """Log-probabilities of tokens, and which there are."""
    logits, labels = told(seed, **size)
    return token_logps(logits, labels), labels[:, 1:] != -100


# FLAT. Of every divergence: f, the output map g*, and where t u - f(t) is largest, from f'(t) = u.
# The conjugate is what it is there.

KEYS = {
    "tv": (lambda t: abs(t - 1) / 2, lambda v: mp.tanh(v) / 2, lambda u: mpf(1)),
    "kl": (lambda t: t * mp.log(t), lambda v: v, lambda u: mp.exp(u - 1)),
    "js": (
        lambda t: t * mp.log(t) - (t + 1) * mp.log((t + 1) / 2),
        lambda v: mp.log(2) - mp.log1p(mp.exp(-v)),
        lambda u: mp.exp(u) / (2 - mp.exp(u)),
    ),
    "pearson": (lambda t: (t - 1) ** 2, lambda v: v, lambda u: 1 + u / 2),
    "jeffrey": (
        lambda t: (t - 1) * mp.log(t),
        lambda v: v,
        lambda u: 1 / mp.lambertw(mp.exp(1 - u)).real,
    ),
    "reverse_kl": (lambda t: -mp.log(t), lambda v: -mp.exp(-v), lambda u: -1 / u),
    "hellinger": (
        lambda t: (mp.sqrt(t) - 1) ** 2,
        lambda v: 1 - mp.exp(-v),
        lambda u: 1 / (1 - u) ** 2,
    ),
    "neyman": (
        lambda t: (1 - t) ** 2 / t,
        lambda v: 1 - mp.exp(-v),
        lambda u: 1 / mp.sqrt(1 - u),
    ),
}
EXACT = [key for key in KEYS if key != "jeffrey"]
OFFICIAL = ["reverse_kl", "hellinger", "neyman"]


def exact_flat(key, p_e, p_f):
    f, output, best = KEYS[key]
    u = output(mpf(p_f))
    t = best(u)
    return t * u - f(t) - output(mpf(p_e))


def flat(key, p_e, p_f, dtype=F64, **options):
    """The loss of answers with these probabilities."""
    p_e, p_f = (torch.as_tensor(p, dtype=dtype).reshape(-1, 1) for p in (p_e, p_f))
    there = torch.ones_like(p_e, dtype=torch.bool)
    return FLATLoss(key, reduction="none", **options)(p_e.log(), p_f.log(), there, there)


@pytest.mark.parametrize("key", KEYS)
@given(probabilities, st.floats(-8, 8))
def test_fenchels_inequality(key, v, log_t):
    f, output, best = KEYS[key]
    with mp.workdps(40):
        u, t = output(mpf(v)), mp.exp(log_t)
        assert t * u - f(t) <= best(u) * u - f(best(u)) + mpf(10) ** -30
        # f is convex with f(1) = 0, and g* rises: a valid output map.
        assert f(mpf(1)) == 0
        assert 2 * f((t + best(u)) / 2) <= f(t) + f(best(u)) + mpf(10) ** -30
        assert output(v + mpf(10) ** -3) > u


@pytest.mark.parametrize("key", EXACT)
@given(probabilities, probabilities)
def test_flat_is_the_conjugate_of_what_the_output_map_gives(key, p_e, p_f):
    found = float(flat(key, p_e, p_f))
    assert math.isclose(found, exact_flat(key, p_e, p_f), rel_tol=1e-12, abs_tol=1e-15)
    # Fenchel's inequality at t = 1, where f is 0.
    assert float(flat(key, p_f, p_f)) >= -1e-15


def test_jeffrey_is_its_taylor_polynomial():
    for v in (0.0, 0.01, 0.1, 0.5, 1.0):
        missing = exact_flat("jeffrey", 0.3, v) - float(flat("jeffrey_taylor", 0.3, v))
        # W(exp(1 - v)) + 1/W(exp(1 - v)) + v - 2 is the conjugate in closed form.
        w = mpmath.lambertw(mpmath.exp(1 - mpf(v))).real
        assert abs(w + 1 / w + v - 2 - mpf("0.3") - exact_flat("jeffrey", 0.3, v)) < 1e-12
        assert -1e-15 <= missing < 0.018 * v**4 + 1e-15
    assert missing > 0.017


@pytest.mark.parametrize("key", [k for k in EXACT if k != "kl"])
def test_small_probabilities_keep_their_digits(key):
    for p_e, p_f in ((0.0, 1e-9), (3e-8, 0.0), (1e-6, 1e-3)):
        p_e, p_f = (float(torch.tensor(p)) for p in (p_e, p_f))
        with mp.workdps(40):
            expected = float(exact_flat(key, p_e, p_f))
        assert math.isclose(float(flat(key, p_e, p_f, F32)), expected, rel_tol=1e-6)


def slopes(key, p_e, p_f):
    """The slopes in the two probabilities."""
    there = torch.ones(1, 1, dtype=torch.bool)
    logps = [torch.full((1, 1), math.log(p), dtype=F64) for p in (p_e, p_f)]
    g = gradients(lambda e, f: FLATLoss(key)(e, f, there, there), *logps)
    return float(g[0]) / p_e, float(g[1]) / p_f


@pytest.mark.parametrize("key", [*EXACT, "jeffrey_taylor"])
@given(st.floats(1e-6, 1), st.floats(1e-6, 1))
def test_the_template_rises_and_the_answer_to_forget_falls(key, p_e, p_f):
    up, down = slopes(key, p_e, p_f)
    assert up < 0 < down
    least, most = flat(key, 1.0, 0.0), flat(key, 0.0, 1.0)
    assert least < flat(key, p_e, p_f) < most or (p_e, p_f) in ((1.0, 0.0), (0.0, 1.0))


@pytest.mark.parametrize(("key", "down"), [("reverse_kl", -1), ("hellinger", -1), ("neyman", 1)])
@given(st.floats(1e-6, 0.999), st.floats(1e-6, 0.999))
def test_the_published_code_has_wrong_signs(key, down, p_e, p_f):
    found = slopes(f"{key}_official", p_e, p_f)
    assert found[0] > 0
    assert found[1] * down > 0


def published(key, template, forget):
    """The authors' code: probabilities averaged over all positions of the batch, then this."""

    def confidence(logits, labels):
        p = logits[:, :-1].softmax(-1)
        own = p.gather(-1, labels[:, 1:].clamp(min=0).unsqueeze(-1)).squeeze(-1)
        return (own * (labels[:, 1:] != -100)).mean()

    x, y = confidence(*template), confidence(*forget)
    exp, log, tanh, sqrt = torch.exp, torch.log, torch.tanh, torch.sqrt
    log2 = math.log(2)
    output, conjugate = {
        "tv": (tanh(x) / 2, tanh(y) / 2),
        "kl": (x, exp(y - 1)),
        "js": (-log(1 + exp(-x)) + log2, y + log(1 + exp(-y)) - log2),
        "pearson": (x, y * y / 4 + y),
        "jeffrey_taylor": (x, y + y * y / 4 + y * y * y / 16),
        "reverse_kl_official": (-exp(x), -1 - y),
        "hellinger_official": (1 - exp(x), (1 - exp(y)) / exp(y)),
        "neyman_official": (1 - exp(x), 2 - 2 * sqrt(1 - y)),
    }[key]
    return conjugate - output


@pytest.mark.parametrize(
    "key",
    ["tv", "kl", "js", "pearson", "jeffrey_taylor", *(f"{key}_official" for key in OFFICIAL)],
)
def test_the_published_number_is_reproduced(key):
    template, forget = told(0), told(1, length=8)
    inputs = scored(0), scored(1, length=8)
    (e, e_mask), (f, f_mask) = [[x.reshape(1, -1) for x in pair] for pair in inputs]
    expected = published(key, template, forget)
    close(FLATLoss(key, "all")(e, f, e_mask, f_mask), expected)
    assert (FLATLoss(key)(e, f, e_mask, f_mask) - expected).abs() > 1e-3


def confidence(logps, mask):
    return torch.stack([x[m].exp().mean() for x, m in zip(logps, mask, strict=True)])


@pytest.mark.parametrize("key", [*EXACT, "jeffrey_taylor"])
def test_flat_of_pairs(key):
    (e, e_mask), (f, f_mask) = scored(0), scored(1, length=8)
    p_e, p_f = confidence(e, e_mask), confidence(f, f_mask)
    exact = key.replace("_taylor", "")
    expected = torch.tensor(
        [float(exact_flat(exact, float(a), float(b))) for a, b in zip(p_e, p_f, strict=True)],
        dtype=F64,
    )
    found = each(FLATLoss, e, f, e_mask, f_mask, divergence=key)
    atol = 0.018 if key == "jeffrey_taylor" else 1e-12
    close(found, expected, atol=atol)
    close(FLATLoss(key)(e, f, e_mask.double(), f_mask.long()), found.mean())
    # p_t/T times the slope in P, and no gradient in what is not there.
    g, h = gradients(lambda e, f: FLATLoss(key, reduction="sum")(e, f, e_mask, f_mask), e, f)
    for x, logps, mask in ((g, e, e_mask), (h, f, f_mask)):
        share = mask * logps.exp() / mask.sum(1, keepdim=True)
        ratio = x[mask] / share[mask]
        assert (x[~mask] == 0).all()
        rows = torch.arange(len(mask))[:, None].expand_as(mask)[mask]
        close(ratio, torch.stack([ratio[rows == i].mean() for i in range(3)])[rows])


def test_flat_gradient_in_closed_form():
    (e, e_mask), (f, f_mask) = scored(0), scored(1)

    def plain(e, f):
        p_e, p_f = confidence(e, e_mask), confidence(f, f_mask)
        return (torch.tanh(p_f) / 2 - torch.tanh(p_e) / 2).mean()

    found = gradients(lambda e, f: FLATLoss()(e, f, e_mask, f_mask), e, f)
    close(found, gradients(plain, e, f))


def test_what_is_not_there_reaches_nothing():
    (e, e_mask), (f, f_mask) = scored(0), scored(1)
    loss = FLATLoss()
    expected = loss(e, f, e_mask, f_mask)
    for lost in (NAN, INF, -INF):
        spoiled = e.masked_fill(~e_mask, lost).requires_grad_()
        other = f.masked_fill(~f_mask, lost).requires_grad_()
        found = loss(spoiled, other, e_mask, f_mask)
        close(found, expected)
        assert all(g.isfinite().all() for g in torch.autograd.grad(found, (spoiled, other)))
    # An impossible token counts, with probability 0 and no gradient.
    at = f_mask.int().argmax(1)
    impossible = f.clone()
    impossible[torch.arange(3), at] = -INF
    leaf = impossible.requires_grad_()
    found = loss(e, leaf, e_mask, f_mask)
    p_f = confidence(impossible.detach(), f_mask)
    close(found, (torch.tanh(p_f) / 2 - torch.tanh(confidence(e, e_mask)) / 2).mean())
    (g,) = torch.autograd.grad(found, leaf)
    assert g.isfinite().all()
    assert (g[torch.arange(3), at] == 0).all()


@pytest.mark.parametrize("side", [0, 1])
def test_a_pair_without_tokens_on_one_side_is_left_out(side):
    (e, e_mask), (f, f_mask) = scored(0), scored(1)
    expected = FLATLoss()(e[1:], f[1:], e_mask[1:], f_mask[1:])
    masks = [e_mask.clone(), f_mask.clone()]
    masks[side][0] = False
    found = FLATLoss()(e, f, *masks)
    close(found, expected)
    assert each(FLATLoss, e, f, *masks)[0] == 0
    # Of all positions, there is nothing that could be divided by 0.
    ratio = [(m * x.exp()).mean(1) for m, x in zip(masks, (e, f), strict=True)]
    close(
        FLATLoss("tv", "all")(e, f, *masks),
        (torch.tanh(ratio[1]) / 2 - torch.tanh(ratio[0]) / 2).mean(),
    )
    masks[side][:] = False
    leaf = e.clone().requires_grad_()
    nothing = FLATLoss()(leaf, f, *masks)
    assert nothing == 0
    (g,) = torch.autograd.grad(nothing, leaf)
    assert (g == 0).all()


def test_log_probabilities_just_above_0_are_1():
    there = torch.ones(1, 1, dtype=torch.bool)
    zero = torch.zeros(1, 1)
    for key in ("pearson", "neyman_official"):
        found = FLATLoss(key)(zero + 5e-4, zero + 5e-4, there, there)
        close(found, FLATLoss(key)(zero, zero, there, there))
        assert found.isfinite()
    leaf = zero.clone().requires_grad_()
    FLATLoss("neyman_official")(zero, leaf, there, there).backward()
    assert leaf.grad.isfinite().all()


def test_flat_streams():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 4, 3, dtype=F64, generator=generator)
    weight = torch.randn(V, 3, dtype=F64, generator=generator)
    labels = torch.tensor([[3, 1, -100, 0], [2, 2, 6, -100]])
    e, e_mask = scored(0, n=2)
    mask = labels != -100

    def of_tiles(h, w):
        return FLATLoss()(e, linear_token_logps(h, w, labels, tile_size=2), e_mask, mask)

    def in_memory(h, w):
        return FLATLoss()(e, token_logps(h @ w.T, labels, shift=False), e_mask, mask)

    close(of_tiles(hidden, weight), in_memory(hidden, weight))
    close(gradients(of_tiles, hidden, weight), gradients(in_memory, hidden, weight))


def test_flat_leaves_alone_what_is_forgotten_and_gradient_ascent_does_not():
    logits = torch.tensor([[[-30.0, 0.0, 0.0]]], dtype=F64)
    label, there = torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool)

    def of(loss):
        return gradients(lambda f: loss(token_logps(f, label, shift=False)), logits)[0].abs().max()

    template = torch.full((1, 1), -1.0, dtype=F64)
    assert of(lambda x: FLATLoss()(template, x, there, there)) < 1e-12
    assert of(lambda x: WGALoss()(x, there)) < 1e-12
    assert of(lambda x: GradAscentLoss("sum")(x)) > 0.99


# NPO and SimNPO.


def pairs(seed=0, n=6):
    generator = torch.Generator().manual_seed(seed)
    return 5 * torch.randn(2, n, dtype=F64, generator=generator) - 20


def test_npo():
    policy, reference = pairs()
    rho = policy - reference
    expected = -F.logsigmoid(-0.7 * rho) * 2 / 0.7
    close(each(NPOLoss, policy, reference, beta=0.7), expected)
    close(NPOLoss()(policy, reference), (-F.logsigmoid(-0.1 * rho) * 2 / 0.1).mean())
    loss = NPOLoss(0.7, reduction="sum")
    found = gradients(loss, policy, reference)
    slope = 2 * torch.sigmoid(0.7 * rho)
    close(found, (slope, -slope))


@given(st.floats(-50, 50))
def test_npo_becomes_gradient_ascent(rho):
    x, zero = torch.tensor([rho], dtype=F64), torch.zeros(1, dtype=F64)
    beta = 1e-5
    value = float(NPOLoss(beta)(x, zero)) - 2 / beta * math.log(2)
    assert math.isclose(value, rho, rel_tol=1e-9, abs_tol=1e-9 + beta * rho**2)
    (g,) = gradients(lambda x: NPOLoss(beta)(x, zero), x)
    close(g, torch.ones(1, dtype=F64), atol=beta * abs(rho) + 1e-12)
    close(NPOLoss(1e4)(x, zero), 2 * x.relu().mean(), atol=2e-4)


def test_npo_saturates_and_gradient_ascent_has_no_end():
    far = torch.tensor([-1e4], dtype=F64)
    zero = torch.zeros(1, dtype=F64)
    assert NPOLoss()(far, zero) < 1e-300
    (g,) = gradients(lambda x: NPOLoss()(x, zero), far)
    assert g == 0
    for scale in (1.0, 1e3, 1e30):
        assert GradAscentLoss("sum")(scale * far) == scale * far
        diff = GradDiffLoss(normalize="sum")(scale * far, zero)
        assert diff == scale * far
    assert SimNPOLoss()(far) < 1e-300
    impossible = torch.tensor([-INF], dtype=F64)
    assert NPOLoss()(impossible, zero) == 0
    assert SimNPOLoss()(impossible) == 0
    assert NPOLoss()(-far, zero) == 2e4


def test_dpo_unlearning_is_dpo_times_two_over_beta():
    (chosen, forget), (r_chosen, r_forget) = pairs(0), pairs(1)
    # The code of open-unlearning, from the negative log-likelihoods.
    win, lose = -(-chosen + r_chosen), -(-forget + r_forget)
    expected = -2 / 0.5 * F.logsigmoid(0.5 * (win - lose)).mean()
    close(2 / 0.5 * DPOLoss(0.5)(chosen, forget, r_chosen, r_forget), expected)
    close(2 / 0.5 * DPOLoss(0.5)(chosen, forget, chosen, r_forget), NPOLoss(0.5)(forget, r_forget))


def test_npo_casts_before_the_difference():
    low = pairs().bfloat16()
    found = NPOLoss()(*low)
    assert found.dtype == F32
    close(found.double(), NPOLoss()(*low.double()), 1e-6, 1e-6)


def test_simnpo():
    logits, labels = told()
    total, lengths = sequence_logps(logits, labels, return_lengths=True)
    average = sequence_logps(logits, labels, average=True)
    for beta, delta in ((2.5, 0.0), (0.7, 0.4)):
        # The code of open-unlearning.
        expected = -F.logsigmoid(beta * (-total / lengths - delta)) * 2 / beta
        close(each(SimNPOLoss, average, beta=beta, delta=delta), expected)
        found = each(SimNPOLoss, total, lengths, beta=beta, delta=delta, average=False)
        close(found, expected)
    close(SimNPOLoss()(average), each(SimNPOLoss, average, beta=2.5).mean())
    (g,) = gradients(SimNPOLoss(0.7, 0.4, reduction="sum"), average)
    close(g, 2 * torch.sigmoid(0.7 * (average + 0.4)))
    close(SimNPOLoss(0.7, 0.4)(average), NPOLoss(0.7)(average, torch.full_like(average, -0.4)))
    # The paper's gamma is beta delta.
    gamma = 0.3
    expected = -2 / 0.7 * F.logsigmoid(-0.7 * average - gamma)
    close(each(SimNPOLoss, average, beta=0.7, delta=gamma / 0.7), expected)
    tiny = float(SimNPOLoss(1e-5, 0.4)(average)) - 2e5 * math.log(2)
    assert math.isclose(tiny, average.mean() + 0.4, abs_tol=1e-3)


def test_simnpo_of_a_sequence_without_tokens():
    total, lengths = torch.tensor([[-4.0], [0.0]]), torch.tensor([[2], [0]])
    found = vmap(SimNPOLoss(average=False))(total, lengths)
    close(found, torch.stack([SimNPOLoss()(x) for x in torch.tensor([[-2.0], [0.0]])]))


# Gradient ascent and difference.


@pytest.mark.parametrize("normalize", ["token", "sequence", "sum"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "batchmean"])
def test_gradient_ascent_is_minus_the_likelihood_loss(normalize, reduction):
    logps, lengths = pairs()[0], torch.tensor([3, 1, 8, 20, 5, 5])
    inputs = (logps,) if normalize == "sum" else (logps, lengths)
    weight = torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0, 3.0], dtype=F64)
    for w in (None, weight):
        options = {"reduction": reduction}
        found = GradAscentLoss(normalize, **options)(*inputs, weight=w)
        close(found, -SequenceNLLLoss(normalize, **options)(*inputs, weight=w))
        assert (found <= 0).all()


def language_model_loss(logits, labels):
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def test_gradient_ascent_and_difference_of_published_code():
    forget, retain = told(0), told(1, length=8)
    f, f_lengths = sequence_logps(*forget, return_lengths=True)
    r, r_lengths = sequence_logps(*retain, return_lengths=True)
    up, down = language_model_loss(*forget), language_model_loss(*retain)
    close(GradAscentLoss()(f, f_lengths), -up)
    close(GradDiffLoss()(f, r, f_lengths, r_lengths), -up + down)
    close(GradDiffLoss(0.3, 2.0)(f, r, f_lengths, r_lengths), -0.3 * up + 2.0 * down)
    found = gradients(lambda f, r: GradDiffLoss(0.3, 2.0)(f, r, f_lengths, r_lengths), f, r)
    ones = torch.ones(3, dtype=F64)
    close(found, (0.3 * ones / f_lengths.sum(), -2.0 * ones / r_lengths.sum()))


@pytest.mark.parametrize("normalize", ["token", "sequence", "sum"])
def test_gradient_difference_is_the_sum_of_both(normalize):
    (f, r), lengths = pairs(), torch.tensor([[3, 1, 8, 20, 5, 5], [2, 9, 4, 4, 1, 30]])
    inputs = ((f,), (r,)) if normalize == "sum" else ((f, lengths[0]), (r, lengths[1]))
    both = [x for pair in zip(*inputs, strict=True) for x in pair]
    one, other = GradAscentLoss(normalize)(*inputs[0]), SequenceNLLLoss(normalize)(*inputs[1])
    close(GradDiffLoss(0.3, 2.0, normalize)(*both), 0.3 * one + 2.0 * other)
    close(GradDiffLoss(0.3, 0.0, normalize)(*both), 0.3 * one)
    both[1] = r.masked_fill(r == r.min(), -INF)
    close(GradDiffLoss(0.3, 0.0, normalize)(*both), 0.3 * one)
    assert GradDiffLoss(normalize=normalize).separable == (normalize != "token")


def test_gradient_difference_with_a_divergence_to_be_kept():
    forget, (logits, _), (other, _) = told(0), told(1), told(2)
    f, f_lengths = sequence_logps(*forget, return_lengths=True)
    log_p, log_ref = logits.log_softmax(-1), other.log_softmax(-1)
    # open-unlearning takes it over all positions.
    kept = F.kl_div(log_p.flatten(0, 1), log_ref.flatten(0, 1), reduction="batchmean",
                    log_target=True)  # fmt: skip
    divergence = (log_ref.exp() * (log_ref - log_p)).sum((1, 2))
    positions = torch.full((3,), logits.shape[1])
    found = GradDiffLoss(0.5, 2.0)(f, -divergence, f_lengths, positions)
    close(found, -0.5 * language_model_loss(*forget) + 2.0 * kept)


# WGA.


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 4.0])
def test_wga(beta):
    logps, mask = scored()
    logits, labels = told()
    nll = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="none")
    kept = labels[:, 1:].flatten() != -100
    expected = -((-nll).exp() ** beta * nll)[kept].mean()
    close(WGALoss(beta)(logps, mask), expected)
    close(WGALoss(beta)(logps, mask.double()), expected)
    values = each(WGALoss, logps, mask, beta=beta)
    assert (values[~mask] == 0).all()
    (g,) = gradients(lambda x: WGALoss(beta)(x, mask), logps)
    close(g, mask * (beta * logps).exp() / mask.sum())
    if beta == 0:
        total, lengths = sequence_logps(logits, labels, return_lengths=True)
        close(WGALoss(0.0)(logps, mask), GradAscentLoss()(total, lengths))
    else:
        assert (values >= -1 / (math.e * beta)).all()


def test_wga_weighs_sequences_and_tokens():
    logps, mask = scored()
    values, weight = each(WGALoss, logps, mask), torch.tensor([[2.0], [0.0], [0.5]], dtype=F64)
    w = weight * mask
    close(WGALoss()(logps, mask, weight=weight), (w * values).sum() / w.sum())
    spoiled = logps.masked_fill(weight == 0, NAN)
    close(WGALoss()(spoiled, mask, weight=weight), (w * values).sum() / w.sum())
    close(WGALoss(reduction="batchmean")(logps, mask), values.sum() / mask.sum())
    assert WGALoss()(logps, torch.zeros_like(mask)) == 0


def test_wga_of_impossible_and_of_absent_tokens():
    logps = torch.tensor([-INF, -1.0, NAN, INF, -1e4], requires_grad=True)
    mask = torch.tensor([True, True, False, False, True])
    loss = WGALoss(reduction="none")(logps, mask)
    close(loss, torch.tensor([0.0, -math.exp(-1), 0.0, 0.0, 0.0]), 1e-6)
    (g,) = torch.autograd.grad(loss.sum(), logps, create_graph=True)
    close(g.detach(), torch.tensor([0.0, math.exp(-1), 0.0, 0.0, 0.0]), 1e-6)
    # The weight is a constant in second derivatives, too.
    x = torch.tensor([-1.0, -0.5])
    assert (vmap(grad(grad(lambda x: WGALoss()(x[None], mask[:1]))))(x) == 0).all()
    assert WGALoss(0.0)(logps.detach()[:1], mask[:1]) == -INF
    close(WGALoss()(x * 0 + 5e-4, mask[:2]), torch.tensor(5e-4), 1e-6)


# CE-U.


def published_ceu(logits, labels):
    """Cross-entropy to the softmax without the label, as in open-unlearning."""
    valid = labels != -100
    logits, labels = logits[valid], labels[valid]
    target = logits.detach().clone()
    target.scatter_(-1, labels.unsqueeze(-1), -INF)
    return F.cross_entropy(logits, target.softmax(-1))


def test_ceu_is_the_published_number():
    logits, labels = told(length=9)
    loss = CEULoss(class_dim=-1)
    close(loss(logits, labels), published_ceu(logits, labels))
    found, expected = (
        gradients(lambda f, of=of: of(f, labels), logits) for of in (loss, published_ceu)
    )
    close(found, expected)
    # It is that of the unlikelihood.
    unlikelihood = CEULoss(entropy=False, class_dim=-1)
    close(gradients(lambda f: unlikelihood(f, labels), logits), expected)
    p = logits.softmax(-1).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    valid = labels != -100
    close(unlikelihood(logits, labels), -torch.log1p(-p)[valid].mean())


@given(st.lists(st.floats(-20, 20), min_size=3, max_size=6), st.integers(0, 2))
def test_ceu_gradient_is_p_times_the_rest(row, y):
    f = torch.tensor([row], dtype=F64)
    (g,) = gradients(lambda f: CEULoss()(f, torch.tensor([y])), f)
    p = f.softmax(1)[0]
    others = f.clone()
    others[0, y] = -INF
    expected = -p[y] * others.softmax(1)
    expected[0, y] = p[y]
    close(g, expected, atol=1e-15)


def exact_ceu(row, y):
    with mp.workdps(60):
        z = [mp.exp(mpf(x)) for x in row]
        rest = sum(x for k, x in enumerate(z) if k != y)
        terms = [-(x / rest) * mp.log(x / sum(z)) for k, x in enumerate(z) if k != y and x > 0]
        return float(sum(terms))


@pytest.mark.parametrize(
    "row",
    [[40.0, 0.0, 1.0], [-40.0, 0.0, 1.0], [0.0, 90.0, 1.0], [800.0, 0.0, 0.5], [-800.0, 3.0, 0.0],
     [1.0, 1.0, 1.0], [1e-30, 0.0, 0.0], [5.0, -INF, 0.0], [0.0, -INF, 3.0]],
)  # fmt: skip
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_ceu_is_exact_at_extremes(row, offset):
    f = torch.tensor([row], dtype=F64) + offset
    # Less its offset, as the sum is rounded.
    expected = exact_ceu([x - offset for x in f[0].tolist()], 0)
    found = each(CEULoss, f, torch.zeros(1, dtype=torch.long))
    assert math.isclose(float(found), expected, rel_tol=1e-12, abs_tol=1e-15)
    (g,) = gradients(lambda f: CEULoss()(f, torch.zeros(1, dtype=torch.long)), f)
    assert g.isfinite().all()


def test_ceu_of_two_classes_is_cross_entropy_of_the_other():
    logits = told()[0][..., :2].flatten(0, 1)
    y = torch.arange(len(logits)) % 2
    expected = CompSumLoss(reduction="none")(logits, 1 - y)
    for entropy in (True, False):
        close(each(CEULoss, logits, y, entropy=entropy), expected)
    assert each(CEULoss, torch.tensor([[3.0, -INF]]), torch.tensor([0])) > 1e38
    assert each(CEULoss, torch.tensor([[3.0, -INF]]), torch.tensor([1])) == 0


def test_ceu_of_one_class_and_of_nothing():
    with pytest.raises(ValueError, match="logits: expected at least 2 classes, got 1"):
        CEULoss(class_dim=-1)(torch.zeros(2, 3, 1), torch.zeros(2, 3, dtype=torch.long))
    logits = torch.full((2, V), NAN, requires_grad=True)
    for entropy in (True, False):
        out = CEULoss(entropy)(logits, torch.full((2,), -100))
        assert out == 0
        (g,) = torch.autograd.grad(out, logits)
        assert (g == 0).all()


def test_ceu_streams_without_the_entropy():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(6, 3, dtype=F64, generator=generator)
    weight = torch.randn(V, 3, dtype=F64, generator=generator)
    target = torch.tensor([3, -100, 0, 6, 2, 1])

    def of_tiles(h, w):
        return CEULoss(entropy=False)(LinearLogits(h, w, tile_size=2), target)

    def in_memory(h, w):
        return CEULoss()(h @ w.T, target)

    close(gradients(of_tiles, hidden, weight), gradients(in_memory, hidden, weight))
    with pytest.raises(TypeError, match=r"logits: .* the entropy .*entropy=True.* LinearLogits"):
        CEULoss()(LinearLogits(hidden, weight), target)


def plain_entropy(logits, target):
    """The entropy of the rivals, from the distribution."""
    rest = logits.scatter(1, target.unsqueeze(1), -INF).softmax(1)
    return torch.special.entr(rest).sum(1)


@pytest.mark.parametrize("dtype", [F32, F64, torch.bfloat16])
def test_the_entropy_of_the_rivals(dtype, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([0.0, 0.1, 1.0, 4.0, 20.0, 200.0]).repeat(3).view(-1, 1)
    logits = (scales * torch.randn(18, 40, generator=generator)).to(dtype)
    target = torch.randint(40, (18,), generator=generator)
    target[::2] = logits.argmax(1)[::2]
    expected = plain_entropy(logits.double(), target)
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if dtype == F64 else {"rtol": 1e-5, "atol": 2e-6}
    found = rival_entropy(logits, target)
    close(found.double(), expected, **tolerance)
    every = rival_entropy(logits, None)
    close(every.gather(1, target.unsqueeze(1)).squeeze(1).double(), expected, **tolerance)
    columns = [plain_entropy(logits.double(), torch.full((18,), k)) for k in range(40)]
    close(every.double(), torch.stack(columns, 1), **tolerance)
    monkeypatch.setattr(_softmax, "TILED_FROM_BYTES", 0)
    monkeypatch.setattr(_softmax, "TILE_BYTES", {"cpu": 800, "other": 800})
    close(rival_entropy(logits, target), found, 1e-6, 1e-6)
    as_images = logits.T.reshape(40, 6, 3).unsqueeze(0)
    close(rival_entropy(as_images, target.view(1, 6, 3)).flatten(), found, 1e-6, 1e-6)
    absent = rival_entropy(logits.masked_fill(target.unsqueeze(1) < 20, NAN),
                           target.where(target >= 20, -1))  # fmt: skip
    assert absent.isfinite().all()
    assert not rival_entropy(logits.requires_grad_(), target).requires_grad
    assert not rival_entropy(logits, None).requires_grad


def test_probability_targets_of_ceu_are_expectations():
    logits = told()[0][:, 0]
    q = told(3)[0][:, 0].softmax(-1)
    every = torch.stack([each(CEULoss, logits, torch.full((3,), k)) for k in range(V)], 1)
    close(each(CEULoss, logits, q), (q * every).sum(1))


def test_second_derivatives_of_ceu_are_those_of_its_gradient():
    f = told()[0][0, 0]

    def gradient(f):
        p = f.softmax(0)
        return torch.cat((p[:1], -p[0] * f[1:].softmax(0)))

    found = torch.func.hessian(lambda f: CEULoss()(f, torch.tensor(0)))(f)
    close(found, torch.func.jacrev(gradient)(f))
    # In forward mode the entropy is a constant, too.
    pushed = torch.func.jvp(lambda f: CEULoss()(f, torch.tensor(0)), (f,), (f.square(),))[1]
    close(pushed, gradient(f) @ f.square())
