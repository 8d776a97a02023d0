"""What stands on the command line becomes something that a process can load."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tvmsep.compare.engines import ENGINES, OURS, Engine, Job, own_engine, require
from tvmsep.compare.rounds import Entrant
from tvmsep.contracts import InputError, Target
from tvmsep.contracts.words import counted

if TYPE_CHECKING:
    from tvmsep.bundle import TensorInfo

Kind = Literal["bundle", "log", "default", "stock-tvm", "metaschedule", "engine"]
BOARD_KINDS: frozenset[Kind] = frozenset({"bundle", "log", "default"})
"""What can be measured on a board: engines are not there, and MetaSchedule searches here."""
Shapes = Mapping[str, Sequence[int]]
Build = Callable[..., Any]
"""`tvmsep.build`."""


@dataclass(frozen=True)
class Spec:
    """One thing to compare, as it was asked for."""

    name: str
    text: str
    kind: Kind
    path: Path | None = None
    trials: int = 0
    engine: Engine | None = None


def parse(words: Sequence[str]) -> list[Spec]:
    """Each `SPEC` or `NAME=SPEC`, with names that differ.

    Raises:
        InputError: one says nothing that is known here, or a name is given twice.
    """
    found: list[Spec] = []
    for word in words:
        spec = parse_one(word)
        taken = {s.name for s in found}
        if spec.name in taken and "=" in word and not Path(word).exists():
            raise InputError(f"two entrants are called {spec.name}: give each a name of its own")
        name, n = spec.name, 2
        while name in taken:
            name, n = f"{spec.name}#{n}", n + 1
        found.append(Spec(name, spec.text, spec.kind, spec.path, spec.trials, spec.engine))
    return found


def parse_one(word: str) -> Spec:
    """See `parse`."""
    spec = _known(word)
    if spec is not None:
        return spec
    name, _, rest = word.partition("=")
    spec = _known(rest) if re.fullmatch(r"[A-Za-z_][\w.-]*", name) else None
    if spec is not None:
        return Spec(name, spec.text, spec.kind, spec.path, spec.trials, spec.engine)
    if word.endswith((".tvmsep", ".jsonl")) or ".py:" in word:
        raise InputError(f"{word}: no such file")
    raise InputError(
        f"{word}: neither a bundle (.tvmsep), a log (.jsonl) that is there, nor default, "
        f"metaschedule:TRIALS, {', '.join(ENGINES)} or FILE.py:CLASS"
    )


def _known(text: str) -> Spec | None:
    path = Path(text)
    if text == "default":
        return Spec(text, text, "default")
    if text in ENGINES:
        engine = ENGINES[text]
        kind: Kind = "stock-tvm" if engine.takes == "library" else "engine"
        return Spec(text, text, kind, engine=engine)
    if found := re.fullmatch(r"metaschedule:(\d+)", text):
        return Spec("metaschedule", text, "metaschedule", trials=int(found.group(1)))
    if path.suffix in (".tvmsep", ".jsonl") and path.is_file():
        return Spec(path.stem, text, "bundle" if path.suffix == ".tvmsep" else "log", path)
    if ".py:" in text and Path(text.rpartition(":")[0]).is_file():
        engine = own_engine(text)
        return Spec(engine.name, text, "engine", engine=engine)
    return None


@dataclass(frozen=True)
class Network:
    """What all entrants must be: the same model, or bundles of it.

    `model` and `file` are empty where only bundles are compared and theirs is not at hand.
    """

    model: str
    file: str
    """What other engines read: an ONNX file, or a `.pt2`."""
    onnx: str
    """What those read that take ONNX alone: `file`, or what torch exports of it."""
    name: str
    sha256: str
    inputs: tuple[TensorInfo, ...]
    shapes: Shapes | None = None
    """Of the inputs, where they were chosen among several; else the model's own."""

    @property
    def title(self) -> str:
        """Its name, and the inputs where their shapes were chosen."""
        return self.name if self.shapes is None else ", ".join((self.name, *map(str, self.inputs)))

    def arrays(self, seed: int) -> list[np.ndarray[Any, Any]]:
        """Seeded inputs: standard normal where the dtype is floating, zeros and ones otherwise."""
        rng = np.random.default_rng(seed)
        return [
            rng.standard_normal(t.shape).astype(t.dtype)
            if t.dtype.startswith("float")
            else rng.integers(0, 2, t.shape).astype(t.dtype)
            for t in self.inputs
        ]


