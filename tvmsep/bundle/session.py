"""A bundle behind the interface of onnxruntime's `InferenceSession`: two lines of a program change.

```python
import tvmsep as ort  # was: import onnxruntime as ort

session = ort.InferenceSession("net.tvmsep")  # was: "net.onnx"
(scores,) = session.run(None, {"input": x})
```

Of onnxruntime's interface it has what inference needs, by onnxruntime's names. What it cannot do it
refuses instead of taking no notice.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from tvmsep.bundle.load import Bundle
from tvmsep.bundle.manifest import TensorInfo
from tvmsep.bundle.package import Package
from tvmsep.contracts import InputError

PROVIDER, CUDA_PROVIDER = "CPUExecutionProvider", "CUDAExecutionProvider"
_TYPES = {"float32": "float", "float64": "double"}
"""ONNX's names where they are not NumPy's."""


@dataclass(slots=True)
class SessionOptions:
    """The one option of onnxruntime's that a bundle has; others cannot be set.

    Attributes:
        intra_op_num_threads: threads to run on; 0 for what `Bundle.load` takes by default.
    """

    intra_op_num_threads: int = 0


@dataclass(frozen=True)
class NodeArg:
    """An input or output.

    Attributes:
        name: the model's own.
        type: such as `tensor(float)`.
        shape: None for a dimension in which the shapes that the bundle was built for differ.
    """

    name: str
    type: str
    shape: list[int | None]


class InferenceSession:
    """A loaded bundle; any number of threads may call `run`.

    Args:
        path: a `.tvmsep` file.
        sess_options: a `SessionOptions`, for the thread count.
        providers: as for onnxruntime, the names or (name, options) pairs; the one that the bundle
            is for must be there.

    Attributes:
        bundle: the `Bundle`, which can be closed before the session is collected.

    Raises:
        BundleError: as for `Bundle.load`.
        InputError: no provider of the list is what the bundle is for, or the thread count is out
            of range.
    """

    def __init__(
        self,
        path_or_bytes: str | os.PathLike[str],
        sess_options: SessionOptions | None = None,
        providers: Sequence[str | tuple[str, Mapping[str, Any]]] | None = None,
    ) -> None:
        if not isinstance(path_or_bytes, str | os.PathLike):
            raise InputError("a bundle is loaded from its file: give its path")
        with Package(path_or_bytes) as package:
            on_device = package.manifest.target.gpu is not None
        self._provider = CUDA_PROVIDER if on_device else PROVIDER
        names = [p if isinstance(p, str) else p[0] for p in providers or (self._provider,)]
        if self._provider not in names:
            where = "a CUDA device" if on_device else "the CPU"
            raise InputError(
                f"providers are {', '.join(names)}: a bundle runs on {where}; give {self._provider}"
            )
        threads = sess_options.intra_op_num_threads if sess_options else 0
        self.bundle = Bundle.load(path_or_bytes, threads or None)
        self._inputs = [t.name for t in self.bundle.manifest.inputs]
        self._outputs = [t.name for t in self.bundle.manifest.outputs]

    def get_inputs(self) -> list[NodeArg]:
        """What `run` is fed."""
        return _nodes([one.inputs for one in self.bundle.manifest.specialisations])

    def get_outputs(self) -> list[NodeArg]:
        """What `run` returns."""
        return _nodes([one.outputs for one in self.bundle.manifest.specialisations])

    def get_providers(self) -> list[str]:
        """The one that the bundle is for."""
        return [self._provider]

    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Any],
        run_options: None = None,
    ) -> list[NDArray[Any]]:
        """Run the network.

        Args:
            output_names: which outputs, in which order; None or nothing for all.
            input_feed: an array for each input, by its name; see `Bundle.__call__`.
            run_options: None, as most pass it to onnxruntime; there are none.

        Raises:
            InputError: a name that isn't there, an input that is missing or doesn't fit.
            BundleError: closed, or the library failed.
        """
        if run_options is not None:
            raise InputError("run_options: a bundle has none; leave them out")
        return self._pick(output_names, self.bundle(*self._feed(output_names, input_feed)))

    async def run_async(
        self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any]
    ) -> list[NDArray[Any]]:
        """As `run`, while the event loop goes on; see `Bundle.acall`."""
        feed = self._feed(output_names, input_feed)
        return self._pick(output_names, await self.bundle.acall(*feed))

    def _feed(self, wanted: Sequence[str] | None, feed: Mapping[str, Any]) -> list[Any]:
        if not isinstance(feed, Mapping):
            raise InputError(f"input_feed is a {type(feed).__name__}: give arrays by input name")
        for what, names, known in (
            ("outputs", wanted or (), self._outputs),
            ("inputs", feed, self._inputs),
        ):
            if odd := [n for n in names if n not in known]:
                raise InputError(
                    f"{self.bundle.manifest.name} has no {what} {', '.join(odd)}: it has "
                    f"{', '.join(known)}"
                )
        if missing := [n for n in self._inputs if n not in feed]:
            raise InputError(
                f"{self.bundle.manifest.name} needs the inputs {', '.join(missing)} too"
            )
        return [feed[n] for n in self._inputs]

    def _pick(self, wanted: Sequence[str] | None, outputs: Any) -> list[NDArray[Any]]:
        several = outputs if isinstance(outputs, tuple) else (outputs,)
        return [several[self._outputs.index(n)] for n in wanted or self._outputs]


def _nodes(specialisations: Sequence[Sequence[TensorInfo]]) -> list[NodeArg]:
    nodes = []
    for tensors in zip(*specialisations, strict=True):
        first = tensors[0]
        shape = [
            dims[0] if len(set(dims)) == 1 else None
            for dims in zip(*(t.shape for t in tensors), strict=True)
        ]
        nodes.append(NodeArg(first.name, f"tensor({_TYPES.get(first.dtype, first.dtype)})", shape))
    return nodes
