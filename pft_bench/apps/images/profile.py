"""Whether a colour profile can go into a file: its header, as ICC.1:2022 (section 7.2) describes it."""

from __future__ import annotations

import struct

_HEAD = 132
"""Bytes of the header and of the number of tags behind it."""
_SPACES = {1: b"GRAY", 3: b"RGB "}
_NOT_OF_PICTURES = (b"link", b"abst", b"nmcl")


def usable_profile(profile: bytes, channels: int) -> tuple[bytes | None, str | None]:
    """The profile as it can be written beside `channels` colours, and what was done to it.

    Bytes behind its end are cut off; a profile that is damaged or of another kind of colours is left out.
    """
    reason = _fault(profile, channels)
    if reason is not None:
        return None, f"the colour profile left out: {reason}"
    length = int.from_bytes(profile[:4], "big")
    if length == len(profile):
        return profile, None
    return profile[:length], f"the colour profile cut to the {length} bytes that it has"


def _fault(profile: bytes, channels: int) -> str | None:
    if len(profile) < _HEAD or profile[36:40] != b"acsp":
        return "it is none"
    length, tags = int.from_bytes(profile[:4], "big"), int.from_bytes(profile[128:132], "big")
    if length > len(profile) or length < _HEAD + 12 * tags:
        return f"it says {length} bytes and has {len(profile)}"
    for number in range(tags):
        _, at, size = struct.unpack_from(">4sII", profile, _HEAD + 12 * number)
        if at + size > length:
            return f"its parts end beyond the {length} bytes that it says it has"
    if profile[16:20] != _SPACES[channels]:
        space = profile[16:20].decode("ascii", "replace").strip()
        return f"it is for {space} and the picture is {'grey' if channels == 1 else 'RGB'}"
    if profile[12:16] in _NOT_OF_PICTURES:
        return "it is not the profile of a picture"
    return None
