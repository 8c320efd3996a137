"""Loss: weighting, masking and reduction, written once.

A loss writes one method, ``per_sample``, which maps its inputs to one value per sample. All else
is here: the checks that do not depend on the formula, float32 arithmetic for half-precision input,
sample weights and masks, class weights, ``ignore_index``, probability targets and the reduction::

    none       w * l
    sum        sum(w * l)
    mean       sum(w * l) / sum(w)
    batchmean  sum(w * l) / (number of entries with w != 0, over all processes)

with one ``w`` that gathers sample weight, class weight and mask. In a separable loss an entry with
``w = 0`` is not there: its inputs, infinities and nans included, reach neither value nor gradient.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, TypedDict

import torch
from torch import Tensor, nn

from lossary import _distributed, _softmax
from lossary._checks import (
    check_choice,
    check_device,
    check_floating,
    check_in_memory,
    check_int,
    check_integers,
    check_like,
    check_number,
    check_plain,
    check_tensor,
    check_weight_type,
)
from lossary._layouts import Layout
from lossary._properties import Properties

REDUCTIONS = ("none", "sum", "mean", "batchmean")
HALF = (torch.float16, torch.bfloat16)


def _forward_like(per_sample: Callable[..., Any]) -> Callable[..., Tensor]:
    """Make a ``forward`` with the input names, defaults and annotations of ``per_sample``.

    It is generated as source, in the manner of dataclasses, because a true signature costs nothing
    per call, accepts inputs by name, and is plain bytecode to torch.compile.
    """
    signature = inspect.signature(per_sample)
    inputs = list(signature.parameters.values())[1:]
    for p in inputs:
        if p.kind is not p.POSITIONAL_OR_KEYWORD:
            raise TypeError(f"per_sample: {p.name!r} must be an ordinary parameter, got {p.kind}")
    defaults = {f"_{p.name}": p.default for p in inputs if p.default is not p.empty}
    declared = [f"{p.name}=_{p.name}" if f"_{p.name}" in defaults else p.name for p in inputs]
    passed = "".join(f"{p.name}, " for p in inputs)
    source = (
        f"def forward({', '.join(['self', *declared])}, *, weight=None, normalizer=None):\n"
        f"    return self._call(({passed}), weight, normalizer)\n"
    )
    scope: dict[str, Any] = dict(defaults)
    exec(compile(source, f"<forward of {per_sample.__qualname__}>", "exec"), scope)
    forward: Callable[..., Tensor] = scope["forward"]
    forward.__module__ = per_sample.__module__
    forward.__qualname__ = per_sample.__qualname__.replace("per_sample", "forward")
    forward.__doc__ = "Return the weighted, reduced loss: see the class."
    forward.__annotations__ = {
        **{p.name: p.annotation for p in inputs if p.annotation is not p.empty},
        "weight": Tensor | None,
        "normalizer": float | Tensor | None,
        "return": Tensor,
    }
    return forward


def _full_signature(cls: type) -> inspect.Signature:
    """Return the constructor's signature with the options that it passes on written out.

    Families take the common options as ``**options: Unpack[ClassOptions]``, which type checkers
    and the base class hold to the names there are; help() should show them too.
    """
    own = list(inspect.signature(cls.__init__).parameters.values())[1:]  # type: ignore[misc]
    if own and own[-1].kind is inspect.Parameter.VAR_KEYWORD:
        inherited = inspect.signature(cls.__mro__[1]).parameters.values()
        own[-1:] = [p for p in inherited if p.kind is p.KEYWORD_ONLY]
    return inspect.Signature(own)


class LossOptions(TypedDict, total=False):
    """The keywords of every loss's constructor."""

    reduction: str


class ClassOptions(LossOptions, total=False):
    """The keywords of the constructor of every loss with a class target."""

    class_weight: Tensor | None
    ignore_index: int
    class_dim: int


