"""The systems that PFT is compared with: what the paper says of them, and the models themselves where they run here."""

from .facts import PAPER_LR_HW, SYSTEMS, Published, System
from .peers import INSTALL, PeersMissing, make_system
from .size import macs, parameters

__all__ = [
    "INSTALL",
    "PAPER_LR_HW",
    "SYSTEMS",
    "PeersMissing",
    "Published",
    "System",
    "macs",
    "make_system",
    "parameters",
]
