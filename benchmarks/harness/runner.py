"""Runs engines' processes: who is there, what they are given, what they answer."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from engines import Engine

from harness.model import Network, relative_error
from harness.process import Failure, run
from harness.protocol import Job, write_job
from harness.rounds import Sample, Turn
from tvmsep.contracts import InputError

BENCHMARKS = Path(__file__).parents[1]
PREPARE_TIMEOUT_S = 900.0

_FORGOTTEN = ("OMP_", "MKL_", "KMP_", "GOMP_", "TVM_", "DNNL_", "ONEDNN_", "PYTHON", "ATEN_", "OV_")
"""Settings of the caller's that would reach an engine, by how their names begin."""


@dataclass
class Runner:
    """Engines on one network.

    Attributes:
        network: what they run.
        folder: theirs, a folder each.
        pythons: the interpreter of each engine, by name.
        isa: `native` or `avx2`.
        runs: timed calls a process.
        timeout_s: of a measuring process.
        logs: tuning logs for tvmsep.
        paths: where the engines' modules are looked for.
        dtype: what GPUs compute with.
        target: tvmsep's, for a GPU.
    """

    network: Network
    folder: Path
    pythons: Mapping[str, Path]
    isa: str
    runs: int
    timeout_s: float
    logs: Sequence[str] | None = None
    paths: Sequence[Path] = (BENCHMARKS,)
    dtype: str = "float32"
    target: str = "local"
    versions: dict[str, str] = field(default_factory=dict)
    facts: dict[str, dict[str, str]] = field(default_factory=dict)
    """What an engine says about itself, by `engine/threads`."""

    def _ask(
        self, verb: str, engine: Engine, python: Path, threads: int, runs: int, timeout_s: float
    ) -> dict | Failure:
        home = self.folder / engine.name
        home.mkdir(parents=True, exist_ok=True)
        source, answer = home / "job.json", home / "answer.json"
        answer.unlink(missing_ok=True)
        job = Job(
            engine=engine.name, module=engine.module, package=engine.package,
            model=str(self.network.model), inputs=str(self.network.inputs), folder=str(home),
            threads=threads, isa=self.isa, runs=runs,
            logs=None if self.logs is None else list(self.logs), dtype=self.dtype,
            target=self.target,
        )  # fmt: skip
        write_job(source, job)
        command = [str(python), "-P", "-m", "harness.driver", verb, str(source), str(answer)]
        failed = run(
            command, timeout_s=timeout_s, env=self._environment(engine, python, threads), cwd=home
        )
        if failed is not None:
            return failed
        said = json.loads(answer.read_text(encoding="utf-8"))
        if "unsupported" in said:
            return Failure("unsupported", said["unsupported"])
        self.versions[engine.name] = said["version"]
        self.facts.setdefault(f"{engine.name}/{threads}", {}).update(said["facts"])
        return said

    def _environment(self, engine: Engine, python: Path, threads: int) -> dict[str, str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith(_FORGOTTEN)}
        # Beside the engines' own settings: for the libraries below them.
        env |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        env["PYTHONPATH"] = os.pathsep.join(map(str, self.paths))
        env["PATH"] = os.pathsep.join((str(python.parent), env.get("PATH", os.defpath)))
        return env | (dict(engine.avx2_env) if self.isa == "avx2" else {})

    def prepare(self, engine: Engine, threads: int) -> Failure | None:
        """Convert and compile; None where that went well."""
        said = self._ask(
            "prepare", engine, self.pythons[engine.name], threads, self.runs, PREPARE_TIMEOUT_S
        )
        return said if isinstance(said, Failure) else None

    def reference(self, engine: Engine) -> np.ndarray:
        """What `engine`, in the interpreter that runs us, makes of the inputs: [2, outputs].

        Raises:
            InputError: it cannot run the network, or not in time.
        """
        said = self._ask("measure", engine, Path(sys.executable), 1, 1, self.timeout_s)
        if isinstance(said, Failure):
            advice = (
                "give a larger --timeout"
                if said.kind == "timeout"
                else f"outputs are compared with {engine.name}'s: give a network that it can run"
            )
            raise InputError(
                f"{self.network.spec}: no reference from {engine.name} ({said}); {advice}"
            )
        return self._outputs(engine, 1)

    def measure(self, engine: Engine, turn: Turn, reference: np.ndarray) -> Sample | Failure:
        """One fresh process."""
        said = self._ask(
            "measure", engine, self.pythons[engine.name], turn.threads, self.runs, self.timeout_s
        )
        if isinstance(said, Failure):
            return said
        error = relative_error(self._outputs(engine, turn.threads), reference)
        return Sample(tuple(said["times_s"]), said["cores_busy"], error)

    def _outputs(self, engine: Engine, threads: int) -> np.ndarray:
        return np.load(self.folder / engine.name / f"outputs{threads}.npy")
