"""Verbs for a bundle that is there: `run`, `bench`, `show`, `sign`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from tvmsep.cli import options
from tvmsep.cli.export_cmd import export
from tvmsep.cli.options import BundlePath, shape_option
from tvmsep.contracts import InputError
from tvmsep.contracts.trial import EMULATED_NOTE
from tvmsep.contracts.words import counted

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tvmsep.bundle import BenchResult, Manifest

RequireSignature = Annotated[
    Path | None,
    typer.Option(metavar="KEY", help="Refuse a bundle that this public key's owner did not sign."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    for verb in (run, bench, show, export, sign):
        app.command()(verb)


def run(
    bundle: BundlePath,
    inputs: Annotated[
        list[str],
        typer.Option(
            "--input",
            "-i",
            metavar="FILE|NAME=FILE",
            help="A picture or a .npy array; once for each of the model's inputs.",
        ),
    ],
    top: Annotated[int, typer.Option(min=1, help="How many classes to list.")] = 5,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads to run on.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the output: .npy, or .npz for several."),
    ] = None,
    shape: Annotated[
        list[str] | None,
        shape_option(
            "Which of the bundle's input shapes a picture is made for; by default the first."
        ),
    ] = None,
    require_signature: RequireSignature = None,
    as_json: AsJson = False,
) -> None:
    """Run a bundle on a picture or on arrays."""
    from tvmsep.bundle import Bundle, Package

    with Package(bundle, trust=require_signature) as package:
        manifest = package.manifest
    arrays = _read_inputs(inputs, manifest, manifest.find(options.shapes(shape)))
    if output is not None:
        _check_output(output, len(manifest.outputs), inputs)
    with Bundle.load(bundle, threads, trust=require_signature) as net:
        start = time.perf_counter()
        result = net(*arrays)
        elapsed_s = time.perf_counter() - start
        count = net.threads
    results = list(result) if isinstance(result, tuple) else [result]
    if output is not None:
        _save(output, manifest, results)
    ranked = _rank(results[0], manifest, top) if len(results) == 1 else []
    if as_json:
        _print_json(
            {
                "model": manifest.name,
                "threads": count,
                "time_s": elapsed_s,
                "outputs": [
                    {"name": t.name, "shape": list(r.shape), "dtype": str(r.dtype)}
                    for t, r in zip(manifest.outputs, results, strict=True)
                ],
                "top": ranked,
            }
        )
        return
    plural = "s" if count > 1 else ""
    print(f"{manifest.name}: {elapsed_s * 1e3:.2f} ms, first run, {count} thread{plural}")
    if ranked:
        _print_table(
            ["class", "label", "probability"],
            [[str(r["class"]), r["label"] or "", f"{r['probability']:.4f}"] for r in ranked],
        )
    else:
        _print_table(
            ["output", "shape", "min", "mean", "max"],
            [
                [
                    t.name,
                    "x".join(map(str, r.shape)),
                    *(f"{v:.5g}" for v in (r.min(), r.mean(), r.max())),
                ]
                for t, r in zip(manifest.outputs, results, strict=True)
            ],
        )


def bench(
    bundle: BundlePath,
    threads: Annotated[
        str | None,
        typer.Option(metavar="N[,N...]", help="Thread counts to time; default: those it has."),
    ] = None,
    runs: Annotated[int, typer.Option(min=4, help="Timed runs of each.")] = 100,
    shape: Annotated[
        list[str] | None,
        shape_option("Which of the bundle's input shapes; by default all of them."),
    ] = None,
    require_signature: RequireSignature = None,
    as_json: AsJson = False,
) -> None:
    """Time a bundle: median, quartiles, GFLOP/s, share of the machine's peak, memory."""
    from tvmsep.bundle import Bundle, Package
    from tvmsep.bundle import bench as time_bundles
    from tvmsep.bundle.device import emulated
    from tvmsep.bundle.runtime import allowed_cpus

    with Package(bundle, trust=require_signature) as package:
        manifest = package.manifest
    wanted = options.shapes(shape)
    manifest.find(wanted)  # an error before anything is loaded
    available = len(allowed_cpus())
    tuned = [v.threads for v in manifest.variants if v.threads <= available]
    counts = _thread_counts(threads) if threads else tuned or [available]
    with ExitStack() as stack:
        loaded = [
            stack.enter_context(Bundle.load(bundle, n, trust=require_signature)) for n in counts
        ]
        results = time_bundles(loaded, runs, shapes=wanted)
    ram = {
        (one.title, v.threads): v.peak_ram_bytes
        for one in manifest.specialisations
        for v in one.variants
    }
    if as_json:
        import msgspec

        _print_json(
            {
                "model": manifest.name,
                "target": manifest.target.name,
                "process_peak_rss_bytes": _peak_rss_bytes(),
                "results": [
                    {**msgspec.to_builtins(r), "peak_ram_bytes": ram[r.inputs, r.tuned_for]}
                    for r in results
                ],
            }
        )
        return
    head = ["threads", "median ms", "quartiles ms", "spread", "GFLOP/s", "of peak", "planned RAM"]
    rows = [_bench_row(r, ram[r.inputs, r.tuned_for]) for r in results]
    if manifest.further:
        head.append("input")
        rows = [[*row, r.inputs] for row, r in zip(rows, results, strict=True)]
    _print_table(head, rows)
    print(
        f"{manifest.name} for {manifest.target.name}: {runs} runs each, seeded noise as input; "
        f"this process peaked at {_megabytes(_peak_rss_bytes())}"
    )
    gpu = manifest.target.gpu is not None
    if gpu and emulated():
        print(f"warning: the CUDA device here {EMULATED_NOTE}", file=sys.stderr)
    if not gpu and any(r.gflops is not None and r.peak_share is None for r in results):
        print(
            "of peak: the FMA peak was not measured when this bundle was made, as `tune` does; "
            f"`tvmsep profile {bundle}` measures it"
        )
    for result in results:
        if result.spread > 0.1:
            print(
                f"note: at {counted('thread', result.threads)} the middle half of the runs lies "
                f"within {result.spread:.0%} of the median: stop other programs, or raise --runs"
            )


