"""Rules for gradients, as functions between backward and step."""

import copy
import inspect
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lossary import (
    DPOLoss,
    DPOPLoss,
    HingePreferenceLoss,
    IPOLoss,
    RPOLoss,
    StableMaxCrossEntropyLoss,
    gradient_entanglement,
    normalized_preference_backward,
    perp_grad,
    perp_grad_,
    sequence_logps,
)
from processes import run_processes
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
    if w.norm() < 1e-3 or 0 < g.abs().max() < 1e-100:  # whose norm is 0 by underflow
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


# Of a chosen and a rejected answer.


class LanguageModel(nn.Module):
    """A small one, with a part that no answer needs and a frozen one."""

    def __init__(self, seed=0, tokens=7, width=5):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(tokens, width)
        self.mix = nn.Linear(width, width)
        self.head = nn.Linear(width, tokens)
        self.unused = nn.Parameter(torch.ones(3))
        self.scale = nn.Parameter(torch.tensor(1.5), requires_grad=False)

    def forward(self, tokens):
        return self.head(torch.tanh(self.mix(self.embedding(tokens)))) * self.scale


def pair_of(seed, alike=8, length=12):
    """A model and two answers that agree in their first tokens alone, in one batch."""
    model = LanguageModel(seed).double()
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(7, (2, length), generator=generator)
    others = 1 + torch.randint(6, (length,), generator=generator)
    others[:alike] = 0
    tokens[1] = (tokens[0] + others) % 7
    return model, tokens


def logps_of(model, tokens):
    return sequence_logps(model(tokens), tokens)


def flat(grads):
    return torch.cat([g.reshape(-1) for g in grads])


def separate_gradients(model, tokens):
    """The gradients of the two log-probabilities, one after the other, as vectors."""
    trained = [model.embedding.weight, *model.mix.parameters(), *model.head.parameters()]
    return [flat(torch.autograd.grad(logps_of(model, tokens)[i], trained)) for i in (0, 1)]


def step(model, tokens, rate):
    """Return by how much a step of descent changes both log-probabilities, over its size."""
    before = logps_of(model, tokens).detach()
    other = copy.deepcopy(model)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        if p.grad is not None:
            q.data -= rate * p.grad
    return (logps_of(other, tokens).detach() - before) / rate


@pytest.mark.parametrize("seed", range(3))
def test_entanglement_is_what_its_formulas_say(seed):
    model, tokens = pair_of(seed)
    g_w, g_l = separate_gradients(model, tokens)
    found = gradient_entanglement(model, *logps_of(model, tokens))
    close(found["inner"], g_w @ g_l, rtol=1e-10)
    close(found["norm_w"], g_w.norm(), rtol=1e-10)
    close(found["norm_l"], g_l.norm(), rtol=1e-10)
    close(found["cosine"], g_w @ g_l / g_w.norm() / g_l.norm(), rtol=1e-10)
    close(found["ratio"], g_w @ g_l / min(g_w @ g_w, g_l @ g_l), rtol=1e-10)
    assert found["a"] == found["b"] == 1
    assert all(x.shape == () and not x.requires_grad for x in found.values())
    assert all(p.grad is None for p in model.parameters())
    # Exchanged answers exchange the norms, and the smaller one stays the smaller one.
    turned = gradient_entanglement(model, *logps_of(model, tokens).flip(0))
    for one, other in (("inner", "inner"), ("ratio", "ratio"), ("norm_w", "norm_l")):
        close(found[one], turned[other], rtol=1e-10)
    assert found["norm_w"] != found["norm_l"]
    # However the parameters are given, frozen ones or not, and once only.
    weights = list(model.parameters())
    for given_as in (iter(weights), weights * 2, model.parameters()):
        again = gradient_entanglement(given_as, *logps_of(model, tokens))
        close(again["inner"], found["inner"])
    chosen, rejected = logps_of(model, tokens)[:, None]  # of one element, not 0-dim
    part = gradient_entanglement(model.head.weight, chosen, rejected)
    by_hand = [
        torch.autograd.grad(x.sum(), model.head.weight, retain_graph=True)[0].flatten()
        for x in logps_of(model, tokens)
    ]
    close(part["inner"], by_hand[0] @ by_hand[1], rtol=1e-10)


LOSSES = {
    "dpo": DPOLoss(0.5),
    "ipo": IPOLoss(0.05),
    "slic": HingePreferenceLoss(0.5, 10.0),
    "with likelihood": RPOLoss(0.5, 0.8),
    "dpop": lambda w, r: DPOPLoss(0.5, 0.3)(w, r, w.detach() + 1.0, r.detach() + 1.0),
    "per token": lambda w, r: nn.functional.softplus(r / 4 - w / 6),
}


