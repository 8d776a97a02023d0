"""TVM's own tracker on a socket that its supervisor opened: `tracker_child FD`.

The stock command (`tvm.exec.rpc_tracker`) binds every interface, takes another port when its own
is busy, and leaves a process behind when it is killed. Here the supervisor holds the listening
socket: a tracker that is started again has the same port, and clients meanwhile wait in its queue.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import sys
import threading


def _end_with_owner() -> None:
    while os.read(0, 4096):
        pass
    os._exit(0)


def main() -> None:
    """Serve until standard input ends."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    threading.Thread(target=_end_with_owner, daemon=True).start()
    sys.modules["torch"] = None  # type: ignore[assignment] # TVM would import it, for seconds
    from tvm.rpc.tracker import TrackerServerHandler

    asyncio.set_event_loop(asyncio.new_event_loop())
    handler = TrackerServerHandler(listener, secrets.token_hex())
    print("listening", flush=True)
    handler.run()


if __name__ == "__main__":
    main()
