"""What every loss must pass, usable on anybody's own loss.

:func:`check_loss` puts a loss through what training will do to it: derivatives of every kind and
order, compilation, half precision, extreme and empty batches, weights and reductions, copies. Then
it tries to refute every claim that the loss makes about itself (:class:`lossary.Properties`).

Each check is one small function below. Its docstring is the rule, and a failure report repeats it.
"""

import copy
import inspect
import itertools
import math
import pickle
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.autograd.gradcheck import GradcheckError, gradcheck, gradgradcheck

from lossary._base import HALF, REDUCTIONS, ClassificationLoss, Loss
from lossary._properties import Properties

Inputs = Callable[[int, torch.dtype, torch.Generator], tuple[Tensor, ...]]

#: Samples in the batches of the checks.
_N = 4
#: Relative agreement asked for in float64, where two ways must give the same number.
_EXACT = 1e-9


class LossCheckError(AssertionError):
    """Raised by :func:`check_loss`. The message lists every check that failed.

    Args:
        loss: the loss, as it is to be shown.
        failures: what was found, by the name of the check; kept as the attribute ``failures``.
        total: how many checks were run.

    Example:
        >>> from lossary.testing import LossCheckError
        >>> LossCheckError("MyLoss()", {"gradcheck": "Off by 2."}, total=20).failures
        {'gradcheck': 'Off by 2.'}
    """

    def __init__(self, loss: str, failures: dict[str, str], total: int) -> None:
        super().__init__(loss, failures, total)
        self.failures = failures

    def __str__(self) -> str:
        loss, failures, total = self.args
        found = "\n\n".join(f"{name}: {text}" for name, text in failures.items())
        return f"{loss}: {len(failures)} of {total} checks failed\n\n{found}"