def find_network(
    specs: Sequence[Spec], model: str | None, folder: Path, shapes: Shapes | None = None
) -> Network:
    """The network that the entrants share.

    Args:
        specs: all entrants.
        model: as the user gave it; None to take it from a bundle's manifest.
        folder: where a model file for other engines may be written.
        shapes: of the inputs by name; None for the first ones of the first bundle that has several.

    Raises:
        InputError: a bundle was made from another model or for other shapes, or a model is needed
            and was not given.
    """
    from tvmsep.bundle import Package, TensorInfo

    manifests = {}
    for spec in specs:
        if spec.kind == "bundle":
            assert spec.path is not None
            with Package(spec.path) as package:
                manifests[spec] = package.manifest
    needs = [s for s in specs if s.kind != "bundle"]
    if model is None and needs:
        model = next(filter(None, (_told(m.source) for m in manifests.values())), None)
        if model is None:
            raise InputError(
                f"{needs[0].text} needs the model: give --model, an .onnx or .pt2 file or a name"
            )
    chosen = shapes
    several = next((m for m in manifests.values() if m.further), None)
    if shapes is None and several is not None:
        chosen = {t.name: t.shape for t in several.inputs}
    if model is None:
        first = next(iter(manifests.values()))
        one = first.specialisations[first.find(chosen)]
        network = Network(
            "", "", "", first.name, first.source.get("sha256", ""), one.inputs, chosen
        )
    else:
        from tvmsep.frontends import load_model

        loaded = load_model(model, shapes=chosen)
        file = _file_of(model, folder, chosen) if needs else ""
        network = Network(
            model, file, _onnx_of(file, specs, folder), loaded.name, loaded.source["sha256"],
            tuple(TensorInfo(name=t.name, shape=t.shape, dtype=t.dtype) for t in loaded.inputs),
            chosen,
        )  # fmt: skip
    for spec, manifest in manifests.items():
        theirs = manifest.source.get("sha256", "")
        if model is not None and theirs != network.sha256:
            raise InputError(
                f"{spec.text} was made from {manifest.name} with the SHA-256 {theirs[:12]}, "
                f"{model} has {network.sha256[:12]}: not the same model; build it "
                "again from this one"
            )
        wanted = [(t.shape, t.dtype) for t in network.inputs]
        if wanted not in [
            [(t.shape, t.dtype) for t in one.inputs] for one in manifest.specialisations
        ]:
            has = "; ".join(one.title for one in manifest.specialisations)
            told = ", ".join(map(str, network.inputs))
            raise InputError(
                f"{spec.text} takes other inputs than are compared ({told}): it was built for "
                f"{has}; choose with --shape, or build it for these"
            )
    return network


def untuned(specs: Sequence[Spec], counts: Sequence[int]) -> list[str]:
    """What to warn of: bundles that were not built for a thread count they run on."""
    from tvmsep.bundle import Package

    found = []
    for spec in specs:
        if spec.kind != "bundle":
            continue
        assert spec.path is not None
        with Package(spec.path) as package:
            have = [v.threads for v in package.manifest.variants]
            if package.manifest.target.gpu is not None:
                continue  # its one thread starts kernels
        if odd := [n for n in counts if n not in have]:
            found.append(
                f"{spec.name} was built for {counted('thread', *have)}, not for "
                f"{', '.join(map(str, odd))}"
            )
    return found


def on_emulator(specs: Sequence[Spec]) -> bool:
    """Whether a bundle among them runs on this host's emulated CUDA device."""
    from tvmsep.bundle import Package
    from tvmsep.bundle.device import emulated

    for spec in specs:
        if spec.kind == "bundle" and spec.path is not None:
            with Package(spec.path) as package:
                if package.manifest.target.gpu is not None:
                    return emulated()
    return False


