"""Which folder is which package; everything else is in pyproject.toml.

`schedules/` and `targets/` lie at the root because users edit them. They are packages of
tvmsep, so that no generic name lands on the import path.
"""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
packages = find_packages(str(ROOT), include=["tvmsep", "tvmsep.*"])
folders = {}
for room in ("schedules", "targets"):
    folders[f"tvmsep.{room}"] = room
    packages.append(f"tvmsep.{room}")
    packages += [f"tvmsep.{room}.{sub}" for sub in find_packages(str(ROOT / room))]
# Measured logs travel with the package; the folder holds data only.
packages.append("tvmsep.shipped")
folders["tvmsep.shipped"] = "logs"

setup(packages=packages, package_dir=folders)
