"""tvmsep as a wheel, made from the package that runs: no sources and no build needed.

A board needs what runs bundles and the RPC server; a wheel is a zip of the package's files with
three files about them (PEP 427).
"""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path

from tvmsep.contracts import BoardError

_PACKAGES = ("tvmsep", "tvmsep.schedules", "tvmsep.targets")
"""Their folders may lie apart: an editable installation has two of them at the project's root."""
_SUFFIXES = (".py", ".toml", ".typed")


def _files() -> Iterator[tuple[str, bytes]]:
    for package in _PACKAGES:
        spec = util.find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            for path in sorted(Path(folder).rglob("*")):
                if path.suffix in _SUFFIXES and path.is_file():
                    inner = path.relative_to(folder).as_posix()
                    yield f"{package.replace('.', '/')}/{inner}", path.read_bytes()


def build() -> tuple[str, bytes]:
    """The wheel's file name and contents; equal packages make equal wheels.

    Raises:
        BoardError: this tvmsep was not installed by pip, so its requirements are unknown.
    """
    try:
        about = metadata.distribution("tvmsep")
    except metadata.PackageNotFoundError as error:
        raise BoardError("this tvmsep is not installed: pip install it, then run again") from error
    files = dict(_files())  # an installed tvmsep has the other two inside: each file once
    info = f"tvmsep-{about.version}.dist-info"
    # A source folder on the import path has an egg-info, where the same text has another name.
    text = about.read_text("METADATA") or about.read_text("PKG-INFO") or ""
    files[f"{info}/METADATA"] = text.encode()
    files[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: tvmsep\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    files[f"{info}/entry_points.txt"] = b"[console_scripts]\ntvmsep = tvmsep.cli:main\n"
    lines = []
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(data)}\n")
    files[f"{info}/RECORD"] = "".join([*lines, f"{info}/RECORD,,\n"]).encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, data in files.items():
            zipped.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return f"tvmsep-{about.version}-py3-none-any.whl", out.getvalue()
