"""Transposes move towards the end of a network, where those of opposite direction meet and cancel.

Pattern
    Networks that keep pictures as NHWC (TensorFlow, Relay) have a transpose before and after each
    convolution, with activations, pads, adds and means between them.

Steps
    1. In order, an operator whose inputs are all transposed alike reads the originals instead, with
       its axes and constants rearranged, and the transpose comes after it. Two in a row become one;
       one that undoes the other vanishes, and so does one that moves only axes of one element in
       front of a reshape.
    2. Between an input and its first transpose the latter goes first: so a pad in front of the
       first convolution is done on NCHW, and folds.

The other way round (moving all of them to the front) would leave those that a reshape needs in the
middle of the network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvmsep.graph.interpret import attributes
from tvmsep.graph.ir import VIEWS, Graph, Node

if TYPE_CHECKING:
    from collections.abc import Sequence

_UNARY = frozenset(
    ("nn.relu", "nn.relu6", "nn.silu", "nn.gelu", "nn.leakyrelu", "sigmoid", "tanh", "exp", "log")
    + ("sqrt", "rsqrt", "abs", "negative", "erf", "floor", "ceil", "round", "clip")
)
_BINARY = frozenset(("add", "subtract", "multiply", "divide", "maximum", "minimum", "power"))
_REDUCE = frozenset(("mean", "sum", "max", "min"))
_ONE_AXIS = frozenset(("nn.softmax", "nn.log_softmax", "nn.prelu", "nn.batch_norm", "split"))

Axes = tuple[int, ...]


def settle_transposes(graph: Graph) -> None:
    """Rewrite `graph` in place; it computes the same."""
    if any(_axes(n) for n in graph.nodes.values()):
        _Sink(graph).run()
        graph.prune()
        _hoist(graph)


def _axes(node: Node) -> Axes | None:
    """What a transpose does; None for other operators."""
    if node.op != "permute_dims":
        return None
    given = node.attrs.get("axes")
    return tuple(given) if given else tuple(range(len(node.shape)))[::-1]


def _inverse(axes: Axes) -> Axes:
    return tuple(axes.index(i) for i in range(len(axes)))


def _permuted(items: Sequence[Any], axes: Axes) -> tuple[Any, ...]:
    return tuple(items[a] for a in axes)


def _variable(shape: tuple[int, ...], dtype: str = "float32") -> Any:
    """Stands for a value in a call that is emitted again on others."""
    from tvm import relax

    return relax.Var("x", relax.TensorType(shape, dtype))


def _transpose(name: str, source: str, shape: tuple[int, ...], dtype: str, axes: Axes) -> Node:
    """A transpose of a value of `shape`."""
    from tvm import relax

    call = relax.op.permute_dims(_variable(shape, dtype), list(axes))
    attrs: dict[str, Any] = {"axes": list(axes)}
    return Node(name, "permute_dims", [source], _permuted(shape, axes), dtype, attrs, [], call)


def _moveless(shape: tuple[int, ...], axes: Axes) -> bool:
    """Whether a transpose leaves everything where it is: only axes of one element change places."""
    real = [a for a in axes if shape[a] != 1]
    return real == sorted(real)


def _reshaped(
    name: str, source: str, graph: Graph, shape: tuple[int, ...], dtype: str = "float32"
) -> Node:
    from tvm import relax

    call = relax.op.reshape(_variable(graph.shape(source), dtype), shape)
    return Node(name, "reshape", [source], shape, dtype, {"args": [list(shape)]}, [], call)


def _hoist(graph: Graph) -> None:
    """Step 2: from an input through what each value is read by once, down to a transpose."""
    uses = graph.uses()
    for node in list(graph.nodes.values()):
        axes = _axes(node)
        if axes is None:
            continue
        chain: list[Node] = []
        top = node.inputs[0]
        while top in graph.nodes and uses[top] == 1 and _pointwise(graph.nodes[top]):
            chain.append(graph.nodes[top])
            top = chain[-1].inputs[0]
        if not chain or top not in graph.inputs:
            continue
        dtype = graph.input_dtypes.get(top, "float32")
        first = _transpose(node.name, top, graph.inputs[top], dtype, axes)
        last = chain[0].name
        chain[-1].inputs = [first.name]
        for above in chain:
            _move(above, _inverse(axes), _permuted(above.shape, axes))
        for reader in graph.nodes.values():
            if reader not in chain:
                reader.inputs = [last if i == node.name else i for i in reader.inputs]
        graph.outputs = [last if o == node.name else o for o in graph.outputs]
        order: dict[str, Node] = {}
        for name, n in graph.nodes.items():
            if n is chain[-1]:
                order[first.name] = first
            if name != node.name:
                order[name] = n
        graph.nodes = order


def _pointwise(node: Node) -> bool:
    return node.op in _UNARY or node.op == "nn.pad"


def _move(node: Node, axes: Axes, shape: tuple[int, ...]) -> None:
    """Let a node compute in another order of axes: its axis k becomes `axes[k]`."""
    from tvm import relax

    node.shape = shape
    if node.op == "nn.pad":
        pairs = node.attrs["pad_width"]
        back = _inverse(axes)
        width = [w for k in back for w in pairs[2 * k : 2 * k + 2]]
        inner = tuple(n - sum(width[2 * k : 2 * k + 2]) for k, n in enumerate(shape))
        node.call = relax.op.nn.pad(
            _variable(inner, node.dtype), width, node.attrs["pad_mode"], node.attrs["pad_value"]
        )
        node.attrs = attributes(node.call, node.op)


class _Sink:
    """Step 1. `behind[v]` is (what v is a transpose of, how)."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.behind: dict[str, tuple[str, Axes]] = {}
        self.renamed: dict[str, str] = {}
        self.tuples: dict[str, Axes] = {}
        """Operators with several outputs that compute in another order of axes."""
        self.nodes: dict[str, Node] = {}

    def run(self) -> None:
        graph = self.graph
        before = graph.nodes
        graph.nodes = self.nodes  # shapes are those of what was written so far
        for node in before.values():
            node.inputs = [self.renamed.get(i, i) for i in node.inputs]
            axes = _axes(node)
            if axes is not None:
                self._join(node, axes)
            elif node.op == "tuple_get" and node.inputs[0] in self.tuples:
                self._after(node, self.tuples[node.inputs[0]])
            elif not self._through(node):
                self.nodes[node.name] = node
        graph.outputs = [self.renamed.get(o, o) for o in graph.outputs]

    def _join(self, node: Node, axes: Axes) -> None:
        """A transpose, of a transpose perhaps."""
        source = node.inputs[0]
        if source in self.behind:
            source, first = self.behind[source]
            axes = _permuted(first, axes)
        if axes == tuple(range(len(axes))):
            self.renamed[node.name] = source
            return
        shape = self.graph.shape(source)
        self.nodes[node.name] = _transpose(node.name, source, shape, node.dtype, axes)
        self.behind[node.name] = (source, axes)

    def _after(self, node: Node, axes: Axes) -> None:
        """Write a node that now computes in the other order, and the transpose after it."""
        node.shape = _permuted(node.shape, _inverse(axes))
        self.nodes[node.name] = node
        if axes == tuple(range(len(axes))):
            return
        back = _transpose(f"{node.name}.back", node.name, node.shape, node.dtype, axes)
        self.nodes[back.name] = back
        self.behind[back.name] = (node.name, axes)
        self.renamed[node.name] = back.name

    def _through(self, node: Node) -> bool:
        """Move the transposes in front of a node behind it, if they are all alike."""
        varying = [i for i in node.inputs if i not in self.graph.constants]
        if node.op in _BINARY:
            varying = self._alike(node, varying)
        sources = [self.behind.get(i) for i in varying]
        if not sources or sources[0] is None or any(s is None for s in sources):
            return False
        axes = sources[0][1]
        if any(s is None or s[1] != axes for s in sources):
            return False
        if node.op in ("reshape", "squeeze", "expand_dims", "flatten", "nn.batch_flatten"):
            return self._reshape(node, sources[0][0], axes)
        if node.op in _BINARY:
            if any(len(self.graph.shape(i)) != len(axes) for i in varying):
                return False
            if len(node.shape) != len(axes):
                return False
            node.inputs = [self._original(i, axes) for i in node.inputs]
            self._after(node, axes)
            return True
        if _pointwise(node):
            node.inputs = [sources[0][0]]
            _move(node, axes, _permuted(node.shape, _inverse(axes)))
            node.shape = _permuted(node.shape, axes)  # as _after expects it
            self._after(node, axes)
            return True
        return self._with_axis(node, [s[0] for s in sources if s], axes)

    def _alike(self, node: Node, varying: list[str]) -> list[str]:
        """Where some inputs are transposed and the others need not move for it, all transposed.

        Such as a squeeze-and-excite block's vector, made `[n, 1, 1, c]` for an image in NHWC.
        """
        moved = {self.behind[i][1] for i in varying if i in self.behind}
        if len(moved) != 1 or all(i in self.behind for i in varying):
            return varying
        axes = moved.pop()
        still = [i for i in varying if i not in self.behind]
        shapes = [self.graph.shape(i) for i in still]
        if not all(len(s) == len(axes) and _moveless(s, _inverse(axes)) for s in shapes):
            return varying
        for value, shape in zip(still, shapes, strict=True):
            name = f"{value}.{''.join(map(str, axes))}"
            if name not in self.nodes:
                maker = self.nodes.get(value)
                source = maker.inputs[0] if maker is not None and maker.op in VIEWS else value
                self.nodes[name] = _reshaped(
                    name, source, self.graph, _permuted(shape, _inverse(axes))
                )
            view = _transpose(f"{name}.back", name, self.nodes[name].shape, "float32", axes)
            self.nodes.setdefault(view.name, view)
            self.behind[view.name] = (name, axes)
            node.inputs = [view.name if i == value else i for i in node.inputs]
        return [i for i in node.inputs if i not in self.graph.constants]

    def _original(self, value: str, axes: Axes) -> str:
        """A binary operator's input in the other order; constants are rearranged."""
        if value in self.behind:
            return self.behind[value][0]
        array = self.graph.constants[value]
        if array.size == 1:
            return value
        wide = array.reshape((1,) * (len(axes) - array.ndim) + array.shape)
        name = f"{value}.{''.join(map(str, axes))}"
        self.graph.constants[name] = wide.transpose(_inverse(axes)).copy()
        return name

    def _reshape(self, node: Node, source: str, axes: Axes) -> bool:
        """In front of a reshape, a transpose of axes of one element moves nothing."""
        if not _moveless(self.graph.shape(source), axes):
            return False
        self.nodes[node.name] = _reshaped(node.name, source, self.graph, node.shape, node.dtype)
        return True

    def _with_axis(self, node: Node, sources: list[str], axes: Axes) -> bool:
        """Operators that name an axis: it is another one now."""
        from tvm import relax

        rank = len(axes)
        shapes = [self.graph.shape(s) for s in sources]
        dtype = node.dtype
        if node.op in _REDUCE:
            given = node.attrs["axis"]
            gone = sorted(axes[a % rank] for a in (range(rank) if given is None else given))
            keep = bool(node.attrs["keepdims"])
            node.call = getattr(relax.op, node.op)(_variable(shapes[0], dtype), gone, keepdims=keep)
            left = [a for a in axes if a not in gone]
            after = axes if keep else tuple(sorted(left).index(a) for a in left)
        elif node.op == "concat":
            if len(sources) != len(node.inputs):
                return False
            where = axes[node.attrs["axis"] % rank]
            node.call = relax.op.concat([_variable(s, dtype) for s in shapes], where)
            after = axes
        elif node.op in _ONE_AXIS:
            return self._one_axis(node, sources[0], axes)
        else:
            return False
        node.inputs, node.attrs = list(sources), attributes(node.call, node.op)
        self._after(node, after)
        return True

    def _one_axis(self, node: Node, source: str, axes: Axes) -> bool:
        from tvm import relax

        x = _variable(self.graph.shape(source), "float32" if node.op == "split" else node.dtype)
        where = axes[node.attrs["axis"] % len(axes)]
        rest = node.inputs[1:]
        others = [_variable(self.graph.shape(i)) for i in rest]
        match node.op:
            case "nn.batch_norm":
                a = node.attrs
                node.call = relax.op.nn.batch_norm(
                    x, *others, axis=where, epsilon=a["epsilon"], center=a["center"],
                    scale=a["scale"], training=False,
                )  # fmt: skip
            case "nn.prelu":
                node.call = relax.op.nn.prelu(x, *others, where)
            case "split":
                parts = node.attrs["indices_or_sections"]
                node.call = relax.op.split(x, parts, where)
            case "nn.softmax":
                node.call = relax.op.nn.softmax(x, axis=where)
            case _:
                node.call = relax.op.nn.log_softmax(x, axis=where)
        node.inputs, node.attrs = [source, *rest], attributes(node.call, node.op)
        if node.op in ("nn.batch_norm", "split"):
            self.nodes[node.name] = node
            self.tuples[node.name] = axes
        else:
            self._after(node, axes)
        return True
