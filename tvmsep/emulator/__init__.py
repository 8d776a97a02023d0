"""CUDA without a device: TVM's CUDA C becomes a library for this CPU, and threads are fibres.

`compile_source` takes the place of NVRTC, `Program` runs kernels on NumPy arrays, and `stand_in` is
for TVM's own CUDA runtime. The machine
code is the CPU's, so nothing is learnt about speed.
"""

from tvmsep.emulator.build import compile_source
from tvmsep.emulator.driver import activate, reset, stand_in
from tvmsep.emulator.environment import CHECK, check_environment
from tvmsep.emulator.program import LaunchError, Program
from tvmsep.emulator.source import EmulatorError, kernels

__all__ = [
    "CHECK",
    "EmulatorError",
    "LaunchError",
    "Program",
    "activate",
    "check_environment",
    "compile_source",
    "kernels",
    "reset",
    "stand_in",
]
