"""The base class: weighting, masking, reduction and precision, as the design states them."""

import copy
import inspect
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import lossary
from lossary import ClassificationLoss, CompSumLoss, LDRKLLoss, Loss, MulticlassMAELoss
from processes import run_processes

INF, NAN = float("inf"), float("nan")


class SquaredError(Loss):
    def per_sample(self, input, target):
        return (input - target).square()


class RowError(Loss):
    """One value per row of a matrix, by an operation that saves its output."""

    def per_sample(self, input, target=None):
        return (input if target is None else input - target).square().sum(1).sqrt()


class Spread(Loss):
    """Batch-coupled: every entry is measured against the mean of the batch."""

    separable = False

    def per_sample(self, input):
        return (input - input.mean()).square()


class Windows(Loss):
    """Entries that count differently: negative inputs are left out, the others count double."""

    def per_sample(self, input):
        share = 2.0 * (input >= 0)
        return input * share, share


class Norm(Loss):
    """One number per call, as a regularizer gives."""

    def per_sample(self, input):
        return input.norm()


class Product(Loss):
    """A similarity product, which autocast would send to bfloat16."""

    separable = False

    def per_sample(self, a, b):
        return (a @ b.T).diagonal()


def data(n=6, dtype=torch.float64):
    return torch.randn(n, dtype=dtype, requires_grad=True), torch.randn(n, dtype=dtype)


def logits_and_target(shape=(6, 4), dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, requires_grad=True), torch.randint(
        shape[1], (shape[0], *shape[2:])
    )


# The call.


def test_forward_has_the_names_defaults_and_annotations_of_per_sample():
    signature = inspect.signature(RowError.forward)
    assert list(signature.parameters) == ["self", "input", "target", "weight", "normalizer"]
    assert signature.parameters["target"].default is None
    assert signature.parameters["weight"].kind is inspect.Parameter.KEYWORD_ONLY
    assert list(inspect.signature(CompSumLoss().forward).parameters)[:2] == ["logits", "target"]
    assert CompSumLoss.forward.__annotations__["return"] is torch.Tensor


def test_inputs_may_be_passed_by_name():
    x, y = data()
    assert torch.equal(SquaredError()(target=y, input=x), SquaredError()(x, y))
    with pytest.raises(TypeError, match="labels"):
        SquaredError()(x, labels=y)


def test_the_class_signature_shows_every_option_and_refuses_others():
    names = list(inspect.signature(LDRKLLoss).parameters)
    own = ["lam", "margin", "normalize"]
    assert names == [*own, "reduction", "class_weight", "ignore_index", "class_dim"]
    with pytest.raises(TypeError, match="lambda_"):
        LDRKLLoss(lambda_=1.0)


def test_repr_shows_what_was_chosen():
    assert repr(CompSumLoss(1.5)) == "CompSumLoss(tau=1.5, reduction='mean')"
    assert "margin=tensor(3, 3)" in repr(LDRKLLoss(margin=torch.zeros(3, 3)))


def test_per_sample_must_have_ordinary_parameters():
    with pytest.raises(TypeError, match="per_sample: 'inputs'"):

        class Bad(Loss):
            def per_sample(self, *inputs):
                return inputs[0]


def test_a_subclass_that_only_adds_options_keeps_the_forward_of_its_base():
    class Half(SquaredError):
        def __init__(self, **options):
            super().__init__(**options)

    x, y = data()
    assert torch.equal(Half(reduction="sum")(x, y), SquaredError(reduction="sum")(x, y))


def test_copies_and_pickles_give_the_same_value():
    f, y = logits_and_target()
    loss = CompSumLoss(1.5, class_weight=torch.rand(4))
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(other(f, y), loss(f, y))


