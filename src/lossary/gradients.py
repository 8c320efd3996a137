r"""Rules and diagnostics of gradients, for the training loop.

.. math:: g_\perp = g - \frac{\langle w, g \rangle}{\langle w, w \rangle} w

Functions of parameters and their gradients: what an optimizer's wrapper would do, without one. Some
are called between ``backward()`` and the optimizer's ``step()``, some instead of ``backward()``.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from lossary._base import _upcast
from lossary._checks import check_choice, check_device, check_floating, check_like, check_number
from lossary._softmax import readable


def perp_grad(param: Tensor, grad: Tensor, rescale: bool = False, eps: float = 1e-30) -> Tensor:
    r"""Return a gradient without its component along the parameter.

    .. math:: g_\perp = g - \frac{\langle w, g \rangle}{\langle w, w \rangle + \epsilon} w

    A step along it does not change the norm of the weights, to first order. Late in training on
    separable data the gradient of cross-entropy mostly scales the weights up, which lowers the loss
    without changing a prediction, until the softmax saturates (naive loss minimization); without
    that component networks generalize instead. :func:`perp_grad_` does it to all parameters of a
    model.

    Args:
        param: the parameter w, of any shape; taken as one vector.
        grad: its gradient g, of the same shape.
        rescale: give the result the norm of g, as the authors' code does; the paper's formula does
            not. Default ``False``. Where less than 1e-6 of g is left, which is rounding noise, the
            result is not rescaled.
        eps: epsilon >= 0, added to the squared norm of w. Default 1e-30.

    Returns:
        A tensor of the shape and dtype of ``grad``: orthogonal to w, no longer than g, the same
        when it is applied again. w = 0 leaves g as it is; a parameter of one element gets 0. Inner
        products are taken in float32 at least.

    Raises:
        ValueError: shapes or devices that differ, ``eps`` negative, ``rescale`` not a bool.
        TypeError: tensors that are not floating point, or sparse.

    Reference:
        Prieto, Barsbey, Mediano, Birdal, "Grokking at the Edge of Numerical Stability", 2025. The
        authors' code is an optimizer wrapper; held against it with ``rescale=True``.

    Example:
        >>> import torch
        >>> from lossary import perp_grad
        >>> perp_grad(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0]))
        tensor([ 0.6400, -0.4800])
    """
    check_choice("rescale", rescale, (True, False))
    eps = check_number("eps", eps, 0.0, high_open=True)
    check_floating("param", param)
    _check_gradient("grad", grad, "param", param)
    w: Tensor = _upcast(param.detach())
    g: Tensor = _upcast(grad)
    square = (w * w).sum() + eps
    # Of w = 0 nothing is taken away, also with eps = 0.
    along = (w * g).sum() / torch.where(square > 0.0, square, 1.0)
    left = g - along * w
    if rescale:
        norm, rest = torch.linalg.vector_norm(g), torch.linalg.vector_norm(left)
        noise = rest < 1e-6 * norm
        left = left * torch.where(noise | (rest == 0.0), 1.0, norm / torch.where(noise, 1.0, rest))
    return left.to(grad.dtype)


@torch.no_grad()
def perp_grad_(
    parameters: Tensor | Iterable[Tensor], rescale: bool = False, eps: float = 1e-30
) -> None:
    r"""Take the component along each parameter out of its gradient, in place.

    .. math:: g \leftarrow g - \frac{\langle w, g \rangle}{\langle w, w \rangle + \epsilon} w

    Call it between ``loss.backward()`` and ``optimizer.step()``; it changes ``.grad`` of every
    parameter by :func:`perp_grad`, each taken as one vector of its own. With gradient clipping,
    before it; with a ``GradScaler``, in either order, as it is linear in the gradient.

    Args:
        parameters: the parameters, such as ``model.parameters()``, or one of them. Those without a
            gradient are left out.
        rescale: give each gradient back the norm it had. Default ``False``, the paper's.
        eps: epsilon >= 0, added to the squared norm of w. Default 1e-30.

    Raises:
        ValueError: ``eps`` negative, ``rescale`` not a bool.
        TypeError: parameters that are not floating-point tensors, gradients that are sparse.

    Reference:
        Prieto, Barsbey, Mediano, Birdal, "Grokking at the Edge of Numerical Stability", 2025.

    Example:
        >>> import torch
        >>> from lossary import perp_grad_
        >>> w = torch.tensor([3.0, 4.0], requires_grad=True)
        >>> (w[0] ** 2).backward()
        >>> perp_grad_([w])
        >>> w.grad
        tensor([ 3.8400, -2.8800])
    """
    for i, p in enumerate([parameters] if isinstance(parameters, Tensor) else parameters):
        check_floating(f"parameters[{i}]", p)
        if p.grad is not None:
            _check_gradient(f"parameters[{i}].grad", p.grad, f"parameters[{i}]", p)
            p.grad.copy_(perp_grad(p, p.grad, rescale, eps))


def _check_gradient(name: str, grad: Tensor, first: str, param: Tensor) -> None:
    check_floating(name, grad)
    if grad.layout is not torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got {grad.layout}")
    check_like(name, grad, first, param)


def gradient_entanglement(
    parameters: nn.Module | Tensor | Iterable[Tensor],
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    retain_graph: bool = False,
) -> dict[str, Tensor]:
    r"""Return how the gradients of a chosen and a rejected answer hinder each other.

    .. math:: \frac{\Delta \log \pi(y_w)}{\eta} = a \lVert g_w \rVert^2 - b \langle g_w, g_l
              \rangle, \qquad
              \frac{\Delta \log \pi(y_l)}{\eta} = a \langle g_w, g_l \rangle - b \lVert g_l
              \rVert^2

    to first order in the step size eta of gradient descent, with g the gradients of the two
    log-probabilities in the parameters, a = -dL/dlog pi(y_w) and b = dL/dlog pi(y_l). A loss of the
    margin raises the difference of the two, and where the answers are alike both fall, or both
    rise, together. This says whether they do, and why: for a, b > 0 the chosen one rises where
    <g_w, g_l> < (a/b) \|g_w\|^2, the rejected one falls where <g_w, g_l> < (b/a) \|g_l\|^2.

    Args:
        parameters: a module, its parameters or one of them. Those that need no gradient are left
            out.
        policy_chosen_logps: the log-probability of the chosen answer of one pair, as the loss takes
            it, a sum or an average: one element, attached to the parameters. Of a batch, one pair
            at a time; or give means, and learn about means.
        policy_rejected_logps: that of the rejected answer.
        loss: called with both, detached, for a and b: it returns one number. ``None`` (default): a
            = b = 1, as the conditions depend on a/b alone, which is 1 for DPO, IPO, SLiC and CPO
            without its likelihood term. Of losses per token it is the ratio of the lengths,
            rejected to chosen.
        retain_graph: keep the graph, for a ``backward()`` afterwards. Default ``False``.

    Returns:
        A dict of 0-dim tensors on the device of the log-probabilities: ``inner``, <g_w, g_l>;
        ``norm_w``, ``norm_l``; ``cosine``; ``ratio``, inner over the smaller squared norm: with a =
        b above 1 one of the two goes the wrong way; ``a``, ``b``; ``chosen_increases``,
        ``rejected_decreases``, bool. Where a gradient is 0, cosine and ratio are 0.

    Raises:
        ValueError: log-probabilities of more than one element, or that do not depend on the
            parameters; no parameter that needs a gradient; a loss that depends on neither, or
            returns more than one number; ``retain_graph`` not a bool.
        TypeError: tensors that are not floating point; parameters that are DTensors, as FSDP makes
            them, or whose gradient is sparse.

    Note:
        Two backward passes, of each of which the gradient is held; ``.grad`` is not touched. Inner
        products are taken in float32 at least. It does not communicate: each process looks at its
        own pair, and parameters may lie on several devices. With DDP, parameters and answers are
        those of the module inside.

    Reference:
        Yuan, Zeng, Wu, Wang, Wang, Leqi, "A Common Pitfall of Margin-based Language Model
        Alignment: Gradient Entanglement", 2024. The quantities of the authors' analysis code, in
        which the smaller norm is that of the chosen answer twice, a slip; here it is that of both.

    Example:
        >>> import torch
        >>> from lossary import gradient_entanglement
        >>> w = torch.tensor([0.0, 0.0], requires_grad=True)
        >>> found = gradient_entanglement(w, w @ torch.tensor([1.0, 0.0]), w @ torch.ones(2))
        >>> found["ratio"], found["chosen_increases"], found["rejected_decreases"]
        (tensor(1.), tensor(False), tensor(True))
    """
    check_choice("retain_graph", retain_graph, (True, False))
    inputs = policy_chosen_logps, policy_rejected_logps
    trained = _trained(parameters)
    chosen, rejected = _gradients(trained, *inputs, retain_graph)
    device = policy_chosen_logps.device
    a, b = _slopes(loss, *inputs)
    inner, square_w, square_l = (
        _inner(x, y, device)
        for x, y in ((chosen, rejected), (chosen, chosen), (rejected, rejected))
    )
    norm_w, norm_l = square_w.sqrt(), square_l.sqrt()
    return {
        "inner": inner,
        "norm_w": norm_w,
        "norm_l": norm_l,
        "cosine": _quotient(inner, norm_w * norm_l),
        "ratio": _quotient(inner, torch.minimum(square_w, square_l)),
        "a": a,
        "b": b,
        "chosen_increases": a * square_w > b * inner,
        "rejected_decreases": b * square_l > a * inner,
    }


def normalized_preference_backward(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    parameters: nn.Module | Tensor | Iterable[Tensor],
    coef: float | Tensor = 1.0,
    retain_graph: bool = False,
) -> None:
    r"""Add to the gradients the step in which no answer pulls the other one along.

    .. math:: \nabla \leftarrow \nabla - c \Bigl(\frac{g_w}{\lVert g_w \rVert} - \frac{g_l}{
              \lVert g_l \rVert}\Bigr)

    with g_w, g_l the gradients of the two log-probabilities in all parameters together. To first
    order a step of descent never lowers the chosen answer's and never raises the rejected one's:
    they change by c (\|g_w\| - <g_w, g_l>/\|g_l\|) and -c (\|g_l\| - <g_w, g_l>/\|g_w\|) per
    unit of the step size (Cauchy and Schwarz). Losses of the margin do not promise that; see
    :func:`lossary.gradient_entanglement`. Call it where ``loss.backward()`` would stand.

    Args:
        policy_chosen_logps: the log-probability of the chosen answer of one pair: one element,
            attached to the parameters. Of a batch, one pair at a time, with ``coef`` 1/N for a
            mean: calls add up in ``.grad``, as those of ``backward()`` do.
        policy_rejected_logps: that of the rejected answer.
        parameters: a module, its parameters or one of them. Those that need no gradient are left
            out.
        coef: the c above, >= 0, finite, or a 0-dim tensor, such as the slope of a loss of the
            margin, -dL/dz; no gradient flows to it. Default 1.
        retain_graph: keep the graph. Default ``False``.

    Returns:
        Nothing: ``.grad`` of the parameters is what changes, no tensor but theirs. A gradient that
        is 0 adds 0.

    Raises:
        ValueError: log-probabilities of more than one element, or that do not depend on the
            parameters; no parameter that needs a gradient; ``coef`` negative, not finite or not
            0-dim; ``retain_graph`` not a bool.
        TypeError: tensors that are not floating point, ``coef`` not a number; parameters that are
            DTensors, as FSDP makes them, or whose gradient is sparse.

    Note:
        It is a rule for gradients, and the gradient of no loss: the norms change, too, and that is
        left out. Three backward passes: two for the norms, and one that is a ``backward()``, so
        that the hooks of DDP see it; each process then normalises its own pair. Norms are taken in
        float32 at least.

    Reference:
        Yuan, Zeng, Wu, Wang, Wang, Leqi, "A Common Pitfall of Margin-based Language Model
        Alignment: Gradient Entanglement", 2024: pairwise normalized gradient descent. The formula
        is RECALLED: the authors' repository does not contain it.

    Example:
        >>> import torch
        >>> from lossary import normalized_preference_backward
        >>> w = torch.tensor([0.0, 0.0], requires_grad=True)
        >>> chosen, rejected = w @ torch.tensor([2.0, 0.0]), w @ torch.tensor([3.0, 4.0])
        >>> normalized_preference_backward(chosen, rejected, w)
        >>> w.grad
        tensor([-0.4000,  0.8000])
    """
    check_choice("retain_graph", retain_graph, (True, False))
    coef = _coefficient(coef)
    inputs = policy_chosen_logps, policy_rejected_logps
    trained = _trained(parameters)
    with torch.no_grad():
        scales = [
            _quotient(torch.ones_like(square), square.sqrt())
            for square in (
                _inner(g, g, x.device)
                for x, g in zip(inputs, _gradients(trained, *inputs, True), strict=True)
            )
        ]
        pulls = [
            (sign * coef * s).to(x.dtype).expand(x.shape)
            for sign, s, x in zip((-1.0, 1.0), scales, inputs, strict=True)
        ]
    torch.autograd.backward(inputs, pulls, retain_graph=retain_graph, inputs=trained)


def _coefficient(coef: float | Tensor) -> float | Tensor:
    if not isinstance(coef, Tensor):
        return check_number("coef", coef, 0.0, high_open=True)
    check_floating("coef", coef)
    if coef.dim() != 0:
        raise ValueError(f"coef: expected a 0-dim tensor, got shape {tuple(coef.shape)}")
    if readable(coef):
        check_number("coef", float(coef.detach()), 0.0, high_open=True)
    number: Tensor = _upcast(coef.detach())
    return number


def _trained(parameters: nn.Module | Tensor | Iterable[Tensor]) -> list[Tensor]:
    """Return the parameters that need a gradient, each once."""
    if isinstance(parameters, nn.Module):
        parameters = parameters.parameters()
    given = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    for i, p in enumerate(given):
        check_floating(f"parameters[{i}]", p)
    trained = list(dict.fromkeys(p for p in given if p.requires_grad))
    if not trained:
        raise ValueError(
            f"parameters: expected at least one that needs a gradient, got none of {len(given)}"
        )
    return trained


def _gradients(
    trained: list[Tensor], chosen: Tensor, rejected: Tensor, retain_graph: bool
) -> list[list[Tensor | None]]:
    """Return the gradients of both log-probabilities, ``None`` where one does not depend on it."""
    named = {"policy_chosen_logps": chosen, "policy_rejected_logps": rejected}
    for name, x in named.items():
        check_floating(name, x)
        if x.numel() != 1:
            raise ValueError(f"{name}: expected one element, got shape {tuple(x.shape)}")
        if not x.requires_grad:
            raise ValueError(f"{name}: expected one that depends on the parameters, got a constant")
    check_device("policy_rejected_logps", rejected, chosen)
    found: list[list[Tensor | None]] = []
    for name, x in named.items():
        keep = retain_graph or x is chosen  # both answers may have come from one forward pass
        one = torch.ones_like(x)
        gradients = torch.autograd.grad(x, trained, one, retain_graph=keep, allow_unused=True)
        if all(g is None for g in gradients):
            raise ValueError(
                f"{name}: expected one that depends on the parameters, got none of "
                f"{len(trained)} in its graph"
            )
        for g in gradients:
            if g is not None and g.layout is not torch.strided:
                raise TypeError(f"parameters: expected dense gradients, got {g.layout}")
        found.append(list(gradients))
    return found


def _inner(x: list[Tensor | None], y: list[Tensor | None], device: torch.device) -> Tensor:
    """Return the inner product of two gradients, of which the parts may lie on several devices."""
    parts = [
        (_upcast(g) * _upcast(h)).sum().to(device)
        for g, h in zip(x, y, strict=True)
        if g is not None and h is not None
    ]
    return torch.stack(parts).sum() if parts else torch.zeros((), device=device)


def _slopes(
    loss: Callable[[Tensor, Tensor], Tensor] | None, chosen: Tensor, rejected: Tensor
) -> tuple[Tensor, Tensor]:
    """Return -dL/dchosen and dL/drejected."""
    leaves = [x.detach().requires_grad_() for x in (chosen, rejected)]
    if loss is None:
        one: Tensor = _upcast(torch.ones((), dtype=chosen.dtype, device=chosen.device))
        return one, one.clone()
    with torch.enable_grad():
        out = loss(*leaves)
        check_floating("loss", out)
        if out.numel() != 1:
            raise ValueError(f"loss: expected one number, got shape {tuple(out.shape)}")
        if not out.requires_grad:
            raise ValueError("loss: expected one of the log-probabilities, got a constant")
        found = torch.autograd.grad(out.sum(), leaves, allow_unused=True, materialize_grads=True)
    a, b = (_upcast(g).reshape(()) for g in found)
    return -a, b


def _quotient(a: Tensor, b: Tensor) -> Tensor:
    """Return a/b, or 0 where b is."""
    return torch.where(b > 0.0, a / torch.where(b > 0.0, b, 1.0), 0.0)
