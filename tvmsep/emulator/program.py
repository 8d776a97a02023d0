"""Running kernels in this process, on NumPy arrays."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from tvmsep.emulator.source import EmulatorError

_MAX_MESSAGE = 512
STATUS = {
    1: "unknown_kernel", 2: "bad_launch", 3: "address", 4: "misaligned", 5: "race", 6: "divergence",
}  # fmt: skip
"""What `native/emulator.h` calls the ways in which a launch fails."""


class LaunchError(EmulatorError):
    """A kernel did what a device forbids."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind
        """One of the values of STATUS."""


class _Range(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("bytes", ctypes.c_size_t)]


class _Launch(ctypes.Structure):
    _fields_ = [
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("dynamic_shared", ctypes.c_size_t),
        ("arguments", ctypes.POINTER(ctypes.c_void_p)),
        ("ranges", ctypes.POINTER(_Range)),
        ("n_ranges", ctypes.c_size_t),
        ("seed", ctypes.c_uint64),
        ("message", ctypes.c_char * _MAX_MESSAGE),
    ]


class Program:
    """A library that `compile_source` made, loaded."""

    def __init__(self, image: bytes) -> None:
        ctypes.CDLL("libm.so.6", mode=ctypes.RTLD_GLOBAL)
        with tempfile.NamedTemporaryFile(prefix="tvmsep-", suffix=".so") as file:
            file.write(image)
            file.flush()
            self._lib = ctypes.CDLL(file.name, mode=os.RTLD_NOW | os.RTLD_LOCAL)
        self._run = self._lib.tvmsep_emulator_launch
        self._run.argtypes = [ctypes.c_char_p, ctypes.POINTER(_Launch)]

    def launch(
        self,
        kernel: str,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[np.ndarray[Any, Any] | np.generic],
        dynamic_shared: int = 0,
        seed: int = 0,
    ) -> None:
        """Run a kernel; arrays are read and written in place.

        Args:
            kernel: its name in the source.
            grid: blocks in x, y and z; what is left out is 1.
            block: threads in x, y and z.
            args: contiguous arrays for pointers, NumPy scalars for what is passed by value.
            dynamic_shared: bytes of dynamic shared memory.
            seed: order of threads between barriers: 0 ascending, 1 descending, others shuffled.

        Raises:
            LaunchError: what the kernel or the launch did wrong. Arrays may be half-written.
        """
        placed = [_Placed(a) if isinstance(a, np.ndarray) else a for a in args]
        values = [
            ctypes.c_void_p(a.array.ctypes.data) if isinstance(a, _Placed)
            else ctypes.create_string_buffer(a.tobytes())
            for a in placed
        ]  # fmt: skip
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
        inside = [a for a in placed if isinstance(a, _Placed)]
        places = [_Range(a.array.ctypes.data, a.array.nbytes) for a in inside]
        ranges = (_Range * len(places))(*places)
        call = _Launch(
            grid=_three(grid), block=_three(block), dynamic_shared=dynamic_shared,
            arguments=pointers, ranges=ranges, n_ranges=len(inside), seed=seed,
        )  # fmt: skip
        status = self._run(kernel.encode(), ctypes.byref(call))
        if status:
            message = call.message.decode(errors="replace")
            raise LaunchError(STATUS[status], message or f"no kernel {kernel}")
        for a in inside:
            a.copy_back()


class _Placed:
    """A copy of an array, aligned as a device's memory is, with room that is nobody's around it."""

    GAP = 4096
    ALIGN = 256

    def __init__(self, source: np.ndarray[Any, Any]) -> None:
        if not source.flags.c_contiguous:
            raise EmulatorError(f"an array of shape {source.shape} is not contiguous")
        raw = np.zeros(source.nbytes + 2 * self.GAP + self.ALIGN, np.uint8)
        start = -(raw.ctypes.data + self.GAP) % self.ALIGN + self.GAP
        self.source = source
        self.array = raw[start : start + source.nbytes]
        self.array[:] = source.reshape(-1).view(np.uint8)

    def copy_back(self) -> None:
        if self.source.flags.writeable:
            self.source.reshape(-1).view(np.uint8)[:] = self.array


def _three(sizes: Sequence[int]) -> tuple[int, int, int]:
    x, y, z = (*sizes, 1, 1, 1)[:3]
    return int(x), int(y), int(z)
