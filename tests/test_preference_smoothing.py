"""Labels that may be wrong, each with a probability of its own."""

import inspect
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lossary
from lossary import (
    AOTLoss,
    APOLoss,
    BCOPairLoss,
    CPOLoss,
    DiscoPOPLoss,
    DPOLoss,
    DPOPLoss,
    EXOLoss,
    HingePreferenceLoss,
    IPOLoss,
    LogicPreferenceLoss,
    NCALoss,
    ORPOLoss,
    PairwisePreferenceLoss,
    RDPOLengthLoss,
    RobustDPOLoss,
    RPOLoss,
    SimPOLoss,
    SPPOLoss,
    SRPOLoss,
)
from test_preference import F32, F64, INF, NAN, N, answers, close, each, gradients, of_z

EPS = torch.tensor([0.0, 0.1, 0.25, 0.4, 0.45, 0.3], dtype=F64)
#: The loss, whether it takes a reference, how many lengths, and the weight of its likelihood term.
MIXED = {
    "dpo": (DPOLoss(0.7), True, 0, 0.0),
    "dpo js": (DPOLoss(0.7, 0.0, "js"), True, 0, 0.0),
    "dpo lengths": (DPOLoss(5.0, 0.0, "forward_kl", length_normalize=True), True, 2, 0.0),
    "rpo": (RPOLoss(0.7, 0.3), True, 0, 0.21),
    "ipo": (IPOLoss(0.7), True, 0, 0.0),
    "ipo lengths": (IPOLoss(0.7, length_normalize=True), True, 2, 0.0),
    "slic": (HingePreferenceLoss(1.0, 0.5, 0.3), True, 0, 0.3),
    "nca": (NCALoss(0.7), True, 0, 0.0),
    "bco": (BCOPairLoss(0.7, 0.4), True, 0, 0.0),
    "apo zero": (APOLoss(0.7), True, 0, 0.0),
    "apo down": (APOLoss(0.7, "down"), True, 0, 0.0),
    "discopop": (DiscoPOPLoss(0.7, 0.4), True, 0, 0.0),
    "dpop": (DPOPLoss(0.7, 3.0), True, 0, 0.0),
    "rdpo": (RDPOLengthLoss(0.7), True, 2, 0.0),
    "cpo": (CPOLoss(0.7, 0.3), False, 0, 0.3),
    "cpo hinge": (CPOLoss(0.7, 0.0, "hinge"), False, 0, 0.0),
    "cpo ipo": (CPOLoss(0.7, 0.3, "ipo"), False, 0, 0.3),
    "simpo": (SimPOLoss(0.7, 0.0, 0.3), False, 0, 0.0),
    "simpo sums": (SimPOLoss(0.7, 0.0, average=False), False, 2, 0.0),
    "orpo": (ORPOLoss(0.7), False, 0, 1.0),
    "orpo sums": (ORPOLoss(0.7, "none", False), False, 2, 0.0),
    "logic": (LogicPreferenceLoss("c_cpo"), True, 0, 0.0),
    "logic sums": (LogicPreferenceLoss(average=False), True, 2, 0.0),
    "logic alone": (LogicPreferenceLoss("un_cpo"), False, 0, 0.0),
}
#: Where the smoothing is no mixture of both orders of the pair.
OTHERS = {
    "robust": (RobustDPOLoss(0.7, 0.2), True, 0, 0.0),
    "exo": (EXOLoss(0.7), True, 0, 0.0),
    "simpo margin": (SimPOLoss(0.7, 0.6), False, 0, 0.0),
}


def inputs_of(reference, lengths):
    """Inputs of a pair of answers by name, log-probabilities below 0."""
    *logps, n, m = answers(2.0)
    names = ("policy_chosen_logps", "policy_rejected_logps")
    names += ("reference_chosen_logps", "reference_rejected_logps") * reference
    given = {name: -x.abs() - 0.1 for name, x in zip(names, logps, strict=False)}
    return given | ({"chosen_lengths": n, "rejected_lengths": m} if lengths else {})


def exchanged(given):
    """The same pairs, labelled the other way round."""
    other = {"chosen": "rejected", "rejected": "chosen"}

    def rename(name):
        return "_".join(other.get(word, word) for word in name.split("_"))

    return {rename(name): x for name, x in given.items()}


def values(loss, given, **further):
    loss.reduction = "none"
    return loss(**given, **further)


