"""What a plan is: which kernels run, in which layouts, on which weights; how layouts are chosen."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from tvmsep.contracts import Target, Task, Workload
from tvmsep.graph.ir import Array, Node


@dataclass(frozen=True)
class Layout:
    """How a value lies in memory: `block` 0 means plain, with the logical shape."""

    block: int = 0
    split: str = "rows"


@dataclass
class Step:
    """One call: a kernel (`workload` set), or a Relax operator as it came (`node` set)."""

    output: str
    inputs: list[str]
    params: list[str] = field(default_factory=list)
    workload: Workload | None = None
    template: str = ""
    node: Node | None = None


@dataclass
class Plan:
    """Everything `build` needs: steps in order, packed parameters, the model's boundary.

    A batch whose images have nothing to do with each other is planned as one of them: `images` of
    them are computed at once, each by a thread of its own, and that `turns` times. What the steps
    need then stays in a core's cache, which a whole batch of it does not, and the kernels are those
    of a single image on `threads`, which is 1 if `images` is more. What follows the last image of
    more than a pixel is the `head`, a plan of the whole batch: its inputs are the first of the
    outputs here.
    """

    steps: list[Step]
    params: dict[str, Array]
    inputs: dict[str, tuple[int, ...]]
    outputs: list[str]
    shapes: dict[str, tuple[int, ...]]
    layouts: dict[str, Layout]
    constants: dict[str, Array]
    threads: int
    """Of each image's kernels: part of the tasks."""
    input_dtypes: dict[str, str] = field(default_factory=dict)
    images: int = 1
    turns: int = 1
    head: Plan | None = None
    order: tuple[int, ...] = ()
    """Of a batch's outputs among those of this plan and then the head's, if it has one."""

    @property
    def batch(self) -> int:
        """How often the steps are done for a batch; 1 too where each does all of it."""
        return self.images * self.turns

    @property
    def in_parts(self) -> bool:
        """Whether a batch takes more than doing the steps once."""
        straight = self.order in ((), tuple(range(len(self.outputs))))
        return self.turns > 1 or self.head is not None or not straight

    @property
    def of_one_image(self) -> Plan:
        """The same for one image, without the head."""
        return dataclasses.replace(self, images=1, turns=1, head=None, order=())

    @property
    def of_one_turn(self) -> Plan:
        """The same for what is computed at once, without the head."""
        return dataclasses.replace(self, turns=1, head=None, order=())

    @property
    def all_steps(self) -> list[Step]:
        """The head's too."""
        return [*self.steps, *(self.head.steps if self.head else ())]

    @property
    def all_params(self) -> dict[str, Array]:
        """The head's too."""
        return {**self.params, **(self.head.params if self.head else {})}

    @property
    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the whole batch."""
        return {name: times(shape, self.batch) for name, shape in self.inputs.items()}

    def tasks(self, target: Target) -> list[Task]:
        """The distinct workloads, heaviest MACs first, with their counts."""
        from collections import Counter

        count = Counter((s.workload, s.template) for s in self.steps if s.workload is not None)
        tasks = [
            Task(
                workload=w,
                target=target.name,
                threads=self.threads,
                template=t,
                count=n * self.turns,
            )  # fmt: skip
            for (w, t), n in count.items()
        ]
        tasks += self.head.tasks(target) if self.head else []
        return sorted(tasks, key=lambda t: -t.count * t.workload.macs)

    @property
    def flops(self) -> int:
        """Floating-point operations of one run."""
        own = sum(s.workload.flops for s in self.steps if s.workload is not None)
        return self.batch * own + (self.head.flops if self.head else 0)


def times(shape: tuple[int, ...], n: int) -> tuple[int, ...]:
    """A value's shape for so many times its images."""
    return (n * shape[0], *shape[1:]) if n > 1 else shape


LAYOUTS = ("nchw4c", "nchw", "nhwc")
"""Of activations on a GPU: channel blocks of 4, 1, or all channels; the first is the default."""
_CPU_BLOCKS = (4, 8, 16, 32)


def layouts(t: Target, dtype: str = "float32") -> tuple[str, ...]:
    """What `choose_block` takes: on a CPU blocks of one or two vectors, or of all channels.

    Blocks of half a vector are for float32 on x86, whose default has them too.
    """
    if t.gpu is not None:
        return LAYOUTS
    full = t.elements(dtype)
    least = full if dtype == "float16" else full // 2
    return (*(f"nchw{b}c" for b in _CPU_BLOCKS if least <= b <= 2 * full), "nhwc")


def choose_block(channels: int, t: Target, layout: str = "", dtype: str = "float32") -> int:
    """Channels of a block.

    On a GPU the layout says it. On a CPU it is by default one vector: the full one, or half of it
    where that wastes less. A half-width block keeps 24, 40, 72 or 120 channels free of padding;
    where half-width vectors run at half the rate it is chosen only if padding would cost more.
    Blocks of two vectors are made only where they leave no vector empty, and a block of all
    channels (`nhwc`) is filled up to whole vectors.
    """
    if t.gpu is not None:
        return {"nchw": 1, "nhwc": channels}.get(layout, 4)
    full = t.elements(dtype)
    half = _half(full)
    rate = 1.0 if t.half_width_is_free else 0.5

    def padded(block: int) -> int:
        return -(-channels // block) * block

    if layout not in ("", "nhwc"):
        block = int(layout.removeprefix("nchw").removesuffix("c"))
        return full if block > full and padded(block) != padded(full) else block
    vector = half if padded(half) / rate < padded(full) else full
    return padded(vector) if layout else vector


def vectors_of(block: int, t: Target, dtype: str = "float32") -> int:
    """Vectors that a block is made of; 1 where it is plain, and on a GPU."""
    if t.gpu is not None or not block:
        return 1
    full = t.elements(dtype)
    return max(1, block // (full if block % full == 0 else _half(full)))


def _half(full: int) -> int:
    return max(4, full // 2)


def choose_split(height: int, width: int, threads: int, *, scaled: bool = False) -> str:
    """Rows while there are 16, and four for each thread, else channels.

    Rows keep a tensor in the cache of the core that wrote it; small images have too few of them
    to share evenly, and large weights, of which each core then reads only its part. What multiplies
    its input by factors first does that once by rows, and by channels every thread does all of it:
    four rows for each will do. Where neither outweighs the other, times decide:
    `tvmsep.graph.splits`.
    """
    least = 4 * threads if scaled else max(16, 4 * threads)
    return "rows" if threads == 1 or height >= least else "channels"