def show(bundle: BundlePath, as_json: AsJson = False) -> None:
    """Show what is inside a bundle, after checking every member's SHA-256."""
    from tvmsep.bundle import Package

    with Package(bundle) as package:
        package.check_members()
        manifest = package.manifest
        if as_json:
            print(package.read("manifest.json").decode(), end="")
            return
    yes = "SHA-256 of all members is right"
    rows = [
        ["model", manifest.name],
        ["source", ", ".join(f"{k} {v}" for k, v in manifest.source.items()) or "unknown"],
        ["licence", manifest.licence],
        ["target", f"{manifest.target.name} ({manifest.target.triple}, {manifest.target.mcpu})"],
        ["made by", f"tvmsep {manifest.tvmsep}, apache-tvm {manifest.tvm}"],
        *(
            row
            for one in manifest.specialisations
            for row in (
                *(["input", str(t)] for t in one.inputs),
                *(["output", str(t)] for t in one.outputs),
                *(["variant", _variant_line(v)] for v in one.variants),
            )
        ),
        ["weights", f"{len(manifest.weight_names)} arrays"],
        ["log", f"{manifest.log_lines} of {manifest.log_total} lines used"],
        ["pictures", "preprocessing known" if manifest.preprocess else "preprocessing unknown"],
        ["labels", str(len(manifest.labels)) if manifest.labels else "none"],
        ["members", f"{len(manifest.members)}; {yes}"],
    ]
    _print_table(None, rows)


def sign(
    bundle: BundlePath,
    key: Annotated[Path, typer.Option(metavar="FILE", help="Ed25519 private key, PEM.")],
) -> None:
    """Sign a bundle: BUNDLE.sig, to be handed on beside it."""
    from tvmsep.bundle.signature import sign as make

    print(f"wrote {make(bundle, key)}")


def _variant_line(variant: Any) -> str:
    estimate = (
        "" if variant.estimate_s is None else f", tasks sum to {variant.estimate_s * 1e3:.2f} ms"
    )
    ram = _megabytes(variant.peak_ram_bytes)
    return f"{counted('thread', variant.threads)}, {ram} RAM{estimate}"


def _bench_row(result: BenchResult, ram: int) -> list[str]:
    tuned = "" if result.threads == result.tuned_for else f" (tuned for {result.tuned_for})"
    return [
        f"{result.threads}{tuned}",
        f"{result.median_s * 1e3:.3f}",
        f"{result.q1_s * 1e3:.3f} to {result.q3_s * 1e3:.3f}",
        f"{result.spread:.1%}",
        "" if result.gflops is None else f"{result.gflops:.1f}",
        "" if result.peak_share is None else f"{result.peak_share:.1%}",
        _megabytes(ram),
    ]