def test_class_weight_is_a_buffer_that_moves_and_is_saved():
    loss = CompSumLoss(class_weight=torch.tensor([1.0, 2.0]))
    assert list(loss.state_dict()) == ["class_weight"]
    assert loss.double().class_weight.dtype is torch.float64
    other = CompSumLoss(class_weight=torch.ones(2))
    other.load_state_dict(loss.state_dict())
    assert other.class_weight.tolist() == [1.0, 2.0]
    assert list(CompSumLoss().state_dict()) == []


# Reduction.


def test_reductions_without_weights():
    x, y = data()
    e = (x - y).square()
    assert torch.allclose(SquaredError(reduction="none")(x, y), e)
    assert torch.allclose(SquaredError(reduction="sum")(x, y), e.sum())
    assert torch.allclose(SquaredError()(x, y), e.mean())
    assert torch.allclose(SquaredError(reduction="batchmean")(x, y), e.mean())


def test_reductions_with_weights():
    x, y = data()
    w = torch.tensor([0.5, 0.0, 3.0, 1.0, 0.0, 2.0], dtype=torch.float64)
    e = w * (x - y).square()
    assert torch.allclose(SquaredError(reduction="none")(x, y, weight=w), e)
    assert torch.allclose(SquaredError(reduction="sum")(x, y, weight=w), e.sum())
    assert torch.allclose(SquaredError()(x, y, weight=w), e.sum() / 6.5)
    assert torch.allclose(SquaredError(reduction="batchmean")(x, y, weight=w), e.sum() / 4)


def test_values_with_denominators():
    x = torch.tensor([1.0, -5.0, 3.0], requires_grad=True)
    w = torch.tensor([1.0, 7.0, 3.0])
    assert Windows(reduction="none")(x).tolist() == [2.0, 0.0, 6.0]
    assert Windows(reduction="sum")(x).item() == 8.0
    assert Windows()(x).item() == 2.0  # 8 / 4
    assert Windows(reduction="batchmean")(x).item() == 4.0  # two entries are there
    assert Windows()(x, weight=w).item() == 2.5  # (2 + 18) / (2 + 6)
    assert Windows(reduction="batchmean")(x, weight=w).item() == 10.0


@pytest.mark.parametrize("reduction", ["sum", "mean", "batchmean"])
@pytest.mark.parametrize("normalizer", [7, 2.5, torch.tensor(4), torch.tensor(4.0).double()])
def test_normalizer_divides_the_weighted_sum(reduction, normalizer):
    x, y = data(dtype=torch.float32)
    w = torch.rand(6)
    expected = (w * (x - y).square()).sum() / float(normalizer)
    value = SquaredError(reduction=reduction)(x, y, weight=w, normalizer=normalizer)
    assert value.dtype is torch.float32
    assert torch.allclose(value, expected)


def test_normalizer_makes_gradient_accumulation_exact():
    f, y = logits_and_target((10, 4))
    y[[1, 2, 9]] = -100
    loss, total = LDRKLLoss(), (y != -100).sum()
    (whole,) = torch.autograd.grad(loss(f, y), f)
    parts = [loss(a, b, normalizer=total) for a, b in zip(f.split(3), y.split(3), strict=True)]
    (summed,) = torch.autograd.grad(sum(parts), f)
    assert torch.allclose(summed, whole, rtol=1e-14, atol=0)
    assert torch.allclose(sum(parts), loss(f, y), rtol=1e-14)


def test_none_refuses_a_normalizer():
    with pytest.raises(ValueError, match="normalizer"):
        SquaredError(reduction="none")(*data(), normalizer=3)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "batchmean"])
@pytest.mark.parametrize("loss", [RowError, MulticlassMAELoss])
def test_the_result_may_be_scaled_in_place(loss, reduction):
    # sqrt and sigmoid save their outputs, which an in-place product would then overwrite.
    f, y = logits_and_target()
    inputs = (f, y) if loss is MulticlassMAELoss else (f,)
    for keywords in ({}, {"weight": torch.rand(6)}):
        (expected,) = torch.autograd.grad(
            3 * loss(reduction=reduction)(*inputs, **keywords).sum(), f
        )
        value = loss(reduction=reduction)(*inputs, **keywords)
        value *= 3
        (gradient,) = torch.autograd.grad(value.sum(), f)
        assert torch.allclose(gradient, expected)


