"""Who made a bundle: an Ed25519 signature in a file beside it.

What is signed is the manifest, which holds the SHA-256 of every other member; the manifest that was
checked is the one that is used, so nothing can be exchanged in between. The signature is a file of
its own (`net.tvmsep.sig`), so that equal builds stay equal files, signed or not.

Keys are PEM files as OpenSSL writes them:

    openssl genpkey -algorithm ed25519 -out private.pem
    openssl pkey -in private.pem -pubout -out public.pem
"""

from __future__ import annotations

import binascii
import hashlib
import os
from pathlib import Path
from typing import Any

import msgspec

from tvmsep.bundle.archive import Archive, write_file
from tvmsep.bundle.manifest import MANIFEST
from tvmsep.contracts import BundleError, InputError

SUFFIX = ".sig"
_CONTEXT = b"tvmsep bundle manifest, signature format 1\n"
_MAX_BYTES = 4096


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The contents of a signature file."""

    format: int
    algorithm: str
    manifest_sha256: str
    signature: str
    """In hexadecimal."""


def signature_path(bundle: str | os.PathLike[str]) -> Path:
    """Where a bundle's signature lies."""
    return Path(f"{os.fspath(bundle)}{SUFFIX}")


def sign(bundle: str | os.PathLike[str], private_key: str | os.PathLike[str]) -> Path:
    """Sign a bundle; the path of the signature.

    Raises:
        BundleError: it is damaged, or the signature cannot be written.
        InputError: no Ed25519 private key, or it has a password.
    """
    from tvmsep.bundle.package import Package

    key = _key(private_key, "private")
    with Package(bundle) as package:  # sign nothing that is damaged
        package.check_members()
    with Archive(bundle) as archive:
        manifest = archive.read(MANIFEST)
    made = Signature(
        1, "ed25519", hashlib.sha256(manifest).hexdigest(), key.sign(_message(manifest)).hex()
    )
    path = signature_path(bundle)
    text = msgspec.json.format(msgspec.json.encode(made), indent=2) + b"\n"
    write_file(path, lambda file: file.write(text))
    return path


def check_signature(
    manifest: bytes, bundle: str | os.PathLike[str], public_key: str | os.PathLike[str]
) -> None:
    """See that the owner of a key signed this manifest.

    Args:
        manifest: the bytes of `manifest.json`, as they will be used.
        bundle: whose signature file to read.
        public_key: a PEM file.

    Raises:
        BundleError: unsigned, or signed by somebody else, or altered since.
        InputError: no Ed25519 public key.
    """
    from cryptography.exceptions import InvalidSignature

    key = _key(public_key, "public")
    path = signature_path(bundle)
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise BundleError(
            f"{bundle} is not signed: there is no {path}; get it from where the bundle came from"
        ) from error
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        found = msgspec.json.decode(text, type=Signature)
        if (found.format, found.algorithm) != (1, "ed25519") or len(text) > _MAX_BYTES:
            raise ValueError(f"format {found.format} of {found.algorithm}")
        value = binascii.unhexlify(found.signature)
    except (msgspec.DecodeError, ValueError) as error:
        raise BundleError(f"{path} is no signature that is known here: {error}") from error
    if hashlib.sha256(manifest).hexdigest() != found.manifest_sha256:
        raise BundleError(f"{path} is of another bundle, or {bundle} was altered since it was made")
    try:
        key.verify(value, _message(manifest))
    except InvalidSignature as error:
        raise BundleError(
            f"{bundle} was not signed with the key of {public_key}: do not run it"
        ) from error


def _message(manifest: bytes) -> bytes:
    return _CONTEXT + hashlib.sha256(manifest).digest()


def _key(path: str | os.PathLike[str], kind: str) -> Any:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise InputError('signatures need cryptography: pip install "tvmsep[sign]"') from error
    try:
        data = Path(path).read_bytes()
        key: Any
        if kind == "private":
            key = serialization.load_pem_private_key(data, password=None)
        else:
            key = serialization.load_pem_public_key(data)
    except OSError as error:
        raise InputError(f"cannot read the key {path}: {error.strerror or error}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InputError(f"{path} holds no {kind} key in PEM without a password") from error
    if not isinstance(key, ed25519.Ed25519PrivateKey | ed25519.Ed25519PublicKey):
        raise InputError(f"{path} is no Ed25519 key: openssl genpkey -algorithm ed25519")
    return key