@pytest.mark.parametrize("name", MIXED)
def test_the_mixture_of_both_orders_of_the_pair(name):
    loss, reference, lengths, nll = MIXED[name]
    given = inputs_of(reference, lengths)
    other = exchanged(given)
    # The likelihood of the answer that is called chosen is not part of the mixture.
    likelihood, others = (-nll * x["policy_chosen_logps"] for x in (given, other))
    right, wrong = values(loss, given) - likelihood, values(loss, other) - others
    found = values(loss, given, label_smoothing=EPS)
    close(found, (1 - EPS) * right + EPS * wrong + likelihood)
    # Exchanging the answers is exchanging eps and 1 - eps.
    back = values(loss, other, label_smoothing=1 - EPS)
    close(back - others, found - likelihood)
    # At 0 and 1 one of both orders alone.
    close(values(loss, given, label_smoothing=0 * EPS), right + likelihood)
    close(values(loss, given, label_smoothing=0 * EPS + 1), wrong + likelihood)


NUMBERS = {
    "dpo": (lambda e: DPOLoss(0.7, e), True),
    "dpo alpha": (lambda e: DPOLoss(0.7, e, "alpha", 0.3), True),
    "rpo": (lambda e: RPOLoss(0.7, 0.3, e), True),
    "robust": (lambda e: RobustDPOLoss(0.7, e), True),
    "exo": (lambda e: EXOLoss(0.7, e), True),
    "simpo": (lambda e: SimPOLoss(0.7, 0.6, 0.3, e), False),
    "cpo": (lambda e: CPOLoss(0.7, 0.3, label_smoothing=e), False),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_it_replaces_the_constructors_number(name):
    make, reference = NUMBERS[name]
    given = inputs_of(reference, 0)
    eps = EPS.clamp(min=0.05)
    found = values(make(0.15), given, label_smoothing=eps)
    for i, e in enumerate(eps.tolist()):
        close(found[i], values(make(e), given)[i])
    same = values(make(0.15), given, label_smoothing=torch.full_like(eps, 0.15))
    close(same, values(make(0.15), given))
    assert not torch.isclose(same, found).all()
    gs = (
        gradients(lambda *x, k=k: make(0.15)(*x, **k), *given.values())
        for k in ({}, {"label_smoothing": torch.full_like(eps, 0.15)})
    )
    close(*gs)


@pytest.mark.parametrize("name", MIXED | OTHERS)
def test_no_gradient_flows_to_it_and_half_precision_is_cast(name):
    loss, reference, lengths, _ = (MIXED | OTHERS)[name]
    given = inputs_of(reference, lengths)
    eps = EPS.clamp(min=0.05)
    leaf = eps.clone().requires_grad_()
    assert not values(loss, given, label_smoothing=leaf).requires_grad
    half = eps.bfloat16()
    found = values(loss, given, label_smoothing=half)
    assert found.dtype == F64
    close(found, values(loss, given, label_smoothing=half.double()))
    narrow = {k: x.float() if x.dtype == F64 else x for k, x in given.items()}
    assert values(loss, narrow, label_smoothing=eps).dtype == F32


@pytest.mark.parametrize("name", MIXED | OTHERS)
def test_what_is_not_there_is_not_looked_at(name):
    loss, reference, lengths, _ = (MIXED | OTHERS)[name]
    given = inputs_of(reference, lengths)
    kept = torch.arange(N) != 2
    eps = EPS.clamp(min=0.05)
    expected = values(loss, given, label_smoothing=eps, weight=kept)
    for wrong in (NAN, 0.0, 1.0, 7.0):
        lost = {k: x.masked_fill(~kept, NAN) for k, x in given.items() if x.dtype == F64}
        leaves = {k: x.requires_grad_() for k, x in lost.items()}
        spoiled = eps.masked_fill(~kept, wrong)
        found = values(loss, given | leaves, label_smoothing=spoiled, weight=kept)
        close(found, expected)
        for g in torch.autograd.grad(found.sum(), leaves.values()):
            assert g.isfinite().all()
            assert (g[~kept] == 0).all()


@pytest.mark.parametrize("name", [n for n in MIXED if "logic" not in n and "orpo" not in n])
def test_where_the_label_is_sure_an_impossible_answer_gives_what_it_gives_without(name):
    loss, reference, lengths, _ = MIXED[name]
    given = inputs_of(reference, lengths)
    # Where the label is surely wrong, it is the rejected answer that ought to be possible.
    given["policy_rejected_logps"][0] = given["policy_chosen_logps"][1] = -INF
    first, second = (given, exchanged(given))
    eps = torch.tensor([0.0, 1.0, 0.3, 0.3, 0.3, 0.3], dtype=F64)
    found = values(loss, given, label_smoothing=eps)
    plain = torch.stack((values(loss, first)[0], values(loss, second)[1]))
    if MIXED[name][3]:  # -log 0 of its own
        assert found[1] == INF
        found, plain = found[:1], plain[:1]
    close(found[: len(plain)], plain)

    def of_chosen(x):
        return values(loss, given | {"policy_chosen_logps": x}, label_smoothing=eps)

    slopes = gradients(of_chosen, given["policy_chosen_logps"])
    if not isinstance(loss, IPOLoss) and "ipo" not in name:  # inf - inf
        assert not slopes[0][[0, 2, 3, 4, 5]].isnan().any()


# Published uses.


@given(st.floats(-30, 30), st.floats(0, 1))
def test_cream_is_dpo_with_one_less_its_consistency(z, c):
    z, c = (torch.tensor([x], dtype=F64) for x in (z, c))
    found = DPOLoss(1.0)(z, 0 * z, 0 * z, 0 * z, label_smoothing=1 - c)
    expected = c * of_z(DPOLoss, z) + (1 - c) * of_z(DPOLoss, -z)
    close(found, expected.squeeze())


@pytest.mark.parametrize(
    ("won", "lost", "eps"),
    [(9, 0, 0.0), (6, 2, 0.25), (4, 4, 0.5), (1, 1, 0.5), (0, 3, 0.5), (2, 6, 0.5)],
)
def test_mcts_dpo_smooths_by_visits_and_pulls_undecided_pairs_to_0(won, lost, eps):
    won, lost = torch.tensor([float(won)]), torch.tensor([float(lost)])
    c = 1 / (1 + lost / won.clamp(min=1))
    smoothing = (1 - c).clamp(max=0.5)
    close(smoothing, torch.tensor([eps]))
    z = torch.linspace(-5, 5, 11, dtype=F64)
    loss = DPOLoss(1.0, reduction="sum")
    (slope,) = gradients(lambda z: loss(z, 0 * z, label_smoothing=smoothing.double().expand(11)), z)
    close(slope, eps - torch.sigmoid(-z))
    if eps == 0.5:
        assert slope[5] == 0
        assert (slope * z)[[0, 1, 2, 3, 4, 6, 7, 8, 9, 10]].min() > 0


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.4, 0.5])
def test_ipo_stops_where_its_preference_probability_says(eps):
    d = torch.linspace(-8, 8, 16001, dtype=F64)
    found = IPOLoss(0.1, reduction="none")(d, 0 * d, label_smoothing=torch.full_like(d, eps))
    assert d[found.argmin()].item() == pytest.approx((1 - eps - 0.5) / 0.1, abs=1e-3)


