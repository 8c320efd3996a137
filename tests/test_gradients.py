"""Rules for gradients, as functions between backward and step."""

import copy
import inspect
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lossary import StableMaxCrossEntropyLoss, perp_grad, perp_grad_
from single_rows import close

F32, F64 = torch.float32, torch.float64
vectors = st.lists(st.tuples(st.floats(-5.0, 5.0), st.floats(-5.0, 5.0)), min_size=2, max_size=8)


def pair(found):
    w, g = torch.tensor(found, dtype=F64).T
    return w.clone(), g.clone()


def published(w, g, rescale=True):
    """The authors' optimizer wrapper, on one parameter."""
    shape = g.shape
    w, g = w.reshape(-1), g.reshape(-1)
    left = g - torch.dot(w, g) / (torch.dot(w, w) + 1e-30) * w
    if rescale:
        left = left * (g.norm(2) / (left.norm(2) + 1e-30))
    return left.view(shape)


@given(vectors)
def test_the_rule(found):
    w, g = pair(found)
    if w.norm() < 1e-3:
        return
    got = perp_grad(w, g)
    close(got, published(w, g, rescale=False), rtol=1e-9, atol=1e-14)
    assert abs(w @ got) <= 1e-13 * w.norm() * g.norm()
    assert got.norm() <= g.norm() * (1 + 1e-15)
    close(perp_grad(w, got), got, atol=1e-13 * float(g.norm()) + 1e-300)
    close(perp_grad(7.0 * w, g), got, rtol=1e-9, atol=1e-14)
    close(perp_grad(w, -3.0 * g), -3.0 * got, rtol=1e-9, atol=1e-13)


@given(vectors)
def test_rescaled(found):
    w, g = pair(found)
    if w.norm() < 1e-3 or perp_grad(w, g).norm() < 1e-3 * g.norm() or g.norm() < 1e-6:
        return
    got = perp_grad(w, g, rescale=True)
    close(got, published(w, g), rtol=1e-9, atol=1e-14)
    close(got.norm(), g.norm(), rtol=1e-12)
    assert abs(w @ got) <= 1e-9 * w.norm() * g.norm()


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, F32, F64])
def test_ends(rescale, dtype):
    g = torch.tensor([1.0, -2.0, 3.0], dtype=dtype)
    zero = torch.zeros(3, dtype=dtype)
    for eps in (1e-30, 0.0):
        # w = 0 takes nothing away, and of g = 0 nothing is left.
        got = perp_grad(zero, g, rescale, eps)
        assert got.dtype == dtype
        assert torch.equal(got, g)
        assert torch.equal(perp_grad(g, zero, rescale, eps), zero)
        # Parallel to w: rounding noise, which must not be blown up to the size of g.
        for w in (g, -2.0 * g, 0.25 * g):
            assert perp_grad(w, g, rescale, eps).norm() <= 1e-2 * g.norm()
        one = torch.tensor([0.3], dtype=dtype)
        assert perp_grad(one, 5 * one, rescale, eps).abs() <= 1e-6


def test_parallel_noise_is_not_rescaled():
    g = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    w = 3.7 * g
    assert published(w, g).norm() > 0.5 * g.norm()  # why the published code may go anywhere
    assert perp_grad(w, g, rescale=True).norm() < 1e-6 * g.norm()
    # Beyond the noise it is.
    w = w + 1e-4 * torch.randn(1000, generator=torch.Generator().manual_seed(1))
    close(perp_grad(w, g, rescale=True).norm(), g.norm(), rtol=1e-5)


def test_half_precision_is_computed_in_float32():
    # 1e-30 is 0 in float16, and the squared norm of these weights is infinite there.
    g = torch.Generator().manual_seed(0)
    w, grad = (torch.randn(300, generator=g) * 100 for _ in range(2))
    w, grad = w.half(), grad.half()
    assert (w * w).sum().isinf()
    want = perp_grad(w.double(), grad.double())
    got = perp_grad(w, grad)
    assert got.dtype == torch.float16
    close(got, want, rtol=1e-3, atol=1e-2)
    # A gradient in another precision than its parameter keeps its own.
    assert perp_grad(w.float(), grad).dtype == torch.float16
    assert perp_grad(w, grad.float()).dtype == F32


def test_eps_of_its_own():
    w, g = torch.tensor([3.0, 4.0], dtype=F64), torch.tensor([1.0, 0.0], dtype=F64)
    close(perp_grad(w, g, eps=5.0), [1.0 - 3 / 30 * 3, -3 / 30 * 4])


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4)).double()


