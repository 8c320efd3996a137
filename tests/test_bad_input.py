"""Every row of the table of bad input, and the unusual input that must work."""

import inspect
import re

import pytest
import torch
from torch.nn.functional import cross_entropy

import bad_input
import lossary
from bad_input import LOGITS, PROBABILITIES, TARGET


def _index(logits, target):
    samples = target.numel() if isinstance(target, torch.Tensor) else len(TARGET)
    index = torch.arange(samples)
    return index.view(target.shape) if isinstance(target, torch.Tensor) else index


#: What the losses that take more than logits and target are built and called with here.
NEEDS = {"ALDRKLLoss": {"num_samples": 1000}, "ZLoss": {"a": 1.0, "b": 0.0}}
#: Inputs that have another name.
NAMES = {"IBPRobustCrossEntropyLoss": {"logits": "lower"}}
FURTHER = {
    "ALDRKLLoss": {"index": _index, "update": lambda logits, target: True},
    "EvidentialLoss": {"step": lambda logits, target: None},
    "TruncatedGCELoss": {"index": lambda logits, target: None},
    "SmoothAdversarialCompSumLoss": {"adv_logits": lambda logits, target: logits},
    "IBPRobustCrossEntropyLoss": {"upper": lambda logits, target: logits},
    "ZLoss": {},
}


class Called:
    """A loss that takes further inputs, to be called with logits and target alone."""

    def __init__(self, module, further, names):
        self.module, self.further, self.names = module, further, names

    def __call__(self, *inputs, **keywords):
        given = dict(zip(("logits", "target"), inputs, strict=False))
        named = {**given, **{k: v for k, v in keywords.items() if k in ("logits", "target")}}
        keywords = {k: v for k, v in keywords.items() if k not in named}
        further = {
            name: make(named["logits"], named.get("target")) for name, make in self.further.items()
        }
        named = {self.names.get(name, name): x for name, x in named.items()}
        if len(inputs) <= 2:
            return self.module(**named, **further, **keywords)
        order = list(inspect.signature(self.module.forward).parameters)
        named |= further
        return self.module(*[named[p] for p in order if p in named], *inputs[2:], **keywords)


class Unadjusted:
    """Logit adjustment, for equal counts of as many classes as the logits turn out to have."""

    def __init__(self, **options):
        self.options, self.axis = options, options.get("class_dim", 1)
        self.module = self.of(3)

    def of(self, num_classes):
        return lossary.LogitAdjustmentLoss([1.0] * num_classes, **self.options)

    def __call__(self, *inputs, **keywords):
        logits = keywords.get("logits", inputs[0] if inputs else None)
        shape = getattr(logits, "shape", ())
        axis = 0 if len(shape) == 1 else self.axis
        if -len(shape) <= axis < len(shape) and shape[axis] >= 2:
            self.module = self.of(shape[axis])
        return self.module(*inputs, **keywords)


def _adapted(loss):
    if loss is lossary.LogitAdjustmentLoss:
        Unadjusted.__name__ = loss.__name__
        return Unadjusted
    if loss.__name__ not in FURTHER:
        return loss

    def build(**options):
        module = loss(**NEEDS.get(loss.__name__, {}), **options)
        return Called(module, FURTHER[loss.__name__], NAMES.get(loss.__name__, {}))

    build.__name__ = loss.__name__
    return build


CLASSES = [
    loss
    for loss in (getattr(lossary, name) for name in lossary.__all__)
    if isinstance(loss, type)
    and issubclass(loss, lossary.ClassificationLoss)
    and hasattr(loss, "per_sample")
]
LOSSES = [_adapted(loss) for loss in CLASSES]
INDICES_ONLY = {"ALDRKLLoss"}
#: Losses that can do without a target.
OPTIONAL = {("target_missing", "LogitZRegularizer")}
CASES = [
    *(
        (row, loss)
        for row in bad_input.COMMON
        for loss in LOSSES
        if (row.id, loss.__name__) not in OPTIONAL
    ),
    *((row, row.loss) for row in bad_input.FAMILIES),
]
every_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
every_soft_loss = pytest.mark.parametrize(
    "loss",
    [loss for loss in LOSSES if loss.__name__ not in INDICES_ONLY],
    ids=lambda loss: loss.__name__,
)


def _targets(loss):
    return (TARGET,) if loss.__name__ in INDICES_ONLY else (TARGET, PROBABILITIES)


def _id(case):
    row, loss = case
    return row.id if row.loss else f"{loss.__name__}-{row.id}"