@pytest.mark.parametrize("name", LOSSES)
def test_entanglement_predicts_a_step_to_first_order(name):
    loss, outcomes = LOSSES[name], set()
    for seed in range(10):
        model, tokens = pair_of(seed, alike=2 + seed)
        chosen, rejected = logps_of(model, tokens)
        found = gradient_entanglement(model, chosen, rejected, loss, retain_graph=True)
        loss(chosen, rejected).backward()
        a, b, inner = (float(found[k]) for k in ("a", "b", "inner"))
        change_w = a * float(found["norm_w"]) ** 2 - b * inner
        change_l = a * inner - b * float(found["norm_l"]) ** 2
        errors = []
        for rate in (1e-4 / (a + b), 1e-5 / (a + b)):
            w, r = step(model, tokens, rate).tolist()
            errors.append(abs(w - change_w) + abs(r - change_l))
        # What is left is of second order.
        assert errors[1] < 1e-3 * (abs(change_w) + abs(change_l))
        assert errors[1] < 0.2 * errors[0]
        assert bool(found["chosen_increases"]) == (change_w > 0) == (w > 0)
        assert bool(found["rejected_decreases"]) == (change_l < 0) == (r < 0)
        outcomes.add((w > 0, r < 0))
        if name in ("dpo", "ipo", "slic"):
            assert a == pytest.approx(b, rel=1e-12)
            assert (w > 0 and r < 0) == (float(found["ratio"]) < 1)
        elif name == "per token":
            assert a / b == pytest.approx(4 / 6, rel=1e-12)
        else:
            assert a > b
    assert len(outcomes) > 1  # not only the easy ones


def test_what_a_loss_says_of_a_and_b():
    model, tokens = pair_of(0)
    reference = torch.tensor([-9.0, -8.0], dtype=F64)
    dpo = DPOLoss(0.3)
    chosen, rejected = logps_of(model, tokens)
    found = gradient_entanglement(
        model, chosen, rejected, lambda w, r: dpo(w, r, *reference), retain_graph=True
    )
    z = 0.3 * ((chosen - reference[0]) - (rejected - reference[1]))
    close(found["a"], 0.3 * torch.sigmoid(-z))
    close(found["b"], 0.3 * torch.sigmoid(-z))
    seen = []
    gradient_entanglement(
        model, chosen, rejected, lambda w, r: seen.append((w, r)) or w - r, retain_graph=True
    )
    assert all(x.is_leaf for x in seen[0])  # what the loss does stays out of the graph
    # A loss of one answer alone, also where gradients are off.
    with torch.no_grad():
        alone = gradient_entanglement(
            model, chosen, rejected, lambda w, r: -2.0 * w, retain_graph=True
        )
    assert (float(alone["a"]), float(alone["b"])) == (2, 0)
    assert alone["chosen_increases"]
    assert alone["rejected_decreases"] == (alone["inner"] < 0)


def test_the_graph_is_kept_on_demand():
    for rule in (
        lambda w, r, m, **k: gradient_entanglement(m, w, r, **k),
        normalized_preference_backward,
    ):
        model, tokens = pair_of(0)
        chosen, rejected = logps_of(model, tokens)
        rule(chosen, rejected, model, retain_graph=True)
        rule(chosen, rejected, model)
        with pytest.raises(RuntimeError, match="second time"):
            chosen.backward()


