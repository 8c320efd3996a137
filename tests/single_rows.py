"""What the tests of class-target losses share: single rows of logits, and the conditional risk."""

import numpy as np
import torch
from hypothesis import strategies as st
from scipy.optimize import minimize

numbers = st.floats(-15.0, 15.0)


@st.composite
def rows(draw, elements=numbers, count=1):
    """Rows of logits with the same number of classes, and a target."""
    size = draw(st.integers(2, 6))
    row = st.lists(elements, min_size=size, max_size=size)
    logits = [torch.tensor(draw(row), dtype=torch.float64) for _ in range(count)]
    return *logits, draw(st.integers(0, size - 1))


@st.composite
def distributions(draw, most=4):
    """Class probabilities, all different and none 0."""
    counts = draw(st.lists(st.integers(1, 12), min_size=2, max_size=most, unique=True))
    return np.array(counts) / sum(counts)


def value(loss, f, y):
    """The loss of one row."""
    out = loss(f.unsqueeze(0), torch.tensor([y])).sum()
    assert out.dtype is torch.float64
    return out


def gradient(loss, f, y):
    f = f.clone().requires_grad_()
    return torch.autograd.grad(value(loss, f, y), f)[0]


def all_values(loss, f):
    """The loss of one row for every target."""
    return torch.stack([value(loss, f, k) for k in range(len(f))])


def risk(loss, f, q):
    """The conditional risk of one row, sum_k q_k loss(f, k)."""
    return torch.as_tensor(q) @ all_values(loss, f)


def least_risk(loss, q, gtol=1e-10):
    """What scipy finds for the minimum of the conditional risk."""

    def objective(x):
        f = torch.tensor(x, requires_grad=True)
        out = risk(loss, f, q)
        out.backward()
        return out.item(), f.grad.numpy()

    start = np.zeros(len(q))
    return minimize(objective, start, jac=True, method="BFGS", options={"gtol": gtol})


def close(a, b, rtol=1e-12, atol=0.0):
    torch.testing.assert_close(
        torch.as_tensor(a, dtype=torch.float64),
        torch.as_tensor(b, dtype=torch.float64),
        rtol=rtol,
        atol=atol,
    )
