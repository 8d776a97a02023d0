"""Clock readings between the kernels of a compiled network: each one's time where it really runs.

A kernel alone, even with swept caches and a freshly written input, is not the kernel in its
network: what its neighbours leave in which cache decides up to a third of its time at two threads.
So the network itself is compiled with a reading of the clock between all steps (some 30 ns each).
"""

from __future__ import annotations

from typing import Any

from tvmsep.contracts import Target
from tvmsep.graph.plan import Plan

_NAME = "tvmsep_clock"


def stamps_dtype(t: Target) -> str:
    """The integer of a `struct timespec`'s two members, C's `long`."""
    return "int64" if "64" in t.triple.split("-")[0] else "int32"


def clock_call(t: Target, address: str) -> str:
    """TVMScript that writes the monotonic clock's `struct timespec` to an address."""
    clock = 6 if "darwin" in t.triple or "apple" in t.triple else 1  # CLOCK_MONOTONIC
    return f'T.evaluate(T.call_extern("int32", "clock_gettime", {clock}, T.address_of({address})))'


def stamps_shape(plan: Plan, runs: int) -> tuple[int, int]:
    """`[1 + runs * (steps + 1), 2]`: a counter, then each run's readings (seconds, nanoseconds)."""
    return 1 + runs * (len(plan.steps) + 1), 2


class Clock:
    """Emits readings into a function that is being built; `stamps` is its extra parameter.

    The readings form a chain of in-place updates, so no pass may drop or reorder them.
    """

    def __init__(self, builder: Any, target: Target, shape: tuple[int, int]) -> None:
        from tvm import relax

        self._dtype = stamps_dtype(target)
        self._builder, self._target = builder, target
        self._shape, self._globals = shape, dict[str, Any]()
        self._type = relax.TensorType(shape, self._dtype)
        self.stamps = relax.Var("stamps", self._type)

    def read(self) -> None:
        """Read the clock here."""
        one = f"T.{self._dtype}(1)"
        self._call(
            _NAME,
            clock_call(self._target, f"stamps[stamps[0, 0] + {one}, 0]"),
            f"stamps[0, 0] = stamps[0, 0] + {one}",
        )

    def probe(self, name: str, threads: int) -> None:
        """Call a kernel here that does nothing, on so many threads; one a name."""
        lines = ["if stamps[0, 0] < 0:", f"    stamps[0, 1] = T.{self._dtype}(0)"]
        if threads > 1:  # a look at the counter, which is never below 0, and nothing is written
            lines = [f"for t in T.parallel({threads}):", *("    " + line for line in lines)]
        self._call(f"{_NAME}_{name}", *lines)

    def _call(self, name: str, *body: str) -> None:
        import tvm
        from tvm import relax

        if name not in self._globals:
            script = [
                "@T.prim_func(s_tir=True)",
                f'def {name}(stamps: T.Buffer({self._shape}, "{self._dtype}")):',
                '    T.func_attr({"tirx.noalias": True})',
                *("    " + line for line in body),
            ]
            func = tvm.script.from_source("\n".join(script) + "\n")
            func = func.with_attr({"op_pattern": 8, "tvmsep.scheduled": name})
            self._globals[name] = self._builder.add_func(func, name)
        call = relax.op.call_tir_inplace(self._globals[name], [self.stamps], [0], self._type)
        self.stamps = self._builder.emit(call, "stamps")
