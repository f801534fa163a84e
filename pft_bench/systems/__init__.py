"""The systems that PFT is compared with: what the paper says of them, and the models themselves where they run here."""

from .facts import SYSTEMS, Published, System
from .peers import INSTALL, PeersMissing, make_system
from .size import macs, parameters

__all__ = [
    "INSTALL",
    "SYSTEMS",
    "PeersMissing",
    "Published",
    "System",
    "macs",
    "make_system",
    "parameters",
]
