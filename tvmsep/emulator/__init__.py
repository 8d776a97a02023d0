"""CUDA without a device: TVM's CUDA C becomes a library for this CPU, and threads are fibres.

`compile_source` takes the place of NVRTC, and `Program` runs kernels on NumPy arrays. The machine
code is the CPU's, so nothing is learnt about speed.
"""

from tvmsep.emulator.build import CHECK, compile_source
from tvmsep.emulator.program import LaunchError, Program
from tvmsep.emulator.source import EmulatorError, kernels

__all__ = ["CHECK", "EmulatorError", "LaunchError", "Program", "compile_source", "kernels"]
