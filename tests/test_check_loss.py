"""check_loss passes good losses and names what is wrong with broken ones.

Each check is made to fail by a loss that is broken in one way; a test below holds that none is
left out. Where the set of failures is given in full, nothing else may fail.
"""

import copy
import math
import pickle
import re

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import nn
from torch.autograd import Function

from cases import REMEMBERED, indexed, labels
from lossary import (
    ClassificationLoss,
    CompSumLoss,
    GeneralizedCrossEntropyLoss,
    LDRKLLoss,
    Loss,
    MulticlassMAELoss,
    Properties,
    SymmetricCrossEntropyLoss,
    testing,
)
from lossary._numerics import softplus
from lossary._state import PerSampleState
from lossary.testing import CHECKS, LossCheckError, check_loss


def pairs(n, dtype, generator):
    return tuple(torch.randn(2, n, 3, dtype=dtype, generator=generator))


def found(loss, inputs=pairs, **options):
    """Return the failures of a loss, without the check of torch.compile."""
    try:
        check_loss(loss, inputs, **{"compile": False, **options})
    except LossCheckError as error:
        return error.failures
    return {}


# Good losses.


def wide(*xs):
    return [x.float() if x.dtype in (torch.float16, torch.bfloat16) else x for x in xs]


def squared(x, y):
    x, y = wide(x, y)
    return (x - y).square().sum(-1)


class MeanSquared(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x, y):
        return squared(x, y).sum() / max(len(x), 1) * self.scale


class NothingCounts(Loss):
    separable = False

    def per_sample(self, x, y):
        values = 0.0 * (x - y).square().sum(-1)
        return values, torch.zeros_like(values)


def test_where_nothing_counts_the_mean_is_0():
    assert not found(NothingCounts()).keys() & {"reductions", "weights"}


class Squared(Loss):
    def per_sample(self, x, y):
        return (x - y).square().sum(-1)

    def properties(self):
        away = ((1.0, 0.0, 0.0), (0.0, 0.0, 0.0))
        return Properties(
            convex=True,
            lower=0.0,
            upper=math.inf,
            lipschitz=math.inf,
            smoothness=math.inf,
            counterexamples={"upper": away, "lipschitz": away},
        )


class Saturating(Loss):
    """One number per batch, bounded, not convex."""

    def per_sample(self, x):
        total = x.square().sum()
        return total / (1.0 + total)

    def properties(self):
        return Properties(
            convex=False,
            lower=0.0,
            upper=1.0,
            lipschitz=0.65,
            smoothness=math.inf,
            counterexamples={"convex": ((1.0, 0.0, 0.0), (3.0, 0.0, 0.0))},
        )


class Centred(Loss):
    """Batch-coupled: every sample against the mean of the batch."""

    separable = False

    def per_sample(self, x, y):
        d = x - y
        return (d - d.mean(0)).square().sum(-1) if len(d) else d.sum(-1)

    def properties(self):
        return Properties(convex=True, lower=0.0)


class Masked(Loss):
    """Samples far away are left out of the mean, by a denominator of 0."""

    def per_sample(self, x, y):
        values = (x - y).square().sum(-1)
        near = (values < 8.0).to(values.dtype)
        return values * near, near


class Hinge(ClassificationLoss):
    """A class-target loss with no claims but its kink."""

    def per_sample(self, logits, target):
        return torch.relu(1.0 + self.log_odds(logits, target))

    def properties(self, num_classes=10):
        return Properties(smoothness=0)


class Remembering(ClassificationLoss, PerSampleState):
    """Cross-entropy, weighted by what it was for the sample so far."""

    def __init__(self):
        super().__init__()
        self._add_state("mean", REMEMBERED, 1.0)

    def per_sample(self, logits, target, index, update=True):
        axis = self._class_axis(logits)
        values = softplus(self.log_odds(logits, target))
        index, present = self._samples(index, logits.select(axis, 0), target)
        mean = self._stored("mean", index, values.dtype)
        if target is not None and self._updates(update, logits):
            mean = self.renewed(mean, values.detach(), index, present)
        return values / (1.0 + (mean if target is not None else mean.unsqueeze(axis)))

    def renewed(self, mean, values, index, present):
        return self._store("mean", index, 0.5 * mean + 0.5 * values, present)

    def expected(self, *inputs):
        raise TypeError("target: expected class indices, got probabilities")


