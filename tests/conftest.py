"""Fixtures that several test files share."""

import os
import signal
import tempfile
from pathlib import Path

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
