"""What a model is made of, and what separability buys."""

from tvmsep.report.layers import Block, Layer, blocks, layers
from tvmsep.report.savings import Saving, measure_savings

__all__ = ["Block", "Layer", "Saving", "blocks", "layers", "measure_savings"]