def cross_entropy(logits, target):
    (logits,) = wide(logits)
    chosen = logits.gather(1, target.unsqueeze(1)).squeeze(1)
    return logits.logsumexp(1) - chosen


#: What is true of cross-entropy, and the same of a plain function.
CROSS_ENTROPY = CompSumLoss().properties(5)


@pytest.mark.parametrize(
    ("loss", "inputs"),
    [
        (squared, pairs),
        (MeanSquared(), pairs),
        (Squared(), pairs),
        (Squared(reduction="batchmean"), pairs),
        (Saturating(), lambda *args: pairs(*args)[:1]),
        (Centred(), pairs),
        (Masked(), pairs),
        (Hinge(), labels),
        (Remembering(), indexed(labels)),
    ],
)
def test_good_losses_pass(loss, inputs):
    check_loss(loss, inputs)


def test_a_plain_function_may_claim_what_a_class_target_loss_may():
    check_loss(cross_entropy, labels, properties=CROSS_ENTROPY, compile=False)


# Losses that are broken in one way.


def detached(x, y):
    return squared(x, y).detach()


def raises(x, y):
    raise RuntimeError("no kernel for this")


def nan_everywhere(x, y):
    return squared(x, y) + math.nan


def returns_a_float(x, y):
    return float(squared(x, y).sum())


def infinite_slope(x, y):
    return squared(x, y) + (x - x).square().sum(-1).sqrt()


def wrong_gradient(x, y):
    value = squared(x, y)
    return 1.5 * value - 0.5 * value.detach()


def wrong_second_derivative(x, y):
    return squared(x, y) - 0.5 * (x - x.detach()).square().sum(-1)


class Backward(Function):
    """The squared distance by hand, with neither jvp nor vmap."""

    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return (x - y).square().sum(-1)

    @staticmethod
    def backward(ctx, g):
        x, y = ctx.saved_tensors
        slope = 2.0 * g.unsqueeze(-1) * (x - y)
        return slope, -slope


