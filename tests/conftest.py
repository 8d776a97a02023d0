"""Fixtures that several test files share."""

import signal

from bundle_kit import affine_path, built, manifest, net, pair_path, shapes_path, target

__all__ = ["affine_path", "built", "manifest", "net", "pair_path", "shapes_path", "target"]

# A shell starts what runs in the background with Ctrl-C ignored, for its children too: tests that
# send it would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
