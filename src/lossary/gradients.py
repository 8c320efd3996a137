r"""Rules for gradients, to be called between ``backward()`` and the optimizer's ``step()``.

.. math:: g_\perp = g - \frac{\langle w, g \rangle}{\langle w, w \rangle} w

Functions of parameters and their gradients: what an optimizer's wrapper would do, without one.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from lossary._base import _upcast
from lossary._checks import check_choice, check_floating, check_like, check_number


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
