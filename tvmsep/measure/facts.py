"""What a machine says about itself: `python facts.py` prints it as JSON.

Standard library only, and nothing that Python 3.7 cannot read: a bring-up sends this very file to
boards on which nothing is installed yet. `tvmsep.boards.facts.Facts` gives the keys their types.
"""

from __future__ import annotations

import ctypes
import glob
import json
import os
import platform
import re
import shutil
import struct
import sys
import time
from typing import Any

# TVM's CPU models are named after the core, Linux names cores by implementer and part.
_SYSFS_CPU = "/sys/devices/system/cpu"


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _cpu() -> dict[str, Any]:
    info = _text("/proc/cpuinfo")

    def every(name: str) -> list[str]:
        return [m.strip() for m in re.findall(rf"^{name}\s*:\s*(.*)$", info, re.MULTILINE)]

    def first(*names: str) -> str:
        return next((every(n)[0] for n in names if every(n)), "")

    pairs = zip(every("CPU implementer"), every("CPU part"))  # noqa: B905 - Python 3.10's word
    return {
        "cpu": first("model name", "Model", "CPU part") or platform.processor(),
        "vendor": first("vendor_id"),
        "parts": sorted({" ".join(p) for p in pairs}),
        "features": sorted(set(first("flags", "Features").split())),
    }


def _caches() -> list[dict[str, Any]]:
    found = []
    for folder in sorted(glob.glob(f"{_SYSFS_CPU}/cpu0/cache/index[0-9]*")):
        size = re.match(r"(\d+)([KM]?)", _text(f"{folder}/size"))
        if not size:
            continue
        found.append(
            {
                "level": int(_number(_text(f"{folder}/level")) or 0),
                "kind": _text(f"{folder}/type").lower(),
                "bytes": int(size.group(1)) * {"": 1, "K": 1 << 10, "M": 1 << 20}[size.group(2)],
                "shared_by": _text(f"{folder}/shared_cpu_list"),
            }
        )
    return found


def _memory() -> dict[str, int]:
    info = dict(re.findall(r"^(\w+):\s+(\d+) kB$", _text("/proc/meminfo"), re.MULTILINE))
    total = int(info.get("MemTotal", 0)) << 10
    if not total and hasattr(os, "sysconf"):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"memory_bytes": total, "available_bytes": int(info.get("MemAvailable", 0)) << 10}


def _clocks() -> dict[str, Any]:
    """Governors, the cores' highest and present clock in MHz, temperature, throttling."""
    base = f"{_SYSFS_CPU}/cpu[0-9]*/cpufreq"
    present = [_number(_text(p)) for p in glob.glob(f"{base}/scaling_cur_freq")]
    highest = [_number(_text(p)) for p in glob.glob(f"{base}/cpuinfo_max_freq")]
    zones = [_number(_text(p)) for p in glob.glob("/sys/class/thermal/thermal_zone*/temp")]
    # A Raspberry Pi's firmware counts under-voltage and heat; other boards have no such file.
    firmware = [_text(p) for p in glob.glob("/sys/devices/platform/soc/*/get_throttled")]
    return {
        "governors": sorted({_text(p) for p in glob.glob(f"{base}/scaling_governor")}),
        "mhz": max((f / 1e3 for f in present if f), default=None),
        "max_mhz": max((f / 1e3 for f in highest if f), default=None),
        "celsius": max((z / 1e3 for z in zones if z and z > 0), default=None),
        "throttled": any(t not in ("", "0") for t in firmware) if firmware else None,
    }


def cuda_libraries() -> tuple[Any, Any]:
    """NVIDIA's driver and CUDA's runtime, as TVM needs them, loaded; None for what cannot be.

    The runtime may lie in its wheel; a system's own comes first.
    """

    def load(*names: str) -> Any:
        for name in names:
            try:
                return ctypes.CDLL(name)
            except OSError:
                continue
        return None

    name = "libcudart.so.13"
    wheels = [os.path.join(folder, "nvidia", "cu13", "lib", name) for folder in sys.path]
    return load("libcuda.so.1"), load(name, *wheels)


def _cuda() -> dict[str, int]:
    """CUDA as the driver and the runtime library say it, 13000 for 13.0; 0 where there is none."""

    def version(library: Any, function: str) -> int:
        found = ctypes.c_int()
        try:
            failed = getattr(library, function)(ctypes.byref(found))
        except AttributeError:
            return 0
        return 0 if failed else found.value

    driver, runtime = cuda_libraries()
    return {
        "cuda_driver": version(driver, "cuDriverGetVersion"),
        "cuda_runtime": version(runtime, "cudaRuntimeGetVersion"),
    }


def _timer_ns() -> int:
    """The smallest step of the clock that times are taken with."""
    steps = []
    for _ in range(50):
        start = now = time.perf_counter_ns()
        while now == start:
            now = time.perf_counter_ns()
        steps.append(now - start)
    return min(steps)


def _version(package: str) -> str:
    try:
        from importlib import metadata

        return metadata.version(package)
    except ImportError:  # Python 3.7, or not installed
        return str(getattr(sys.modules.get(package), "__version__", ""))


def collect(folder: str = "~") -> dict[str, Any]:
    """Everything, in some milliseconds; what cannot be known is None, 0 or empty.

    Args:
        folder: whose file system is asked for free space; a relative one lies in the home.
    """
    home = os.path.expanduser("~")
    where = os.path.abspath(os.path.join(home, os.path.expanduser(folder)))
    while not os.path.exists(where):
        where = os.path.dirname(where)
    facts: dict[str, Any] = {
        "machine": platform.machine()
        .lower()
        .replace("amd64", "x86_64")
        .replace("arm64", "aarch64"),
        "bits": struct.calcsize("P") * 8,
        "system": platform.system(),
        "kernel": platform.release(),
        "libc": " ".join(platform.libc_ver()).strip(),
        "python": platform.python_version(),
        "home": home,
        "disk_free_bytes": shutil.disk_usage(where).free,
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1,
        "threads": int(os.environ.get("TVM_NUM_THREADS") or 0),
        "load": os.getloadavg()[0],
        "timer_ns": _timer_ns(),
        "caches": _caches(),
        "tvm": _version("apache-tvm"),
        "tvm_ffi": _version("apache-tvm-ffi"),
        "tvmsep": _version("tvmsep"),
    }
    for part in (_cpu(), _memory(), _clocks(), _cuda()):
        facts.update(part)
    return facts


if __name__ == "__main__":
    print(json.dumps(collect(*sys.argv[1:2])))
