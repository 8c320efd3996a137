"""Target-based surrogates: gradient at the anchor, majorisation, minimisers, what an anchor is."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lossary import (
    CauchyLoss,
    CompSumLoss,
    InfoNCELoss,
    PseudoHuberLoss,
    ScaledLogisticLoss,
    SequenceNLLLoss,
    TargetSurrogateLoss,
)

INF, NAN = math.inf, math.nan
F32, F64 = torch.float32, torch.float64
N, K = 5, 3
CE = CompSumLoss(reduction="none")
SQUARES = nn.MSELoss(reduction="none")


def close(found, expected, rtol=1e-10, atol=1e-12):
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


TARGET = torch.tensor([0, 2, 1, 1, 0])


def gradient(fn, z):
    leaf = z.clone().requires_grad_()
    return torch.autograd.grad(fn(leaf).sum(), leaf)[0]


def at(loss, z, *targets, **options):
    """A surrogate, unreduced, and anchored."""
    surrogate = TargetSurrogateLoss(loss, reduction="none", **options)
    surrogate.anchor(z, *targets)
    return surrogate


def test_euclidean_is_the_plain_formula():
    z, other = draw(2, N, K)
    p = z.softmax(1)
    g = p - torch.eye(K, dtype=F64)[TARGET]
    expected = (g * other).sum(1) + (other - z).square().sum(1) / (2 * 0.3)
    close(at(CompSumLoss(), z, TARGET, eta=0.3)(other), expected)
    mean = TargetSurrogateLoss(CompSumLoss())
    mean.anchor(z, TARGET)
    close(mean(other), ((g * other).sum(1) + (other - z).square().sum(1) / 2).mean())


def test_kl_is_the_plain_formula():
    z, other = draw(2, N, K).softmax(-1)
    g = 2 * (z - 0.3)
    loss = at(SQUARES, z, torch.full_like(z, 0.3), eta=0.7, divergence="kl")
    # Among probabilities the authors' sum over eta.
    code = (other * (other.log() - (z.log() - 0.7 * g))).sum(1)
    close(loss(other), code / 0.7)
    free = 1.7 * other
    apart = (free * (free / z).log() - free + z).sum(1)
    close(loss(free), (g * free).sum(1) + apart / 0.7)


@pytest.mark.parametrize("divergence", ["euclidean", "kl"])
@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (CompSumLoss(reduction="mean"), (TARGET,)),
        (CompSumLoss(reduction="sum", class_weight=torch.tensor([1.0, 2.0, 0.5])), (TARGET,)),
        (CE, (TARGET.masked_fill(TARGET == 1, -100),)),
        (SQUARES, (draw(N, K, seed=3),)),
        (torch.sin, ()),
        (PseudoHuberLoss(0.5, "vector"), (draw(N, K, seed=3),)),
    ],
    ids=["mean", "weighted", "ignored", "module", "function", "vector"],
)
def test_the_gradient_at_the_anchor_is_that_of_the_loss(loss, targets, divergence):
    z = draw(N, K).softmax(1)
    surrogate = at(loss, z, *targets, eta=0.01, divergence=divergence)
    plain = copy.copy(loss)
    if hasattr(plain, "reduction"):
        plain.reduction = "sum"
    close(gradient(surrogate, z), gradient(lambda z: plain(z, *targets), z))
    # The mean of the one has the gradient of the mean of the other, with the same weights.
    weight = torch.rand(N, dtype=F64)
    surrogate.reduction = "mean"
    found = gradient(lambda z: surrogate(z, weight=weight), z)
    close(found, gradient(surrogate_sum(surrogate), z) * (weight / weight.sum())[:, None])


def surrogate_sum(surrogate):
    plain = copy.copy(surrogate)
    plain.reduction = "sum"
    return plain


def bound(loss, z, other, eta, *targets):
    """What the surrogate says that the loss is at most, less the loss."""
    surrogate = at(loss, z, *targets, eta=eta)
    g = gradient(lambda z: loss(z, *targets), z)
    most = surrogate(other) + loss(z, *targets) - (g * z).flatten(1).sum(1)
    return most - loss(other, *targets)


@given(st.integers(0, 10_000), st.floats(0.01, 1.0), st.sampled_from([0.1, 1.0, 10.0]))
def test_it_majorises_cross_entropy(seed, share, scale):
    z, other = scale * draw(2, N, K, seed=seed)
    # L = 1/2.
    assert (bound(CE, z, other, 2.0 * share, TARGET) >= -1e-12 * scale).all()
    close(bound(CE, z, z, 2.0 * share, TARGET), torch.zeros(N, dtype=F64))


def test_the_smoothness_of_cross_entropy_is_sharp():
    z = torch.zeros(1, 2, dtype=F64)
    other, y = torch.tensor([[1e-3, -1e-3]], dtype=F64), torch.tensor([0])
    assert bound(CE, z, other, 2.0, y) >= 0
    assert bound(CE, z, other, 2.01, y) < 0


@given(st.integers(0, 10_000))
def test_it_majorises_other_losses_up_to_their_smoothness(seed):
    z, other, target = 3 * draw(3, N, seed=seed)
    logistic = ScaledLogisticLoss(1.0, reduction="none")
    y = TARGET.clamp(max=1)
    z_, other_ = z[:, None], other[:, None]
    assert (bound(lambda z: logistic(z[:, 0], y), z_, other_, 4.0) >= -1e-12).all()
    # The squares are their own surrogate.
    square = bound(lambda z: (z[:, 0] - target) ** 2, z_, other_, 0.5)
    close(square, torch.zeros(N, dtype=F64), atol=1e-10)


def test_minimisers():
    z = draw(N, K)
    g = gradient(lambda z: CE(z, TARGET), z)
    close(gradient(at(CE, z, TARGET, eta=0.3), z - 0.3 * g), torch.zeros_like(z))
    p = z.softmax(1)
    target = draw(N, K, seed=3)
    g = 2 * (p - target)
    kl = at(SQUARES, p, target, eta=0.3, divergence="kl")
    close(gradient(kl, p * (-0.3 * g).exp()), torch.zeros_like(z))
    # Among probabilities its normalisation: all slopes are equal there.
    slopes = gradient(kl, (z - 0.3 * g).softmax(1))
    close(slopes, slopes[:, :1].expand(N, K))


def test_a_step_that_lowers_the_surrogate_lowers_the_loss():
    model, x = nn.Linear(4, K).double(), draw(N, 4)
    surrogate = TargetSurrogateLoss(CompSumLoss(), eta=2.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses = []
    for _ in range(5):
        surrogate.anchor(model(x), TARGET)
        start, loss = surrogate(model(x)), CompSumLoss()(model(x), TARGET)
        for _ in range(8):
            optimizer.zero_grad()
            surrogate(model(x)).backward()
            optimizer.step()
        fallen = start - surrogate(model(x))
        losses.append(loss - CompSumLoss()(model(x), TARGET))
        assert losses[-1] >= fallen > 0
    assert sum(losses) > 0.3


def test_outputs_of_any_shape():
    for shape in ((N,), (N, 2, K)):
        z, other = draw(2, *shape)
        found = at(CauchyLoss(), z, torch.zeros(shape, dtype=F64))(other)
        g = gradient(lambda z: CauchyLoss(reduction="sum")(z, torch.zeros_like(z)), z)
        terms = g * other + (other - z).square() / 2
        close(found, terms.reshape(N, -1).sum(1))


def test_a_loss_of_the_whole_batch():
    z, other = draw(2, N, K)
    loss = InfoNCELoss(0.5)
    surrogate = at(loss, z, other)
    total = InfoNCELoss(0.5, reduction="sum")
    close(gradient(surrogate, z), gradient(lambda z: total(z, other), z))


def test_forward_before_an_anchor_is_an_error():
    loss = TargetSurrogateLoss(CE)
    with pytest.raises(RuntimeError, match=r"anchor: expected a call of anchor\(z, ...\) before"):
        loss(draw(N, K))
    with pytest.raises(RuntimeError, match="anchor: expected"):
        loss.per_sample(draw(N, K))


def test_an_anchor_is_kept_and_copied_with_the_loss_but_not_saved():
    z, other = draw(2, N, K)
    loss = at(CE, z, TARGET)
    expected = loss(other)
    assert {name for name, _ in loss.named_buffers() if name.startswith("anchor")} == {
        "anchor_z",
        "anchor_slope",
    }
    assert loss.state_dict() == {}
    close(copy.deepcopy(loss)(other), expected)
    loss.load_state_dict({})
    close(loss(other), expected)
    assert not loss.anchor_z.requires_grad
    assert not loss.anchor_slope.requires_grad
    # What the caller does with z later is not felt, nor is a second call of the loss.
    mine = z.clone()
    again = at(CE, mine, TARGET)
    mine.zero_()
    close(again(other), expected)
    again.anchor(other, TARGET)
    assert not torch.allclose(again(z), loss(z))
    with torch.no_grad():
        again.anchor(z, TARGET)
    close(again(other), expected)
    close(at(CE, z.clone().requires_grad_() * 1.0, TARGET)(other), expected)
    wrapped = CompSumLoss()
    close(at(wrapped, z, TARGET)(other), expected)
    assert wrapped.reduction == "mean"
    assert again.float().anchor_z.dtype is F32


def test_the_anchor_leaves_no_gradient_in_the_model_or_the_loss():
    model, scale = nn.Linear(2, K), nn.Parameter(torch.tensor(0.7))
    loss = TargetSurrogateLoss(CauchyLoss(scale, "vector"))
    z = model(torch.randn(N, 2))
    loss.anchor(z, torch.zeros(N, K))
    loss(model(torch.randn(N, 2))).backward()
    assert model.weight.grad is not None
    assert scale.grad is None


def test_samples_of_weight_0():
    z, other = draw(2, N, K)
    keep = torch.arange(N) % 2 == 0
    expected = at(CE, z[keep], TARGET[keep])(other[keep])
    for fill in (NAN, INF):
        surrogate = at(CE, z.masked_fill(~keep[:, None], fill), TARGET)
        surrogate.reduction = "mean"
        leaf = other.masked_fill(~keep[:, None], fill).requires_grad_()
        out = surrogate(leaf, weight=keep)
        close(out, expected.mean())
        (slope,) = torch.autograd.grad(out, leaf)
        assert (slope[~keep] == 0).all()
        assert slope.isfinite().all()
    # An ignored target: held at the anchor.
    ignored = at(CE, z, TARGET.masked_fill(~keep, -100))
    close(ignored(other)[~keep], ((other - z).square().sum(1) / 2)[~keep])


def test_an_empty_batch():
    loss = TargetSurrogateLoss(CE)
    loss.anchor(torch.zeros(0, K), TARGET[:0])
    leaf = torch.zeros(0, K, requires_grad=True)
    out = loss(leaf)
    assert out == 0
    assert torch.autograd.grad(out, leaf)[0].shape == (0, K)


def test_half_precision():
    z, other = draw(2, N, K).bfloat16()
    found = at(CE, z, TARGET)(other)
    assert found.dtype is F32
    close(found.double(), at(CE, z.double(), TARGET)(other.double()), 1e-6, 1e-6)
    # Anchored in another precision.
    assert at(CE, z.double(), TARGET)(other.float()).dtype is F32
    close(at(CE, z, TARGET)(other.double()), at(CE, z.double(), TARGET)(other.double()), 1e-6, 1e-6)


def test_probabilities_of_0():
    z = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    loss = at(SQUARES, z, torch.zeros(2, 2), divergence="kl")
    for other in (z, z.flip(1)):
        assert loss(other).isfinite().all()
        logits = other.log().clamp(min=-200.0)
        assert gradient(lambda f: loss(f.softmax(1)), logits).isfinite().all()
    close(loss(z), torch.tensor([2.0, 1.0]))
    with pytest.raises(ValueError, match=r"z: expected probabilities, numbers >= 0, got -0\.5"):
        loss(z - 0.5)
    with pytest.raises(ValueError, match=r"z: expected probabilities, numbers >= 0, got -0\.5"):
        loss.anchor(z - 0.5, z)
    keep = torch.tensor([True, False])
    close(loss(torch.tensor([[1.0, 0.0], [-1.0, 2.0]]), weight=keep), torch.tensor([2.0, 0.0]))


def test_claims():
    z, a, b = draw(3, N, K)
    for divergence in ("euclidean", "kl"):
        loss = at(CE, z.softmax(1), TARGET, divergence=divergence)
        x, y = a.exp(), b.exp()
        assert (loss((x + y) / 2) < (loss(x) + loss(y)) / 2).all()
        assert loss.properties().convex


@pytest.mark.parametrize(
    ("loss", "z", "error", "message"),
    [
        (CE, None, TypeError, "z: expected a tensor, got NoneType"),
        (CE, TARGET, TypeError, "z: expected floating point, got torch.int64"),
        (CE, torch.tensor(1.0), ValueError, r"z: expected shape \(N, ...\), got a 0-dim"),
        (nn.CrossEntropyLoss(), draw(N, K), ValueError, r"loss: expected a value per .*got \(\)"),
        (lambda z, y: z.sum(0), draw(N, K), ValueError, r"loss: .*shape \(5, ...\), got \(3,\)"),
        (lambda z, y: 1.0, draw(N, K), TypeError, "loss: expected a tensor of values, got float"),
    ],
)  # fmt: skip
def test_what_cannot_be_an_anchor(loss, z, error, message):
    with pytest.raises(error, match=message):
        TargetSurrogateLoss(loss).anchor(z, TARGET)


def test_outputs_must_be_those_of_the_anchor():
    loss = at(CE, draw(N, K), TARGET)
    with pytest.raises(ValueError, match=r"z: expected the shape of the anchor, \(5, 3\), got"):
        loss(draw(N - 1, K))
    with pytest.raises(ValueError, match="z: expected device meta, got cpu"):
        copy.deepcopy(loss).to("meta")(draw(N, K))
    with pytest.raises(TypeError, match="z: expected floating point"):
        loss(TARGET)
    with pytest.raises(ValueError, match=r"weight: expected shape \(5,\)"):
        loss(draw(N, K), weight=torch.ones(N, K))


def test_losses_with_denominators_are_taken_by_their_values():
    logps, lengths = draw(N), torch.arange(1, N + 1)
    surrogate = at(SequenceNLLLoss(), logps, lengths)
    close(gradient(surrogate, logps), -torch.ones(N, dtype=F64))