def test_a_single_number_takes_no_weight():
    x, _ = data()
    value = Norm()(x)
    value *= 2
    value.backward()
    assert torch.allclose(x.grad, 2 * x / x.norm())
    with pytest.raises(ValueError, match="weight: expected none"):
        Norm()(x, weight=torch.ones(6))


# Weights and masks.


@pytest.mark.parametrize("shape", [(4, 3), (1, 3), (4, 1), (1, 1)])
def test_weight_may_have_ones_in_its_shape(shape):
    x, y = torch.randn(2, 4, 3)
    w = torch.rand(shape)
    expected = (w * (x - y).square()).sum() / w.expand(4, 3).sum()
    assert torch.allclose(SquaredError()(x, y, weight=w), expected)


@pytest.mark.parametrize("shape", [(3,), (1, 4, 3), (), (3, 4), (4, 2)])
def test_weight_of_another_shape_is_an_error_not_a_broadcast(shape):
    x, y = torch.randn(2, 4, 3)
    with pytest.raises(ValueError, match=r"weight: expected shape \(4, 3\)"):
        SquaredError()(x, y, weight=torch.ones(shape))


@pytest.mark.parametrize("loss", [CompSumLoss(), SquaredError()])
def test_gradient_flows_to_the_weight(loss):
    w = torch.rand(6, dtype=torch.float64, requires_grad=True)
    x, y = logits_and_target() if isinstance(loss, ClassificationLoss) else data()
    assert torch.autograd.gradcheck(lambda w: loss(x.detach(), y, weight=w), w)


def test_weight_zero_and_false_mean_that_the_entry_is_not_there():
    x, y = data()
    bad = x.detach().clone()
    bad[1], bad[4] = NAN, INF
    bad.requires_grad_()
    keep = torch.tensor([1, 0, 1, 1, 0, 1])
    expected = SquaredError()(x[keep.bool()], y[keep.bool()])
    (gradient,) = torch.autograd.grad(expected, x)
    for weight in (keep.double(), keep.bool()):
        value = SquaredError()(bad, y, weight=weight)
        assert torch.allclose(value, expected)
        assert torch.equal(torch.autograd.grad(value, bad)[0], gradient)


@pytest.mark.parametrize("loss", [CompSumLoss, LDRKLLoss, MulticlassMAELoss])
@pytest.mark.parametrize(
    ("how", "soft"),
    [
        ("weight", False),
        ("weight", True),
        ("mask", False),
        ("mask", True),
        ("ignore_index", False),
        ("class_weight", False),
    ],
)
def test_absent_entries_of_a_class_loss_are_not_there(loss, how, soft):
    f, y = logits_and_target((6, 4))
    y[:] = torch.tensor([0, 1, 2, 0, 1, 3])
    keep = y != 1
    bad = f.detach().clone()
    bad[~keep] = torch.tensor([NAN, INF, -INF, 0.0], dtype=torch.float64)
    bad.requires_grad_()
    target = F.one_hot(y, 4).double() if soft else y.clone()
    keywords, options = {}, {}
    if how == "weight":
        keywords["weight"] = keep.double()
    elif how == "mask":
        keywords["weight"] = keep
    elif how == "ignore_index":
        target[~keep] = -100
    else:
        options["class_weight"] = torch.tensor([1.0, 0.0, 1.0, 1.0])
    expected = loss()(f[keep], y[keep])
    value = loss(**options)(bad, target, **keywords)
    assert torch.allclose(value, expected)
    (gradient,) = torch.autograd.grad(value, bad)
    assert torch.allclose(gradient, torch.autograd.grad(expected, f)[0])
    none = loss(reduction="none", **options)(bad, target, **keywords)
    assert (none[~keep] == 0).all()