def test_between_backward_and_step():
    model, loss = small_model(), StableMaxCrossEntropyLoss()
    unused = nn.Parameter(torch.ones(3))
    x, y = torch.randn(20, 3, dtype=F64), torch.randint(4, (20,))
    loss(model(x), y).backward()
    before = [p.grad.clone() for p in model.parameters()]
    held = [p.grad for p in model.parameters()]
    values = [p.detach().clone() for p in model.parameters()]
    assert perp_grad_([*model.parameters(), unused]) is None
    assert unused.grad is None
    for p, old, same, w in zip(model.parameters(), before, held, values, strict=True):
        assert p.grad is same  # in place
        assert torch.equal(p.detach(), w)
        # Each parameter by itself, as one vector.
        close(p.grad, published(w, old, rescale=False), rtol=1e-9, atol=1e-15)
        assert not torch.equal(p.grad, old)


def test_a_small_step_keeps_the_norm():
    changes = {}
    for perpendicular in (True, False):
        for rate in (1e-3, 1e-4):
            model = small_model()
            x, y = torch.randn(20, 3, dtype=F64), torch.randint(4, (20,))
            StableMaxCrossEntropyLoss()(model(x), y).backward()
            if perpendicular:
                perp_grad_(model.parameters())
            p = model[0].weight
            norm = p.norm().item()
            with torch.no_grad():
                p -= rate * p.grad
            changes[perpendicular, rate] = abs(p.norm().item() - norm)
    # Of second order with, of first order without.
    assert changes[True, 1e-3] / changes[True, 1e-4] == pytest.approx(100, rel=0.1)
    assert changes[False, 1e-3] / changes[False, 1e-4] == pytest.approx(10, rel=0.1)


def test_rescale_and_eps_are_passed_on():
    p = nn.Parameter(torch.tensor([3.0, 4.0]))
    p.grad = torch.tensor([1.0, 0.0])
    other = copy.deepcopy(p)
    other.grad = p.grad.clone()
    perp_grad_(p, rescale=True)  # one parameter will do
    close(p.grad, [0.8, -0.6], rtol=1e-6)
    perp_grad_([other], eps=5.0)
    close(other.grad, [0.7, -0.4], rtol=1e-6)


def test_parameters_may_be_a_generator_and_empty():
    perp_grad_(p for p in [])
    model = small_model()
    perp_grad_(model.parameters())  # no gradients yet
    assert all(p.grad is None for p in model.parameters())


def test_it_compiles_as_one_graph(fresh_compiler):
    w, g = torch.randn(2, 5, 3)
    compiled = torch.compile(perp_grad, fullgraph=True, backend="aot_eager")
    for rescale in (False, True):
        close(compiled(w, g, rescale), perp_grad(w, g, rescale), rtol=1e-5, atol=1e-7)


W = torch.ones(3)


@pytest.mark.parametrize(
    ("inputs", "options", "error", "message"),
    [
        (([1.0], W), {}, TypeError, "param: expected a tensor, got list"),
        ((W, [1.0]), {}, TypeError, "grad: expected a tensor, got list"),
        ((W, None), {}, TypeError, "grad: expected a tensor, got NoneType"),
        ((W.long(), W), {}, TypeError, "param: expected floating point, got torch.int64"),
        ((W, W.long()), {}, TypeError, "grad: expected floating point, got torch.int64"),
        ((W + 0j, W), {}, TypeError, "param: expected floating point, got torch.complex64"),
        ((W, torch.ones(2)), {}, ValueError, r"grad: expected the shape of param, \(3,\), got"),
        ((W, torch.ones(1, 3)), {}, ValueError, r"grad: .*\(3,\), got \(1, 3\)"),
        ((W, W.to_sparse()), {}, TypeError, "grad: expected a dense tensor, got torch.sparse_coo"),
        ((W, W.to("meta")), {}, ValueError, "grad: expected device cpu, got meta"),
        ((W, W), {"rescale": None}, ValueError, "rescale: expected one of"),
        ((W, W), {"eps": -1e-30}, ValueError, r"eps: expected a number in \[0, inf\), got"),
        ((W, W), {"eps": math.nan}, ValueError, "eps: .*got nan"),
        ((W, W), {"eps": "0"}, TypeError, "eps: expected a number, got str"),
    ],
)
def test_what_is_refused(inputs, options, error, message):
    with pytest.raises(error, match=f"^{message}"):
        perp_grad(*inputs, **options)


def test_what_is_refused_of_parameters():
    with pytest.raises(TypeError, match=r"^parameters\[1\]: expected a tensor, got float"):
        perp_grad_([W, 1.0])
    with pytest.raises(TypeError, match=r"^parameters\[0\]: expected floating point, got"):
        perp_grad_(W.long())
    p = nn.Parameter(torch.ones(4, 2))
    torch.nn.functional.embedding(torch.tensor([1]), p, sparse=True).sum().backward()
    with pytest.raises(TypeError, match=r"^parameters\[0\]\.grad: expected a dense tensor, got"):
        perp_grad_([p])
    assert list(inspect.signature(perp_grad_).parameters) == ["parameters", "rescale", "eps"]
