"""Fixtures that several test files share."""

import os
import signal
import tempfile
from pathlib import Path

import pytest
from bundle_kit import affine_path, built, manifest, net, pair_path, shapes_path, target

__all__ = ["affine_path", "built", "manifest", "net", "pair_path", "shapes_path", "target"]

# Each of several test processes is a machine of its own: the host's measuring lock lies in TMPDIR.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    own = Path(tempfile.gettempdir()) / f"tvmsep-test-{worker}"
    own.mkdir(exist_ok=True)
    os.environ["TMPDIR"] = tempfile.tempdir = str(own)

# A shell starts what runs in the background with Ctrl-C ignored, for its children too: tests that
# send it would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Files of minutes, the longest first: begun last, one of them runs alone while the other processes
# have nothing left. (xdist would begin with the files of most tests: `--no-loadscope-reorder`.)
LONG = (
    "boards/test_emulated.py", "test_compare.py", "test_tuner.py", "boards/test_runtime.py",
    "test_estimate.py", "boards/test_kernels.py", "test_cpp.py", "test_cycles.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files."""

    def rank(item: pytest.Item) -> int:
        at = item.path.as_posix()
        return next((k for k, name in enumerate(LONG) if at.endswith("/tests/" + name)), len(LONG))

    items.sort(key=rank)
