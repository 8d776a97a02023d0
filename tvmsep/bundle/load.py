"""`Bundle`: load a bundle and call it."""

from __future__ import annotations

import os
import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from tvmsep.bundle.manifest import Manifest, TensorInfo, Variant
from tvmsep.bundle.package import Package
from tvmsep.bundle.runtime import Network, allowed_cpus
from tvmsep.contracts import BundleError, InputError

Array = NDArray[Any]
T = TypeVar("T")


class Bundle:
    """A network ready to run. Make one with `Bundle.load`; close it, or use it in a `with`.

    Any number of threads may call it: calls are done in turn. The caller's CPU affinity is never
    changed. A bundle loaded before a fork cannot be used in the child.

    Attributes:
        manifest: what the bundle says about itself.
        threads: threads that the network runs on.
        variant: which of the manifest's variants that is.
    """

    def __init__(
        self, manifest: Manifest, variant: Variant, threads: int, network: Network
    ) -> None:
        self.manifest = manifest
        self.variant = variant
        self.threads = threads
        self._network = network
        self._finalizer = weakref.finalize(self, network.release)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        threads: int | None = None,
        *,
        verify: bool = True,
        trust: str | os.PathLike[str] | None = None,
    ) -> Bundle:
        """Check a bundle and load it.

        Args:
            path: a `.tvmsep` file.
            threads: how many threads to run on; by default the most that the bundle was tuned
                for and this process may use. A count it wasn't tuned for works, with a warning.
            verify: compare every member's SHA-256 with the manifest before anything runs.
            trust: a PEM file with the public key that the bundle must be signed with.

        Raises:
            BundleError: damaged, of another format, made for another CPU or TVM version, or not
                signed with the key.
            InputError: `threads` is out of range.
        """
        cpus = allowed_cpus()
        with Package(path, verify=verify, trust=trust) as package:
            package.check_host()
            variant = package.pick(threads, len(cpus))
            count = threads or min(variant.threads, len(cpus))
            if count > 4 * len(cpus):
                raise InputError(
                    f"threads is {count}: this process may use {len(cpus)} CPUs, so give at "
                    f"most {4 * len(cpus)}"
                )
            library = package.read(variant.library)
            weights = list(package.weights().values())
            package.check_members()
            manifest = package.manifest
        try:
            network = Network(library, len(manifest.inputs), weights, count)
        except BundleError as error:
            raise BundleError(f"{path}: {error}") from error
        if count != variant.threads:
            tuned = ", ".join(str(v.threads) for v in manifest.variants)
            warnings.warn(
                f"{path} was tuned for {tuned} threads and runs on {count}: expect it to be "
                f"slower than tvmsep tune MODEL --threads {count} would make it",
                stacklevel=2,
            )
        return cls(manifest, variant, count, network)

    def __call__(self, *arrays: Array) -> Any:
        """Run the network.

        Args:
            *arrays: one per input, in the manifest's order, of exactly its shape and dtype. They
                are read where they lie if they are contiguous and writable, else copied first.

        Returns:
            A new array of the output's shape, or a tuple of them where there are several.

        Raises:
            InputError: wrong number, shape or dtype.
            BundleError: closed, or the library failed.
        """
        inputs = self._check(arrays)
        outputs = self._do(lambda network: network(*inputs))
        return outputs[0] if len(outputs) == 1 else outputs

    def time(
        self, runs: int = 30, *, warmup: int = 3, inputs: Sequence[Array] | None = None
    ) -> list[float]:
        """Seconds that each of `runs` runs took, after `warmup` that don't count.

        The clock runs around the network alone, not around what makes its outputs arrays.

        Args:
            runs: how many to time, at least 1.
            warmup: how many to run before.
            inputs: as for a call; by default seeded noise.

        Raises:
            InputError: `runs` or an input is out of range.
        """
        if runs < 1 or warmup < 0:
            raise InputError(f"runs is {runs} and warmup {warmup}: at least 1 and 0 are needed")
        arrays = self._check(self.noise() if inputs is None else inputs)

        def job(network: Network) -> list[float]:
            tensors = network.take(arrays)
            for _ in range(warmup):
                network.run(tensors)
            times = []
            for _ in range(runs):
                start = time.perf_counter()
                network.run(tensors)
                times.append(time.perf_counter() - start)
            return times

        return self._do(job)

    def noise(self, seed: int = 0) -> list[Array]:
        """Seeded inputs: standard normal where the dtype is floating, zeros and ones otherwise."""
        rng = np.random.default_rng(seed)
        return [
            rng.standard_normal(t.shape).astype(t.dtype)
            if t.dtype.startswith("float")
            else rng.integers(0, 2, t.shape).astype(t.dtype)
            for t in self.manifest.inputs
        ]

    def _check(self, arrays: Sequence[Array]) -> list[Array]:
        wanted = self.manifest.inputs
        if len(arrays) != len(wanted):
            names = ", ".join(str(t) for t in wanted)
            raise InputError(
                f"{self.manifest.name} takes {len(wanted)} inputs ({names}); got {len(arrays)}"
            )
        return [_fits(a, t) for a, t in zip(arrays, wanted, strict=True)]

    def _do(self, job: Callable[[Network], T]) -> T:
        try:
            return self._network.do(job)
        except RuntimeError as error:
            raise BundleError(f"{self.manifest.name} failed while running: {error}") from error

    def close(self) -> None:
        """End the bundle's threads and free its memory, once calls under way are done."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "" if self._finalizer.alive else ", closed"
        return f"<Bundle {self.manifest.name}, {self.threads} threads{state}>"


def _fits(array: Array, wanted: TensorInfo) -> Array:
    if not isinstance(array, np.ndarray):
        raise InputError(
            f"input {wanted.name!r} is a {type(array).__name__}; a NumPy array of "
            f"{wanted.dtype} {wanted.shape} is needed"
        )
    if array.shape != wanted.shape or array.dtype != wanted.dtype:
        hint = (
            f"convert it with .astype('{wanted.dtype}')"
            if array.shape == wanted.shape
            else "reshape it, or build the model for this shape with --shape"
        )
        raise InputError(
            f"input {wanted.name!r} is {array.dtype} {array.shape}; {wanted.dtype} "
            f"{wanted.shape} is needed: {hint}"
        )
    # Read in place, unless it has holes, foreign bytes, or is not to be handed on.
    whole = array.flags.c_contiguous and array.flags.aligned and array.flags.writeable
    return array if whole and array.dtype.isnative else np.array(array, wanted.dtype, order="C")