def test_ignore_index_inside_the_range_of_classes():
    f, y = logits_and_target()
    loss = CompSumLoss(ignore_index=2)
    assert torch.allclose(loss(f, y), F.cross_entropy(f, y, ignore_index=2))
    y[:] = 0
    assert torch.allclose(loss(f, y), F.cross_entropy(f, y, ignore_index=2))


def test_batch_coupled_weights_scale_the_own_term_and_leave_the_others_alone():
    x, _ = data()
    w = torch.tensor([1.0, 0.0, 2.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    expected = (w * (x - x.mean()).square()).sum() / w.sum()
    assert torch.allclose(Spread()(x, weight=w), expected)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "batchmean"])
@pytest.mark.parametrize("case", ["empty", "weight", "mask", "ignored", "soft"])
def test_nothing_left_is_a_finite_zero_attached_to_the_graph(reduction, case):
    n = 0 if case == "empty" else 3
    f = torch.full((n, 4), INF if case != "empty" else 0.0, requires_grad=True)
    y = torch.zeros(n, dtype=torch.long)
    keywords = {}
    if case == "ignored":
        y[:] = -100
    elif case == "soft":
        y = torch.full((n, 4), 0.25)
    if case in ("weight", "soft"):
        keywords["weight"] = torch.zeros(n)
    elif case == "mask":
        keywords["weight"] = torch.zeros(n, dtype=torch.bool)
    for loss in (CompSumLoss(0.5, reduction=reduction), LDRKLLoss(reduction=reduction)):
        value = loss(f, y, **keywords)
        assert (value == 0).all()
        assert value.requires_grad
        (gradient,) = torch.autograd.grad(value.sum(), f)
        assert (gradient == 0).all()


def test_weights_that_cancel_are_not_nothing():
    x, y = torch.ones(2), torch.zeros(2)
    assert SquaredError()(x, 2 * x, weight=torch.tensor([1.0, -1.0])).isnan()
    assert SquaredError()(x, y - torch.tensor([0, 1]), weight=torch.tensor([1.0, -1.0])).isinf()


# Class targets.


@pytest.mark.parametrize("soft", [False, True])
def test_class_weights_divide_by_the_weights_of_the_classes_that_occur(soft):
    f, y = logits_and_target()
    cw, w = torch.rand(2, 10, dtype=torch.float64)[:, :6]
    cw = cw[:4]
    target = F.one_hot(y, 4).double() if soft else y
    terms = w * cw[y] * F.cross_entropy(f, y, reduction="none")
    make = lambda reduction: CompSumLoss(class_weight=cw, reduction=reduction)  # noqa: E731
    assert torch.allclose(make("none")(f, target, weight=w), terms)
    assert torch.allclose(make("mean")(f, target, weight=w), terms.sum() / (w * cw[y]).sum())
    assert torch.allclose(make("batchmean")(f, target, weight=w), terms.sum() / 6)
    unweighted = F.cross_entropy(f, y, weight=cw)
    assert torch.allclose(make("mean")(f, target), unweighted)


def test_class_weights_of_mixed_probabilities():
    f, _ = logits_and_target()
    q = torch.rand(6, 4, dtype=torch.float64)
    q = q / q.sum(1, keepdim=True)
    cw = torch.rand(4, dtype=torch.float64)
    loss = -torch.log_softmax(f, 1)
    expected = (q * cw * loss).sum() / (q * cw).sum()
    assert torch.allclose(CompSumLoss(class_weight=cw)(f, q), expected)


