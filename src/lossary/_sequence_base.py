"""SequenceLoss: what losses of log-probabilities of sequences and of tokens share."""

import inspect
import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from lossary._base import HALF, Loss, check_sample_weight
from lossary._checks import (
    check_device,
    check_floating,
    check_like,
    check_tensor,
)
from lossary._softmax import readable


class SequenceLoss(Loss):
    """A loss of sequence log-probabilities and lengths: what they must be, by their names."""

    _names: ClassVar[tuple[str, ...]] = ()
    _optional: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "per_sample" in cls.__dict__:
            inputs = list(inspect.signature(cls.__dict__["per_sample"]).parameters.values())[1:]
            cls._names = tuple(p.name for p in inputs)
            cls._optional = tuple(p.name for p in inputs if p.default is None)

    def _shape_of_values(self, like: Tensor) -> torch.Size:
        """Return the shape of the values, for inputs of which the first is ``like``."""
        return like.shape

    def _lengths_needed(self) -> tuple[bool, str]:
        """Return whether lengths are taken, and what decides that."""
        return True, ""

    def _values(
        self, inputs: tuple[Any, ...], weight: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        self._check_inputs(dict(zip(self._names, inputs, strict=True)), weight)
        return super()._values(inputs, weight)

    def _check_inputs(self, inputs: dict[str, Any], weight: Tensor | None) -> None:
        first, like = next(iter(inputs.items()))
        check_floating(first, like)
        check_sample_weight(weight, self._shape_of_values(like), like)
        for name, x in inputs.items():
            if name.endswith("lengths"):
                self._check_lengths(name, x, first, like, weight)
            elif name.endswith("logps") and not (x is None and name in self._optional):
                check_floating(name, x)
                check_like(name, x, first, like)

    def _check_lengths(
        self, name: str, lengths: Any, first: str, like: Tensor, weight: Tensor | None
    ) -> None:
        needed, because = self._lengths_needed()
        if not needed:
            if lengths is not None:
                raise TypeError(f"{name}: expected None with {because}, got {type(lengths)}")
            return
        check_tensor(name, lengths)
        if lengths.dtype is torch.bool or lengths.dtype.is_complex or lengths.dtype in HALF:
            # bfloat16 has no number between 256 and 258.
            raise TypeError(f"{name}: expected integers, float32 or float64, got {lengths.dtype}")
        check_like(name, lengths, first, like)
        check_range(
            name, lengths, weight, lambda x: (x >= 1) & (x < math.inf), "finite lengths >= 1"
        )


def per_token(x: Tensor, lengths: Tensor) -> Tensor:
    """Return x / lengths; where there is no token, x itself."""
    return x / lengths.clamp(min=1).to(x.dtype)


def present_tokens(mask: Any, shape: torch.Size, like: Tensor, name: str = "mask") -> Tensor:
    """Return a mask of zeros and ones as a bool tensor."""
    check_tensor(name, mask)
    if mask.dtype.is_complex:
        raise TypeError(f"{name}: expected bool or numbers 0 and 1, got {mask.dtype}")
    if mask.shape != shape:
        raise ValueError(f"{name}: expected shape {tuple(shape)}, got {tuple(mask.shape)}")
    check_device(name, mask, like)
    present: Tensor = mask if mask.dtype is torch.bool else mask != 0
    if readable(mask):
        wrong = present & (mask != 1)
        if bool(wrong.any()):
            raise ValueError(
                f"{name}: expected bool or numbers 0 and 1, got {float(mask[wrong][0]):g}"
            )
    return present


def check_range(
    name: str,
    x: Tensor,
    weight: Tensor | None,
    inside: Callable[[Tensor], Tensor],
    expected: str,
) -> None:
    """Raise an error for a number that is not inside, where it can be seen and counts."""
    if readable(x):
        wrong = ~inside(x.detach())
        if weight is not None:
            wrong &= weight != 0
        if bool(wrong.any()):
            raise ValueError(f"{name}: expected {expected}, got {float(x.detach()[wrong][0]):g}")


def check_probability(name: str, x: Tensor, weight: Tensor | None) -> None:
    """Raise an error for a number outside [0, 1], where it can be seen and counts."""
    check_range(name, x, weight, lambda p: (p >= 0) & (p <= 1), "probabilities in [0, 1]")


def check_probabilities(name: str, x: Any, first: str, like: Tensor, weight: Tensor | None) -> None:
    """Raise an error unless these are probabilities, one for each entry of ``first``."""
    check_floating(name, x)
    check_like(name, x, first, like)
    check_probability(name, x, weight)


def check_log_probability(
    name: str, x: Tensor, weight: Tensor | None = None, rounding: float = 0.0
) -> None:
    """Raise an error for a number above 0 by more than rounding, where it can be seen and counts.

    Nan is none either.
    """
    check_range(name, x, weight, lambda p: p <= rounding, "log-probabilities <= 0")