def _thread_counts(text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = [0]
    if min(counts) < 1 or len(set(counts)) != len(counts):
        raise InputError(f"--threads {text}: give different counts from 1, such as --threads 1,2")
    return counts


def _read_inputs(given: list[str], manifest: Manifest, which: int) -> list[NDArray[Any]]:
    """One array per input of the model, in its order."""
    names = [t.name for t in manifest.inputs]
    files: dict[str, Path] = {}
    for i, text in enumerate(given):
        name, equals, rest = text.partition("=")
        if equals and name not in names and not Path(text).exists():
            wanted = " ".join(f"--input {n}=FILE" for n in names)
            raise InputError(
                f"--input {text}: {manifest.name} has no input {name!r}, and there is no file of "
                f"that name: it takes {wanted}"
            )
        if not (equals and name in names):
            name, rest = (names[i] if i < len(names) else ""), text
        if not name or name in files:
            wanted = " ".join(f"--input {n}=FILE" for n in names)
            raise InputError(f"--input {text}: {manifest.name} takes {wanted}")
        files[name] = Path(rest)
    missing = [n for n in names if n not in files]
    if missing:
        raise InputError(
            f"{manifest.name} has {len(names)} inputs and {', '.join(missing)} was not given: "
            f"add --input {missing[0]}=FILE"
        )
    return [_read_input(files[n], manifest, which) for n in names]


def _read_input(path: Path, manifest: Manifest, which: int) -> NDArray[Any]:
    if path.suffix != ".npy":
        from tvmsep.bundle import load_picture

        return load_picture(path, manifest, which)
    from tvmsep.bundle.arrays import read_npy

    return read_npy(path)


def _check_output(path: Path, outputs: int, inputs: Sequence[str]) -> None:
    from tvmsep.bundle.archive import check_replaceable

    check_replaceable(path, *inputs, *(i.partition("=")[2] or i for i in inputs))
    suffix = ".npy" if outputs == 1 else ".npz"
    if path.suffix != suffix:
        raise InputError(f"--output {path}: for {outputs} output(s), name a {suffix} file")


def _save(path: Path, manifest: Manifest, results: list[NDArray[Any]]) -> None:
    import zipfile

    from numpy.lib.format import write_array

    from tvmsep.bundle.archive import write_file

    def several(file: BinaryIO) -> None:
        # As numpy.savez, which would take an output named "file" for its own argument.
        with zipfile.ZipFile(file, "w") as npz:
            for tensor, array in zip(manifest.outputs, results, strict=True):
                with npz.open(f"{tensor.name}.npy", "w") as entry:
                    write_array(entry, array, allow_pickle=False)

    if len(results) > 1:
        write_file(path, several)
    else:
        write_file(path, lambda file: write_array(file, results[0], allow_pickle=False))


def _rank(scores: NDArray[Any], manifest: Manifest, top: int) -> list[dict[str, Any]]:
    """The best classes, if the output is one score per class of one picture; else nothing."""
    import numpy as np

    flat = scores.reshape(-1).astype(np.float64)
    classes = max(scores.shape, default=1)
    if classes < 2 or classes != flat.size or not np.isfinite(flat).all():
        return []
    if flat.min() < 0 or abs(flat.sum() - 1) > 1e-3:  # scores, not yet probabilities
        flat = np.exp(flat - flat.max())
        flat /= flat.sum()
    labels = manifest.labels if manifest.labels and len(manifest.labels) == classes else None
    return [
        {
            "class": int(i),
            "label": labels[i] if labels else None,
            "probability": float(flat[i]),
        }
        for i in np.argsort(-flat, kind="stable")[:top]
    ]


def _peak_rss_bytes() -> int:
    """The most memory this process has held."""
    import resource
    import sys

    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Not getrusage: on Linux that begins with what the parent process held when it forked.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2))


def _print_table(head: list[str] | None, rows: list[list[str]]) -> None:
    """A table; plain and uncut where the output isn't a terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=1000)
    table = Table(
        *(head or ()), box=None, pad_edge=False, header_style="bold", show_header=head is not None
    )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