def check_loss(
    loss: Callable[..., Tensor],
    inputs: Inputs,
    *,
    properties: Properties | None = None,
    differentiable: Sequence[int] | None = None,
    exclude: Iterable[str] = (),
    compile: bool = True,
) -> None:
    """Put a loss through every check, and raise one error that lists all that failed.

    Use it as a test of a loss of your own: any function or module that maps a batch to a scalar or
    to one value per sample. What concerns weights, masks and reductions is checked of a
    :class:`lossary.Loss`; claims about calibration and symmetry are checked of losses of (logits,
    class index). Name the checks that a loss is not meant to pass in ``exclude``.

    A module whose buffers change when it is called in training keeps state. It is checked in
    evaluation mode, where it must not change; checks of their own then look at its training.

    Every random number is drawn from seeded generators: a second run finds the same. Each check
    works on its own copy of the loss. ``torch.compiler.reset()`` is called before the loss is
    compiled.

    Args:
        loss: the loss. A :class:`lossary.Loss`, any other module, or a function.
        inputs: called as ``inputs(n, dtype, generator)``, returns the inputs of a batch of n
            samples, n = 0 included: a tuple of tensors with the samples along the first axis,
            floating-point ones in ``dtype``. A few samples of a few classes are enough: the time
            grows with the square of their number. Dataset indices must differ within a batch of 4.
        properties: the claims to test. Default: ``loss.properties()``, where there is such a
            method.
        differentiable: the positions of the inputs that gradients are checked in, and which may
            hold any number. Default: the floating-point inputs that get a gradient. A
            classification loss's target is never scaled.
        exclude: names of checks to leave out, of those in :data:`lossary.testing.CHECKS`.
        compile: ``False`` leaves out the checks of torch.compile, which cost a second or more.

    Raises:
        LossCheckError: some check failed. ``failures`` maps its name to what was found.
        ValueError: an unknown name in ``exclude``.
        TypeError: ``inputs`` does not return a tuple of tensors.

    Example:
        >>> import torch
        >>> from lossary.testing import LossCheckError, check_loss
        >>> def batch(n, dtype, generator):
        ...     return tuple(torch.randn(2, n, 3, dtype=dtype, generator=generator))
        >>> def squared(input, target):
        ...     if input.dtype in (torch.float16, torch.bfloat16):
        ...         input, target = input.float(), target.float()
        ...     return (input - target).square().sum(-1)
        >>> check_loss(squared, batch, compile=False)

        The distance itself fails twice: its gradient is nan where input and target agree, and the
        square root at its end saves its output, which the caller then may not scale in place.

        >>> try:
        ...     check_loss(lambda x, y: squared(x, y).sqrt(), batch, compile=False)
        ... except LossCheckError as error:
        ...     print(*error.failures)
        extremes scaled_in_place
    """
    exclude = set(exclude)
    if unknown := exclude - set(CHECKS):
        raise ValueError(f"exclude: unknown {sorted(unknown)}, expected names of {CHECKS}")
    if not compile:
        exclude |= {"compile_fullgraph", "state_compiled"}
    subject = _subject(loss, inputs, properties, differentiable)
    names = [n for n, c in _REGISTRY.items() if n not in exclude and c.applies(subject)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors this small only lose by more
    try:
        with warnings.catch_warnings():
            # Of torch's use of itself, which is no finding about the loss.
            warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch(\.|$)")
            with torch.random.fork_rng(devices=[]):
                failures = _failures(subject, names)
    finally:
        torch.set_num_threads(threads)
    if failures:
        raise LossCheckError(repr(loss), failures, len(names))


def _failures(subject: "_Subject", names: Sequence[str]) -> dict[str, str]:
    """Run the named checks; return what those that failed have found."""
    failures: dict[str, str] = {}
    for name in names:
        found = _finding(_REGISTRY[name].run, subject)
        if found is not None:
            failures[name] = found
            if name == "runs":  # the others would all say the same
                break
    return failures


# What the checks work on.


@dataclass(frozen=True)
class _Subject:
    """The loss under test and its inputs."""

    #: A copy for one check, and what it is a copy of.
    loss: Callable[..., Tensor]
    given: Callable[..., Tensor]
    inputs: Inputs
    positions: tuple[int, ...]
    properties: Properties
    #: Whether a call in training changes the buffers.
    stateful: bool = False

    # Batches.

    def make(self, n: int = _N, dtype: torch.dtype = torch.float64, seed: int = 0) -> Any:
        xs = self.inputs(n, dtype, torch.Generator().manual_seed(seed))
        if not isinstance(xs, tuple) or not all(isinstance(x, Tensor) for x in xs):
            raise TypeError(f"inputs: expected a tuple of tensors, got {_kinds(xs)}")
        return xs

    def leaves(self, xs: Sequence[Tensor]) -> list[Tensor]:
        """Return the inputs with fresh leaves at the differentiable positions."""
        return [x.detach().requires_grad_() if i in self.positions else x for i, x in enumerate(xs)]

    def at(self, xs: Sequence[Tensor]) -> list[Tensor]:
        """Return the differentiable inputs."""
        return [xs[i] for i in self.positions]

    def directions(self, xs: Sequence[Tensor]) -> list[Tensor]:
        """Return a random direction to move the differentiable inputs in."""
        generator = _generator()
        return [torch.randn(x.shape, dtype=x.dtype, generator=generator) for x in self.at(xs)]

    def moved(
        self, xs: Sequence[Tensor], steps: Sequence[Tensor], by: float | Tensor
    ) -> list[Tensor]:
        """Return the inputs with the differentiable ones moved by so many steps."""
        moves = dict(zip(self.positions, steps, strict=True))
        return [x + by * moves[i] if i in moves else x for i, x in enumerate(xs)]

    def pick(self, xs: Sequence[Tensor], keep: Any) -> list[Tensor]:
        """Return the samples ``keep`` of every input that has samples."""
        return [x[keep] if x.dim() and len(x) == _N else x for x in xs]

    @property
    def free(self) -> tuple[int, ...]:
        """The positions of the inputs that may hold any number."""
        return tuple(i for i in self.positions if i != self.target_at)

    @property
    def target_at(self) -> int | None:
        """The position of the class target, if there is one."""
        if isinstance(self.loss, ClassificationLoss):
            return self.loss._target_at
        return 1 if self.has_classes else None

    @property
    def first(self) -> int:
        """The position of the input that properties are about."""
        return self.positions[0]

    @property
    def arity(self) -> int:
        """The number of inputs."""
        return len(self.make())

    # Values and gradients.

    def gradients(self, out: Tensor, leaves: Sequence[Tensor], **options: Any) -> list[Tensor]:
        """Return the gradients at the differentiable positions, zeros where there are none."""
        at = self.at(leaves)
        found = torch.autograd.grad(out.sum(), at, allow_unused=True, **options)
        return [torch.zeros_like(x) if g is None else g for x, g in zip(at, found, strict=True)]

    def evaluate(
        self, xs: Sequence[Tensor], loss: Callable[..., Tensor] | None = None, **keywords: Any
    ) -> list[Tensor]:
        """Return the loss of a batch, and its gradients."""
        leaves = self.leaves(xs)
        out = (self.loss if loss is None else loss)(*leaves, **keywords)
        return [out.detach(), *self.gradients(out, leaves)]

    # A lossary.Loss.

    @property
    def separable(self) -> bool:
        return isinstance(self.loss, Loss) and self.loss.separable

    def reduced(self, reduction: str) -> Loss:
        """Return the same Loss with another reduction."""
        assert isinstance(self.loss, Loss)
        loss = copy.copy(self.loss)
        loss.reduction = reduction
        return loss

    def values(self, xs: Sequence[Tensor]) -> Tensor:
        values: Tensor = self.reduced("none")(*xs)
        return values.detach()

    def shares(self, xs: Sequence[Tensor]) -> Tensor:
        """Return what each entry adds to the denominator of the mean, worked out by hand."""
        loss = self.loss
        assert isinstance(loss, Loss)
        if not isinstance(loss, ClassificationLoss):
            out = loss.per_sample(*xs)
            return out[1].detach() if isinstance(out, tuple) else torch.ones_like(out)
        logits, target = xs[0], xs[loss._target_at]
        weight = loss.class_weight
        cw = torch.ones(self.num_classes) if weight is None else weight
        cw = cw.to(logits.dtype)
        if target.dtype.is_floating_point:
            return target.movedim(self.class_axis, -1) @ cw
        valid = target != loss.ignore_index
        return cw[target.where(valid, 0)] * valid

    # Losses of (logits, class index).

    @property
    def class_axis(self) -> int:
        loss, logits = self.loss, self.make()[0]
        return loss._class_axis(logits) if isinstance(loss, ClassificationLoss) else 1

    @property
    def num_classes(self) -> int:
        return int(self.make()[0].shape[self.class_axis])

    @property
    def has_classes(self) -> bool:
        """Whether this is a loss of (logits, class index)."""
        if isinstance(self.loss, ClassificationLoss):
            return True
        if isinstance(self.loss, Loss) and not self.loss.separable:
            return False  # labels say which samples belong together, not which logit is right
        xs = self.make()
        return (
            len(xs) == 2
            and xs[0].dtype.is_floating_point
            and xs[0].dim() == 2
            and xs[1].dtype in (torch.int64, torch.int32)
            and xs[1].shape == xs[0].shape[:1]
        )

    def class_values(self, logits: Tensor) -> Tensor:
        """Return the loss of every row of logits, (rows, K), for every class."""
        if isinstance(self.loss, ClassificationLoss):
            inputs = self.loss._inputs(logits, None, self.further(len(logits)))
            values: Tensor = self._on_rows().per_sample(*inputs)
            return values
        rows, num_classes = logits.shape
        columns = [
            self.row_values(logits, torch.full((rows,), k, dtype=torch.long))
            for k in range(num_classes)
        ]
        return torch.stack(columns, 1)

    def further(self, n: int, logits: Tensor | None = None) -> list[Tensor]:
        """Return what a class-target loss takes beside logits and target, for n rows of logits.

        With ``logits``, inputs of the same shape are the same numbers.
        """
        if not isinstance(self.loss, ClassificationLoss):
            return []
        given, *others = self.make(n)
        del others[self.loss._target_at - 1]
        rows = []
        for x in others:
            if x.shape == given.shape and logits is not None:
                x = logits
            elif x.shape == given.shape:
                x = x.movedim(self.class_axis, -1).reshape(-1, self.num_classes)
            elif not x.dtype.is_floating_point:
                x = x.reshape(-1)
            rows.append(x[:n])
        return rows

    def _on_rows(self) -> ClassificationLoss:
        assert isinstance(self.loss, ClassificationLoss)
        loss = copy.copy(self.loss)
        loss.class_dim = 1
        return loss

    # The loss as a function of its first input, one value per row: a row is one sample, or, where
    # samples depend on each other, one batch.

    def rows(self, n: int, seed: int, scales: tuple[float, ...]) -> tuple[Tensor, ...]:
        """Return n rows, of which the first input is scaled by the given numbers in turn."""
        if self.has_classes:
            generator = torch.Generator().manual_seed(seed)
            num_classes = self.num_classes
            x = torch.randn(n, num_classes, dtype=torch.float64, generator=generator)
            y = torch.randint(num_classes, (n,), generator=generator)
            return self.with_target(x * _spread(scales, x), y, self.further(n))
        size = _N if isinstance(self.loss, Loss) and not self.separable else 1
        batches = [self.make(size, seed=seed * n + i) for i in range(n)]
        xs = [torch.stack(x) for x in zip(*batches, strict=True)]
        x = xs.pop(self.first)
        return x * _spread(scales, x), *xs

    def with_target(self, x: Tensor, y: Tensor, further: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the inputs of a loss with a class target, in order."""
        inputs = [x, *further]
        inputs.insert(self.target_at or 1, y)
        return tuple(inputs)

    def row_values(self, x: Tensor, *others: Tensor) -> Tensor:
        """Return the loss of every row."""
        if isinstance(self.loss, ClassificationLoss):
            values: Tensor = self._on_rows().per_sample(x, *others)
            return values
        xs = [*others[: self.first], x, *others[self.first :]]
        if self.has_classes:
            xs = [x.unsqueeze(1) for x in xs]
        reduction = "sum" if self.separable else "mean"
        loss = self.reduced(reduction) if isinstance(self.loss, Loss) else self.loss

        def one(*row: Tensor) -> Tensor:
            return loss(*row).sum()

        try:
            return torch.vmap(one)(*xs)
        except RuntimeError:  # vmap_grad reports it; here the loop does
            return torch.stack([one(*row) for row in zip(*xs, strict=True)])

    def row_gradient(self, x: Tensor, *others: Tensor, create_graph: bool = False) -> Tensor:
        if not x.requires_grad:
            x = x.detach().requires_grad_()
        out = self.row_values(x, *others).sum()
        if not out.requires_grad:
            return torch.zeros_like(x)
        return torch.autograd.grad(out, x, create_graph=create_graph)[0]

    def stored(self, claim: str, size: int) -> tuple[Any, ...]:
        """Return the counterexample of a claim as tensors of one row: ``size`` of them."""
        found = self.properties.counterexamples.get(claim)
        if found is None:
            _fail(f"{claim} is claimed not to hold, but counterexamples[{claim!r}] is missing.")
        rows = [_row(x) for x in found]
        further = self.further(1)
        if len(rows) == size - len(further):
            # What stands behind the target, a dataset index, may be left out.
            rows += further
        if len(rows) != size:
            _fail(f"counterexamples[{claim!r}] needs {size} items, has {len(found)}: {found}.")
        return tuple(rows)


def _subject(
    loss: Callable[..., Tensor],
    inputs: Inputs,
    properties: Properties | None,
    differentiable: Sequence[int] | None,
) -> _Subject:
    subject = _Subject(loss, loss, inputs, (), Properties())
    xs = subject.make()
    positions = _differentiable(loss, xs) if differentiable is None else tuple(differentiable)
    if not positions:
        raise ValueError("inputs: expected at least one floating-point tensor, got none")
    if properties is None and hasattr(loss, "properties"):
        classes = isinstance(loss, ClassificationLoss)
        properties = loss.properties(subject.num_classes) if classes else loss.properties()
    subject = replace(subject, positions=positions, properties=properties or Properties())
    subject = replace(subject, stateful=_keeps_state(subject))
    return replace(subject, loss=_fresh(subject))


def _fresh(s: _Subject) -> Callable[..., Tensor]:
    """Return a copy of the loss, in evaluation mode if calls would change it."""
    loss = _copied(s.given)
    return loss.eval() if s.stateful and isinstance(loss, nn.Module) else loss


def _keeps_state(s: _Subject) -> bool:
    loss = _copied(s.given)
    if not isinstance(loss, nn.Module) or not list(loss.buffers()):
        return False
    before = _state_of(loss)
    try:
        loss.train()(*s.leaves(s.make()))
    except Exception:  # the first check will say what it is
        return False
    return _changed(before, loss) is not None


def _state_of(loss: nn.Module) -> dict[str, Tensor]:
    return {name: x.detach().clone() for name, x in loss.state_dict().items()}


def _changed(before: dict[str, Tensor], loss: nn.Module) -> str | None:
    """Return the name of a parameter or buffer that is no longer what it was."""
    now = loss.state_dict()
    return next((name for name, x in before.items() if not torch.equal(x, now[name])), None)


def _differentiable(loss: Callable[..., Tensor], xs: Sequence[Tensor]) -> tuple[int, ...]:
    """Return the positions of the floating-point inputs that get a gradient, or else of all."""
    floating = tuple(i for i, x in enumerate(xs) if x.dtype.is_floating_point)
    leaves = [x.detach().requires_grad_() if i in floating else x for i, x in enumerate(xs)]
    try:
        out = _copied(loss)(*leaves).sum()
        grads = torch.autograd.grad(out, [leaves[i] for i in floating], allow_unused=True)
    except Exception:  # the first check will say what it is
        return floating
    return tuple(i for i, g in zip(floating, grads, strict=True) if g is not None) or floating


def _copied(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    try:
        return copy.deepcopy(loss)
    except Exception:  # the check of copies will say what it is
        return loss


def _spread(scales: tuple[float, ...], like: Tensor) -> Tensor:
    """Return the scales in turn, one per row."""
    repeated = torch.tensor(scales, dtype=like.dtype).repeat(len(like) // len(scales) + 1)
    return repeated[: len(like)].reshape(-1, *[1] * (like.dim() - 1))


def _row(x: Any) -> Tensor:
    given = torch.as_tensor(x)
    if given.dtype is torch.bool:
        return given.unsqueeze(0)
    whole = isinstance(x, Tensor | int) and not given.dtype.is_floating_point
    return torch.as_tensor(x, dtype=torch.long if whole else torch.float64).unsqueeze(0)


def _kinds(xs: Any) -> str:
    if not isinstance(xs, tuple):
        return type(xs).__name__
    return f"({', '.join(type(x).__name__ for x in xs)})"


# How a check is declared, run and fails.


class _Failure(Exception):
    """What a check found, in words."""


@dataclass(frozen=True)
class _Check:
    run: Callable[[_Subject], None]
    applies: Callable[[_Subject], bool]


_REGISTRY: dict[str, _Check] = {}


def _check(
    name: str, applies: Callable[[_Subject], bool] = lambda _: True
) -> Callable[[Callable[[_Subject], None]], Callable[[_Subject], None]]:
    def register(run: Callable[[_Subject], None]) -> Callable[[_Subject], None]:
        _REGISTRY[name] = _Check(run, applies)
        return run

    return register


def _finding(run: Callable[[_Subject], None], subject: _Subject) -> str | None:
    """Return what the check found: its rule and how the loss breaks it, or ``None``."""
    rule = (run.__doc__ or "").partition("\n")[0]
    try:
        torch.default_generator.manual_seed(0)
        run(replace(subject, loss=_fresh(subject)))
    except _Failure as failure:
        return f"{rule} {failure}"
    except Exception as error:
        return f"{rule} It raised {type(error).__name__}: {_short(error)}"
    return None


def _fail(found: str) -> NoReturn:
    raise _Failure(found)


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 500 else f"{text[:500]} ..."


def _compare(what: str, got: Tensor, want: Tensor, rtol: float = _EXACT, atol: float = 0.0) -> None:
    """Fail unless the two agree, within rtol of the largest element wanted, or atol."""
    if got.shape != want.shape:
        _fail(f"{what}: expected shape {tuple(want.shape)}, got {tuple(got.shape)}.")
    got, want = got.double(), want.double()
    finite = want[want.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    good = torch.isclose(got, want, rtol=rtol, atol=max(atol, rtol * scale))
    if not bool(good.all()):
        at = tuple(int(i) for i in (~good).nonzero()[0])
        place = f" at {list(at)}" if at else ""
        _fail(f"{what}: expected {float(want[at]):.10g}{place}, got {float(got[at]):.10g}.")


def _compare_all(what: str, got: Sequence[Tensor], want: Sequence[Tensor], **tol: float) -> None:
    """Compare values and gradients."""
    for i, (g, w) in enumerate(zip(got, want, strict=True)):
        _compare(f"{what}, {f'gradient {i}' if i else 'value'}", g, w, **tol)


def _is_loss(s: _Subject) -> bool:
    return isinstance(s.loss, Loss)


def _is_module(s: _Subject) -> bool:
    return isinstance(s.loss, nn.Module)


def _has_values(s: _Subject) -> bool:
    """Tell whether this is a Loss with one value per sample, whose weights can be checked."""
    try:
        return _is_loss(s) and s.values(s.make()).dim() > 0
    except Exception:  # the first check will say what it is
        return False


def _is_separable(s: _Subject) -> bool:
    return s.separable and _has_values(s)


# Values and derivatives.


@_check("runs")
def _runs(s: _Subject) -> None:
    """A batch gives a finite floating-point tensor, attached to the graph."""
    out = s.loss(*s.leaves(s.make()))
    if not isinstance(out, Tensor) or not out.dtype.is_floating_point:
        _fail(f"Got {out.dtype if isinstance(out, Tensor) else type(out).__name__}.")
    if not bool(out.isfinite().all()):
        _fail(f"On an ordinary batch it gave {_show(out)}.")
    if not out.requires_grad:
        _fail("The result requires no gradient: look for detach(), item(), no_grad() or argmax().")


@_check("finite_gradient")
def _finite_gradient(s: _Subject) -> None:
    """The gradient on an ordinary batch is finite."""
    for i, g in zip(s.positions, s.evaluate(s.make())[1:], strict=True):
        if not bool(g.isfinite().all()):
            _fail(f"The gradient in input {i} is {_show(g)}.")


@_check("gradcheck")
def _gradcheck(s: _Subject) -> None:
    """The gradient is the derivative of the value (finite differences in float64)."""
    _finite_differences(s, gradcheck)


@_check("gradgradcheck")
def _gradgradcheck(s: _Subject) -> None:
    """The second derivative is the derivative of the gradient (finite differences in float64)."""
    _finite_differences(s, gradgradcheck)


@_check("forward_mode")
def _forward_mode(s: _Subject) -> None:
    """Forward-mode derivatives, of the value, the gradient and each other, are right."""
    _finite_differences(s, gradcheck, check_forward_ad=True, check_backward_ad=False)
    _finite_differences(s, gradgradcheck, check_fwd_over_rev=True, check_rev_over_rev=False)
    # Forward over forward: torch takes the jvp of a custom Function for a constant, silently.
    xs = s.make()
    steps = s.directions(xs)

    def along(t: Tensor) -> Tensor:
        return s.loss(*s.moved(xs, steps, t)).sum()

    def slope(t: Tensor) -> Tensor:
        pushed: Tensor = torch.func.jvp(along, (t,), (torch.ones_like(t),))[1]
        return pushed

    t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (want,) = torch.autograd.grad(along(t), t, create_graph=True)
    if want.requires_grad:
        (want,) = torch.autograd.grad(want, t, allow_unused=True, materialize_grads=True)
        got = torch.func.jvp(slope, (t.detach(),), (torch.ones_like(t),))[1]
        _compare("forward over forward", got, want, atol=_EXACT)


def _finite_differences(s: _Subject, check: Callable[..., bool], **options: bool) -> None:
    xs = s.make()

    def fn(*moving: Tensor) -> Tensor:
        moved = dict(zip(s.positions, moving, strict=True))
        return s.loss(*[moved.get(i, x) for i, x in enumerate(xs)])

    settings = {"check_undefined_grad": False, "rtol": 1e-5, "atol": 1e-6, **options}
    try:
        check(fn, tuple(s.at(s.leaves(xs))), **settings)
    except GradcheckError as error:
        # Of the message only what differs, without the matrices, and numbers of one direction.
        what = _short(error).partition(", numerical:")[0]
        steps = s.directions(xs)
        _, *gradients = s.evaluate(xs)
        said = sum(float((g * v).sum()) for g, v in zip(gradients, steps, strict=True))
        ahead, behind = (s.evaluate(s.moved(xs, steps, h))[0].sum() for h in (1e-5, -1e-5))
        _fail(
            f"{what}. In a random direction the value changes at {float(ahead - behind) / 2e-5:.6g}"
            f", the gradient says {said:.6g}. Look for a custom backward, detach() or a kink."
        )


@_check("batched_grad")
def _batched_grad(s: _Subject) -> None:
    """Gradients and second derivatives taken many at a time (is_grads_batched) are right."""
    leaves = s.leaves(s.make())
    at = s.at(leaves)
    out = s.loss(*leaves)
    _compare_batched("gradient", out, at)
    for i, g in enumerate(torch.autograd.grad(out.sum(), at, create_graph=True)):
        if g.requires_grad:
            _compare_batched(f"derivative of gradient {i + 1}", g, at)


def _compare_batched(what: str, out: Tensor, at: list[Tensor]) -> None:
    cotangents = torch.randn(3, *out.shape, dtype=out.dtype, generator=_generator())

    def pull(v: Tensor, **options: bool) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(out, at, v, retain_graph=True, allow_unused=True, **options)

    together = pull(cotangents, is_grads_batched=True)
    alone = [pull(v) for v in cotangents]
    for i, got in enumerate(together):
        if got is not None:
            want = torch.stack([x for x in (row[i] for row in alone) if x is not None])
            _compare(f"{what} in input {i + 1}", got, want)


@_check("vmap_grad")
def _vmap_grad(s: _Subject) -> None:
    """vmap(grad), for gradients per sample or per task, equals a loop over batches."""
    batches = [s.make(seed=i) for i in range(3)]

    def total(*xs: Tensor) -> Tensor:
        return s.loss(*xs).sum()

    stacked = [torch.stack(x) for x in zip(*batches, strict=True)]
    got = torch.vmap(torch.func.grad(total, argnums=s.positions))(*stacked)
    for i, g in enumerate(got):
        _compare(f"gradient {i + 1}", g, torch.stack([s.evaluate(xs)[i + 1] for xs in batches]))


@_check("compile_fullgraph")
def _compile_fullgraph(s: _Subject) -> None:
    """torch.compile takes the loss as one graph, and gives the same value and gradient."""
    torch.compiler.reset()
    compiled = torch.compile(s.loss, fullgraph=True, backend="aot_eager")
    xs = s.make(dtype=torch.float32)
    _compare_all("compiled", s.evaluate(xs, compiled), s.evaluate(xs), rtol=1e-5)


@_check("no_host_sync")
def _no_host_sync(s: _Subject) -> None:
    """Forward and backward run without looking at a value, which on a GPU would wait for it."""
    _run_without_values(s, s.loss)


def _run_without_values(s: _Subject, loss: Callable[..., Tensor]) -> None:
    from torch._subclasses.fake_tensor import (
        DataDependentOutputException,
        DynamicOutputShapeException,
        FakeTensorMode,
    )

    # A fake tensor has shape, dtype and device but no data.
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        leaves = s.leaves([mode.from_tensor(x) for x in s.make(dtype=torch.float32)])
        try:
            s.gradients(loss(*leaves), leaves)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            _fail(
                f"Host sync or data-dependent control flow at {error.func}: look for item(), "
                "float(tensor), `if tensor:`, nonzero() and boolean-mask indexing."
            )


# Numbers.


@_check("dtype")
def _dtype(s: _Subject) -> None:
    """float32 inputs give a float32 loss, and float64 inputs a float64 loss with its precision."""
    for dtype in (torch.float32, torch.float64):
        out = s.loss(*s.make(dtype=dtype))
        if out.dtype != dtype:
            _fail(f"{dtype} inputs gave {out.dtype}: look for constants of a fixed dtype.")
    # Over three points this close the value is linear to 1e-13, but for the noise of float32.
    xs = s.make()
    steps = [1e-7 * v for v in s.directions(xs)]
    out, *gradients = s.evaluate(xs)
    ahead, behind = (s.evaluate(s.moved(xs, steps, sign))[0] for sign in (1.0, -1.0))
    error = float((ahead + behind - 2.0 * out).abs().sum())
    scale = float(out.abs().sum()) + sum(float(g.abs().sum()) for g in gradients)
    if error > 1e-11 * scale:
        _fail(
            f"In float64 the value is off by {error / scale:.1e} of its scale, 1e-11 is allowed: "
            "look for float(), .to(torch.float32) or a float32 constant."
        )


@_check("half_precision")
def _half_precision(s: _Subject) -> None:
    """Half-precision inputs are computed in float32 and give a float32 loss.

    Value: within 1e-5 of float64 on the same numbers. Gradient: in the input's dtype, rounded once.
    """
    for dtype in HALF:
        xs = [x.to(dtype) if x.dtype.is_floating_point else x for x in s.make(dtype=torch.float32)]
        wide = [x.double() if x.dtype.is_floating_point else x for x in xs]
        value, *gradients = s.evaluate(xs)
        if value.dtype != torch.float32:
            _fail(f"{dtype} inputs gave a loss of {value.dtype}: convert them with x.float().")
        exact, *exact_gradients = s.evaluate(wide)
        # Terms may cancel: the scale of the value is what its inputs contribute to it.
        parts = [(g * x).abs().sum() for g, x in zip(exact_gradients, s.at(wide), strict=True)]
        _compare(f"{dtype}, value", value, exact, rtol=1e-5, atol=1e-5 * float(sum(parts)))
        eps, tiny = torch.finfo(dtype).eps, torch.finfo(dtype).smallest_normal
        for i, (got, want) in enumerate(zip(gradients, exact_gradients, strict=True)):
            # Computed within 1e-5 of the largest element, then rounded.
            slack = 1e-5 * float(want.abs().max()) + tiny * eps
            bad = (got.double() - want).abs() > eps * want.abs() + slack
            if bool(bad.any()) or got.dtype != dtype:
                worst = float((got.double() - want).abs().max())
                _fail(f"{dtype}, gradient {i + 1}: off by {worst:.1e}, dtype {got.dtype}.")


@_check("extremes")
def _extremes(s: _Subject) -> None:
    """No nan in value or gradient at inputs of size 1e4 and 1e-30, all equal, and all zero."""
    changes: dict[str, Callable[[Tensor], Tensor]] = {
        "inputs times 1e4": lambda x: x * 1e4,
        "inputs times 1e-30": lambda x: x * 1e-30,
        "all inputs equal": torch.ones_like,
        "all inputs zero": torch.zeros_like,
    }
    for what, change in changes.items():
        xs = s.make(dtype=torch.float32)
        found = s.evaluate([change(x) if i in s.free else x for i, x in enumerate(xs)])
        for i, x in enumerate(found):
            if bool(x.isnan().any()):
                _fail(
                    f"{what}: {f'gradient {i}' if i else 'the value'} is nan. Where a branch of "
                    "torch.where has no finite slope, replace its argument before, not after."
                )


@_check("empty_batch")
def _empty_batch(s: _Subject) -> None:
    """An empty batch gives a finite 0 that is attached to the graph, so that no process waits."""
    _expect_attached_zero("an empty batch", s, s.loss, s.leaves(s.make(0)))


@_check("attached_zero", _has_values)
def _attached_zero(s: _Subject) -> None:
    """With nothing left, every reduction gives 0, attached to the graph, and zero gradient."""
    xs = s.make()
    shape = s.values(xs).shape
    absent = [torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.bool)]
    lost = _spoiled(xs, torch.ones(_N, dtype=torch.bool), math.inf) if s.separable else xs
    for reduction in REDUCTIONS:
        loss = s.reduced(reduction)
        for weight, batch in itertools.product(absent, (xs, lost)):
            inf = ", inputs infinite" if batch is lost and s.separable else ""
            what = f"reduction={reduction!r}, weights of {weight.dtype} all 0{inf}"
            _expect_attached_zero(what, s, loss, s.leaves(batch), weight=weight)
        if not isinstance(loss, ClassificationLoss):
            continue
        at = loss._target_at
        if not xs[at].dtype.is_floating_point:
            ignored = s.leaves(xs)
            ignored[at] = torch.full_like(xs[at], loss.ignore_index)
            what = f"reduction={reduction!r} and all targets ignored"
            _expect_attached_zero(what, s, loss, ignored)


def _expect_attached_zero(
    what: str, s: _Subject, loss: Callable[..., Tensor], leaves: list[Tensor], **keywords: Tensor
) -> None:
    out = loss(*leaves, **keywords)
    if bool((out != 0).any()):
        _fail(f"{what}: got {_show(out)}. A mean of nothing needs a denominator of 1.")
    if not out.requires_grad:
        _fail(f"{what}: the result is detached: return the masked sum, not a new zero.")
    for i, g in enumerate(s.gradients(out, leaves)):
        if bool((g != 0).any()):
            _fail(f"{what}: gradient {i + 1} is not zero but {_show(g)}.")


@_check("non_contiguous")
def _non_contiguous(s: _Subject) -> None:
    """Inputs in any memory layout give the same value and gradient."""
    xs = s.make()
    _compare_all("transposed memory", s.evaluate([_strided(x) for x in xs]), s.evaluate(xs))


def _strided(x: Tensor) -> Tensor:
    """Return the same numbers with reversed strides and gaps, of nan where there is nan."""
    fill = math.nan if x.dtype.is_floating_point else 0
    out = x.new_full((*reversed(x.shape), 2), fill)[..., 0].permute(tuple(reversed(range(x.dim()))))
    return out.copy_(x)


@_check("not_mutated")
def _not_mutated(s: _Subject) -> None:
    """The inputs are left as they are, by forward and by backward."""
    for grad in (True, False):
        before = s.make()
        leaves = s.leaves([x.clone() for x in before])
        # Not leaves any more: autograd itself forbids changing those.
        xs = [x.clone() for x in leaves]
        with torch.set_grad_enabled(grad):
            out = s.loss(*xs)
        if grad:
            s.gradients(out, leaves)
        for i, (x, old) in enumerate(zip(xs, before, strict=True)):
            if x._version or not torch.equal(x.detach(), old):
                _fail(f"Input {i} was changed in place (version {x._version}).")


@_check("scaled_in_place")
def _scaled_in_place(s: _Subject) -> None:
    """The caller may scale the result in place, as training loops do with `loss /= steps`."""
    losses: dict[str, Callable[..., Tensor]] = {"": s.loss}
    if _is_loss(s):
        losses = {f"reduction={r!r}: ": s.reduced(r) for r in REDUCTIONS}
    for what, loss in losses.items():
        xs = s.make()
        leaves = s.leaves([x.clone() for x in xs])
        out = loss(*leaves)
        try:
            out *= 2.0
            got = [out.detach(), *s.gradients(out, leaves)]
        except RuntimeError as error:
            _fail(f"{what}{_short(error)} (End the loss in an operation that saves no output.)")
        _compare_all(f"{what}scaled by 2", got, [2.0 * x for x in s.evaluate(xs, loss)])
        if not all(torch.equal(x, y) for x, y in zip(leaves, xs, strict=True)):
            _fail(f"{what}scaling the result changed an input: it is a view of one.")


# Copies.


@_check("state_dict", _is_module)
def _state_dict(s: _Subject) -> None:
    """All tensors are parameters or buffers, and a state dict brings them back."""
    assert isinstance(s.loss, nn.Module)
    for path, module in s.loss.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                where = f"{path}.{name}" if path else name
                _fail(f"{where} is a plain tensor attribute: to() and state_dict() miss it.")
    xs = s.make()
    want = s.evaluate(xs)
    other = copy.deepcopy(s.loss)
    state = {name: x.clone() for name, x in s.loss.state_dict().items()}
    for x in other.state_dict().values():
        x.zero_()
    other.load_state_dict(state)
    _compare_all("after load_state_dict", s.evaluate(xs, other), want)


@_check("pickle", _is_module)
def _pickle(s: _Subject) -> None:
    """Copies by copy.deepcopy and by pickle give the same value and gradient."""
    assert isinstance(s.given, nn.Module)
    copied = copy.deepcopy(s.given)
    try:
        data = pickle.dumps(s.given)
    except Exception as error:
        _fail(f"{type(error).__name__}: {_short(error)} (Look for a lambda as an attribute.)")
    xs = s.make()
    kept = {name: x.clone() for name, x in s.given.state_dict().items()}
    want = s.evaluate(xs, s.given)
    s.given.load_state_dict(kept)  # the caller's own loss is left as it was
    _compare_all("deepcopy", s.evaluate(xs, copied), want)
    _compare_all("pickle", s.evaluate(xs, pickle.loads(data)), want)


# State that training changes.


def _is_stateful(s: _Subject) -> bool:
    return s.stateful


def _training(s: _Subject) -> nn.Module:
    """Return a fresh copy of the loss, in training mode."""
    loss = copy.deepcopy(s.given)
    assert isinstance(loss, nn.Module)
    return loss.train()


def _compare_states(what: str, got: nn.Module, want: nn.Module) -> None:
    """Compare two copies' buffers, which may be kept in float32."""
    wanted = want.state_dict()
    for name, x in got.state_dict().items():
        _compare(f"{what}, {name}", x, wanted[name], rtol=1e-6)


@_check("state_inert", _is_stateful)
def _state_inert(s: _Subject) -> None:
    """The state stays as it is in evaluation, without gradients, under torch.func, if asked to."""
    xs = s.make()
    loss = _training(s)
    alone = not isinstance(s.loss, Loss) or s.separable  # may a sample be a batch?

    def total(*xs: Tensor) -> Tensor:
        out: Tensor = loss(*xs)
        return out.sum()

    def without_grad() -> None:
        with torch.no_grad():
            loss(*xs)

    attempts: dict[str, Callable[[], object]] = {
        "in evaluation mode": lambda: loss(*s.leaves(xs)),
        "under no_grad": without_grad,
        "under torch.func.grad": lambda: torch.func.grad(total, argnums=s.positions)(*xs),
        "under vmap": lambda: torch.vmap(total)(*[x.unsqueeze(1 if alone else 0) for x in xs]),
    }
    if _takes_update(loss):
        attempts["with update=False"] = lambda: loss(*s.leaves(xs), update=False)
    for what, attempt in attempts.items():
        loss.train(what != "in evaluation mode")
        before = _state_of(loss)
        attempt()
        if (name := _changed(before, loss)) is not None:
            _fail(f"A call {what} changed {name}.")


def _takes_update(loss: nn.Module) -> bool:
    return "update" in inspect.signature(loss.forward).parameters


@_check("state_absent", lambda s: s.stateful and _is_separable(s))
def _state_absent(s: _Subject) -> None:
    """Samples of weight 0 leave no trace in the state, whatever their inputs hold."""
    xs = s.make()
    keep = torch.arange(_N) % 2 == 0
    alone, beside = _training(s), _training(s)
    alone(*s.leaves(s.pick(xs, keep)))
    weight = torch.ones(s.values(xs).shape, dtype=torch.float64)
    weight[~keep] = 0.0
    for fill in (0.5, math.nan, math.inf):
        beside = _training(s)
        beside(*s.leaves(_spoiled(xs, ~keep, fill)), weight=weight)
        _compare_states(f"inputs {fill} at weight 0", beside, alone)


@_check("state_order", _is_stateful)
def _state_order(s: _Subject) -> None:
    """A sample that occurs twice in a batch counts twice: the order of samples means nothing."""
    first, second = s.make(seed=0), s.make(seed=1)
    indices = [i for i, x in enumerate(first) if _is_index(s, i, x)]
    second = [first[i] if i in indices else x for i, x in enumerate(second)]
    pairs = [
        [torch.cat(pair) for pair in zip(*batches, strict=True)]
        for batches in ((first, second), (second, first))
    ]
    one, other = _training(s), _training(s)
    one(*s.leaves(pairs[0]))
    other(*s.leaves(pairs[1]))
    _compare_states("the halves of a batch exchanged", one, other)


def _is_index(s: _Subject, position: int, x: Tensor) -> bool:
    return position != s.target_at and not (x.dtype.is_floating_point or x.dtype is torch.bool)


@_check("state_resumed", _is_stateful)
def _state_resumed(s: _Subject) -> None:
    """Training goes on from a saved state dict as if it had never stopped."""
    loss, other = _training(s), _training(s)
    for seed in range(3):
        loss(*s.leaves(s.make(seed=seed)))
    other.load_state_dict(_state_of(loss))
    for seed in range(3, 5):
        xs = s.make(seed=seed)
        _compare_all(f"step {seed - 2} after loading", s.evaluate(xs, other), s.evaluate(xs, loss))
    _compare_states("two steps after loading", other, loss)


@_check("state_reset", lambda s: s.stateful and hasattr(s.given, "reset"))
def _state_reset(s: _Subject) -> None:
    """reset() forgets all that training did."""
    loss, other = _training(s), _training(s)
    loss.reset()  # type: ignore[operator]
    before = _state_of(loss)
    for seed in range(3):
        other(*s.leaves(s.make(seed=seed)))
    other.reset()  # type: ignore[operator]
    if (name := _changed(before, other)) is not None:
        _fail(f"After three batches it does not bring back {name}.")


@_check("state_no_host_sync", _is_stateful)
def _state_no_host_sync(s: _Subject) -> None:
    """A call in training runs without looking at a value."""
    _run_without_values(s, _training(s))


@_check("state_compiled", _is_stateful)
def _state_compiled(s: _Subject) -> None:
    """A compiled call in training, as one graph, changes the state as any other does."""
    torch.compiler.reset()
    loss, other = _training(s), _training(s)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    for seed in range(2):
        xs = s.make(dtype=torch.float32, seed=seed)
        found = s.evaluate(xs, loss)
        # Terms may cancel: the scale of the value is what its inputs contribute to it.
        scale = sum(float((g * x).abs().sum()) for g, x in zip(found[1:], s.at(xs), strict=True))
        _compare_all(
            f"step {seed + 1}", s.evaluate(xs, compiled), found, rtol=1e-5, atol=1e-5 * scale
        )
    for name, x in other.state_dict().items():
        _compare(f"compiled, {name}", x, loss.state_dict()[name], rtol=1e-5)


# Weights and reductions.


@_check("reductions", _is_loss)
def _reductions(s: _Subject) -> None:
    """sum, mean and batchmean are what the values of `none` say."""
    xs = s.make()
    values, *_ = s.evaluate(xs, s.reduced("none"))
    shares = s.shares(xs)
    _compare_reductions(s, xs, values, shares if values.dim() else None, None)


def _compare_reductions(
    s: _Subject, xs: Any, terms: Tensor, shares: Tensor | None, weight: Tensor | None
) -> None:
    total = terms.sum()
    divisor = count = torch.ones_like(total)
    # Where no entry counts, the denominator is 1.
    if shares is not None and bool((shares != 0).any()):
        divisor, count = shares.sum(), (shares != 0).sum()
    expected = {
        "none": terms,
        "sum": total,
        "mean": total / divisor,
        "batchmean": total / count,
    }
    for reduction, want in expected.items():
        keywords = {} if weight is None else {"weight": weight}
        got = s.reduced(reduction)(*xs, **keywords)
        _compare(f"reduction={reduction!r}", got.detach(), want)


@_check("weights", _has_values)
def _weights(s: _Subject) -> None:
    """The mean is sum(w l)/sum(w), a mask is weights 0 and 1, and gradient flows to w."""
    xs = s.make()
    values = s.values(xs)
    shares = s.shares(xs)
    weight = torch.rand(values.shape, dtype=values.dtype, generator=_generator()) + 0.5
    _compare_reductions(s, xs, values * weight, shares * weight, weight)
    one = weight.flatten()[:1].view([1] * values.dim())
    _compare_reductions(s, xs, values * one, shares * one, one)
    mask = weight > weight.median()
    for reduction in REDUCTIONS:
        loss = s.reduced(reduction)
        by_mask, by_number = (s.evaluate(xs, loss, weight=w) for w in (mask, mask.double()))
        _compare_all(f"reduction={reduction!r}, bool mask", by_mask, by_number)
    leaf = weight.clone().requires_grad_()
    total = s.reduced("sum")(*xs, weight=leaf)
    if not total.requires_grad:
        _fail("No gradient flows to the weight.")
    (slope,) = torch.autograd.grad(total, leaf)
    _compare("gradient in the weight", slope, values)


@_check("weight_zero", _is_separable)
def _weight_zero(s: _Subject) -> None:
    """Weight 0 is the same as leaving the sample out, whatever its inputs hold."""
    xs = s.make()
    keep = torch.arange(_N) % 2 == 0
    weight = torch.rand(s.values(xs).shape, dtype=torch.float64, generator=_generator()) + 0.5
    weight[~keep] = 0.0
    for reduction in ("mean", "sum", "batchmean"):
        loss = s.reduced(reduction)
        want = s.evaluate(s.pick(xs, keep), loss, weight=weight[keep])
        for fill in (0.5, math.nan, math.inf):
            value, *gradients = s.evaluate(_spoiled(xs, ~keep, fill), loss, weight=weight)
            what = f"reduction={reduction!r}, inputs {fill} at weight 0"
            if any(bool((g[~keep] != 0).any()) for g in gradients if len(g) == _N):
                _fail(f"{what}: samples of weight 0 get a gradient that is not 0.")
            _compare_all(what, [value, *s.pick(gradients, keep)], want)


def _spoiled(xs: Sequence[Tensor], where: Tensor, fill: float) -> list[Tensor]:
    """Return the batch with ``fill`` in the floating-point inputs of some samples."""
    out = []
    for x in xs:
        if x.dtype.is_floating_point and x.dim() and len(x) == _N:
            x = x.clone()
            x[where] = fill
        out.append(x)
    return out


@_check("weight_shape", _is_loss)
def _weight_shape(s: _Subject) -> None:
    """A weight of another shape is a ValueError, also where it could be broadcast."""
    xs = s.make()
    shape = tuple(s.values(xs).shape)
    shapes = {(), (*shape, 1), (1, *shape), (_N + 1,), shape[1:]} - {shape}
    for wrong in sorted(shapes) if shape else [(), (1,), (_N,)]:
        try:
            out = s.loss(*xs, weight=torch.ones(wrong, dtype=torch.float64))
        except ValueError:
            continue
        _fail(
            f"weight of shape {wrong} for values of shape {shape}: expected a ValueError, "
            f"got {_show(out)}."
        )


@_check("normalizer", _is_loss)
def _normalizer(s: _Subject) -> None:
    """With the whole batch's normalizer, sum(w l)/normalizer: micro-batches add up to the batch."""
    xs = s.make()
    total = s.values(xs).sum()
    want = None
    for reduction in ("sum", "mean", "batchmean"):
        loss = s.reduced(reduction)
        want = s.evaluate(xs, loss, normalizer=7.0)
        _compare(f"reduction={reduction!r}, normalizer=7", want[0], total / 7.0)
        by_tensor = s.evaluate(xs, loss, normalizer=torch.tensor(7.0))
        _compare_all(f"reduction={reduction!r}, normalizer=tensor(7)", by_tensor, want)
        if _is_separable(s):
            parts = [
                s.evaluate(s.pick(xs, at), loss, normalizer=7.0)
                for at in (slice(0, 1), slice(1, _N))
            ]
            value = parts[0][0] + parts[1][0]
            gradients = [torch.cat(g) for g in zip(parts[0][1:], parts[1][1:], strict=True)]
            _compare_all("sum over micro-batches", [value, *gradients], want)


@_check("class_targets", lambda s: isinstance(s.loss, ClassificationLoss))
def _class_targets(s: _Subject) -> None:
    """per_sample(logits, None) is the value for every class; a one-hot target is its class."""
    loss, axis = s.loss, s.class_axis
    assert isinstance(loss, ClassificationLoss)
    logits, *others = s.make()
    target = others.pop(loss._target_at - 1)
    if target.dtype.is_floating_point:
        target = target.argmax(axis)
    target = target.where(target != loss.ignore_index, 0)
    j = target.unsqueeze(axis)
    first = replace(s, positions=(0,))

    def values(f: Tensor, y: Tensor | None) -> Tensor:
        out: Tensor = loss.per_sample(*loss._inputs(f, y, others))
        return out

    every = first.evaluate([logits], lambda f: values(f, None).gather(axis, j).squeeze(axis))
    _compare_all("every class", every, first.evaluate([logits], lambda f: values(f, target)))
    one_hot = torch.zeros_like(logits).scatter(axis, j, 1.0)
    for reduction, weighted in itertools.product(REDUCTIONS, (False, True)):
        own = s.reduced(reduction)
        if weighted:
            own = copy.deepcopy(own)
            own.class_weight = torch.linspace(0.5, 2.0, logits.shape[axis])
        try:
            soft = first.evaluate(loss._inputs(logits, one_hot, others), own)
        except TypeError:  # a loss may do without probabilities
            return
        what = f"reduction={reduction!r}{', class weights' if weighted else ''}, one-hot"
        _compare_all(what, soft, first.evaluate(loss._inputs(logits, target, others), own))


# Claims. Each is tried at random rows, and from there uphill.


@_check("property:convex", lambda s: s.properties.convex is not None)
def _convex(s: _Subject) -> None:
    """Convex in the input: the value at (a + b)/2 is at most the mean of those at a and b."""

    def excess(a: Tensor, b: Tensor, *others: Tensor) -> Tensor:
        ends = (s.row_values(a, *others) + s.row_values(b, *others)) / 2
        gap = s.row_values((a + b) / 2, *others) - ends
        return gap / (1 + ends.abs())

    if not s.properties.convex:
        found = float(excess(*s.stored("convex", 1 + s.arity)).detach()[0])
        if not found > 1e-12:
            _fail(f"Claimed not to be, but the counterexample exceeds by {found:.3g} (relative).")
        return
    a, *others = s.rows(180, 1, (0.3, 1.0, 4.0, 16.0))
    b = s.rows(180, 2, (0.3, 1.0, 4.0))[0]
    found, x = _climb(lambda x: excess(x[:, 0], x[:, 1], *others), torch.stack((a, b), 1))
    if found > _EXACT:
        _fail(
            f"Between a = {_show(x[0])} and b = {_show(x[1])} it exceeds by {found:.3g} (relative)."
        )


@_check(
    "property:bounds",
    lambda s: s.properties.lower is not None or s.properties.upper is not None,
)
def _bounds(s: _Subject) -> None:
    """The values lie between the bounds and come within 1 % of them.

    An infinite bound is shown by a direction along which the value grows without end.
    """
    lower, upper = s.properties.lower, s.properties.upper
    finite = [b for b in (lower, upper) if b is not None and math.isfinite(b)]
    span = finite[1] - finite[0] if len(finite) == 2 else max([1.0, *map(abs, finite)])
    rays = s.row_values(*_rays(s)).detach()
    rays = rays[~rays.isnan()]
    if lower is not None:
        _expect_bound(s, "lower", lower, -1.0, rays, span)
    if upper is not None:
        _expect_bound(s, "upper", upper, 1.0, rays, span)


def _expect_bound(
    s: _Subject, name: str, bound: float, sign: float, rays: Tensor, span: float
) -> None:
    def height(x: Tensor, *others: Tensor) -> Tensor:
        return sign * s.row_values(x, *others)

    if math.isinf(bound):
        _expect_growth(s, name, height)
        return
    x, *others = s.rows(120, 3, (0.3, 1.0, 4.0, 16.0))
    reached, at = _climb(lambda x: height(x, *others), x)
    reached = max(reached, float((sign * rays).max()))
    if reached > sign * bound + _EXACT * (1 + abs(bound)):
        _fail(f"{name} = {bound:.6g}, but it reaches {sign * reached:.6g} (at {_show(at)}).")
    if reached < sign * bound - 0.01 * span:
        _fail(f"{name} = {bound:.6g}, but the nearest value found is {sign * reached:.6g}.")


def _rays(s: _Subject) -> tuple[Tensor, ...]:
    """Return rows along rays: scaled one-hot logits with every target, or scaled inputs."""
    scales = torch.cat((torch.zeros(1), torch.logspace(-2, 6, 17))).double()
    scales = torch.cat((scales, -scales))
    if not s.has_classes:
        x, *others = s.rows(8, 4, (1.0,))
        x = torch.cat([x * c for c in scales])
        return x, *[y.repeat(len(scales), *[1] * (y.dim() - 1)) for y in others]
    k = s.num_classes
    x = torch.cat([torch.eye(k, dtype=torch.float64) * c for c in scales])
    y = torch.arange(k).repeat_interleave(len(x))
    x = x.repeat(k, 1)
    return s.with_target(x, y, s.further(len(x), x))


def _expect_growth(s: _Subject, name: str, fn: Callable[..., Tensor]) -> None:
    """Fail unless ``fn`` grows without end along the stored direction."""
    d, *others = s.stored(name, s.arity)
    scales = [10.0**i for i in range(6)]
    values = [float(fn(c * d, *others).detach()[0]) for c in scales]
    large = [v for v in values if v > 1e100]
    steps = [b - a for a, b in itertools.pairwise(values)]
    # Growth like a logarithm adds as much with every decade, a bounded function less and less.
    grows = bool(large) or (steps[-1] > 0.0 and steps[-1] >= 0.5 * steps[-2])
    if not grows:
        shown = ", ".join(f"{v:.6g}" for v in values)
        _fail(
            f"{name} is claimed to be infinite, but along the stored direction, scaled by 1, 10, "
            f"... 1e5, it goes {shown}."
        )


@_check("property:lipschitz", lambda s: s.properties.lipschitz is not None)
def _lipschitz(s: _Subject) -> None:
    """The gradient's Euclidean norm per sample stays below the constant.

    An infinite one is shown by a direction along which the norm grows without end.
    """

    def norm(x: Tensor, *others: Tensor) -> Tensor:
        g = s.row_gradient(x, *others, create_graph=x.requires_grad)
        # The slope of the norm itself is not defined at 0.
        return (g.flatten(1).square().sum(1) + 1e-300).sqrt()

    bound = s.properties.lipschitz
    assert bound is not None
    if math.isinf(bound):
        _expect_growth(s, "lipschitz", norm)
        return
    x, *others = s.rows(120, 5, (0.3, 1.0, 4.0, 16.0))
    found, at = _climb(lambda x: norm(x, *others), x)
    if found > bound * (1 + _EXACT) + 1e-12:
        _fail(f"lipschitz = {bound:.6g}, but the norm is {found:.6g} at {_show(at)}.")


@_check("property:smoothness", lambda s: s.properties.smoothness is not None)
def _smoothness(s: _Subject) -> None:
    """Derivatives along lines, up to the claimed order, are continuous; the next one is not.

    Only the first two derivatives are tried.
    """
    claimed = s.properties.smoothness
    assert claimed is not None
    for order in range(3):
        jump, at = _largest_jump(s, order)
        if jump > 1e-6 and order <= claimed:
            _fail(
                f"smoothness = {claimed}, but derivative {order} jumps by {jump:.3g} (relative) "
                f"at {_show(at)}."
            )
        if order == claimed + 1:
            if jump <= 1e-6:
                _fail(f"smoothness = {claimed}, but derivative {order} has no jump on 64 lines.")
            return


def _largest_jump(s: _Subject, order: int) -> tuple[float, Tensor]:
    """Follow the largest change of a derivative by bisection: a jump is what is left at the end."""
    a, *others = s.rows(64, 6, (1.0, 3.0))
    b = s.rows(64, 7, (3.0, 1.0))[0]

    def point(t: Tensor) -> Tensor:
        return a + t.reshape(-1, *[1] * (a.dim() - 1)) * (b - a)

    def derivative(t: Tensor) -> Tensor:
        t = t.requires_grad_(order > 0)
        out = s.row_values(point(t), *others)
        for _ in range(order):
            if not out.requires_grad:
                return torch.zeros_like(t)
            (g,) = torch.autograd.grad(out.sum(), t, create_graph=True, allow_unused=True)
            out = torch.zeros_like(t) if g is None else g
        return out.detach()

    low, high = torch.zeros(len(a), dtype=a.dtype), torch.ones(len(a), dtype=a.dtype)
    at_low, at_high = derivative(low), derivative(high)
    size = 1 + at_low.abs() + at_high.abs()
    for _ in range(40):
        middle = (low + high).detach() / 2
        at_middle = derivative(middle)
        left = (at_middle - at_low).abs() >= (at_high - at_middle).abs()
        low, at_low = low.where(left, middle), at_low.where(left, at_middle)
        high, at_high = middle.where(left, high), at_middle.where(left, at_high)
    jumps = (at_high - at_low).abs() / size
    worst = int(jumps.argmax())
    return float(jumps[worst]), point(low)[worst].detach()


# Claims about losses of (logits, class index).


@_check("property:shift_invariant", lambda s: s.properties.shift_invariant is not None)
def _shift_invariant(s: _Subject) -> None:
    """The same number added to all logits of a row changes nothing."""
    _expect_classes(s)
    if not s.properties.shift_invariant:
        a, c = s.stored("shift_invariant", 2)
        before, after = s.class_values(a), s.class_values(a + c)
        if torch.allclose(before, after, rtol=1e-6, atol=0.0):
            _fail(f"Claimed not to hold, but the counterexample gives {_show(before[0])} twice.")
        return
    f = s.rows(64, 8, (1.0, 4.0))[0]
    before = s.class_values(f)
    for c in (-100.0, -1.0, 1.0, 100.0):
        _compare(f"logits + {c:g}", s.class_values(f + c), before, rtol=1e-9)


@_check("property:symmetric", lambda s: s.properties.symmetric is not None)
def _symmetric(s: _Subject) -> None:
    """The sum over all classes, sum_k loss(f, k), is one and the same number."""
    _expect_classes(s)

    def class_sum(f: Tensor) -> Tensor:
        return s.class_values(f).sum(1)

    if not s.properties.symmetric:
        a, b = (float(class_sum(f)[0]) for f in s.stored("symmetric", 2))
        if not abs(a - b) > 1e-6 * (1 + abs(a)):
            _fail(f"Claimed not to be, but the counterexample has the sums {a:.10g}, {b:.10g}.")
        return
    f = s.rows(120, 9, (0.3, 1.0, 4.0, 16.0))[0]
    constant = s.properties.class_sum
    if constant is None:
        constant = float(class_sum(f)[0])
    found, at = _climb(lambda f: (class_sum(f) - constant).abs(), f)
    if found > _EXACT * (1 + abs(constant)):
        _fail(f"Expected {constant:.10g}, off by {found:.3g} at {_show(at)}.")


@_check("property:calibrated", lambda s: s.properties.calibrated is not None)
def _calibrated(s: _Subject) -> None:
    """What minimises the conditional risk sum_k q_k loss(f, k) has a most probable class on top."""
    _expect_classes(s)
    if not s.properties.calibrated:
        _expect_misled(s, "calibrated", lambda q, f: _top_gap(q, f) <= 0.0)
        return
    q = _distributions(s.num_classes)
    f, risk = _minimise(s, q)
    top = q.argmax(1, keepdim=True)
    if bool((wrong := f.argmax(1) != top.squeeze(1)).any()):
        _fail(_misled(q, f, wrong))
    for k in range(s.num_classes):
        # A tie with class k must cost something, or the infimum is reached without top on top.
        tied = _tied(f, top, torch.full_like(top, k))
        cheap = (_risk(s, tied, q) <= risk + _slack(risk)) & (top.squeeze(1) != k)
        if bool(cheap.any()):
            _fail(_misled(q, tied, cheap))


@_check("property:rank_consistent", lambda s: s.properties.rank_consistent is not None)
def _rank_consistent(s: _Subject) -> None:
    """The conditional risk sum_k q_k loss(f, k) has a finite minimiser, in the order of q."""
    _expect_classes(s)
    if not s.properties.rank_consistent:
        _expect_misled(s, "rank_consistent", lambda q, f: not _same_order(q, f))
        return
    q = _distributions(s.num_classes, spread=True)
    f, risk = _minimise(s, q)
    if bool((far := (f.abs() > 0.99 * _BOX).any(1)).any()):
        _fail(f"{_misled(q, f, far)} That is no finite minimiser.")
    order = q.argsort(1, descending=True)
    for i in range(s.num_classes - 1):
        a, b = order[:, i : i + 1], order[:, i + 1 : i + 2]
        if bool((wrong := (f.gather(1, a) <= f.gather(1, b)).squeeze(1)).any()):
            _fail(_misled(q, f, wrong))
        tied = _tied(f, a, b)
        if bool((cheap := _risk(s, tied, q) <= risk + _slack(risk)).any()):
            _fail(_misled(q, tied, cheap))


@_check("property:proper", lambda s: s.properties.proper is not None)
def _proper(s: _Subject) -> None:
    """The conditional risk sum_k q_k loss(f, k) is minimised by softmax(f) = q."""
    _expect_classes(s)
    if not s.properties.proper:
        q, f = s.stored("proper", 2)
        at_q, at_f = float(_risk(s, q.log(), q)), float(_risk(s, f, q))
        if not at_f < at_q - 1e-12 * (1 + abs(at_q)):
            _fail(
                f"Claimed not to be, but the counterexample's risk {at_f:.10g} is not below "
                f"{at_q:.10g}, the risk at log q."
            )
        return
    q = _distributions(s.num_classes)
    f, _ = _minimise(s, q)
    wrong = (torch.softmax(f, 1) - q).abs().amax(1) > 1e-4
    if bool(wrong.any()):
        i = int(wrong.nonzero()[0])
        _fail(f"For q = {_show(q[i])} the minimiser has softmax(f) = {_show(f[i].softmax(0))}.")


def _expect_classes(s: _Subject) -> None:
    if not s.has_classes:
        _fail("The claim is about losses of (logits, class index): leave it None for this one.")


#: Logits of a conditional minimiser are sought in [-60, 60]: beyond it every probability that is
#: going to vanish has vanished.
_BOX = 60.0


def _risk(s: _Subject, f: Tensor, q: Tensor) -> Tensor:
    return (q * s.class_values(f)).sum(1)


def _slack(risk: Tensor) -> Tensor:
    return _EXACT * (1 + risk.abs())


def _distributions(num_classes: int, *, spread: bool = False, n: int = 24) -> Tensor:
    """Return class distributions: uniform on the simplex, or all probabilities apart."""
    generator = _generator()
    if spread:
        steps = torch.rand(n, num_classes, dtype=torch.float64, generator=generator) + 0.5
        q = 2.0 + steps.cumsum(1)
        order = torch.rand(n, num_classes, generator=generator).argsort(1)
        q = q.gather(1, order)
    else:
        q = -torch.rand(40 * n, num_classes, dtype=torch.float64, generator=generator).log()
        top = (q / q.sum(1, keepdim=True)).topk(2, 1).values
        q = q[top[:, 0] - top[:, 1] > 0.05][:n]
    return q / q.sum(1, keepdim=True)


def _minimise(s: _Subject, q: Tensor, *more: Tensor) -> tuple[Tensor, Tensor]:
    """Return what minimises the conditional risk under every row of q, and the least risks.

    From log q, which is right for a proper loss, from two random points, from near each class
    alone and near q's largest classes alone, because bounded losses are flat in between, and from
    ``more``. By
    Newton's method for all rows and starts at once, each with its own damping; the curvature comes
    from differences of the gradient, so that the loss need not have a second derivative.
    """
    random = 2.0 * torch.randn(2, *q.shape, dtype=q.dtype, generator=_generator())
    classes = range(q.shape[1])
    alone = [6.0 * torch.eye(q.shape[1], dtype=q.dtype)[k].expand_as(q) for k in classes]
    rank = q.argsort(1, descending=True).argsort(1)
    largest = [q.log().masked_fill(rank >= k, -12.0) for k in classes[2:]]
    starts = torch.stack([q.log(), *random, *alone, *largest, *more])
    f, qs = starts.flatten(0, 1).clamp(-_BOX, _BOX), q.repeat(len(starts), 1)
    risk = _risk(s, f, qs).detach()
    damping = torch.ones_like(risk)
    for _ in range(80):
        g, curvature = _slopes(s, f, qs)
        values, vectors = torch.linalg.eigh(curvature)
        # Away from saddles too: every direction goes downhill, at the pace of its curvature.
        pace = values.abs() + damping.unsqueeze(1) + torch.finfo(q.dtype).tiny
        step = -(vectors @ ((vectors.mT @ g.unsqueeze(2)).squeeze(2) / pace).unsqueeze(2)).squeeze(
            2
        )
        step = step * (5.0 / step.norm(dim=1, keepdim=True).clamp(min=5.0))
        trial = (f + step.nan_to_num()).clamp(-_BOX, _BOX)
        trial_risk = _risk(s, trial, qs).detach()
        better = trial_risk < risk - 1e-15 * (1.0 + risk.abs())
        f, risk = trial.where(better.unsqueeze(1), f), trial_risk.where(better, risk)
        damping = damping * torch.where(better, 0.1, 8.0)
        if not bool(better.any()) and float(damping.min()) > 1e6:
            break
    risk, best = risk.view(len(starts), -1).min(0)
    return f.view(starts.shape)[best, torch.arange(len(q))], risk


def _slopes(s: _Subject, f: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient of the conditional risk, (rows, K), and its Hessian, (rows, K, K)."""
    k = f.shape[1]
    h = 1e-5 * torch.eye(k, dtype=f.dtype)
    moved = torch.cat((f.unsqueeze(0), f + h.unsqueeze(1), f - h.unsqueeze(1))).requires_grad_()
    risk = _risk(s, moved.flatten(0, 1), q.repeat(2 * k + 1, 1))
    (g,) = torch.autograd.grad(risk.sum(), moved)
    g = g.nan_to_num()
    hessian = ((g[1 : k + 1] - g[k + 1 :]) / 2e-5).movedim(0, 1)
    return g[0], (hessian + hessian.mT) / 2


def _tied(f: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return f with its entries a and b both at their mean."""
    mean = (f.gather(1, a) + f.gather(1, b)) / 2
    return f.scatter(1, a, mean).scatter(1, b, mean)


def _top_gap(q: Tensor, f: Tensor) -> float:
    """Return by how much q's largest class leads in f."""
    top = q.argmax(1, keepdim=True)
    rivals = f.scatter(1, top, -math.inf)
    return float(f.gather(1, top).squeeze(1) - rivals.amax(1))


def _same_order(q: Tensor, f: Tensor) -> bool:
    smaller = q.unsqueeze(2) < q.unsqueeze(1)
    return bool((f.unsqueeze(2) < f.unsqueeze(1))[smaller].all())


def _expect_misled(s: _Subject, claim: str, shows: Callable[[Tensor, Tensor], bool]) -> None:
    """Fail unless the stored (q, f) reaches the least risk and is wrong about q."""
    q, f = s.stored(claim, 2)
    if not shows(q, f):
        _fail(f"Claimed not to be, but in the counterexample f = {_show(f[0])} agrees with q.")
    if s.properties.lower == -math.inf:
        risks = [float(_risk(s, c * f, q)) for c in (1.0, 10.0, 100.0, 1e3)]
        if not all(b < 2 * a < 0 for a, b in itertools.pairwise(risks)):
            _fail(f"Claimed not to be, but along the counterexample the risk goes {risks}.")
        return
    reached = float(_risk(s, f, q))
    _, least = _minimise(s, q, f)
    if reached > float(least) + 1e-6:
        _fail(
            f"Claimed not to be, but the counterexample's risk is {reached:.10g}, and "
            f"{float(least):.10g} can be reached."
        )


def _misled(q: Tensor, f: Tensor, where: Tensor) -> str:
    i = int(where.nonzero()[0])
    return f"For q = {_show(q[i])} the least risk is reached at f = {_show(f[i])}."


# Searching.


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _climb(fn: Callable[[Tensor], Tensor], x: Tensor) -> tuple[float, Tensor]:
    """Return the largest value of ``fn`` met on the way uphill from every row of x, and where."""
    best, at = -math.inf, x[0]
    size = x.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.dim() - 1))
    for i in range(30):
        x = x.detach().requires_grad_()
        values = fn(x)
        finite = values.detach().where(values.isfinite(), -math.inf)
        if float(finite.max()) > best:
            best, at = float(finite.max()), x.detach()[int(finite.argmax())]
        if not values.requires_grad:
            break
        (g,) = torch.autograd.grad(values.sum(), x)
        g = g.nan_to_num(0.0, 0.0, 0.0)
        norm = g.flatten(1).norm(dim=1).reshape(size.shape)
        x = x + 0.5 * 0.85**i * size * g / norm.clamp(min=1e-300)
    return best, at


def _show(x: Tensor) -> str:
    """Return a few numbers in short."""
    flat = [f"{v:.4g}" for v in x.detach().flatten()[:8].tolist()]
    return f"[{', '.join(flat)}{', ...' if x.numel() > 8 else ''}]"


#: The names of all checks, in the order in which they run.
CHECKS: tuple[str, ...] = tuple(_REGISTRY)
