"""Verbs that show what was measured: `profile`, `report`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tvmsep.cli import options
from tvmsep.cli.options import AsJson, BundlePath, BundleShape
from tvmsep.contracts import InputError

if TYPE_CHECKING:
    from tvmsep.report.page import Page


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    for verb in (profile, report):
        app.command()(verb)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def profile(
    bundle: BundlePath,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Which variant; by default the one of most threads.")
    ] = None,
    board: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT/KEY", help="A tracker's board to measure on; by default this host."
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a trace for Perfetto or Chrome as well."),
    ] = None,
    shape: BundleShape = None,
    as_json: AsJson = False,
) -> None:
    """Time each layer of a bundle inside its network, against the board's measured limits."""
    from tvmsep.bundle import Package
    from tvmsep.cli.profile_table import print_profile, profile_json
    from tvmsep.profile import profile_bundle, trace_events

    if trace is not None:
        options.check_new(trace, bundle)
    place, key = None, ""
    if board is not None:
        address, _, key = board.partition("/")
        with Package(bundle) as package:
            target = package.manifest.target
        place = options.tracker(address, key, target, _say, flag="--board")
    found = profile_bundle(bundle, threads, shapes=options.shapes(shape), tracker=place, key=key)
    if trace is not None:
        options.write_new(trace, json.dumps(trace_events(found)))
    if as_json:
        print(profile_json(found))
        return
    print_profile(found)
    if trace is not None:
        print(f"wrote {trace}: open it in ui.perfetto.dev or chrome://tracing")


def report(
    logs: Annotated[
        list[Path], typer.Argument(metavar="LOG...", help="Tuning logs of one target.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="The page; by default LOG.html here."),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(metavar="BUNDLE", help="Says how often the network runs each kernel."),
    ] = None,
    profile: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="What `profile --json` printed; one a thread count."),
    ] = None,
    peers: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Times of other engines: benchmarks/x86.py --json."),
    ] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Serve the page on loopback while a run writes the log.")
    ] = False,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="With --live; 0 for any that is free.")
    ] = 8787,
) -> None:
    """Write one HTML page that shows what tuning logs hold; it needs no network to be read."""
    from tvmsep.report.html import check_extra

    check_extra()
    from tvmsep.report.html import render
    from tvmsep.report.page import compose
    from tvmsep.report.sources import read_sources

    files = [*logs, *([bundle] if bundle else []), *(profile or []), *([peers] if peers else [])]
    command = ["tvmsep", *sys.argv[1:]]

    def page() -> Page:
        return compose(read_sources(logs, bundle, profile or [], peers, growing=live), command)

    if live:
        if output is not None:
            raise InputError("--live serves the page and writes none: leave -o out")
        _serve(page, files, port)
        return
    out = output or Path(logs[0].with_suffix(".html").name)
    _check_page(out, files)
    options.write_new(out, render(page()))
    print(f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB): open it in a browser")


def _check_page(out: Path, files: list[Path]) -> None:
    """Refuse to write a page over what is none."""
    if any(out.exists() and f.exists() and out.samefile(f) for f in files):
        raise InputError(f"-o {out} is read for the page: give the page another name")
    if out.is_dir():
        raise InputError(f"-o {out} is a folder: give a file name")
    if out.is_file():
        with out.open("rb") as file:
            start = file.read(15)
        if start and start.lower() != b"<!doctype html>":
            raise InputError(f"-o {out} is there already and is no HTML page: give another name")


def _serve(page: Callable[[], Page], files: list[Path], port: int) -> None:
    import signal

    from tvmsep.report.live import LivePage, make_server

    live = LivePage(page, files)
    live.newest()  # a mistake shows now, as one line
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with make_server(live, port) as server:
        _say(f"http://127.0.0.1:{server.server_address[1]}/ shows the log; Ctrl-C ends it")
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            _say("ended")
