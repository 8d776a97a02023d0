"""Fixtures that several test files share."""

from bundle_kit import affine_path, built, manifest, net, pair_path, target

__all__ = ["affine_path", "built", "manifest", "net", "pair_path", "target"]
