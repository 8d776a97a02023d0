"""What a scheduled CUDA kernel does, read from its TIR before loops are unrolled.

The schedule is lowered up to where threads are bound, buffers flat and loops vectorised. Then the
statements are walked once: how often each runs, what a warp's threads read and write together, and
how much arithmetic stands between. Nothing is compiled. Conditions count by the threads for which
they hold in the middle block, at the first turn of every loop: an image's border is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tvmsep.contracts import Target
from tvmsep.estimate.access import WORD, Access, Loop, access, item_bytes
from tvmsep.estimate.index import called, children, kind_of, lanes, variables

if TYPE_CHECKING:
    from tvm import tirx

_SHORT = 32
"""Turns up to which the compiler unrolls a loop of its own accord."""


@dataclass
class Kernel:
    """Counts of a lowered kernel; arithmetic is of one thread."""

    blocks: int = 1
    threads: int = 1
    fmas: float = 0.0
    """Instructions of float arithmetic, a multiply and the add after it as one."""
    turns: int = 0
    """Turns of serial loops."""
    ilp: int = 1
    """Independent sums of a thread in its innermost loop."""
    shared: int = 0
    """Bytes of a block."""
    registers: int = 0
    """32-bit ones, at a guess: what the schedule keeps, and some for addresses."""
    rounds: int = 0
    """How often a block loads into shared memory and waits for it."""
    waits: int = 0
    """Turns of loops that load from global memory and wait for nobody else."""
    fragments: bool = False
    """Whether tensor cores multiply: what that takes is not counted."""
    pipelined: bool = False
    """Whether the next round's loads are under way while one is computed."""
    accesses: list[Access] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    """Bytes of each global buffer."""
    text: str = ""
    """The TIR: equal programs are equal texts."""


SPARE_REGISTERS = 24
"""Addresses, indices and predicates of a thread."""


def read_kernel(func: tirx.PrimFunc, target: Target) -> Kernel:
    """Lower a scheduled kernel and count.

    Args:
        func: what `tvmsep.codegen.kernel` makes.
        target: a GPU.
    """
    import tvm

    mod = tvm.IRModule({"main": func.with_attr("global_symbol", "main")})
    with tvm.target.Target(target.tvm_dict()):
        lowered = tvm.transform.Sequential(_passes())(mod)["main"]
    walk = _Walk()
    walk.kernel.pipelined = _pipelined(func.body)
    for param in lowered.params:
        size = math.prod(int(d) for d in param.ty.shape) * item_bytes(_dtype(param))
        walk.kernel.sizes[str(param.name)] = size
        walk.params[hash(param)] = str(param.name)
    walk.statement(lowered.body, ())
    walk.finish()
    walk.kernel.text = lowered.script(show_meta=False)
    return walk.kernel


def _passes() -> list[Any]:
    from tvm import s_tir, tirx

    t, x = s_tir.transform, tirx.transform
    return [
        t.CanonicalizeLoop(), t.LowerCrossThreadReduction(), t.LowerInitBlock(),
        t.PlanAndUpdateBufferAllocationLocation(), t.ConvertBlocksToOpaque(),
        t.LiftThreadBinding(), t.ManifestSharedMemoryLocalStage(), t.CompactBufferAllocation(),
        t.LowerAutoCopy(), t.UnifyThreadBinding(), t.LowerMatchBuffer(), t.StmtSimplify(),
        t.InjectSoftwarePipeline(),
        t.LowerOpaqueBlock(), x.FlattenBuffer(), x.VectorizeLoop(True), t.InjectVirtualThread(),
        x.StorageRewrite(), x.StmtSimplify(),
    ]  # fmt: skip


def _pipelined(node: Any) -> bool:
    """Whether a loop is annotated as a software pipeline."""
    if any(str(key).startswith("software_pipeline") for key in getattr(node, "annotations", ())):
        return True
    inner = [getattr(node, name, None) for name in ("body", "block", "then_case", "else_case")]
    return any(map(_pipelined, [*(x for x in inner if x is not None), *getattr(node, "seq", ())]))


def _dtype(node: Any) -> str:
    return str(getattr(getattr(node, "ty", None), "dtype", ""))


def _width(dtype: str) -> int:
    return int(dtype.partition("x")[2] or 1)


