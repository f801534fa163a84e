"""The systems that PFT is compared with: what is published of them, and the models themselves where they run here."""

from .facts import PAPER_LR_HW, SYSTEMS, Published, System
from .peers import INSTALL, PeersMissing, make_system
from .published import PLAUSIBLE_DB, likeness_db, load_published, weights_by_system
from .size import macs, parameters

__all__ = [
    "INSTALL",
    "PAPER_LR_HW",
    "PLAUSIBLE_DB",
    "SYSTEMS",
    "PeersMissing",
    "Published",
    "System",
    "likeness_db",
    "load_published",
    "macs",
    "make_system",
    "parameters",
    "weights_by_system",
]
