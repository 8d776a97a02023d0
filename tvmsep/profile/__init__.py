"""Where a network's time goes: each layer timed in its network, against what the board can do."""

from tvmsep.profile.cycles import CycleModel, LoopCycles, modelled
from tvmsep.profile.measure import Gap, Profile, parse_relax, profile_bundle, profile_module
from tvmsep.profile.roofline import LOW, LayerRoof
from tvmsep.profile.trace import trace_events

__all__ = [
    "LOW",
    "CycleModel",
    "Gap",
    "LayerRoof",
    "LoopCycles",
    "Profile",
    "modelled",
    "parse_relax",
    "profile_bundle",
    "profile_module",
    "trace_events",
]