def told_model(words: Sequence[str], shapes: Shapes | None) -> tuple[str | None, Shapes | None]:
    """What the first bundle among the words was made from, if it can be loaded again.

    Returns:
        The model; and which of the bundle's shapes `shapes` are (the first ones for None), as far
        as it has several.
    """
    from tvmsep.bundle import Package

    for word in words:
        if word.endswith(".tvmsep") and Path(word).is_file():
            with Package(word) as package:
                manifest = package.manifest
            one = manifest.specialisations[manifest.find(shapes)]
            if manifest.further:
                shapes = {t.name: t.shape for t in one.inputs}
            return _told(manifest.source), shapes
    return None, shapes


def _told(source: dict[str, str]) -> str | None:
    """The model that a manifest names, if it can be loaded again."""
    path = source.get("path", "")
    return source.get("spec") if source.get("kind") in ("builtin", "zoo") else (
        path if path and Path(path).is_file() else None
    )  # fmt: skip


def _file_of(model: str, folder: Path, shapes: Shapes | None) -> str:
    """The file that other engines read, written where the model has none, or none of the shapes."""
    from tvmsep.frontends import builtin, builtin_proto, zoo
    from tvmsep.frontends.onnx_clean import fix_shapes

    file = Path(model)
    if file.is_file() and (shapes is None or file.suffix.lower() != ".onnx"):
        return str(file.resolve())
    import onnx

    if file.is_file():
        proto = onnx.load(file)
        fix_shapes(proto.graph, shapes or {})
    elif builtin.is_builtin(model):
        proto = builtin_proto(model)
    else:
        entry = zoo.model(model.removeprefix("zoo:"))
        proto = entry.proto()
        fix_shapes(proto.graph, {k: tuple(v) for k, v in (shapes or entry.shapes or {}).items()})
    path = folder / "model.onnx"
    onnx.save(proto, path)
    return str(path)


def _onnx_of(file: str, specs: Sequence[Spec], folder: Path) -> str:
    """The ONNX file of a program, where an entrant needs one."""
    if not file.endswith(".pt2"):
        return file
    if not any(s.engine is not None and s.engine.reads_onnx for s in specs):
        return ""
    from tvmsep.frontends.torch_import import export_onnx

    out = folder / "model.onnx"
    export_onnx(Path(file), out)
    return str(out)


def check(specs: Sequence[Spec], network: Network) -> None:
    """See that every engine is there and takes this kind of model file.

    Raises:
        InputError: one is not, or does not.
    """
    for spec in specs:
        engine = spec.engine
        if engine is None or not network.file:
            continue
        require(engine)
        if engine.name == "torch" and not network.file.endswith(".pt2"):
            raise InputError(
                "torch runs exported programs: give --model a .pt2 file (torch.export.save)"
            )


def prepare(
    spec: Spec, network: Network, threads: int, target: Target, folder: Path, build: Build
) -> Entrant:
    """Compile what must be compiled.

    Args:
        spec: the entrant.
        network: what it must be.
        threads: of all entrants.
        target: what ours are compiled for.
        folder: where results go.
        build: `tvmsep.build`.

    Raises:
        TvmsepError: it cannot be compiled.
    """
    from tvmsep.compare import stock

    out = folder / f"{len(os.listdir(folder))}-{threads}"
    adapter, path = OURS.adapter, out.with_suffix(".tvmsep")
    match spec.kind:
        case "bundle":
            assert spec.path is not None
            path = spec.path.resolve()
        case "log":
            assert spec.path is not None
            made = build(
                network.model, out=path, target=target, threads=[threads], logs=[spec.path],
                shapes=network.shapes,
            )  # fmt: skip
            if not made.tuned:
                raise InputError(
                    f"log {spec.text} has no kernel of {network.name} at "
                    f"{counted('thread', threads)}"
                )
        case "default" | "metaschedule":
            build(
                network.model, out=path, target=target, threads=[threads], logs=(),
                shapes=network.shapes,
            )  # fmt: skip
            if spec.kind == "metaschedule":
                stock.search(network.model, path, target, threads, spec.trials, network.shapes)
        case "stock-tvm":
            path = out.with_suffix(".so")
            stock.compile_stock(network.onnx, path, target, threads)
            adapter = ENGINES["stock-tvm"].adapter
        case "engine":
            assert spec.engine is not None
            file = network.onnx if spec.engine.reads_onnx else network.file
            adapter, path = spec.engine.adapter, Path(file)
    ours = spec.kind in ("bundle", "log", "default")
    return Entrant(spec.name, adapter, Job(str(path), threads), ours)
