"""What arguments must be, said once: every error names the argument, what came, what was expected.

Only what can be told without looking at a tensor's values: that would wait for a device.
"""

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor


def check_number(
    name: str,
    value: object,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    low_open: bool = False,
    high_open: bool = False,
) -> float:
    """Return ``value`` as a float if it is a number in the stated range, else raise an error."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__} ({value!r})")
    number = float(value)
    below = number <= low if low_open else number < low
    above = number >= high if high_open else number > high
    if math.isnan(number) or below or above:
        interval = f"{'(' if low_open else '['}{low:g}, {high:g}{')' if high_open else ']'}"
        raise ValueError(f"{name}: expected a number in {interval}, got {value!r}")
    return number


def check_positive(name: str, value: object, low: float = 0.0) -> float:
    """Return ``value`` as a float if it is finite and above ``low``, else raise an error."""
    return check_number(name, value, low, math.inf, low_open=True, high_open=True)


def check_int(name: str, value: object, least: float = -math.inf) -> int:
    """Return ``value`` if it is an int of at least ``least``, else raise an error."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__} ({value!r})")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")
    return value


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Raise an error unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {choices}, got {value!r}")


def check_tensor(name: str, value: object) -> None:
    """Raise an error unless ``value`` is a tensor, all of it on this process."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    check_plain(name, value, "its to_local(), if those are the samples of this process")


def check_plain(name: str, value: object, instead: str) -> None:
    """Raise an error for a DTensor, of which a kernel would see one process's part as all."""
    if type(value) is not Tensor and hasattr(value, "placements"):
        raise TypeError(
            f"{name}: expected a plain tensor ({instead}), got a DTensor with {value.placements}"
        )


def check_in_memory(logits: object, what: str) -> None:
    """Raise an error unless the logits are a tensor, where statistics of rows are not enough."""
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"logits: expected a tensor, as {what} needs the logits in memory, "
            f"got {type(logits).__name__}"
        )


def check_floating(name: str, value: Any) -> None:
    """Raise an error unless ``value`` is a floating-point tensor."""
    check_tensor(name, value)
    if not value.dtype.is_floating_point:
        raise TypeError(f"{name}: expected floating point, got {value.dtype}")


def check_weight_type(name: str, value: Any) -> None:
    """Raise an error unless ``value`` is a tensor of weights, or a mask."""
    check_tensor(name, value)
    if not (value.dtype.is_floating_point or value.dtype is torch.bool):
        raise TypeError(f"{name}: expected a float or bool tensor, got {value.dtype}")


def check_integers(name: str, value: Any, what: str = "integers") -> None:
    """Raise an error unless ``value`` is a tensor of integers; bool is none."""
    check_tensor(name, value)
    if value.dtype.is_floating_point or value.dtype.is_complex or value.dtype is torch.bool:
        raise TypeError(f"{name}: expected {what}, got {value.dtype}")


def check_device(name: str, value: Tensor, other: Tensor) -> None:
    """Raise an error unless both tensors lie on one device."""
    if value.device != other.device:
        raise ValueError(f"{name}: expected device {other.device}, got {value.device}")


def check_like(name: str, value: Tensor, first: str, like: Tensor) -> None:
    """Raise an error unless ``value`` has the shape and device of ``like``, called ``first``."""
    if value.shape != like.shape:
        raise ValueError(
            f"{name}: expected the shape of {first}, {tuple(like.shape)}, got {tuple(value.shape)}"
        )
    check_device(name, value, like)


def check_alike(**tensors: Any) -> None:
    """Raise an error unless all are floating-point tensors of one shape, on one device."""
    first, like = next(iter(tensors.items()))
    for name, x in tensors.items():
        check_floating(name, x)
        check_like(name, x, first, like)


def check_embeddings(**embeddings: Any) -> None:
    """Raise an error unless all are floating-point matrices of one shape, on one device."""
    first, like = next(iter(embeddings.items()))
    for name, x in embeddings.items():
        check_floating(name, x)
        if x.dim() != 2 or x.shape[1] == 0:
            raise ValueError(f"{name}: expected shape (N, D), D >= 1, got {tuple(x.shape)}")
        check_like(name, x, first, like)
