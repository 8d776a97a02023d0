"""The network as plain data: import from Relax, normalise, plan layouts, or run as reference."""

from tvmsep.graph.batch import one_image, split_head
from tvmsep.graph.fuse import fuse, fusible
from tvmsep.graph.importer import from_relax
from tvmsep.graph.interpret import evaluate
from tvmsep.graph.ir import Graph, Node
from tvmsep.graph.make import make_plan
from tvmsep.graph.normalise import normalise
from tvmsep.graph.plan import LAYOUTS, Plan, Step, layouts
from tvmsep.graph.splits import open_splits, other_splits, resplit, resplit_steps

__all__ = [
    "LAYOUTS", "Graph", "Node", "Plan", "Step", "evaluate", "from_relax", "fuse", "fusible",
    "layouts", "make_plan", "normalise", "one_image", "open_splits", "other_splits", "resplit",
    "resplit_steps", "split_head",
]  # fmt: skip