def test_entanglement_without_gradients_in_common():
    w = torch.zeros(4, requires_grad=True)
    x = torch.tensor([1.0, 2.0, 0.0, 0.0])
    found = gradient_entanglement(w, w @ x, w @ x.flip(0))
    assert found["inner"] == found["cosine"] == found["ratio"] == 0
    assert found["chosen_increases"]
    assert found["rejected_decreases"]
    # Of parameters in each of which one answer alone has a part.
    v = torch.zeros(2, requires_grad=True)
    found = gradient_entanglement([w, v], w @ x, v.sum())
    assert found["inner"] == 0
    close(found["norm_l"], math.sqrt(2), rtol=1e-6)
    nothing = gradient_entanglement(w, w @ x, (0.0 * w).sum())
    assert nothing["cosine"] == nothing["ratio"] == nothing["norm_l"] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_entanglement_in_half_precision(dtype):
    # The squares of these are beyond the largest number of float16.
    w = torch.zeros(300, dtype=dtype, requires_grad=True)
    x = torch.full((300,), 200.0, dtype=dtype)
    chosen, rejected = (w * x).sum(), (w * x)[:100].sum()
    found = gradient_entanglement(w, chosen, rejected, retain_graph=True)
    assert all(v.dtype in (F32, torch.bool) for v in found.values())
    close(found["inner"], 100 * 200.0**2, rtol=1e-6)
    close(found["ratio"], 1.0, rtol=1e-6)
    normalized_preference_backward(chosen, rejected, w)
    assert w.grad.dtype == dtype
    g = torch.full((300,), -1 / math.sqrt(300))
    g[:100] += 1 / math.sqrt(100)
    close(w.grad, g, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("seed", range(8))
def test_the_normalized_step_never_goes_the_wrong_way(seed):
    model, tokens = pair_of(seed, alike=3 + seed)
    g_w, g_l = separate_gradients(model, tokens)
    normalized_preference_backward(*logps_of(model, tokens), model, 0.7)
    trained = [model.embedding.weight, *model.mix.parameters(), *model.head.parameters()]
    close(flat([p.grad for p in trained]), 0.7 * (g_l / g_l.norm() - g_w / g_w.norm()), rtol=1e-9,
          atol=1e-14)  # fmt: skip
    assert model.unused.grad is None
    assert model.scale.grad is None
    inner = g_w @ g_l
    change = (
        0.7 * (g_w.norm() - inner / g_l.norm()),
        -0.7 * (g_l.norm() - inner / g_w.norm()),
    )
    assert change[0] > 0
    assert change[1] < 0
    errors = [(step(model, tokens, rate) - torch.stack(change)).norm() for rate in (1e-4, 1e-5)]
    assert errors[1] < 1e-3 * abs(change[0])
    assert errors[1] < 0.2 * errors[0]
    assert step(model, tokens, 1e-5)[0] > 0
    assert step(model, tokens, 1e-5)[1] < 0


@pytest.mark.parametrize(("seed", "wrong"), [(6, 0), (7, 1)])
def test_the_normalized_step_helps_where_the_margin_does_not(seed, wrong):
    model, tokens = pair_of(seed, alike=10)
    chosen, rejected = logps_of(model, tokens)
    found = gradient_entanglement(model, chosen, rejected, retain_graph=True)
    right = bool(found["chosen_increases"]), bool(found["rejected_decreases"])
    assert right == (wrong != 0, wrong != 1)
    DPOLoss()(chosen, rejected).backward(retain_graph=True)
    plain = step(model, tokens, 1e-4)
    assert (bool(plain[0] > 0), bool(plain[1] < 0)) == right
    assert plain[0] > plain[1]
    model.zero_grad()
    normalized_preference_backward(chosen, rejected, model)
    mended = step(model, tokens, 1e-4)
    assert mended[0] > 0 > mended[1]


def test_the_normalized_step_knows_no_scale_of_the_gradients_and_adds_up():
    model, tokens = pair_of(2)
    others = [copy.deepcopy(model) for _ in range(3)]
    normalized_preference_backward(*logps_of(model, tokens), model)
    w, r = logps_of(others[0], tokens)
    normalized_preference_backward(100.0 * w, 0.01 * r, others[0].parameters(), torch.tensor(1.0))
    twice = torch.tensor(0.25, dtype=F64, requires_grad=True)
    for _ in range(2):
        normalized_preference_backward(*logps_of(others[1], tokens)[:, None], others[1], twice)
    assert twice.grad is None
    # Answers of passes of their own.
    separate = [logps_of(others[2], tokens[i : i + 1]) for i in (0, 1)]
    normalized_preference_backward(*separate, others[2])
    for p, q, r, s in zip(*(m.parameters() for m in (model, *others)), strict=True):
        if p.grad is not None:
            close(q.grad, p.grad, rtol=1e-9, atol=1e-14)
            close(r.grad, 0.5 * p.grad, rtol=1e-9, atol=1e-14)
            close(s.grad, p.grad, rtol=1e-9, atol=1e-14)


def test_other_parameters_get_no_gradient():
    model, tokens = pair_of(2)
    normalized_preference_backward(*logps_of(model, tokens), model.head.parameters())
    own = flat([p.grad for p in model.head.parameters()])
    assert own.norm() > 0.1
    assert all(p.grad is None for p in (*model.mix.parameters(), model.embedding.weight))


def test_the_normalized_step_of_a_gradient_that_is_0():
    w = torch.zeros(2, requires_grad=True)
    normalized_preference_backward(w @ torch.tensor([3.0, 4.0]), 0.0 * w.sum(), w)
    close(w.grad, [-0.6, -0.8], rtol=1e-6)
    w.grad = None
    normalized_preference_backward(w @ torch.tensor([3.0, 4.0]), w @ torch.ones(2), w, 0)
    close(w.grad, [0.0, 0.0])


def _two_processes(rank, world_size):
    model, tokens = pair_of(0)
    alone = []
    for shift in range(world_size):
        other = copy.deepcopy(model)
        logps = logps_of(other, (tokens + shift) % 7)
        normalized_preference_backward(*logps, other)
        alone.append([p.grad for p in other.parameters() if p.grad is not None])
    parallel = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    logps = logps_of(parallel, (tokens + rank) % 7)
    own = gradient_entanglement(model, *logps, retain_graph=True)
    separate = separate_gradients(other, (tokens + rank) % 7)
    close(own["inner"], separate[0] @ separate[1], rtol=1e-9)
    normalized_preference_backward(*logps, model)
    found = [p.grad for p in model.parameters() if p.grad is not None]
    for g, *parts in zip(found, *alone, strict=True):
        close(g, sum(parts) / world_size, rtol=1e-9, atol=1e-14)
        assert not torch.equal(parts[0], parts[1])


@pytest.mark.wide
def test_processes_each_normalise_their_own_pair(tmp_path):
    run_processes(_two_processes, 2, tmp_path)


V = torch.zeros(2, requires_grad=True)
ATTACHED, CONSTANT = V.sum(), torch.tensor(1.0)


class Sharded(torch.Tensor):
    placements = ("Shard(dim=0)",)


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ((1.0, ATTACHED, V), TypeError, "policy_chosen_logps: expected a tensor, got float"),
        ((ATTACHED, None, V), TypeError, "policy_rejected_logps: expected a tensor, got NoneType"),
        ((CONSTANT.long(), ATTACHED, V), TypeError, "policy_chosen_logps: expected floating"),
        ((V * 1.0, ATTACHED, V), ValueError, r"policy_chosen_logps: .*one element.*\(2,\)"),
        ((ATTACHED, V * 1.0, V), ValueError, r"policy_rejected_logps: .*one element.*\(2,\)"),
        ((CONSTANT, ATTACHED, V), ValueError, "policy_chosen_logps: .*depends on the parameters"),
        ((ATTACHED, CONSTANT, V), ValueError, "policy_rejected_logps: .*got a constant"),
        ((ATTACHED, ATTACHED, CONSTANT), ValueError, "parameters: expected at least one .* of 1"),
        ((ATTACHED, ATTACHED, []), ValueError, "parameters: expected at least one .*none of 0"),
        ((ATTACHED, ATTACHED, [V, 1.0]), TypeError, r"parameters\[1\]: expected a tensor, got"),
        ((ATTACHED, ATTACHED, V.detach().as_subclass(Sharded)), TypeError, ".* plain tensor"),
        (
            (ATTACHED, ATTACHED, torch.ones(2, requires_grad=True)),
            ValueError,
            "policy_chosen_logps: expected one that depends on the parameters, got none of 1",
        ),
    ],
)
def test_what_is_refused_of_pairs(inputs, error, message):
    chosen, rejected, parameters = inputs
    with pytest.raises(error, match=f"^{message}"):
        gradient_entanglement(parameters, chosen, rejected, retain_graph=True)
    with pytest.raises(error, match=f"^{message}"):
        normalized_preference_backward(chosen, rejected, parameters, retain_graph=True)