def test_hard_labels_of_sppo_mixed_have_the_gradient_of_their_win_rate():
    logps = answers()[:4]
    hard, other = (gradients(SPPOLoss(0.5, reduction="none"), *x) for x in
                   (logps, [logps[i] for i in (1, 0, 3, 2)]))  # fmt: skip
    soft = gradients(lambda *x: each(SPPOLoss, *x, 1 - EPS, beta=0.5), *logps)
    close(soft[0], (1 - EPS) * hard[0] + EPS * other[1])
    close(soft[1], (1 - EPS) * hard[1] + EPS * other[0])


@pytest.mark.parametrize("eps", [0.05, 0.3, 0.7])
def test_exo_of_each_pair_is_zero_at_its_own_smoothed_label(eps):
    z = torch.full((1,), math.log((1 - eps) / eps), dtype=F64)
    found = EXOLoss(1.0)(z, 0 * z, label_smoothing=torch.full_like(z, eps))
    close(found, torch.tensor(0.0, dtype=F64))


def test_where_exo_cannot_look_a_smoothing_of_0_is_no_wrong_number():
    x = torch.tensor([[-1.0], [-2.0]])
    found = torch.func.vmap(EXOLoss())(x, x, x, x, torch.tensor([[0.0], [0.1]]))
    assert found[0] == INF
    assert found[1].isfinite()


def test_who_takes_it():
    def takes(loss):
        names = list(inspect.signature(loss.forward).parameters)
        assert "label_smoothing" not in names or names[-3] == "label_smoothing"
        return "label_smoothing" in names

    families = ("lossary.preference", "lossary.reference_free")
    losses = [getattr(lossary, name) for name in lossary.__all__]
    pairs = [
        x
        for x in losses
        if inspect.isclass(x) and issubclass(x, PairwisePreferenceLoss) and x.__module__ in families
    ]
    assert len(pairs) == 19
    assert {x for x in pairs if not takes(x)} == {AOTLoss, SPPOLoss, SRPOLoss}


def test_of_any_shape_and_with_every_other_input_by_position():
    logps = -torch.rand(4, 2, 3, dtype=F64)
    eps = torch.rand(2, 3, dtype=F64) / 2
    for loss in (DPOLoss(), APOLoss(), RobustDPOLoss(), EXOLoss()):
        loss.reduction = "none"
        found = loss(*logps, label_smoothing=eps)
        close(found.flatten(), loss(*logps.flatten(1), label_smoothing=eps.flatten()))
    close(IPOLoss()(*logps, None, None, eps), IPOLoss()(*logps, label_smoothing=eps))
    running = BCOPairLoss(0.7, "running")
    running(*logps, True, eps)
    assert running.delta_count == 12