class Loss(nn.Module):
    r"""Base class of every loss: a subclass writes ``per_sample``, and nothing else.

    .. math:: \text{mean} = \frac{\sum_i w_i\, l_i}{\sum_i w_i}, \qquad
              \text{batchmean} = \frac{\sum_i w_i\, l_i}{\#\{i : w_i \neq 0\}}, \qquad
              \text{normalizer } n:\ \frac{1}{n} \sum_i w_i\, l_i

    ``per_sample(self, *inputs)`` returns one value per sample, or a pair ``(values, denominators)``
    where some entries are left out of the mean (denominator 0) or count differently. ``forward``
    gets the input names of ``per_sample`` and two keywords:

    - ``weight``: float weights, or bool for a mask, of the shape of the values, or of the same
      number of dimensions with ones. Gradient flows to it. In a separable loss weight 0 or False
      means that the entry is not there at all: its inputs may hold inf and nan. In a batch-coupled
      loss ``weight`` scales the entry's own term and changes nothing for the others.
    - ``normalizer``: a number or a 0-dim tensor; the result is sum(w * l) / normalizer. With the
      whole batch's normalizer the micro-batches of gradient accumulation add up exactly to the
      full batch, for separable losses.

    If nothing is left (an empty batch, everything masked) the result is 0, still attached to the
    graph. Half and bfloat16 inputs are computed in float32 and give a float32 loss. The result may
    be scaled in place.

    Under ``torch.distributed``, ``"batchmean"`` counts the entries of all processes and multiplies
    by their number: with the usual averaging of gradients that is the gradient of one process on
    the whole batch. Every process must call it. ``"mean"`` is the mean of this process
    (:func:`lossary.global_normalizer` makes it that of all), except in losses that gather the rows
    of all: there it is W sum(w * l) / (sum(w) over all W processes), which averages to the mean of
    the whole batch. ``"sum"`` is the sum of this process: gradients
    add up to those of the whole batch, and averaging them gives 1/W of that.

    Args:
        reduction: ``"none"``, ``"sum"``, ``"mean"`` or ``"batchmean"``.

    Shape:
        ``weight``: the shape of the values, or as many dimensions with ones.
        Output: the shape of the values for ``"none"``, else 0-dim.

    Raises:
        ValueError: unknown ``reduction``; ``weight`` of another shape; ``normalizer`` with
            ``"none"``, zero, nan or not 0-dim.
        TypeError: ``weight`` neither float nor bool; inputs or ``normalizer`` of a wrong type.

    Example:
        >>> import torch
        >>> from lossary import Loss
        >>> class SquaredError(Loss):
        ...     def per_sample(self, input, target):
        ...         return (input - target).square()
        >>> loss = SquaredError()
        >>> x, y = torch.tensor([1.0, 2.0, float("nan")]), torch.zeros(3)
        >>> loss(x, y, weight=torch.tensor([3.0, 1.0, 0.0]))
        tensor(1.7500)
    """

    #: False where the value of one entry depends on the other entries of the batch.
    separable: ClassVar[bool] = True
    #: Whether to gather the rows of all processes of a group: see the batch-coupled losses.
    gather: bool | str = False
    process_group: Any = None
    #: False where the loss's own kernel casts half-precision input, tile by tile.
    upcast: ClassVar[bool] = True

    per_sample: Callable[..., Any]

    def __init__(self, *, reduction: str = "mean") -> None:
        super().__init__()
        check_choice("reduction", reduction, REDUCTIONS)
        self.reduction = reduction

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "per_sample" in cls.__dict__ and "forward" not in cls.__dict__:
            cls.forward = _forward_like(cls.__dict__["per_sample"])
        if "__init__" in cls.__dict__:
            cls.__signature__ = _full_signature(cls)  # type: ignore[attr-defined]

    def properties(self) -> Properties:
        """Return what this instance guarantees: see :class:`lossary.Properties`."""
        return Properties()

    def extra_repr(self) -> str:
        """Show the hyper-parameters that differ from their defaults, and the reduction."""
        shown = []
        for name, p in inspect.signature(type(self)).parameters.items():
            value = getattr(self, name, p.default)
            if isinstance(value, nn.Module):
                continue
            if isinstance(value, Tensor):
                shown.append(f"{name}=tensor{tuple(value.shape)}")
            elif p.default is p.empty or value != p.default or name == "reduction":
                shown.append(f"{name}={value!r}")
        return ", ".join(shown)

    def _call(
        self, inputs: tuple[Any, ...], weight: Tensor | None, normalizer: float | Tensor | None
    ) -> Tensor:
        # Autocast would send similarity products to half precision and, on CPU, keep sums there.
        device = inputs[0].device.type if hasattr(inputs[0], "device") else "cpu"
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return self._evaluate(inputs, weight, normalizer)
        return self._evaluate(inputs, weight, normalizer)

    def _evaluate(
        self, inputs: tuple[Any, ...], weight: Tensor | None, normalizer: float | Tensor | None
    ) -> Tensor:
        return self._reduce(*self._values(inputs, weight), normalizer)

    def _values(
        self, inputs: tuple[Any, ...], weight: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the values, the weight in their dtype and the denominators, of checked inputs."""
        if weight is not None:
            check_weight_type("weight", weight)
            if self.separable:
                inputs = self._without_absent(inputs, weight)
        if self.upcast:
            inputs = tuple(_upcast(x) for x in inputs)
        out = self.per_sample(*inputs)
        values, denominators = out if isinstance(out, tuple) else (out, None)
        if weight is not None:
            if values.dim() == 0:
                raise ValueError("weight: expected none for a loss that is one number, got one")
            _check_weight(weight, values.shape, values)
            weight = weight.to(values.dtype)
        return values, weight, denominators

    def _without_absent(self, inputs: tuple[Any, ...], weight: Tensor) -> tuple[Any, ...]:
        """Return the inputs, cleaned where the weight is 0: its axes are their first ones."""
        return tuple(_without_absent(x, weight) for x in inputs)

    def _reduce(
        self,
        values: Tensor,
        weight: Tensor | None,
        denominators: Tensor | None,
        normalizer: float | Tensor | None,
    ) -> Tensor:
        """Apply the reduction. Every branch ends in an operation that does not save its output."""
        terms = values if weight is None else values * weight
        if self.reduction == "none":
            if normalizer is not None:
                raise ValueError("normalizer: not used with reduction='none', got one")
            return terms.clone() if terms is values else terms
        if normalizer is not None:
            return terms.sum() / _checked_normalizer(normalizer, terms.dtype)
        if self.reduction == "sum":
            return terms.sum()
        group = self.process_group if self._gathers() else None
        if self.reduction == "batchmean":
            return _batchmean(terms, weight, denominators, group)
        if self._gathers():
            return _global_mean(terms, weight, denominators, group)
        return _mean(terms, weight, denominators)

    def _gathers(self) -> bool:
        """Tell whether this call gathers the rows of several processes."""
        return _distributed.gathers(self.gather, self.process_group)


def _mean(terms: Tensor, weight: Tensor | None, denominators: Tensor | None) -> Tensor:
    if weight is None and denominators is None:
        return terms.mean() if terms.numel() else terms.sum()
    shares = _shares(terms, weight, denominators)
    total = shares.sum()
    # Only when nothing is left is the denominator 1: weights that cancel are the caller's infinity.
    nothing = (shares == 0).all()
    return terms.sum() / torch.where(nothing, torch.ones_like(total), total)


def _global_mean(
    terms: Tensor, weight: Tensor | None, denominators: Tensor | None, group: Any
) -> Tensor:
    """Return W * own sum / sum of the shares of all W processes: on average, the mean of all.

    The denominator is a constant, as the other processes' part of it is.
    """
    shares = _shares(terms, weight, denominators).detach()
    sums = torch.stack((shares.sum(), (shares != 0).sum().to(shares.dtype)))
    total, left = _distributed.sum_over_ranks(sums, group)
    # As in _mean, only where nothing is left on any process is the denominator 1.
    return terms.sum() * _distributed.world_size(group) / torch.where(left == 0, 1.0, total)


def _batchmean(
    terms: Tensor, weight: Tensor | None, denominators: Tensor | None, group: Any
) -> Tensor:
    count = (_shares(terms, weight, denominators) != 0).sum().to(terms.dtype)
    count = _distributed.sum_over_ranks(count, group).clamp(min=1.0)
    return terms.sum() * _distributed.world_size(group) / count


def _shares(terms: Tensor, weight: Tensor | None, denominators: Tensor | None) -> Tensor:
    """Return what each entry adds to the denominator, in the full shape."""
    shares = torch.ones_like(terms) if weight is None else weight.expand_as(terms)
    return shares if denominators is None else shares * denominators


def _checked_normalizer(normalizer: float | Tensor, dtype: torch.dtype) -> float | Tensor:
    if isinstance(normalizer, Tensor):
        if normalizer.dim() != 0:
            raise ValueError(
                f"normalizer: expected a 0-dim tensor, got shape {tuple(normalizer.shape)}"
            )
        if normalizer.dtype is torch.bool or normalizer.dtype.is_complex:
            raise TypeError(f"normalizer: expected a real number, got {normalizer.dtype}")
        if _softmax.readable(normalizer):
            _check_divisor(float(normalizer.detach()))
        return normalizer.to(dtype)
    number = check_number("normalizer", normalizer)
    _check_divisor(number)
    return number


def _check_divisor(number: float) -> None:
    if number == 0.0 or not math.isfinite(number):
        raise ValueError(f"normalizer: expected a finite number other than 0, got {number!r}")


def _check_weight(weight: Tensor, shape: torch.Size, values: Tensor) -> None:
    """Weights have the per-sample shape or ones: anything else would broadcast silently."""
    fits = weight.dim() == len(shape) and all(
        w in (1, s) for w, s in zip(weight.shape, shape, strict=True)
    )
    if not fits:
        raise ValueError(
            f"weight: expected shape {tuple(shape)}, or as many dimensions with ones, "
            f"got {tuple(weight.shape)}"
        )
    check_device("weight", weight, values)


def check_sample_weight(weight: Tensor | None, shape: torch.Size, values: Tensor) -> None:
    """Raise an error unless this is a float or bool weight for values of the shape, or none."""
    if weight is not None:
        check_weight_type("weight", weight)
        _check_weight(weight, shape, values)


def check_class_weight(class_weight: Tensor) -> None:
    """Raise an error unless this is one weight per class, finite and not negative."""
    check_floating("class_weight", class_weight)
    if class_weight.dim() != 1 or len(class_weight) < 2:
        shape = tuple(class_weight.shape)
        raise ValueError(f"class_weight: expected shape (K,) with K >= 2, got {shape}")
    good = (class_weight >= 0) & class_weight.isfinite()
    if _softmax.readable(good) and not bool(good.all()):
        raise ValueError(f"class_weight: expected finite numbers >= 0, got {class_weight.tolist()}")


def checked_counts(name: str, counts: Tensor | Sequence[float]) -> Tensor:
    """Return one positive number per class as a tensor: float64 where it was, else float32."""
    if not isinstance(counts, Tensor | list | tuple):
        raise TypeError(
            f"{name}: expected a tensor or a sequence of numbers, got {type(counts).__name__}"
        )
    if not isinstance(counts, Tensor):
        counts = torch.tensor([check_number(name, x) for x in counts])
    if counts.dtype is torch.bool or counts.dtype.is_complex:
        raise TypeError(f"{name}: expected numbers, got {counts.dtype}")
    if counts.dim() != 1 or len(counts) < 2:
        raise ValueError(f"{name}: expected shape (K,) with K >= 2, got {tuple(counts.shape)}")
    good = (counts > 0) & counts.isfinite()
    if _softmax.readable(good) and not bool(good.all()):
        raise ValueError(f"{name}: expected finite numbers > 0, got {counts.tolist()}")
    counts = counts.detach()
    return counts.clone() if counts.dtype is torch.float64 else counts.float()


def check_class_indices(
    target: Tensor, rows: torch.Size, num_classes: int, ignore_index: int | None = None
) -> None:
    """Raise an error unless these are class indices, one per row of logits.

    The values are looked at where that does not wait for a device.
    """
    check_integers("target", target, "integer class indices")
    if target.shape != rows:
        raise ValueError(
            f"target: expected one class per row of logits, shape {tuple(rows)}, "
            f"got {tuple(target.shape)}"
        )
    if _softmax.readable(target):
        wrong = (target < 0) | (target >= num_classes)
        also = ""
        if ignore_index is not None:
            wrong, also = wrong & (target != ignore_index), f" or ignore_index={ignore_index}"
        if bool(wrong.any()):
            raise ValueError(
                f"target: expected class indices in [0, {num_classes}){also}, "
                f"got {int(target[wrong][0])}"
            )


def check_rows(name: str, logits: Tensor) -> None:
    """Raise an error unless these are rows of logits, (N, K), called ``name``."""
    check_floating(name, logits)
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise ValueError(f"{name}: expected shape (N, K), K >= 2, got {tuple(logits.shape)}")


def check_class_rows(name: str, logits: Tensor, target: Tensor) -> None:
    """Raise an error unless these are rows of logits, called ``name``, and class indices (N,)."""
    check_rows(name, logits)
    check_class_indices(target, logits.shape[:1], logits.shape[1])
    check_device("target", target, logits)


def _upcast(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) and x.dtype in HALF else x


def _without_absent(x: Any, weight: Tensor) -> Any:
    """Return ``x`` with zeros where the weight is 0: inf and nan there are never computed with."""
    if not isinstance(x, Tensor) or not x.dtype.is_floating_point or x.dim() < weight.dim():
        return x
    leading = x.shape[: weight.dim()]
    if any(w not in (1, s) for w, s in zip(weight.shape, leading, strict=True)):
        return x  # the check on the values' shape will say so
    absent = (weight == 0).reshape(weight.shape + (1,) * (x.dim() - weight.dim()))
    return x.masked_fill(absent, 0.0)


def expectation(values: Tensor, probabilities: Tensor, mass: Tensor, axis: int) -> Tensor:
    """Return sum_k mass_k values_k; a class that cannot occur adds nothing, even at infinity."""
    values = torch.where((probabilities == 0) & values.isinf(), 0.0, values)
    return (mass * values).sum(axis)


def present_rows(logits: Tensor, target: Tensor | None, axis: int, what: str) -> Tensor:
    """Return the logits with zeros in the rows that are not there; ``what`` needs a tensor."""
    check_in_memory(logits, what)
    if target is None:
        return logits
    return torch.where((target < 0).unsqueeze(axis), 0.0, logits)


def signed_margin(logits: Tensor, target: Tensor) -> Tensor:
    """Return m = f for target 1 and -f for target 0, with both of a binary loss checked."""
    check_floating("logits", logits)
    check_tensor("target", target)
    if target.dtype.is_complex:
        raise TypeError(f"target: expected bool or numbers 0 and 1, got {target.dtype}")
    check_like("target", target, "logits", logits)
    positive = target > 0
    if _softmax.readable(target):
        wrong = target != positive
        if bool(wrong.any()):
            raise ValueError(
                f"target: expected bool or numbers 0 and 1, got {float(target[wrong][0]):g}"
            )
    return torch.where(positive, logits, -logits)


class ClassificationLoss(Loss):
    r"""Base class of the losses of logits and a class target.

    .. math:: l_i = \operatorname{loss}(f_i, y_i) \quad\text{or, for class probabilities } q_i,\quad
              l_i = \sum_k q_{ik}\, \operatorname{loss}(f_i, k), \qquad
              w_i = \text{weight}_i \cdot \text{class\_weight}_{y_i}

    A subclass writes ``per_sample(self, logits, target)`` in terms of ``self.log_odds(logits,
    target)`` or another statistic of the primitive. There ``target`` holds class indices, -1 for
    entries that are not there, or is ``None``: then the value for every class is wanted, along the
    class axis. Further inputs may stand before or after ``target``.

    Args:
        reduction: ``"none"``, ``"sum"``, ``"mean"`` or ``"batchmean"``: see :class:`lossary.Loss`.
        class_weight: one weight per class, (K,), or ``None``. It joins the sample weight: the mean
            divides by the sum of the weights of the classes that occur, for index targets and for
            probabilities alike.
        ignore_index: entries with this target are not there.
        class_dim: the class axis of the logits.

    Shape:
        ``logits``: (N, K), (N, K, d1, ...), (K,), or any with ``class_dim`` named; K >= 2. Where a
        loss says so, also streamed, :class:`lossary.LinearLogits`, or sharded over processes,
        :class:`lossary.ShardedLogits`, whose classes come last whatever ``class_dim`` says, with
        class indices.
        ``target``: the shape of the logits without the class axis, integer class indices; or the
        shape of the logits, floating-point class probabilities.
        ``weight``: the shape of the index target, or as many dimensions with ones.

    Raises:
        ValueError: shapes that do not fit, a class index outside [0, K) that is not
            ``ignore_index`` (on CPU tensors, where looking costs nothing), probabilities that are
            negative or do not sum to 1 (likewise), ``class_weight`` of another length, negative or
            not finite.
        TypeError: logits that are not floating point, a target of the wrong dtype.

    Example:
        >>> import torch
        >>> from lossary import ClassificationLoss
        >>> class ZeroOneSurrogate(ClassificationLoss):
        ...     def per_sample(self, logits, target):
        ...         return torch.sigmoid(self.log_odds(logits, target))
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [5.0, 5.0]])
        >>> ZeroOneSurrogate()(logits, torch.tensor([0, 0, -100]))
        tensor(0.4251)
    """

    upcast = False
    class_weight: Tensor | None
    #: The position of ``target`` among the inputs. The logits are the first.
    _target_at: ClassVar[int] = 1
    #: What the first input is called.
    _first: ClassVar[str] = "logits"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "per_sample" in cls.__dict__:
            names = list(inspect.signature(cls.__dict__["per_sample"]).parameters)[1:]
            if "target" not in names[1:]:
                raise TypeError(f"per_sample: expected (logits, ..., target, ...), got {names}")
            cls._target_at = names.index("target")
            cls._first = names[0]

    def __init__(
        self,
        *,
        reduction: str = "mean",
        class_weight: Tensor | None = None,
        ignore_index: int = -100,
        class_dim: int = 1,
    ) -> None:
        super().__init__(reduction=reduction)
        if class_weight is not None:
            check_class_weight(class_weight)
        check_int("ignore_index", ignore_index)
        check_int("class_dim", class_dim)
        self.register_buffer("class_weight", class_weight)
        self.ignore_index = ignore_index
        self.class_dim = class_dim

    def properties(self, num_classes: int = 10) -> Properties:
        """Return what this instance guarantees on ``num_classes`` classes."""
        del num_classes
        return Properties()

    def log_odds(
        self,
        logits: Tensor,
        target: Tensor | None,
        *,
        temperature: float | Tensor = 1.0,
        margin: float | Tensor | None = None,
        above_chance: bool = False,
    ) -> Tensor:
        """Return the log-odds against ``target``, or against every class where it is ``None``.

        With ``above_chance`` less log(K - 1), accurate where all logits of a row nearly agree.
        """
        dim = self._class_axis(logits)
        if target is None:
            return _softmax.all_log_odds(
                logits,
                class_dim=dim,
                temperature=temperature,
                margin=margin,
                above_chance=above_chance,
            )
        name = _softmax.CHANCE_ODDS if above_chance else _softmax.LOG_ODDS
        return _softmax.row_statistics(
            logits, target, (name,), class_dim=dim, temperature=temperature, margin=margin
        )[0]

    def statistics(
        self, logits: Tensor, target: Tensor | None, names: tuple[str, ...]
    ) -> Iterable[Tensor]:
        """Return statistics of the rows of logits: see :mod:`lossary._softmax` for their names.

        They are those against ``target``, or against every class where it is ``None``.
        """
        dim = self._class_axis(logits)
        if target is None:
            return _softmax.all_statistics(logits, names, class_dim=dim)
        return _softmax.row_statistics(logits, target, names, class_dim=dim)

    def shifted(self, logits: Tensor, offset: Tensor) -> Tensor:
        """Return the logits plus one number per class, (K,), in the layout that they have."""
        if isinstance(logits, Layout):
            moved: Tensor = logits._shifted(offset)
            return moved
        dim = self._class_axis(logits)
        shape = [-1 if i == dim else 1 for i in range(logits.dim())]
        return logits + offset.view(shape)

    def expected(self, logits: Tensor, probabilities: Tensor, mass: Tensor, *others: Any) -> Tensor:
        """Return the per-sample value for a probability target.

        ``mass`` is the probabilities times the class weights, both 0 for entries that are not
        there; ``others`` are the further inputs. The default is the expectation,
        sum_k mass_k loss(f, k); a loss that takes a distribution directly overrides it.
        """
        values = self.per_sample(*self._inputs(logits, None, others))
        return expectation(values, probabilities, mass, self._class_axis(logits))

    def effective_weight(self, target: Tensor, weight: Tensor | None = None) -> Tensor:
        r"""Return what every entry counts with: ``"mean"`` divides by their sum.

        .. math:: w_i = \text{weight}_i \cdot \text{class\_weight}_{y_i} \quad\text{or}\quad
                  w_i = \text{weight}_i \sum_k q_{ik}\, \text{class\_weight}_k,
                  \qquad w_i = 0 \text{ where the target is ignored}

        For :func:`lossary.global_normalizer`, which needs the weights of a whole batch before there
        are any logits.

        Args:
            target: class indices, or class probabilities with the classes on the axis
                ``class_dim``.
            weight: as in the call of the loss.

        Returns:
            A tensor in the shape of the index target, float32, or float64 where an argument or
            ``class_weight`` is.

        Raises:
            ValueError: as in the call of the loss.
            TypeError: as in the call of the loss.
        """
        check_tensor("target", target)
        soft = target.dtype.is_floating_point
        rows, class_weight = target.shape, self._buffers["class_weight"]
        if soft:
            axis = self._class_axis(target, "target")
            self._check_class_weight(target.shape[axis])
            rows = rows[:axis] + rows[axis + 1 :]
        else:
            check_integers("target", target, "integer class indices")
        check_sample_weight(weight, rows, target)
        dtypes = [x.dtype for x in (target, weight, class_weight) if x is not None]
        dtype = torch.float64 if torch.float64 in dtypes else torch.float32
        if not soft:
            target = target.long()
            num_classes = math.inf if class_weight is None else len(class_weight)
            ignored = self._ignored(target, num_classes)
            return self._weight_of_indices(target, ignored, weight, dtype)
        self._check_probabilities(target, weight, axis)
        q = target.to(dtype)
        if weight is None:
            return self._mass(q, axis).sum(axis)
        q = q.masked_fill((weight == 0).unsqueeze(axis), 0.0)
        return weight.to(dtype) * self._mass(q, axis).sum(axis)

    def _inputs(self, logits: Tensor, target: Tensor | None, others: Iterable[Any]) -> list[Any]:
        """Return the arguments of per_sample, the target in its place."""
        inputs = [logits, *others]
        inputs.insert(self._target_at, target)
        return inputs

    def _class_axis(self, logits: Tensor, name: str | None = None) -> int:
        """Return the class axis as a non-negative number; a single row has only one axis."""
        n = logits.dim()
        if isinstance(logits, Layout):
            return n - 1
        if n == 1 and self.class_dim in (1, 0, -1):
            return 0
        if not -n <= self.class_dim < n:
            raise ValueError(
                f"{name or self._first}: expected an axis {self.class_dim} (class_dim), "
                f"got shape {tuple(logits.shape)}"
            )
        return self.class_dim % n

    def _evaluate(
        self, inputs: tuple[Any, ...], weight: Tensor | None, normalizer: float | Tensor | None
    ) -> Tensor:
        logits, *others = inputs
        target = others.pop(self._target_at - 1)
        axis = self._check_inputs(logits, target)
        check_sample_weight(weight, logits.shape[:axis] + logits.shape[axis + 1 :], logits)
        evaluate = self._soft if target.dtype.is_floating_point else self._hard
        values, weight, denominators = evaluate(logits, target, others, weight, axis)
        return self._reduce(values, weight, denominators, normalizer)

    def _hard(
        self, logits: Tensor, target: Tensor, others: list[Any], weight: Tensor | None, axis: int
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if target.dtype != torch.long:
            target = target.long()
        dtype = torch.float32 if logits.dtype in HALF else logits.dtype
        class_weight = self._buffers["class_weight"]
        ignored = self._ignored(target, logits.shape[axis])
        if ignored is None and weight is None and class_weight is None:
            return self.per_sample(*self._inputs(logits, target, others)), None, None
        weight = self._weight_of_indices(target, ignored, weight, dtype)
        # From here on one number says that an entry is absent, and the primitive skips it.
        target = target.masked_fill(weight == 0, -1)
        return self.per_sample(*self._inputs(logits, target, others)), weight, None

    def _soft(
        self, logits: Tensor, q: Tensor, others: list[Any], weight: Tensor | None, axis: int
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        self._check_probabilities(q, weight, axis)
        logits = _upcast(logits)
        q = q.to(logits.dtype)
        if weight is not None:
            absent = (weight == 0).unsqueeze(axis)
            logits, q = logits.masked_fill(absent, 0.0), q.masked_fill(absent, 0.0)
            weight = weight.to(logits.dtype)
        mass = self._mass(q, axis)
        return self.expected(logits, q, mass, *others), weight, mass.sum(axis)

    def _weight_of_indices(
        self, target: Tensor, ignored: Tensor | None, weight: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        """Return weight times class weight, in the target's shape, 0 where it is ignored."""
        class_weight = self._buffers["class_weight"]
        if weight is None:
            weight = torch.ones((), dtype=dtype, device=target.device)
        weight = weight.to(dtype)
        if class_weight is not None:
            classes = target if ignored is None else target.masked_fill(ignored, 0)
            weight = weight * class_weight.to(dtype)[classes]
        weight = weight.expand(target.shape)
        return weight if ignored is None else weight.masked_fill(ignored, 0.0)

    def _mass(self, q: Tensor, axis: int) -> Tensor:
        """Return the probabilities times the class weights."""
        if self.class_weight is None:
            return q
        shape = [-1 if i == axis else 1 for i in range(q.dim())]
        return q * self.class_weight.to(q.dtype).view(shape)

    def _ignored(self, target: Tensor, num_classes: float) -> Tensor | None:
        """Return which entries to leave out, ``None`` if it is known that there are none.

        Where the values can be read without waiting for a device, indices out of range are an
        error here; elsewhere the gather in the primitive fails on its own.
        """
        if not _softmax.readable(target) or target.numel() == 0:
            return target == self.ignore_index
        if target.numel() <= 64:  # a list is faster than two kernels here
            values = target.flatten().tolist()
            low, high = min(values), max(values)
        else:
            low, high = (int(x) for x in torch.aminmax(target))
        inside = low >= 0 and high < num_classes
        if inside and not 0 <= self.ignore_index < num_classes:
            return None
        ignored = target == self.ignore_index
        if not inside:
            wrong = ((target < 0) | (target >= num_classes)) & ~ignored
            if bool(wrong.any()):
                raise ValueError(
                    f"target: expected class indices in [0, {num_classes}) or "
                    f"ignore_index={self.ignore_index}, got {int(target[wrong][0])}"
                )
        return ignored

    def _check_inputs(self, logits: Tensor, target: Tensor) -> int:
        """Check what can be checked without looking at the values; return the class axis."""
        if not isinstance(logits, Layout):
            instead = "ShardedLogits(logits) where the classes are spread over processes"
            check_plain(self._first, logits, instead)
            check_floating(self._first, logits)
        check_tensor("target", target)
        if logits.dim() == 0:
            raise ValueError(f"{self._first}: expected a class axis, got a 0-dim tensor")
        axis = self._class_axis(logits)
        shape = logits.shape
        num_classes = shape[axis]
        if num_classes < 2:
            raise ValueError(f"{self._first}: expected at least 2 classes, got {num_classes}")
        self._check_class_weight(num_classes)
        check_device("target", target, logits)
        rows = shape[:axis] + shape[axis + 1 :]
        if target.dtype.is_floating_point:
            if target.shape == rows:
                raise TypeError(f"target: expected integer class indices, got {target.dtype}")
            if target.shape != logits.shape:
                raise ValueError(
                    f"target: expected class probabilities of the shape of the logits, "
                    f"{tuple(logits.shape)}, got {tuple(target.shape)}"
                )
            if isinstance(logits, Layout):
                raise TypeError(
                    "target: expected integer class indices, as class probabilities need the "
                    f"logits in memory, got {target.dtype} with {type(logits).__name__}"
                )
        elif target.dtype is torch.bool or target.dtype.is_complex:
            raise TypeError(f"target: expected integer class indices, got {target.dtype}")
        elif target.shape != rows:
            raise ValueError(
                f"target: expected shape {tuple(rows)} for logits of shape "
                f"{tuple(logits.shape)}, got {tuple(target.shape)}"
            )
        return axis

    def _check_class_weight(self, num_classes: int) -> None:
        class_weight = self._buffers["class_weight"]  # a fifth of the time of self.class_weight
        if class_weight is not None and len(class_weight) != num_classes:
            raise ValueError(
                f"class_weight: expected {num_classes} weights, got {len(class_weight)}"
            )

    def _check_probabilities(self, q: Tensor, weight: Tensor | None, axis: int) -> None:
        if not _softmax.readable(q) or q.numel() == 0:
            return
        # Probabilities that were once in half precision sum to 1 only up to that rounding.
        tolerance = 2e-2
        total = q.detach().sum(axis, dtype=torch.float64)
        good = (q >= 0).all(axis) & ((total - 1).abs() <= tolerance)
        if weight is not None:
            good = good | (weight == 0)
        if not bool(good.all()):
            row = q.detach().movedim(axis, -1)[~good][0]
            raise ValueError(
                "target: expected class probabilities, non-negative with sum 1 over the class "
                f"axis, got a row with minimum {float(row.min()):g} and sum {float(row.sum()):g}"
            )
