"""Every loss passes the whole kit, on the stock path and in tiles."""

import pytest
import torch

from cases import CASES, Case, labels, params
from lossary import ClassificationLoss, _softmax
from lossary.testing import check_loss

SOFTMAX = [name for name, cases in CASES.items() if isinstance(cases[0].loss(), ClassificationLoss)]


class EveryStatistic(ClassificationLoss):
    """All that the primitive offers in one loss, at a temperature and with margins."""

    def __init__(self, margin, **options):
        super().__init__(**options)
        self.register_buffer("margin", margin)

    def per_sample(self, logits, target):
        axis = self._class_axis(logits)
        if target is None:
            shape = logits.movedim(axis, -1).shape[:-1]
            every = [
                self.per_sample(logits, torch.full(shape, k)) for k in range(logits.shape[axis])
            ]
            return torch.stack(every, axis)
        found = _softmax.row_statistics(
            logits,
            target,
            _softmax.STATISTICS,
            class_dim=axis,
            temperature=1.5,
            margin=self.margin,
        )
        return sum(
            c * torch.tanh(x) for c, x in zip((1.0, 0.5, -0.3, 0.2, 0.7), found, strict=True)
        )


PAIRS = torch.linspace(0.0, 1.0, 25).view(5, 5).fill_diagonal_(0.0)
EVERY_STATISTIC = [
    pytest.param(Case("", lambda: EveryStatistic(PAIRS), labels), id="EveryStatistic-pairs"),
    pytest.param(
        Case("", lambda: EveryStatistic(PAIRS[0]), labels),
        id="EveryStatistic-classes",
        marks=pytest.mark.wide,
    ),
]


@pytest.mark.parametrize("case", params() + EVERY_STATISTIC)
def test_passes_every_check(case):
    check_loss(case.loss(), case.inputs, exclude=case.exclude)


@pytest.mark.parametrize("case", EVERY_STATISTIC)
def test_passes_every_check_in_tiles(case, tiles):
    check_loss(case.loss(), case.inputs, exclude=case.exclude, compile=False)


@pytest.mark.wide
@pytest.mark.parametrize("case", params(SOFTMAX))
def test_passes_every_check_in_tiles_in_all_parametrisations(case, tiles):
    check_loss(case.loss(), case.inputs, exclude=case.exclude, compile=False)