def test_what_else_is_refused_of_pairs():
    def rejected_alone(other):
        return other.sum() * 2.0

    other = torch.ones(2, requires_grad=True)
    for rule in (
        lambda w, r, p, **k: gradient_entanglement(p, w, r, **k),
        normalized_preference_backward,
    ):
        message = "policy_rejected_logps: expected one that depends on the parameters, got none of"
        with pytest.raises(ValueError, match=message):
            rule(ATTACHED * 1.0, rejected_alone(other), V, retain_graph=True)
        with pytest.raises(ValueError, match="retain_graph: expected one of"):
            rule(ATTACHED, ATTACHED, V, retain_graph=None)
        p = nn.Parameter(torch.ones(4, 2))
        out = nn.functional.embedding(torch.tensor([1]), p, sparse=True).sum()
        with pytest.raises(TypeError, match="parameters: expected dense gradients, got"):
            rule(out, out, p)
    for coef, error, message in (
        (-1.0, ValueError, r"coef: expected a number in \[0, inf\), got -1.0"),
        (math.inf, ValueError, "coef: .* got inf"),
        ("1", TypeError, "coef: expected a number, got str"),
        (torch.ones(1), ValueError, r"coef: expected a 0-dim tensor, got shape \(1,\)"),
        (torch.tensor(1), TypeError, r"coef: expected floating point, got torch\.int64"),
        (torch.tensor(-1.0), ValueError, r"coef: expected a number in \[0, inf\), got -1.0"),
    ):
        with pytest.raises(error, match=message):
            normalized_preference_backward(ATTACHED, ATTACHED, V, coef, retain_graph=True)
    for loss, error, message in (
        (lambda w, r: 1.0, TypeError, "loss: expected a tensor, got float"),
        (lambda w, r: torch.ones(2) * w, ValueError, r"loss: expected one number, got shape \(2,"),
        (lambda w, r: w.detach(), ValueError, "loss: expected one of the log-prob.*a constant"),
    ):
        with pytest.raises(error, match=message):
            gradient_entanglement(V, ATTACHED, ATTACHED, loss, retain_graph=True)
    assert V.grad is None