class ForwardOnce(Function):
    """As torch's documentation has it, and yet wrong under nested forward mode."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, y):
        return (x - y).square().sum(-1)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, g):
        x, y = ctx.saved_tensors
        slope = 2.0 * g.unsqueeze(-1) * (x - y)
        return slope, -slope

    @staticmethod
    def jvp(ctx, dx, dy):
        x, y = ctx.saved_tensors
        return (2.0 * (x - y) * (dx - dy)).sum(-1)


class BackwardInPlace(Backward):
    @staticmethod
    def backward(ctx, g):
        x, y = ctx.saved_tensors
        slope = (2.0 * (x - y)).mul_(g.unsqueeze(-1))
        return slope, -slope


class Lost(Backward):
    """A backward that has lost its factor of 2."""

    @staticmethod
    def backward(ctx, g):
        x, y = ctx.saved_tensors
        slope = g.unsqueeze(-1) * (x - y)
        return slope, -slope


def by_hand(x, y):
    return Backward.apply(*wide(x, y))


def forward_once(x, y):
    return ForwardOnce.apply(*wide(x, y))


def by_hand_in_place(x, y):
    return BackwardInPlace.apply(*wide(x, y))


def lost_half(x, y):
    return Lost.apply(*wide(x, y))


@torch.compiler.disable
def uncompiled(x):
    return x * 1.0


def graph_break(x, y):
    return uncompiled(squared(x, y))


def host_sync(x, y):
    value = squared(x, y)
    return value * 2.0 if value.sum().item() > 1e3 else value


def boolean_indexing(x, y):
    value = squared(x, y)
    return value[value > 0.0].sum()


def always_float32(x, y):
    return (x.float() - y.float()).square().sum(-1)


def float32_inside(x, y):
    value = always_float32(x, y)
    return value.double() if x.dtype == torch.float64 else value


def always_float64(x, y):
    return (x.double() - y.double()).square().sum(-1)


def stays_half(x, y):
    return (x - y).square().sum()


def loses_half_digits(x, y):
    if x.dtype in (torch.float16, torch.bfloat16):
        return (x - y).float().square().sum(-1)
    return squared(x, y)


def distance(x, y):
    return squared(x, y).sqrt()


def overflows(x, y):
    value = squared(x, y)
    return torch.where(value > 80.0, value, torch.log1p(value.exp())) - math.log(2.0)


def mean_of_nothing(x, y):
    return squared(x, y).mean()


def detached_zero(x, y):
    return squared(x, y).mean() if len(x) else x.new_zeros(())


def flattens_memory(x, y):
    x, y = wide(x, y)
    return (x.view(-1) - y.view(-1)).square().sum()


def touches_its_input(x, y):
    x.detach().mul_(1.0)
    return squared(x, y)


def masks_its_target(logits, target):
    target.masked_fill_(target < 0, 0)
    return cross_entropy(logits, target)


def saved_output(x, y):
    return torch.tanh(squared(x, y).sum())


class PlainTensor(MeanSquared):
    def __init__(self):
        super().__init__()
        self.running = torch.tensor(1.0)


class ForgetfulState(MeanSquared):
    def _load_from_state_dict(self, *args):
        pass


class WithLambda(MeanSquared):
    def __init__(self):
        super().__init__()
        self.transform = lambda x: x


class ForgetfulCopy(MeanSquared):
    def __setstate__(self, state):
        super().__setstate__(state)
        self.scale = torch.tensor(1.0)


class MeanIsSum(Squared):
    def _reduce(self, values, weight, denominators, normalizer):
        if self.reduction == "mean" and weight is None and normalizer is None:
            return values.sum()
        return super()._reduce(values, weight, denominators, normalizer)


class DividesByN(Squared):
    def _reduce(self, values, weight, denominators, normalizer):
        if self.reduction == "mean" and weight is not None and normalizer is None:
            return (values * weight).sum() / max(values.numel(), 1)
        return super()._reduce(values, weight, denominators, normalizer)


class DetachesWeights(Squared):
    def _reduce(self, values, weight, denominators, normalizer):
        weight = None if weight is None else weight.detach()
        return super()._reduce(values, weight, denominators, normalizer)


class ZeroOverZero(Squared):
    def _reduce(self, values, weight, denominators, normalizer):
        if self.reduction == "mean" and weight is not None and normalizer is None:
            return (values * weight).sum() / weight.expand_as(values).sum()
        return super()._reduce(values, weight, denominators, normalizer)


class DetachedZero(Squared):
    def _reduce(self, values, weight, denominators, normalizer):
        if weight is not None and bool((weight == 0).all()) and self.reduction != "none":
            return values.new_zeros(())
        return super()._reduce(values, weight, denominators, normalizer)


class MultipliesNan(Squared):
    """Masks by multiplication, after the formula."""

    def _evaluate(self, inputs, weight, normalizer):
        values = self.per_sample(*wide(*inputs))
        weight = None if weight is None else weight.to(values.dtype)
        return self._reduce(values, weight, None, normalizer)


class CoupledUnawares(Centred):
    separable = True


class BroadcastsWeights(Squared):
    def _evaluate(self, inputs, weight, normalizer):
        if weight is not None and weight.dim() == 2:
            return (self.per_sample(*inputs) * weight).sum()
        return super()._evaluate(inputs, weight, normalizer)


class IgnoresNormalizer(Squared):
    def _reduce(self, values, weight, denominators, normalizer):
        if self.reduction != "none":
            normalizer = None
        return super()._reduce(values, weight, denominators, normalizer)


class CrossEntropy(ClassificationLoss):
    def per_sample(self, logits, target):
        return nn.functional.softplus(self.log_odds(logits, target), 1.0, 40.0)


class MarginOnlyForIndices(CrossEntropy):
    def per_sample(self, logits, target):
        return super().per_sample(logits, target) + (0.0 if target is None else 1.0)


class TwiceTheExpectation(CrossEntropy):
    """Counts a distribution double."""

    def expected(self, logits, probabilities, mass):
        return super().expected(logits, probabilities, 2.0 * mass)


class SoftWithoutClassWeight(CrossEntropy):
    """Forgets the class weights where the target is a distribution."""

    def expected(self, logits, probabilities, mass):
        return super().expected(logits, probabilities, probabilities)


#: loss, inputs, the failures that must be among those found, and whether there may be others.
class RemembersInEvaluation(Remembering):
    def train(self, mode=True):
        return super().train(True)


class RemembersWithoutGradients(Remembering):
    def _updates(self, update, x):
        with torch.enable_grad():
            return super()._updates(update, x)


class RemembersUnderTransforms(Remembering):
    def _updates(self, update, x):
        return update and self.training and torch.is_grad_enabled()


class RemembersAgainstAdvice(Remembering):
    def _updates(self, update, x):
        return super()._updates(True, x)


class RemembersTheAbsent(Remembering):
    def renewed(self, mean, values, index, present):
        return super().renewed(mean, values, index, torch.ones_like(present))


class RemembersTheLast(Remembering):
    def renewed(self, mean, values, index, present):
        new = torch.where(present, 0.5 * mean + 0.5 * values, mean)
        self.mean.scatter_(0, index, new.to(self.mean.dtype))
        return new


class CountsOutsideOfTheState(Remembering):
    calls = 0

    def renewed(self, mean, values, index, present):
        self.calls += 1
        return super().renewed(mean / self.calls, values, index, present)


class ForgetsToForget(Remembering):
    def reset(self):
        pass


class LooksWhileItLearns(Remembering):
    def renewed(self, mean, values, index, present):
        if float(values.sum()) > 1e9:
            values = torch.zeros_like(values)
        return super().renewed(mean, values, index, present)


class LearnsUncompiled(Remembering):
    def _updates(self, update, x):
        return not torch.compiler.is_compiling() and super()._updates(update, x)


remembered = indexed(labels)
BROKEN = [
    (RemembersInEvaluation(), remembered, {"state_inert"}, True),
    (RemembersWithoutGradients(), remembered, {"state_inert"}, False),
    (RemembersUnderTransforms(), remembered, {"state_inert"}, False),
    (RemembersAgainstAdvice(), remembered, {"state_inert"}, False),
    (RemembersTheAbsent(), remembered, {"state_absent"}, False),
    (RemembersTheLast(), remembered, {"state_order"}, True),
    (CountsOutsideOfTheState(), remembered, {"state_resumed"}, False),
    (ForgetsToForget(), remembered, {"state_reset"}, False),
    (LooksWhileItLearns(), remembered, {"state_no_host_sync"}, False),
    (LearnsUncompiled(), remembered, {"state_compiled"}, False),
    (detached, pairs, {"runs"}, False),
    (raises, pairs, {"runs"}, False),
    (nan_everywhere, pairs, {"runs"}, False),
    (returns_a_float, pairs, {"runs"}, False),
    (infinite_slope, pairs, {"finite_gradient", "gradcheck", "extremes"}, True),
    (wrong_gradient, pairs, {"gradcheck", "forward_mode"}, False),
    (wrong_second_derivative, pairs, {"gradgradcheck", "forward_mode"}, False),
    (lost_half, pairs, {"gradcheck", "forward_mode", "vmap_grad"}, False),
    (by_hand, pairs, {"forward_mode", "vmap_grad"}, False),
    (forward_once, pairs, {"forward_mode"}, False),
    (by_hand_in_place, pairs, {"batched_grad", "forward_mode", "vmap_grad"}, False),
    (graph_break, pairs, {"compile_fullgraph"}, False),
    (host_sync, pairs, {"no_host_sync", "vmap_grad"}, False),
    (boolean_indexing, pairs, {"no_host_sync", "vmap_grad"}, False),
    (always_float32, pairs, {"dtype", "gradcheck"}, True),
    (float32_inside, pairs, {"dtype", "gradcheck"}, True),
    (always_float64, pairs, {"dtype", "half_precision"}, False),
    (stays_half, pairs, {"half_precision"}, False),
    (loses_half_digits, pairs, {"half_precision"}, False),
    (distance, pairs, {"extremes", "scaled_in_place"}, False),
    (overflows, pairs, {"extremes"}, False),
    (mean_of_nothing, pairs, {"empty_batch"}, False),
    (detached_zero, pairs, {"empty_batch"}, False),
    (flattens_memory, pairs, {"non_contiguous"}, False),
    (touches_its_input, pairs, {"not_mutated"}, False),
    (masks_its_target, labels, {"not_mutated"}, True),
    (saved_output, pairs, {"scaled_in_place"}, False),
    (PlainTensor(), pairs, {"state_dict"}, False),
    (ForgetfulState(), pairs, {"state_dict"}, False),
    (WithLambda(), pairs, {"pickle"}, False),
    (ForgetfulCopy(), pairs, {"pickle"}, False),
    (MeanIsSum(), pairs, {"reductions"}, False),
    (DividesByN(), pairs, {"weights", "weight_zero"}, False),
    (DetachesWeights(), pairs, {"weights"}, False),
    (ZeroOverZero(), pairs, {"attached_zero"}, False),
    (DetachedZero(), pairs, {"attached_zero"}, False),
    (MultipliesNan(), pairs, {"attached_zero", "weight_zero", "weight_shape"}, False),
    (CoupledUnawares(), pairs, {"weight_zero", "normalizer"}, False),
    (BroadcastsWeights(), pairs, {"weight_shape"}, False),
    (IgnoresNormalizer(), pairs, {"normalizer"}, False),
    (MarginOnlyForIndices(), labels, {"class_targets"}, False),
    (SoftWithoutClassWeight(), labels, {"class_targets"}, False),
    (TwiceTheExpectation(), labels, {"class_targets"}, False),
]


@pytest.mark.parametrize(
    ("loss", "inputs", "expected", "more"),
    BROKEN,
    ids=[getattr(loss, "__name__", type(loss).__name__) for loss, *_ in BROKEN],
)
def test_a_broken_loss_fails(loss, inputs, expected, more):
    compile = bool(expected & {"compile_fullgraph", "state_compiled"})
    failures = found(loss, inputs, compile=compile)
    assert failures.keys() >= expected if more else failures.keys() == expected


# False claims, each about a loss that is sound otherwise.


class Swapped(ClassificationLoss):
    """Rewards the wrong class: a sign slip."""

    def per_sample(self, logits, target):
        return torch.sigmoid(-self.log_odds(logits, target))


class OneVersusNone(ClassificationLoss):
    """Looks at the target's logit alone."""

    def per_sample(self, logits, target):
        logits = wide(logits)[0]
        axis = self._class_axis(logits)
        if target is not None:
            j = target.clamp(min=0).unsqueeze(axis)
            logits = torch.where((target < 0).unsqueeze(axis), 0.0, logits).gather(axis, j)
            logits = logits.squeeze(axis)
        return nn.functional.softplus(-logits, 1.0, 40.0)


