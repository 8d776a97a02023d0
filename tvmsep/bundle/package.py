"""An opened bundle: its manifest, and members checked against the manifest's SHA-256."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from tvmsep.bundle.archive import Archive
from tvmsep.bundle.manifest import LOG, MANIFEST, WEIGHTS, Variant, parse_manifest
from tvmsep.contracts import BundleError, InputError
from tvmsep.targets import misfit

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAX_MANIFEST = 16 << 20


class Package:
    """A bundle file opened for reading; nothing in it has run. Use as a context manager.

    Args:
        path: the bundle.
        verify: compare each member that is read with the SHA-256 in the manifest.
        trust: a PEM file with the public key of who must have signed it; members are then compared
            whatever `verify` says. None asks for no signature.

    Raises:
        BundleError: damaged, incomplete, of another format version, or not signed with the key.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        verify: bool = True,
        trust: str | os.PathLike[str] | None = None,
    ) -> None:
        self.path = Path(path)
        self._verify = verify or trust is not None
        self._unchecked: set[str] = set()
        self._archive = Archive(path)
        try:
            if MANIFEST in self._archive.members and self._archive.size(MANIFEST) > _MAX_MANIFEST:
                raise BundleError(f"{path} has a manifest of over {_MAX_MANIFEST} bytes")
            manifest = self._archive.read(MANIFEST)
            if trust is not None:
                from tvmsep.bundle.signature import check_signature

                check_signature(manifest, path, trust)
            self.manifest = parse_manifest(manifest, path)
            listed, there = set(self.manifest.members), set(self._archive.members) - {MANIFEST}
            if listed != there:
                odd = ", ".join(sorted(listed ^ there))
                raise BundleError(f"{path} is incomplete or was altered: manifest and {odd} differ")
            self._unchecked = set(listed)
        except BaseException:
            self.close()
            raise

    def read(self, name: str) -> bytes:
        """A member's bytes.

        Raises:
            BundleError: no such member, or its SHA-256 isn't the manifest's.
        """
        contents = self._archive.read(name)
        if name != MANIFEST:
            self._compare(name, contents)
        return contents

    def _compare(self, name: str, contents: bytes | memoryview) -> None:
        if not self._verify or name not in self._unchecked:
            return
        if hashlib.sha256(contents).hexdigest() != self.manifest.members.get(name):
            raise BundleError(
                f"{self.path} was damaged or tampered with: the SHA-256 of {name} isn't the "
                "manifest's; copy it again, or build it again"
            )
        self._unchecked.discard(name)

    def weights(self, which: int = 0) -> dict[str, NDArray[Any]]:
        """One specialisation's weights in call order; see `all_weights`."""
        arrays = self.all_weights()
        return {name: arrays[name] for name in self.manifest.specialisations[which].weights}

    def all_weights(self) -> dict[str, NDArray[Any]]:
        """The weights of all specialisations, 64-byte aligned, in memory of their own.

        Raises:
            BundleError: they are damaged, or aren't those that the manifest lists.
        """
        from tvmsep.bundle.weights import arena, decode_weights

        buffer = arena(self._archive.size(WEIGHTS))
        self._archive.read_into(WEIGHTS, buffer)
        self._compare(WEIGHTS, buffer)
        arrays = decode_weights(buffer, self.path)
        if odd := set(arrays) ^ self.manifest.weight_names:
            names = ", ".join(sorted(odd))
            raise BundleError(f"{self.path}: its weights and its manifest differ in {names}")
        return arrays

    def members(self) -> list[str]:
        """Names of all members, sorted."""
        return list(self._archive.members)

    def check_members(self) -> None:
        """Compare every member not read before with its SHA-256 in the manifest.

        Raises:
            BundleError: one differs.
        """
        for name in sorted(self._unchecked if self._verify else ()):
            self.read(name)

    def check_host(self) -> None:
        """Check that this host and the installed runtime can run the bundle.

        Raises:
            BundleError: another CPU, operating system or TVM version is needed.
        """
        target, advice = self.manifest.target, "build it for this machine: tvmsep build MODEL"
        why = misfit(target)
        systems = ("darwin", "macos") if sys.platform == "darwin" else (sys.platform,)
        if why is None and not any(system in target.triple for system in systems):
            why = f"it is for {target.triple}, this host runs {platform.system()}"
        if why is not None:
            raise BundleError(
                f"{self.path} was built for target {target.name} and cannot run here: "
                f"{why}; {advice}"
            )
        self.check_runtime()
        if target.gpu is not None:
            from tvmsep.bundle.device import device_misfit

            if (why := device_misfit(target.gpu)) is not None:
                raise BundleError(
                    f"{self.path} was built for target {target.name} and cannot run here: {why}"
                )

    def check_runtime(self) -> None:
        """Check that the installed TVM is the one that compiled the bundle.

        Raises:
            BundleError: it is another version.
        """
        from tvmsep.bundle.runtime import runtime_version

        if (version := runtime_version()) != self.manifest.tvm:
            raise BundleError(
                f"{self.path} was built with apache-tvm {self.manifest.tvm}, installed is "
                f"{version}; pip install apache-tvm=={self.manifest.tvm}, or build it for this "
                f"machine: tvmsep build MODEL --log {self.path}"
            )

    def pick(self, threads: int | None, available: int, which: int = 0) -> Variant:
        """The variant tuned for `threads`, or for the nearest count.

        Args:
            threads: wanted count; None takes the most that `available` allows.
            available: CPUs that this process may use.
            which: of the manifest's specialisations.

        Raises:
            InputError: `threads` is below 1.
        """
        variants = self.manifest.specialisations[which].variants
        if threads is None:
            fitting = [v for v in variants if v.threads <= available]
            return max(fitting or variants[:1], key=lambda v: v.threads)
        if threads < 1:
            raise InputError(f"threads is {threads}: it must be at least 1")
        return min(variants, key=lambda v: (abs(v.threads - threads), -v.threads))

    def close(self) -> None:
        """Close the file; what was read stays valid."""
        self._archive.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_log(path: str | os.PathLike[str]) -> list[str]:
    """The tuning log lines inside a bundle, of whatever format version.

    Raises:
        BundleError: not a bundle, or damaged.
    """
    with Archive(path) as archive:
        contents = archive.read(LOG)
    try:
        return contents.decode().splitlines()
    except UnicodeDecodeError as error:
        raise BundleError(f"the log inside {path} is malformed: {error}") from error