@pytest.mark.parametrize(("row", "loss"), [pytest.param(*c, id=_id(c)) for c in CASES])
def test_is_refused(row, loss):
    if row.inputs is None:
        with pytest.raises(row.error) as caught:
            loss(**row.options)
    else:
        module = loss(**row.options)  # the mistake is in the call: this must work
        with pytest.raises(row.error) as caught:
            module(*row.inputs, **row.keywords)
    message = str(caught.value)
    # A subclass, UnicodeError for ValueError say, would not be ours.
    assert type(caught.value) is row.error
    if row.argument is not None:
        argument = NAMES.get(loss.__name__, {}).get(row.argument, row.argument)
        assert re.match(rf"{re.escape(argument)}: .+, got .+", message, re.DOTALL), message
    for fragment in row.says:
        assert fragment in message


def test_row_ids_are_unique():
    ids = [_id(case) for case in CASES]
    assert len(set(ids)) == len(ids)


def test_losses_without_rows_of_their_own_inherit_the_common_ones():
    assert {lossary.CompSumLoss, lossary.LDRKLLoss, lossary.ALDRKLLoss} <= set(CLASSES)
    assert lossary.ClassificationLoss not in CLASSES


@pytest.mark.parametrize("name", sorted(INDICES_ONLY))
def test_probabilities_are_refused_where_they_mean_nothing(name):
    (loss,) = [loss for loss in LOSSES if loss.__name__ == name]
    with pytest.raises(TypeError, match=r"target: expected integer class indices, got class prob"):
        loss()(LOGITS, PROBABILITIES)


@every_loss
@pytest.mark.parametrize("argument", ["weight", "normalizer"])
def test_good_input_of_the_table_is_accepted(loss, argument):
    # The rows differ from this call in one thing, which is then what they are refused for.
    value = {"weight": torch.ones(len(TARGET)), "normalizer": 4.0}[argument]
    for target in _targets(loss):
        plain = loss()(LOGITS, target)
        assert torch.isfinite(plain)
        torch.testing.assert_close(loss()(LOGITS, target, **{argument: value}), plain)


# Valid but unusual.


def _values(loss, logits, target, **options):
    return loss(reduction="none", **options)(logits, target)


@every_loss
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16])
def test_any_integer_dtype_of_the_target(loss, dtype):
    expected = _values(loss, LOGITS, TARGET)
    torch.testing.assert_close(_values(loss, LOGITS, TARGET.to(dtype)), expected, rtol=0, atol=0)


@every_loss
def test_uint8_target_with_ignore_index_255(loss):
    target = torch.tensor([0, 255, 2, 255], dtype=torch.uint8)
    out = loss(ignore_index=255)(LOGITS, target)
    torch.testing.assert_close(out, loss()(LOGITS[[0, 2]], torch.tensor([0, 2])))


@every_loss
@pytest.mark.parametrize("class_dim", [1, 0, -1])
def test_one_row_of_logits(loss, class_dim):
    out = loss(class_dim=class_dim)(LOGITS[0], TARGET[0])
    assert out.shape == ()
    torch.testing.assert_close(out, loss()(LOGITS[:1], TARGET[:1]))
    for target in _targets(loss):
        soft = loss(class_dim=class_dim)(LOGITS[0], target[0])
        torch.testing.assert_close(soft, loss()(LOGITS[:1], target[:1]))


@every_loss
@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "batchmean"])
def test_class_weight_of_one_row(loss, reduction):
    class_weight = torch.tensor([0.5, 2.0, 3.0])
    for target in _targets(loss):
        module, other = (loss(class_weight=class_weight, reduction=reduction) for _ in range(2))
        of_batch = other(LOGITS[:1], target[:1]).squeeze()
        torch.testing.assert_close(module(LOGITS[0], target[0]), of_batch)


@every_loss
def test_weight_of_one_row(loss):
    # The per-sample shape is (), as documented: the shape of the index target.
    out = loss(reduction="sum")(LOGITS[0], TARGET[0], weight=torch.tensor(3.0))
    torch.testing.assert_close(out, 3 * loss()(LOGITS[:1], TARGET[:1]))


@every_loss
@pytest.mark.parametrize("class_dim", [1, 0, 2, 3, -1, -2])
def test_any_class_axis(loss, class_dim):
    logits = torch.randn(2, 3, 4, 5)
    axis = class_dim % 4
    num_classes = logits.shape[axis]
    rows = logits.movedim(axis, -1)
    target = torch.randint(num_classes, rows.shape[:-1])
    expected = _values(loss, rows.reshape(-1, num_classes), target.reshape(-1)).view(target.shape)
    out = _values(loss, logits, target, class_dim=class_dim)
    torch.testing.assert_close(out, expected)
    if loss.__name__ in INDICES_ONLY:
        return
    q = torch.softmax(torch.randn(rows.shape), -1)
    expected = _values(loss, rows.reshape(-1, num_classes), q.reshape(-1, num_classes))
    out = _values(loss, logits, q.movedim(-1, axis), class_dim=class_dim)
    torch.testing.assert_close(out, expected.view(target.shape))