@dataclass
class _Walk:
    kernel: Kernel = field(default_factory=Kernel)
    threads: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Variable and extent of each thread axis; those of blocks likewise."""
    held: dict[str, int] = field(default_factory=dict)
    """Bytes of each buffer of a thread's own, and of each shared one."""
    scopes: dict[str, str] = field(default_factory=dict)
    conditions: list[Any] = field(default_factory=list)
    params: dict[int, str] = field(default_factory=dict)
    """Names of the kernel's parameters, by their variables; and of those that flat views show."""
    names: dict[str, str] = field(default_factory=dict)
    found: list[tuple[Any, Any, bool, tuple[Loop, ...], tuple[Any, ...]]] = field(
        default_factory=list
    )
    """Buffer, index, whether stored, loops around, conditions around."""
    copied: dict[str, int] = field(default_factory=dict)
    """Values that a thread copies into each buffer of its own."""
    widened: set[str] = field(default_factory=set)
    """Those of them whose values are used in another type: cast once, when they come."""

    def statement(self, s: Any, loops: tuple[Loop, ...]) -> None:
        kind = kind_of(s)
        if kind == "SeqStmt":
            for part in s.seq:
                self.statement(part, loops)
        elif kind == "AttrStmt":
            if s.attr_key == "thread_extent":
                axis = s.node.thread_tag
                self.threads[axis] = (hash(s.node.var), int(s.value))
            self.statement(s.body, loops)
        elif kind == "For":
            self._loop(s, loops)
        elif kind == "IfThenElse":
            self.conditions.append(s.condition)
            self._value(s.condition, loops, arithmetic=False)
            self.statement(s.then_case, loops)
            self.conditions.pop()
            if s.else_case is not None:
                self.statement(s.else_case, loops)
        elif kind == "BufferStore":
            self._store(s, loops)
        elif kind == "AllocBuffer":
            b = s.buffer
            size = math.prod(int(d) for d in b.shape) * item_bytes(_dtype(b))
            self.held[b.name], self.scopes[b.name] = size, str(b.scope())
        elif kind == "DeclBuffer":
            shown = [self.params[v] for v in variables(s.data) if v in self.params]
            self.names.update({str(s.buffer.name): name for name in shown})
        elif kind in ("Evaluate", "Bind", "LetStmt"):
            self._value(s.value, loops)
            if kind == "LetStmt":
                self.statement(s.body, loops)
        elif hasattr(s, "body"):
            self.statement(s.body, loops)

    def _loop(self, s: Any, loops: tuple[Loop, ...]) -> None:
        unrolled = int(s.kind) == 3
        loop = Loop(hash(s.loop_var), int(s.extent), unrolled)
        before, had, waited = len(self.found), self.kernel.rounds, self.kernel.waits
        computed = self.kernel.fmas
        inner = (*loops, loop)
        self.statement(s.body, inner)
        if unrolled:
            return
        outer = math.prod(x.extent for x in inner if not x.unrolled)
        self.kernel.turns += outer
        inside = self.found[before:]
        scope = {(self._scope(b), stored) for b, _, stored, _, _ in inside}
        if {("shared", True), ("shared", False), ("global", False)} <= scope:
            # What copies inside it are the parts of one round, which wait together.
            self.kernel.rounds = self.kernel.rounds if self.kernel.rounds > had else had + outer
        elif ("global", False) in scope and self.kernel.waits == waited:
            copies = all(self._scope(b) == "local" for b, _, stored, _, _ in inside if stored)
            if self.kernel.fmas > computed or loop.extent > _SHORT or not copies:
                self.kernel.waits += outer  # else the compiler unrolls it: all loads at once

    def _scope(self, buffer: Any) -> str:
        scope = self.scopes.get(buffer.name, "global")
        return "shared" if scope.startswith("shared") else scope

    def _store(self, s: Any, loops: tuple[Loop, ...]) -> None:
        index = s.indices[-1]
        self.found.append((s.buffer, index, True, loops, tuple(self.conditions)))
        self._value(s.value, loops)
        if kind_of(s.value) == "TensorLoad" and self._scope(s.buffer) == "local":
            count = math.prod(x.extent for x in loops) * lanes(index)
            self.copied[str(s.buffer.name)] = self.copied.get(str(s.buffer.name), 0) + count
        reads = {load.source.name for load in _loads(s.value)}
        if self._scope(s.buffer) == "local" and s.buffer.name in reads:
            unrolled = [x for x in loops if x.unrolled and x.var in variables(index)]
            width = _width(_dtype(s.buffer)) * lanes(index)
            sums = math.prod(x.extent for x in unrolled) * width
            self.kernel.ilp = max(self.kernel.ilp, sums)

    def _value(self, expr: Any, loops: tuple[Loop, ...], arithmetic: bool = True) -> None:
        """Note the loads and the arithmetic of an expression."""
        times = math.prod(x.extent for x in loops)
        self.kernel.fragments |= called(expr) == "tvm_mma_sync"
        if arithmetic:
            self.kernel.fmas += times * _operations(expr)
            for cast, load in _widened(expr):
                if self._scope(load.source) == "local":
                    self.widened.add(str(load.source.name))
                else:
                    self.kernel.fmas += times * _width(_dtype(cast))
        self._note(expr, loops)

    def _note(self, expr: Any, loops: tuple[Loop, ...]) -> None:
        if kind_of(expr) == "TensorLoad":
            found = (expr.source, expr.indices[-1], False, loops, tuple(self.conditions))
            self.found.append(found)
        if called(expr) == "if_then_else":
            condition, yes, no = expr.args
            self._note(condition, loops)
            self.conditions.append(condition)
            self._note(yes, loops)
            self.conditions.pop()
            self._note(no, loops)
            return
        for child in children(expr):
            self._note(child, loops)

    def finish(self) -> None:
        """Count what the accesses cost, now that all threads are known."""
        k = self.kernel
        k.fmas += sum(self.copied.get(name, 0) for name in self.widened)
        extents = {axis: n for axis, (_, n) in self.threads.items()}
        k.blocks = math.prod(n for axis, n in extents.items() if axis.startswith("block"))
        k.threads = math.prod(n for axis, n in extents.items() if axis.startswith("thread"))
        own = 0
        for name, size in self.held.items():
            if self.scopes[name].startswith("shared"):
                k.shared += size
            elif self.scopes[name] == "local":
                own += size
        vectors = {
            str(b.name): lanes(i) * item_bytes(_dtype(b)) // WORD
            for b, i, stored, _, _ in self.found if not stored and self._scope(b) != "local"
        }  # fmt: skip
        k.registers = SPARE_REGISTERS + own // WORD + sum(vectors.values())
        grid = self._grid()
        for buffer, index, stored, loops, conditions in self.found:
            scope = self._scope(buffer)
            if scope == "local" and not self._spills(index, loops):
                continue
            name = self.names.get(str(buffer.name), str(buffer.name))
            made = access(name, _dtype(buffer), scope, stored, index, loops, conditions, grid)
            if made is not None:
                k.accesses.append(made)
        if not any(a.scope == "global" and not a.store for a in k.accesses):
            return
        k.waits = max(k.waits, 0 if k.rounds else 1)

    def _spills(self, index: Any, loops: tuple[Loop, ...]) -> bool:
        """Whether an array of a thread's own is indexed by what is known only at run time."""
        used = variables(index)
        return any(x.var in used and not x.unrolled and x.extent > _SHORT for x in loops)

    def _grid(self) -> dict[int, NDArray[Any]]:
        """Every thread of the middle block: threadIdx.x runs fastest."""
        values: dict[int, NDArray[Any]] = {}
        counts = {a: self.threads.get(f"threadIdx.{a}", (0, 1)) for a in "xyz"}
        flat = np.arange(math.prod(n for _, n in counts.values()), dtype=np.int64)
        for var, n in counts.values():
            values[var], flat = flat % n, flat // n
        for axis, (var, n) in self.threads.items():
            if axis.startswith("block"):
                values[var] = np.asarray([n // 2], dtype=np.int64)
        return values


def _loads(expr: Any) -> Iterator[Any]:
    if kind_of(expr) == "TensorLoad":
        yield expr
    for child in children(expr):
        yield from _loads(child)


def _widened(expr: Any) -> Iterator[tuple[Any, Any]]:
    """Casts between float types of what is loaded, with the load."""
    if kind_of(expr) == "Cast" and "float" in _dtype(expr) and kind_of(expr.value) == "TensorLoad":
        yield expr, expr.value
    for child in children(expr):
        yield from _widened(child)


def _operations(expr: Any) -> float:
    """Instructions of float arithmetic: vectors lane by lane, half precision two lanes at once.

    Casts of what is loaded are not counted here: a thread's own halves are widened once.
    """
    kind, dtype = kind_of(expr), _dtype(expr)
    if kind == "Cast" and kind_of(expr.value) == "TensorLoad":
        return 0.0
    count = 0.0
    if kind in ("Add", "Sub", "Mul", "Div", "Min", "Max", "Cast", "Call") and "float" in dtype:
        cost = 0.5 if "float16" in dtype and kind != "Cast" else 1.0
        name = called(expr)
        if kind == "Call":
            cost = 8.0 if name in ("call_pure_extern", "exp", "tanh", "sqrt", "log") else 0.0
        joined = kind in ("Add", "Sub") and any(kind_of(x) == "Mul" for x in (expr.a, expr.b))
        count = 0.0 if joined else cost * _width(dtype)
    if kind == "TensorLoad":
        return 0.0
    return count + sum(map(_operations, children(expr)))
