"""A picture file becomes a network's input, as the manifest's `Preprocess` says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tvmsep.bundle.manifest import Manifest, TensorInfo
from tvmsep.contracts import InputError
from tvmsep.contracts.preprocess import Preprocess


def read_preprocess(path: str | os.PathLike[str]) -> Preprocess:
    """A `Preprocess` from a TOML file such as `resize = 256`, `crop = 224`, `mean = [...]`.

    Raises:
        InputError: unreadable, or not what a `Preprocess` takes.
    """
    try:
        return msgspec.toml.decode(Path(path).read_bytes(), type=Preprocess)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        known = ", ".join(Preprocess.__struct_fields__)
        raise InputError(f"{path} is malformed: {error}; it may hold {known}") from error


def load_picture(path: str | os.PathLike[str], manifest: Manifest, which: int = 0) -> NDArray[Any]:
    """Read, turn upright (EXIF), resize, crop and normalise a picture.

    Grey pictures and those with a palette are converted to colour; transparency is laid on white.

    Args:
        path: any picture that Pillow reads.
        manifest: of the bundle that will get it.
        which: of its sets of input shapes.

    Returns:
        An array of the input's shape `[n, 3, height, width]` and dtype; each of the `n` equal.

    Raises:
        InputError: not a picture, or the bundle doesn't say how to make an input of one.
    """
    rule, wanted = manifest.preprocess, manifest.specialisations[which].inputs[0]
    if rule is None:
        raise InputError(
            f"{manifest.name} doesn't say how a picture becomes its input ({wanted}); give a .npy "
            "file, or build it again with --preprocess FILE.toml"
        )
    if len(manifest.inputs) != 1 or len(wanted.shape) != 4 or wanted.shape[1] != 3:
        raise InputError(f"{manifest.name} takes no single colour picture but {wanted}")
    array = prepare(_open(path), rule)
    return _batch(array, wanted, path)


def _open(path: str | os.PathLike[str]) -> Any:
    """A Pillow image in RGB, upright."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if "A" in upright.getbands() or "transparency" in upright.info:
                upright = upright.convert("RGBA")
                white = Image.new("RGBA", upright.size, "white")
                upright = Image.alpha_composite(white, upright)
            return upright.convert("RGB")
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is no picture that Pillow knows") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"cannot read the picture {path}: {error}") from error


def prepare(image: Any, rule: Preprocess) -> NDArray[np.float32]:
    """A Pillow RGB image as float32 `[3, height, width]`, by `rule`.

    Raises:
        InputError: it is smaller than the crop.
    """
    from PIL import Image

    if rule.resize is not None:
        width, height = image.size
        short = min(width, height)
        size = (
            rule.resize if width == short else round(rule.resize * width / short),
            rule.resize if height == short else round(rule.resize * height / short),
        )
        image = image.resize(size, Image.Resampling.BILINEAR)
    if rule.crop is not None:
        width, height = image.size
        if min(width, height) < rule.crop:
            raise InputError(
                f"the picture is {width}x{height} when it is to be cropped to {rule.crop}: "
                "preprocess needs a resize of at least the crop"
            )
        left, top = round((width - rule.crop) / 2), round((height - rule.crop) / 2)
        image = image.crop((left, top, left + rule.crop, top + rule.crop))
    pixels = np.asarray(image, dtype=np.float32)
    if rule.channel_order == "BGR":
        pixels = pixels[:, :, ::-1]
    mean, std = (np.array(v, dtype=np.float32) for v in (rule.mean, rule.std))
    scaled = (pixels * np.float32(rule.scale) - mean) / std
    return np.ascontiguousarray(scaled.transpose(2, 0, 1), dtype=np.float32)


def _batch(array: NDArray[Any], wanted: TensorInfo, path: object) -> NDArray[Any]:
    if array.shape != wanted.shape[1:]:
        raise InputError(
            f"{path} becomes {array.shape} but input {wanted.name!r} is {wanted.shape}: "
            "preprocess needs resize and crop that fit it"
        )
    return np.repeat(array[None].astype(wanted.dtype), wanted.shape[0], axis=0)
