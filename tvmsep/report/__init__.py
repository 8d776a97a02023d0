"""What a model is made of, what separability buys, and a comparison as a page."""

from tvmsep.report.comparison import comparison_page
from tvmsep.report.layers import Block, Layer, blocks, layers
from tvmsep.report.savings import Saving, measure_savings

__all__ = [
    "Block",
    "Layer",
    "Saving",
    "blocks",
    "comparison_page",
    "layers",
    "measure_savings",
]
