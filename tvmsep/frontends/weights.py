"""Weights for the built-in networks: random ones through which the signal lives, or given ones.

A deep network with careless random weights forgets its input: activations shrink, explode, or
drown in a constant. So the mean and variance of every channel are carried along, treating channels
as independent and normally distributed, and each batch norm is given the statistics that its input
then has, disturbed at random; the classifier's bias removes what no input changes. It costs no
forward pass and does not depend on the resolution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tvmsep.contracts import ModelError

Floats = NDArray[np.float64]
Weight = NDArray[np.float32]


class Weights(Protocol):
    """Where a network under construction gets its tensors; called in the order data flows."""

    def conv(self, key: str, shape: tuple[int, int, int, int], bias: bool) -> list[Weight]:
        """Weight [oc, ic / groups, k, k], and bias [oc] if asked for."""
        ...

    def batch_norm(self, key: str, channels: int, eps: float) -> list[Weight]:
        """Scale, shift, mean and variance, each [channels]."""
        ...

    def linear(self, key: str, shape: tuple[int, int]) -> list[Weight]:
        """Weight [out, in] and bias [out]."""
        ...

    def activation(self, function: Callable[[Floats], Floats]) -> None:
        """An element-wise function is applied."""
        ...

    def save(self) -> Any:
        """A mark of the current tensor, to add or gate by later."""
        ...

    def add(self, mark: Any) -> None:
        """The tensor marked is added."""
        ...

    def gate(self, mark: Any) -> None:
        """The current tensor, one value a channel, scales the one marked."""
        ...


class GivenWeights:
    """Tensors of a state dict: `<key>.weight`, `.bias`, `.running_mean`, `.running_var`."""

    def __init__(self, state: Mapping[str, Any]) -> None:
        self._state = state

    def _take(self, key: str, shape: Sequence[int]) -> Weight:
        if key not in self._state:
            raise ModelError(f"the checkpoint lacks {key}: it belongs to another network")
        array = np.asarray(self._state[key], np.float32)
        if array.shape != tuple(shape):
            raise ModelError(
                f"{key} has shape {list(array.shape)} in the checkpoint, {list(shape)} in the "
                "network: check width and classes"
            )
        return array

    def conv(self, key: str, shape: tuple[int, int, int, int], bias: bool) -> list[Weight]:
        """See `Weights`."""
        weight = [self._take(f"{key}.weight", shape)]
        return weight + ([self._take(f"{key}.bias", shape[:1])] if bias else [])

    def batch_norm(self, key: str, channels: int, eps: float) -> list[Weight]:
        """See `Weights`."""
        parts = ("weight", "bias", "running_mean", "running_var")
        return [self._take(f"{key}.{part}", (channels,)) for part in parts]

    def linear(self, key: str, shape: tuple[int, int]) -> list[Weight]:
        """See `Weights`."""
        return [self._take(f"{key}.weight", shape), self._take(f"{key}.bias", shape[:1])]

    def activation(self, function: Callable[[Floats], Floats]) -> None:
        """Given weights need no statistics."""

    def save(self) -> None:
        """Given weights need no statistics."""

    def add(self, mark: Any) -> None:
        """Given weights need no statistics."""

    def gate(self, mark: Any) -> None:
        """Given weights need no statistics."""


def _balance(weight: Floats) -> Floats:
    """Kernels [oc, ic, kh, kw] that answer noise and flat areas with the same energy.

    Neighbouring pixels may be independent or nearly equal. A constant added to each kernel makes
    the sum of its squares (energy after noise) the square of its sum (after a flat area); by
    Cauchy-Schwarz there always is one. The energy is kept.
    """
    n = weight.shape[2] * weight.shape[3]
    total = weight.sum((2, 3), keepdims=True)
    energy = (weight**2).sum((2, 3), keepdims=True)
    root = np.sqrt((n - 1) * (n * energy - total**2))
    balanced = weight + (np.copysign(root, total) - (n - 1) * total) / (n * (n - 1))
    kept: Floats = balanced * np.sqrt(energy / (balanced**2).sum((2, 3), keepdims=True))
    return kept


class RandomWeights:
    """Kaiming-like weights and matching statistics, from one seed."""

    def __init__(self, seed: int, channels: int = 3) -> None:
        self._rng = np.random.default_rng(seed)
        self._mean: Floats = np.zeros(channels)
        self._var: Floats = np.ones(channels)
        nodes, probabilities = np.polynomial.hermite_e.hermegauss(33)
        self._nodes: Floats = nodes
        self._probabilities: Floats = probabilities / probabilities.sum()

    def conv(self, key: str, shape: tuple[int, int, int, int], bias: bool) -> list[Weight]:
        """See `Weights`."""
        oc, ic, kh, kw = shape
        weight = self._rng.standard_normal(shape) * np.sqrt(2 / (ic * kh * kw))
        if ic == 1 and kh * kw > 1:
            # Half of a depthwise kernel's energy in its centre: on a small map most other taps
            # read padding, and the input would fade.
            weight *= np.sqrt(0.5)
            weight[..., kh // 2, kw // 2] += self._rng.standard_normal((oc, 1))
        if kh * kw > 1:
            weight = _balance(weight)
        groups = len(self._mean) // ic
        source = np.arange(oc)[:, None] // (oc // groups) * ic + np.arange(ic)
        mean = (weight.sum((2, 3)) * self._mean[source]).sum(1)
        self._var = ((weight**2).sum((2, 3)) * self._var[source]).sum(1)
        if not bias:
            self._mean = mean
            return [weight.astype(np.float32)]
        shift = 0.1 * self._rng.standard_normal(oc) - mean
        self._mean = mean + shift
        return [weight.astype(np.float32), shift.astype(np.float32)]

    def batch_norm(self, key: str, channels: int, eps: float) -> list[Weight]:
        """See `Weights`."""
        rng = self._rng
        deviation = np.sqrt(self._var)
        mean = self._mean + 0.2 * deviation * rng.standard_normal(channels)
        var = self._var * rng.uniform(0.6, 1.6, channels)
        scale = rng.uniform(0.7, 1.4, channels)
        shift = 0.2 * rng.standard_normal(channels)
        gain = scale / np.sqrt(var + eps)
        self._mean = (self._mean - mean) * gain + shift
        self._var = self._var * gain**2
        return [a.astype(np.float32) for a in (scale, shift, mean, var)]

    def linear(self, key: str, shape: tuple[int, int]) -> list[Weight]:
        """See `Weights`."""
        weight, bias = self.conv(key, (*shape, 1, 1), bias=True)
        return [weight.reshape(shape), bias]

    def activation(self, function: Callable[[Floats], Floats]) -> None:
        """See `Weights`."""
        deviation = np.sqrt(self._var)
        values = function(self._mean[:, None] + deviation[:, None] * self._nodes)
        self._mean = values @ self._probabilities
        self._var = np.maximum((values**2) @ self._probabilities - self._mean**2, 1e-6)

    def save(self) -> tuple[Floats, Floats]:
        """See `Weights`."""
        return self._mean, self._var

    def add(self, mark: tuple[Floats, Floats]) -> None:
        """See `Weights`."""
        self._mean, self._var = self._mean + mark[0], self._var + mark[1]

    def gate(self, mark: tuple[Floats, Floats]) -> None:
        """See `Weights`."""
        gate = self._mean
        self._mean, self._var = mark[0] * gate, mark[1] * gate**2
