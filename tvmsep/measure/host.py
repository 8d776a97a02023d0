"""Which machine this is: boards of one machine must be timed in turn.

The kernel's boot id is what everything that shares the cores shares: two servers, containers of
one host, the tuner and a board on loopback. An address does not tell (a tunnel's end is on
loopback too), nor does `/etc/machine-id` (each container has its own).
"""

from __future__ import annotations

import ipaddress
import uuid
from pathlib import Path

FUNCTION = "tvmsep.host"
"""The function under which our RPC server answers `host_id()` to whoever measures."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def host_id() -> str:
    """A word that is equal for two processes exactly if they run on one machine."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return f"mac-{uuid.getnode():012x}"


def machine_of(reported: str, address: str) -> str:
    """The machine of a board: what its server reports, else what its address says.

    A server that is not ours reports nothing: on loopback it is taken to be this host.
    """
    if reported:
        return reported
    name = address.lower()
    try:
        loopback = ipaddress.ip_address(name).is_loopback
    except ValueError:
        loopback = name == "localhost"
    return host_id() if loopback else f"at-{name}"
