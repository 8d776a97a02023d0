"""What a client asks a tracker: which boards there are, and to be lent one.

TVM's own client waits without a limit for a tracker that accepts and says nothing, and tells
nobody which board it was lent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvmsep.contracts import BoardError
from tvmsep.rpc.protocol import (
    REQUEST,
    SUCCESS,
    SUMMARY,
    TIMEOUT_S,
    NotATracker,
    TrackerLine,
    never,
    show,
    why_not,
)


@dataclass(frozen=True)
class Ticket:
    """A board that the tracker lent: where it listens and what to name there."""

    host: str
    port: int
    key: str


def _ask(
    place: tuple[str, int], code: int, *args: Any, limit_s: float, stop: Callable[[], bool]
) -> Any:
    where = f"the tracker at {show(place)}"
    try:
        with TrackerLine(place, min(TIMEOUT_S, limit_s), stop) as line:
            said, answer = line.call(code, *args, limit_s=limit_s)
    except NotATracker as error:
        raise BoardError(f"{where}: {error}") from error
    except OSError as error:
        raise BoardError(f"{where}: {why_not(error, limit_s)}") from error
    except (ValueError, TypeError) as error:
        raise BoardError(f"the answer of {where} makes no sense ({error})") from error
    if said != SUCCESS:
        raise BoardError(f"the answer of {where} makes no sense (code {said!r})")
    return answer


def boards(place: tuple[str, int], key: str, *, stop: Callable[[], bool] = never) -> list[str]:
    """Addresses (`host:port`) of the boards registered under a key, lent ones included.

    Raises:
        BoardError: no sound answer within `TIMEOUT_S`.
    """
    answer = _ask(place, SUMMARY, limit_s=TIMEOUT_S, stop=stop)
    try:
        mine = [info for info in answer["server_info"] if info["key"] == f"server:{key}"]
        return [f"{info['addr'][0]}:{info['addr'][1]}" for info in mine]
    except (KeyError, TypeError, IndexError) as error:
        raise BoardError(f"the tracker's summary makes no sense ({error})") from error


def request(
    place: tuple[str, int], key: str, limit_s: float, *, stop: Callable[[], bool] = never
) -> Ticket:
    """Wait for a board.

    Args:
        place: the tracker's host and port.
        key: which kind of board.
        limit_s: how long to wait for one that is free.
        stop: asked several times a second; True ends the wait.

    Raises:
        BoardError: none was lent in time, or the tracker does not answer.
    """
    try:
        host, port, ticket = _ask(place, REQUEST, key, "", 1, limit_s=limit_s, stop=stop)
        return Ticket(str(host), int(port), str(ticket))
    except BoardError as error:
        raise BoardError(f"no board {key}: {error}") from error
    except (ValueError, TypeError) as error:
        raise BoardError(f"the tracker's answer makes no sense ({error})") from error