def claim(loss, example=None, **facts):
    """Return a loss with a claim about it, and the claim's name."""
    name = next(iter(facts))
    check = "bounds" if name in ("lower", "upper") else name
    examples = {} if example is None else {name: example}
    return loss, Properties(**facts, counterexamples=examples), f"property:{check}"


ce, mae, q = CompSumLoss(), MulticlassMAELoss(), (0.5, 0.3, 0.2)
log_q = tuple(math.log(x) for x in q)
row, other = (0.0, 0.0, 0.0), (3.0, 0.0, -1.0)

CLAIMS = {
    "convex": claim(mae, convex=True),
    "convex, subtly not": claim(GeneralizedCrossEntropyLoss(0.01), convex=True),
    "not convex, without example": claim(ce, convex=False),
    "not convex, without point": claim(ce, (row, other, 0), convex=False),
    "upper exceeded": claim(ce, upper=5.0),
    "upper exceeded by little": claim(mae, upper=0.99),
    "upper never reached": claim(mae, upper=2.0),
    "lower exceeded": claim(LDRKLLoss(), lower=0.0),
    "lower never reached": claim(ce, lower=-0.1),
    "upper infinite, without example": claim(ce, upper=math.inf),
    "upper infinite, bounded": claim(mae, ((-1.0, 0.0, 0.0), 0), upper=math.inf),
    "lower infinite, bounded": claim(ce, ((1.0, 0.0, 0.0), 0), lower=-math.inf),
    "lipschitz": claim(ce, lipschitz=1.4),
    "lipschitz infinite": claim(ce, ((-1.0, 0.0, 0.0), 0), lipschitz=math.inf),
    "smooth": claim(LDRKLLoss(0.0), smoothness=math.inf),
    "once differentiable": claim(Hinge(), smoothness=1),
    "a kink that is none": claim(ce, smoothness=0),
    "symmetric": claim(ce, symmetric=True),
    "symmetric, nearly": claim(GeneralizedCrossEntropyLoss(0.99), symmetric=True),
    "symmetric, other constant": claim(mae, symmetric=True, class_sum=5.0),
    "not symmetric, without example": claim(mae, symmetric=False),
    "not symmetric, without point": claim(mae, (row, other), symmetric=False),
    "shift_invariant": claim(OneVersusNone(), shift_invariant=True),
    "not shift_invariant, without point": claim(ce, (other, 5.0), shift_invariant=False),
    "calibrated, wrong class": claim(Swapped(), calibrated=True),
    "calibrated, ties": claim(LDRKLLoss(0.0), calibrated=True),
    "calibrated, without end": claim(LDRKLLoss(math.inf), calibrated=True),
    "not calibrated, without example": claim(ce, calibrated=False),
    "not calibrated, but right": claim(ce, (q, log_q), calibrated=False),
    "not calibrated, not minimal": claim(ce, (q, row), calibrated=False),
    "not calibrated, not unbounded": claim(
        ce, ((0.5, 0.3, 0.2), (9.0, 10.0, -100.0)), calibrated=False, lower=-math.inf
    ),
    "rank_consistent, only the top": claim(mae, rank_consistent=True),
    "rank_consistent, wrong class": claim(Swapped(), rank_consistent=True),
    "not rank_consistent, but right": claim(ce, (q, log_q), rank_consistent=False),
    "not rank_consistent, not minimal": claim(ce, (q, row), rank_consistent=False),
    "proper, too sharp": claim(GeneralizedCrossEntropyLoss(0.3), proper=True),
    "proper, a little too sharp": claim(SymmetricCrossEntropyLoss(1.0, 0.01), proper=True),
    "proper, with a margin": claim(LDRKLLoss(), proper=True),
    "not proper, without point": claim(ce, (q, other), proper=False),
    "not proper, without example": claim(ce, proper=False),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_a_false_claim_fails(name):
    loss, properties, check = CLAIMS[name]
    rest = set(CHECKS) - {"runs", check}
    assert found(loss, labels, properties=properties, exclude=rest).keys() == {check}


def test_a_lost_half_breaks_the_claims():
    class Half(MulticlassMAELoss):
        def per_sample(self, logits, target):
            return super().per_sample(logits, target) / 2

    assert found(Half(), labels, exclude=["pickle"]).keys() == {
        "property:bounds",
        "property:symmetric",
    }


def test_claims_about_classes_need_classes():
    failures = found(squared, properties=Properties(calibrated=True, symmetric=False))
    assert failures.keys() == {"property:calibrated", "property:symmetric"}


def test_every_check_is_made_to_fail_above():
    failed = {name for _, _, names, _ in BROKEN for name in names}
    failed |= {check for _, _, check in CLAIMS.values()}
    assert failed == set(CHECKS)


# What the report says, and what is left as it was.


def test_the_report_names_every_failure_with_its_rule_and_numbers():
    with pytest.raises(LossCheckError) as caught:
        check_loss(WithLambda(), pairs, properties=Properties(upper=5.0), compile=False)
    error = caught.value
    assert set(error.failures) == {"pickle", "property:bounds"}
    assert re.match(r"WithLambda\(\): 2 of \d+ checks failed\n\npickle: Copies by ", str(error))
    assert "upper = 5, but it reaches" in error.failures["property:bounds"]


def test_a_crash_is_a_failure_with_its_text():
    assert "RuntimeError: no kernel for this" in found(raises)["runs"]


def test_a_host_sync_is_called_by_its_name():
    assert "Host sync or data-dependent control flow" in found(host_sync)["no_host_sync"]


def test_excluded_checks_do_not_run():
    assert found(distance, exclude=["extremes", "scaled_in_place"]) == {}
    assert found(graph_break, exclude=["compile_fullgraph"], compile=True) == {}
    with pytest.raises(ValueError, match=r"exclude: unknown \['extreme'\]"):
        check_loss(squared, pairs, exclude=["extreme"])


@pytest.mark.parametrize("inputs", [lambda *_: [torch.ones(4)], lambda *_: (torch.ones(4), 1)])
def test_inputs_must_be_a_tuple_of_tensors(inputs):
    with pytest.raises(TypeError, match="inputs: expected a tuple of tensors"):
        check_loss(squared, inputs)


def test_some_input_must_be_floating_point():
    with pytest.raises(ValueError, match="inputs: expected at least one floating-point tensor"):
        check_loss(lambda y: y.sum(), lambda n, *_: (torch.arange(n),))


def test_differentiable_limits_what_is_differentiated_and_scaled():
    def one_sided(x, y):
        return squared(x, y) + (y.detach() * 0.0).sum()

    def halfway(x, y):
        return squared(x, y.detach() + (y - y.detach()) * 0.5)

    assert found(one_sided) == {}
    assert "gradcheck" in found(halfway)
    assert found(halfway, differentiable=[0]) == {}


def test_nothing_is_left_behind():
    torch.set_num_threads(2)
    loss = MeanSquared()
    before = copy.deepcopy(loss.state_dict())
    state = torch.get_rng_state()
    check_loss(loss, pairs, compile=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert threads == 2
    assert torch.equal(torch.get_rng_state(), state)
    assert loss.state_dict().keys() == before.keys()
    assert all(torch.equal(x, before[name]) for name, x in loss.state_dict().items())


def test_the_error_can_be_pickled_and_caught_as_an_assertion():
    error = LossCheckError("MyLoss()", {"gradcheck": "Off by 2."}, 20)
    assert isinstance(error, AssertionError)
    error = pickle.loads(pickle.dumps(error))
    assert error.failures == {"gradcheck": "Off by 2."}
    assert str(error) == "MyLoss(): 1 of 20 checks failed\n\ngradcheck: Off by 2."


@pytest.mark.parametrize(
    "loss",
    [
        CompSumLoss(0.0),
        CompSumLoss(1.0),
        CompSumLoss(1.7),
        CompSumLoss(2.0),
        LDRKLLoss(0.5),
        LDRKLLoss(10.0),
        SymmetricCrossEntropyLoss(),
    ],
    ids=repr,
)
def test_the_least_risk_is_no_greater_than_what_scipy_finds(loss):
    subject = testing._subject(loss, labels, None, None)
    q = testing._distributions(5)[:2]
    _, least = testing._minimise(subject, q)

    def risk(f, row):
        x = torch.from_numpy(f).unsqueeze(0).requires_grad_()
        value = testing._risk(subject, x, row.unsqueeze(0))
        value.backward()
        return value.item(), x.grad.squeeze(0).numpy()

    for row, value in zip(q, least, strict=True):
        starts = (np.zeros(5), np.eye(5)[int(row.argmax())] * 8.0)
        bounds = [(-60.0, 60.0)] * 5
        runs = [
            scipy.optimize.minimize(
                risk, x, row, "L-BFGS-B", jac=True, bounds=bounds, options={"maxiter": 100}
            )
            for x in starts
        ]
        assert float(value) <= min(run.fun for run in runs) + 1e-9
