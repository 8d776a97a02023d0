"""From a workload and a config to a scheduled kernel, and from object files to a library."""

from tvmsep.codegen.kernel import kernel, unscheduled
from tvmsep.codegen.link import LinkRefused, compile_c, link_object, link_shared
from tvmsep.codegen.lowering import machine_code
from tvmsep.codegen.reference import example_inputs, reference, relative_error

__all__ = [
    "LinkRefused",
    "compile_c",
    "example_inputs",
    "kernel",
    "link_object",
    "link_shared",
    "machine_code",
    "reference",
    "relative_error",
    "unscheduled",
]
