"""The variables that say what the emulated device is; `native/driver.c` reads them again."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from tvmsep.emulator.source import EmulatorError

CHECK = "TVMSEP_EMULATOR_CHECK"
"""Environment variable: 1 makes programs that check each access for bounds, alignment and races."""
_PREFIX = "TVMSEP_EMULATOR_"
_FAULT = r"(memory:\d+|(launch|address|failed|hang):(\w+|\*))"
_TAKES = {
    CHECK: (r"[01]", "1 or 0"),
    "TVMSEP_EMULATOR_ARCH": (r"sm_\d{2,3}", "a compute capability, such as sm_87"),
    "TVMSEP_EMULATOR_SEED": (r"\d{1,19}", "a number from 0"),
    "TVMSEP_EMULATOR_FAULT": (
        rf"{_FAULT}(,{_FAULT})*",
        "a list by commas of memory:BYTES, and launch:, address:, failed: or hang: with a "
        "kernel's name or *",
    ),
}


def check_environment(environment: Mapping[str, str] = os.environ) -> None:
    """See that the emulator's variables say what it understands; empty ones say nothing.

    Raises:
        EmulatorError: one does not, or none is called so.
    """
    for name, value in environment.items():
        if not name.startswith(_PREFIX) or not value:
            continue
        if name not in _TAKES:
            raise EmulatorError(
                f"{name} is no variable of the emulator: it has {', '.join(_TAKES)}"
            )
        pattern, takes = _TAKES[name]
        if not re.fullmatch(pattern, value):
            raise EmulatorError(f"{name} is {value!r}: give {takes}, or leave it out")
