"""`Bundle`: load a bundle and call it."""

from __future__ import annotations

import os
import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tvmsep.bundle.arrays import noise
from tvmsep.bundle.manifest import Manifest, TensorInfo, Variant
from tvmsep.bundle.package import Package
from tvmsep.bundle.runtime import Network, Networks, Program, allowed_cpus
from tvmsep.bundle.weights import empty_aligned
from tvmsep.contracts import BundleError, InputError
from tvmsep.contracts.words import counted

Array = NDArray[Any]


class Bundle:
    """A network ready to run. Make one with `Bundle.load`; close it, or use it in a `with`.

    Any number of threads may call it: calls are done in turn. A bundle of several input shapes
    picks the network by what it is given. The caller's CPU affinity is never
    changed. A bundle loaded before a fork cannot be used in the child.

    Attributes:
        manifest: what the bundle says about itself.
        threads: threads that the network runs on.
        variant: which of the manifest's variants that is, for the first input shapes.
    """

    def __init__(
        self, manifest: Manifest, variant: Variant, threads: int, networks: Networks
    ) -> None:
        self.manifest = manifest
        self.variant = variant
        self.threads = threads
        self._networks = networks
        self._by_shape = {
            tuple(t.shape for t in one.inputs): at
            for at, one in enumerate(manifest.specialisations)
        }
        self._finalizer = weakref.finalize(self, networks.close)

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
            if package.manifest.target.gpu is not None:
                count = 1  # starts the kernels
            if count > 4 * len(cpus):
                raise InputError(
                    f"threads is {count}: this process may use {len(cpus)} CPUs, so give at "
                    f"most {4 * len(cpus)}"
                )
            manifest = package.manifest
            at = manifest.variants.index(variant)
            weights = package.all_weights()
            programs = [
                Program(
                    package.read(s.variants[at].library),
                    [_zeros(t) for t in s.inputs],
                    [weights[n] for n in s.weights],
                    cuda=manifest.target.gpu is not None,
                )
                for s in manifest.specialisations
            ]
            package.check_members()
        if count != variant.threads:
            tuned = counted("thread", *(v.threads for v in manifest.variants))
            warnings.warn(
                f"{path} was tuned for {tuned} and runs on {count}: expect it to be "
                f"slower than tvmsep tune MODEL --threads {count} would make it",
                stacklevel=2,
            )
        try:
            networks = Networks(programs, count)
        except BundleError as error:
            raise BundleError(f"{path}: {error}") from error
        return cls(manifest, variant, count, networks)

    def __call__(self, *arrays: Any) -> Any:
        """Run the network.

        Args:
            *arrays: one per input, in the manifest's order, of the dtype and of exactly one of the
                sets of shapes that the bundle was built for. NumPy arrays, or anything in this
                machine's memory that speaks DLPack, such as torch's tensors. What is C-contiguous
                and writeable is read where it lies, other is copied first.

        Returns:
            A new NumPy array of the output's shape, or a tuple of them where there are several. On
            a CPU it is TVM's own memory and not copied: `torch.from_dlpack` takes it over.

        Raises:
            InputError: wrong number, shape or dtype.
            BundleError: closed, or the library failed.
        """
        job = self._job(arrays)
        try:
            return self._networks.do(job)
        except RuntimeError as error:
            raise self._failure(error) from error

    async def acall(self, *arrays: Any) -> Any:
        """As a call, while the event loop goes on; the arrays must not change meanwhile.

        Runs are done in turn, in the order of the calls. One that is cancelled before its turn is
        not done.
        """
        import asyncio

        job = self._job(arrays)
        try:
            return await asyncio.wrap_future(self._networks.submit(job))
        except RuntimeError as error:
            raise self._failure(error) from error

    def _job(self, arrays: Sequence[Any]) -> Callable[[Sequence[Network]], Any]:
        at, inputs = self._check(arrays)

        def job(networks: Sequence[Network]) -> Any:
            outputs = networks[at](inputs)
            return outputs[0] if len(outputs) == 1 else outputs

        return job

    def _failure(self, error: RuntimeError) -> BundleError:
        return BundleError(f"{self.manifest.name} failed while running: {error}")

    def time(
        self, runs: int = 30, *, warmup: int = 3, inputs: Sequence[Any] | None = None
    ) -> list[float]:
        """Seconds that each of `runs` runs took, after `warmup` that don't count.

        The clock runs around the network alone, not around what makes its outputs arrays, nor
        around what takes inputs to a device.

        Args:
            runs: how many to time, at least 1.
            warmup: how many to run before.
            inputs: as for a call; by default seeded noise.

        Raises:
            InputError: `runs` or an input is out of range.
        """
        if runs < 1 or warmup < 0:
            raise InputError(f"runs is {runs} and warmup {warmup}: at least 1 and 0 are needed")
        at, arrays = self._check(self.noise() if inputs is None else inputs)

        def job(networks: Sequence[Network]) -> list[float]:
            network = networks[at]
            tensors = network.bind(arrays)
            for _ in range(warmup):
                network.run(tensors)
            times = []
            for _ in range(runs):
                start = time.perf_counter()
                network.run(tensors)
                times.append(time.perf_counter() - start)
            return times

        try:
            times: list[float] = self._networks.do(job)
        except RuntimeError as error:
            raise self._failure(error) from error
        return times

    def noise(self, seed: int = 0, shapes: int = 0) -> list[Array]:
        """Seeded inputs: standard normal where the dtype is floating, zeros and ones otherwise.

        Args:
            seed: fixes them.
            shapes: which of `manifest.specialisations` they are for.
        """
        return noise(self.manifest.specialisations[shapes].inputs, seed)

    def _check(self, arrays: Sequence[Any]) -> tuple[int, list[Array]]:
        """Which specialisation the arrays are for, and the arrays."""
        wanted = self.manifest.inputs
        if len(arrays) != len(wanted):
            names = ", ".join(str(t) for t in wanted)
            raise InputError(
                f"{self.manifest.name} takes {len(wanted)} inputs ({names}); got {len(arrays)}"
            )
        found = [_array(a, t) for a, t in zip(arrays, wanted, strict=True)]
        at = self._by_shape.get(tuple(a.shape for a in found))
        if at is not None and all(
            a.dtype == t.dtype for a, t in zip(found, wanted, strict=True)
        ):  # fmt: skip
            return at, found
        raise InputError(self._misfit(found, at))

    def _misfit(self, arrays: Sequence[Array], at: int | None) -> str:
        several = self.manifest.specialisations
        if at is None and len(several) > 1:
            got = ", ".join(
                f"{t.name} {a.shape}" for a, t in zip(arrays, several[0].inputs, strict=True)
            )
            has = "; ".join(
                ", ".join(f"{t.name} {t.shape}" for t in one.inputs) for one in several
            )  # fmt: skip
            return (
                f"{self.manifest.name} was not built for the shapes {got}; it has {has}: give one "
                "of these, or build it with another --shape"
            )
        for array, tensor in zip(arrays, several[at or 0].inputs, strict=True):
            if array.shape != tensor.shape or array.dtype != tensor.dtype:
                hint = (
                    f"convert it with .astype('{tensor.dtype}')"
                    if array.shape == tensor.shape
                    else "reshape it, or build the model for this shape with --shape"
                )
                return (
                    f"input {tensor.name!r} is {array.dtype} {array.shape}; {tensor.dtype} "
                    f"{tensor.shape} is needed: {hint}"
                )
        raise AssertionError("called for arrays that do not fit")

    def close(self) -> None:
        """End the bundle's threads and free its memory; calls under way or queued finish first."""
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
        return f"<Bundle {self.manifest.name}, {counted('thread', self.threads)}{state}>"


def _array(array: Any, wanted: TensorInfo) -> Array:
    """A NumPy array on the memory of what was given."""
    if isinstance(array, np.ndarray):
        return array
    if not hasattr(array, "__dlpack__"):
        raise InputError(
            f"input {wanted.name!r} is a {type(array).__name__}; a NumPy array of "
            f"{wanted.dtype} {wanted.shape} is needed"
        )
    try:
        return np.from_dlpack(array)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"input {wanted.name!r}, a {type(array).__name__}, cannot be read as it is ({error}): "
            "give it in this machine's memory, detached from gradients"
        ) from error


def _zeros(tensor: TensorInfo) -> Array:
    buffer: Array = empty_aligned(tensor.shape, tensor.dtype)
    buffer[...] = 0
    return buffer