@every_loss
@pytest.mark.parametrize("ignored", [-100, -1, 0, 1, 2, 3, 255])
def test_ignore_index_leaves_the_entry_out(loss, ignored):
    # Inside [0, K) it takes a class away, as in cross_entropy; next to it nothing is taken.
    target = torch.tensor([0, 1, 2, ignored])
    kept = target != ignored
    logits = LOGITS.clone()
    logits[~kept] = torch.nan
    logits.requires_grad_()
    values = _values(loss, logits, target, ignore_index=ignored)
    assert (values[~kept] == 0).all()
    torch.testing.assert_close(values[kept], _values(loss, LOGITS[kept], target[kept]))
    out = loss(ignore_index=ignored)(logits, target)
    torch.testing.assert_close(out, loss()(LOGITS[kept], target[kept]))
    (gradient,) = torch.autograd.grad(out, logits)
    assert (gradient[~kept] == 0).all()
    alone = LOGITS[kept].requires_grad_()
    (expected,) = torch.autograd.grad(loss()(alone, target[kept]), alone)
    torch.testing.assert_close(gradient[kept], expected)


@every_loss
def test_reductions_and_class_weight(loss):
    class_weight = torch.tensor([0.5, 2.0, 3.0])
    weight = torch.tensor([1.0, 0.0, 2.0, 0.5])
    target = torch.tensor([2, 1, 0, 1])
    values = _values(loss, LOGITS, target)
    w = weight * class_weight[target]
    expected = {
        "none": w * values,
        "sum": (w * values).sum(),
        "mean": (w * values).sum() / w.sum(),
        "batchmean": (w * values).sum() / 3,
    }
    one_hot = torch.eye(3)[target]
    for reduction, value in expected.items():
        module = loss(class_weight=class_weight, reduction=reduction)
        torch.testing.assert_close(module(LOGITS, target, weight=weight), value)
        if loss.__name__ not in INDICES_ONLY:
            torch.testing.assert_close(module(LOGITS, one_hot, weight=weight), value)


@pytest.mark.parametrize("options", [{}, {"reduction": "sum"}, {"ignore_index": 2}])
@pytest.mark.parametrize("weighted", [False, True])
def test_options_mean_what_they_mean_in_cross_entropy(options, weighted):
    class_weight = torch.tensor([0.5, 2.0, 3.0]) if weighted else None
    out = lossary.CompSumLoss(class_weight=class_weight, **options)(LOGITS, TARGET)
    torch.testing.assert_close(out, cross_entropy(LOGITS, TARGET, class_weight, **options))
    if "ignore_index" not in options and not weighted:
        # For weighted probabilities the mean here divides by the weights, torch's by N.
        out = lossary.CompSumLoss(**options)(LOGITS, PROBABILITIES)
        torch.testing.assert_close(out, cross_entropy(LOGITS, PROBABILITIES, **options))


@every_soft_loss
def test_probability_rows_left_out_are_not_checked(loss):
    q = PROBABILITIES.clone()
    q[1] = torch.nan
    kept = torch.tensor([True, False, True, True])
    torch.testing.assert_close(
        loss()(LOGITS, q, weight=kept), loss()(LOGITS[kept], PROBABILITIES[kept])
    )


@every_soft_loss
def test_half_precision_probabilities_need_not_sum_to_1_exactly(loss):
    q = torch.softmax(torch.randn(5, 1000), 1)
    logits = torch.randn(5, 1000)
    half = q.bfloat16()
    assert (half.double().sum(1) - 1).abs().max() > 1e-6
    torch.testing.assert_close(loss()(logits, half), loss()(logits, q), rtol=2e-2, atol=2e-2)


@every_loss
def test_inputs_by_name(loss):
    out = loss()(target=TARGET, logits=LOGITS, normalizer=None, weight=None)
    torch.testing.assert_close(out, loss()(LOGITS, TARGET), rtol=0, atol=0)


@every_loss
def test_normalizer_may_be_a_tensor_or_negative(loss):
    total = loss(reduction="sum")(LOGITS, TARGET)
    for normalizer in (5, 5.0, torch.tensor(5.0), torch.tensor(5)):
        torch.testing.assert_close(loss()(LOGITS, TARGET, normalizer=normalizer), total / 5)
    torch.testing.assert_close(loss()(LOGITS, TARGET, normalizer=-2.0), total / -2)


@every_loss
def test_empty_batch(loss):
    logits = torch.zeros(0, 3, requires_grad=True)
    for target in (torch.zeros(0, dtype=torch.long), torch.zeros(0, 3))[: len(_targets(loss))]:
        out = loss()(logits, target)
        assert out.item() == 0.0
        (gradient,) = torch.autograd.grad(out, logits)
        assert gradient.shape == (0, 3)
