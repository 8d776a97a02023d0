"""What a kernel would take, by models of cores and GPUs: nothing is run, nothing is measured."""

from tvmsep.estimate.kernel import Modelled, modelled, must_model

__all__ = ["Modelled", "modelled", "must_model"]