@given(st.integers(2, 6), st.integers(0, 100))
def test_probabilities_give_the_expectation_over_index_targets(num_classes, seed):
    g = torch.Generator().manual_seed(seed)
    f = torch.randn(3, num_classes, generator=g, dtype=torch.float64)
    q = torch.rand(3, num_classes, generator=g, dtype=torch.float64)
    q = q / q.sum(1, keepdim=True)
    for loss in (CompSumLoss(1.7, reduction="none"), LDRKLLoss(2.0, 0.3, reduction="none")):
        per_class = [loss(f, torch.full((3,), k)) for k in range(num_classes)]
        assert torch.allclose(loss(f, q), (q * torch.stack(per_class, 1)).sum(1))


def test_gradient_flows_to_probability_targets():
    f, _ = logits_and_target((3, 4))
    q = torch.rand(3, 4, dtype=torch.float64)
    q = (q / q.sum(1, keepdim=True)).requires_grad_()
    assert torch.autograd.gradcheck(lambda f, q: CompSumLoss(1.5)(f, q), (f, q))


@pytest.mark.parametrize("class_dim", [0, 1, 2, 3, -1, -2])
def test_any_class_axis(class_dim):
    f = torch.randn(3, 4, 5, 6, dtype=torch.float64)
    y = torch.randint(3, f.movedim(class_dim, 0).shape[1:])
    cw = torch.rand(f.shape[class_dim], dtype=torch.float64)
    expected = F.cross_entropy(f.movedim(class_dim, 1), y, weight=cw)
    loss = CompSumLoss(class_dim=class_dim, class_weight=cw)
    assert torch.allclose(loss(f, y), expected)
    soft = F.one_hot(y, f.shape[class_dim]).double().movedim(-1, class_dim)
    assert torch.allclose(loss(f, soft), expected)


def test_a_single_row_without_a_batch_axis():
    f = torch.randn(4)
    assert torch.allclose(CompSumLoss()(f, torch.tensor(2)), F.cross_entropy(f, torch.tensor(2)))
    q = torch.softmax(torch.randn(4), 0)
    assert torch.allclose(CompSumLoss()(f, q), F.cross_entropy(f, q))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_every_integer_dtype_is_a_class_index(dtype):
    f, y = logits_and_target()
    assert torch.equal(CompSumLoss()(f, y.to(dtype)), CompSumLoss()(f, y))


@pytest.mark.parametrize(
    "options",
    [{}, {"ignore_index": 1}, {"class_weight": torch.tensor([0.2, 1.0, 3.0, 0.5]).double()}],
)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_it_stands_where_cross_entropy_stood(options, reduction):
    f, y = logits_and_target((5, 4, 3))
    torch_options = {"weight" if k == "class_weight" else k: v for k, v in options.items()}
    expected = nn.CrossEntropyLoss(reduction=reduction, **torch_options)(f, y)
    assert torch.allclose(CompSumLoss(reduction=reduction, **options)(f, y), expected)


# Precision.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    f, y = logits_and_target((8, 5), torch.float32)
    f = f.detach().to(dtype).requires_grad_()
    q = torch.softmax(torch.randn(8, 5), 1).to(dtype)
    for target in (y, q):
        value = CompSumLoss(1.5)(f, target)
        assert value.dtype is torch.float32
        exact = f.detach().double(), target.double() if target is q else target
        assert torch.allclose(value.double(), CompSumLoss(1.5)(*exact), rtol=1e-6)
        assert torch.autograd.grad(value, f)[0].dtype is dtype
    x = torch.randn(4).to(dtype).requires_grad_()
    value = SquaredError()(x, x.detach() * 2, weight=torch.rand(4).to(dtype))
    assert value.dtype is torch.float32
    assert torch.autograd.grad(value, x)[0].dtype is dtype


def test_double_stays_double_and_weights_do_not_change_the_dtype():
    for dtype in (torch.float32, torch.float64):
        f, y = logits_and_target(dtype=dtype)
        for weight in (None, torch.rand(6).double(), torch.ones(6, dtype=torch.bool)):
            loss = CompSumLoss(class_weight=torch.rand(4).half())
            assert loss(f, y, weight=weight).dtype is dtype


