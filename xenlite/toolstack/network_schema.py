# SPDX-License-Identifier: GPL-2.0-or-later
"""What an editor may know of network cards and networks in dom.yaml, as JSON Schema.

Apart from what reads them: that is loaded only for a file that has some.
"""

from __future__ import annotations

from typing import Final

NETWORK_LISTS: Final = frozenset({"forward", "dgram", "tap"})
"""The keys of a network that may have several values."""

_WORD: Final = {"type": "string", "minLength": 1}
_LINES: Final = {"anyOf": [_WORD, {"type": "array", "items": _WORD}]}
VIF: Final = {
    "anyOf": [
        {"type": "string"},
        {"const": 1},
        {
            "type": "object",
            "properties": {
                "bridge": _WORD,
                "mac": {"type": "string", "pattern": "^[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}$"},
                "ip": _WORD,
                "rate": _WORD,
                "mtu": {"type": "integer", "minimum": 68},
                "devid": {"type": "integer", "minimum": 0, "maximum": 255},
                "vifname": _WORD,
                "type": {"const": "vif"},
                "script": {"const": "vif-bridge"},
                "backend": {"const": 0},
            },
            "additionalProperties": False,
        },
    ]
}
NETWORK: Final = {
    "anyOf": [
        _WORD,
        {
            "type": "object",
            "properties": {
                "name": _WORD,
                "subnet": _WORD,
                "services": {"type": "boolean"},
                "forward": _LINES,
                "dgram": _LINES,
                "tap": _LINES,
                "pcap": _WORD,
                "snaplen": {"type": "integer", "minimum": 14},
            },
            "required": ["name"],
            "additionalProperties": False,
        },
    ]
}
