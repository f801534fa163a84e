"""The systems that PFT is compared with: what is published of them, and the models themselves where they run here."""

from .facts import PAPER_LR_HW, PFT_PAPER, SYSTEMS, Published, System
from .peers import INSTALL, PeersMissing, make_system
from .published import PLAUSIBLE_DB, likeness_db, load_published, weights_by_system
from .size import Size, macs, parameters, size_of

__all__ = [
    "INSTALL",
    "PAPER_LR_HW",
    "PFT_PAPER",
    "PLAUSIBLE_DB",
    "SYSTEMS",
    "PeersMissing",
    "Published",
    "Size",
    "System",
    "likeness_db",
    "load_published",
    "macs",
    "make_system",
    "parameters",
    "size_of",
    "weights_by_system",
]