def test_autocast_does_not_reach_into_the_loss():
    a, b = torch.randn(2, 4, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (a @ b.T).dtype is torch.bfloat16
        inside = Product()(a, b)
    assert torch.equal(inside, Product()(a, b))


def test_inputs_are_not_written_to():
    f, y = logits_and_target()
    w, before = torch.rand(6), []
    for x in (f, y, w):
        before.append((x.detach().clone(), x._version))
    y2 = torch.tensor([0, -100, 1, 2, 3, 0])
    CompSumLoss(class_weight=torch.ones(4))(f, y2, weight=w).backward()
    for x, (values, version) in zip((f, y, w), before, strict=True):
        assert torch.equal(x, values)
        assert x._version == version


# Compilers and devices.


@pytest.mark.parametrize("soft", [False, True])
def test_no_host_sync_with_every_option(soft):
    cw = torch.rand(4)
    with FakeTensorMode() as mode:
        loss = LDRKLLoss(class_weight=mode.from_tensor(cw))
        f = torch.randn(6, 4, requires_grad=True)
        y = torch.rand(6, 4) if soft else torch.randint(4, (6,))
        loss(f, y, weight=torch.rand(6), normalizer=torch.tensor(3.0)).backward()
        assert f.grad.shape == f.shape


def test_compiles_whole_with_every_option():
    torch._dynamo.reset()
    f, y = logits_and_target(dtype=torch.float32)
    y[2] = -100
    w = torch.rand(6)
    loss = CompSumLoss(1.5, class_weight=torch.rand(4))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    (expected,) = torch.autograd.grad(loss(f, y, weight=w), f)
    (gradient,) = torch.autograd.grad(compiled(f, y, weight=w), f)
    assert torch.allclose(gradient, expected)


def test_value_checks_step_aside_under_vmap():
    f = torch.randn(3, 5, 4)
    y = torch.randint(4, (3, 5))
    y[0, 0] = -100
    values = torch.vmap(CompSumLoss())(f, y)
    assert torch.allclose(values, torch.stack([CompSumLoss()(a, b) for a, b in zip(f, y)]))  # noqa: B905


def test_properties_default_to_unknown():
    assert SquaredError().properties() == lossary.Properties()


# Many processes.


def _batchmean_rank(rank, world_size):
    g = torch.Generator().manual_seed(0)
    f = torch.randn(9, 4, generator=g, dtype=torch.float64)
    y = torch.randint(4, (9,), generator=g)
    y[[0, 1, 7]] = -100  # rank 0 of three keeps one row fewer than the others, and 1 of 3 rows
    w = torch.rand(9, generator=g, dtype=torch.float64)
    w[8] = 0
    theta = torch.eye(4, dtype=torch.float64, requires_grad=True)
    model = nn.parallel.DistributedDataParallel(_Linear(theta))
    # Unequal shares, and a last rank without a single row.
    bounds = {2: [0, 9, 9], 3: [0, 2, 7, 9]}[world_size]
    mine = slice(bounds[rank], bounds[rank + 1])
    CompSumLoss(reduction="batchmean")(model(f[mine]), y[mine], weight=w[mine]).backward()
    rows = w * (y != -100)
    whole = torch.eye(4, dtype=torch.float64, requires_grad=True)
    per_row = F.cross_entropy(f @ whole, y, reduction="none")
    ((rows * per_row).sum() / (rows != 0).sum()).backward()
    assert torch.allclose(model.module.theta.grad, whole.grad, rtol=1e-12)


class _Linear(nn.Module):
    def __init__(self, theta):
        super().__init__()
        self.theta = nn.Parameter(theta.detach().clone())

    def forward(self, x):
        return x @ self.theta


@pytest.mark.parametrize("world_size", [2, 3])
def test_batchmean_counts_over_all_processes(world_size, tmp_path):
    run_processes(_batchmean_rank, world_size, tmp_path)
