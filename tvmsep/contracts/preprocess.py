"""How a picture becomes a network's input: part of a model's identity, shipped with its bundle."""

from __future__ import annotations

from typing import Literal

import msgspec


class Preprocess(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Resize, crop and normalise, in that order; the defaults leave pixels between 0 and 1.

    Each pixel value `p` (0 to 255) of channel `c` becomes `(p * scale - mean[c]) / std[c]`, with
    `mean` and `std` listed in `channel_order`.
    """

    resize: int | None = None
    """Length of the shorter side in pixels after a resize that keeps the aspect ratio."""
    crop: int | None = None
    """Side in pixels of the square cut from the centre."""
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    scale: float = 1 / 255
    channel_order: Literal["RGB", "BGR"] = "RGB"
    layout: Literal["NCHW"] = "NCHW"

    def __post_init__(self) -> None:
        """Refuse what cannot be computed: a side below one pixel, a deviation of zero."""
        for field in ("resize", "crop"):
            side = getattr(self, field)
            if side is not None and side < 1:
                raise ValueError(f"preprocess.{field} is {side}: it must be at least 1 pixel")
        if any(s == 0 for s in self.std):
            raise ValueError(f"preprocess.std is {self.std}: no entry may be zero")
