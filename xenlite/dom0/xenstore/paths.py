# SPDX-License-Identifier: GPL-2.0-or-later
"""Paths of XenStore: what a client writes, and the one spelling that the tree knows.

The tree knows absolute paths only: ``/``, ``/local/domain/3/name``. A client may also write one
relative to its own ``/local/domain/<domid>``. Nothing is mended: an empty element, a slash at the
end or a character outside the alphabet is refused.
"""

from __future__ import annotations

import re
from typing import Final

from xenlite.abi.x86_32p import (
    DOMID_FIRST_RESERVED,
    EINVAL,
    XENSTORE_ABS_PATH_MAX,
    XENSTORE_REL_PATH_MAX,
)
from xenlite.errors import Refused

INTRODUCE_DOMAIN: Final = "@introduceDomain"
RELEASE_DOMAIN: Final = "@releaseDomain"
SPECIAL: Final = (INTRODUCE_DOMAIN, RELEASE_DOMAIN)

_ABSOLUTE: Final = re.compile(rb"/|(?:/[A-Za-z0-9_@-]+)+")
_DOMAIN_HOME: Final = re.compile(r"/local/domain/[0-9]{1,5}/")


def home(domid: int) -> str:
    """Return where a domain's own nodes are."""
    return f"/local/domain/{domid}"


def resolve(text: bytes, domid: int) -> str:
    """Return the absolute path that client ``domid`` means. Raises Refused(EINVAL).

    Below a home, and anywhere else, a guest's path has the length of a relative one at most.
    """
    if text.startswith(b"@"):
        raise Refused(EINVAL, "xenstore.special-name")
    if not text.startswith(b"/"):
        text = home(domid).encode() + b"/" + text
    if len(text) > XENSTORE_ABS_PATH_MAX or _ABSOLUTE.fullmatch(text) is None:
        raise Refused(EINVAL, "xenstore.bad-path")
    path = text.decode("ascii")
    below = _DOMAIN_HOME.match(path)
    if domid and len(path) - (below.end() if below else 0) > XENSTORE_REL_PATH_MAX:
        raise Refused(EINVAL, "xenstore.path-too-long")
    return path


def resolve_watched(text: bytes, domid: int) -> str:
    """Return the path or the special name that client ``domid`` means. Raises Refused(EINVAL)."""
    special = text.decode("ascii", errors="replace")
    return special if special in SPECIAL else resolve(text, domid)


def parent(path: str) -> str:
    """Return the path of the node that holds this one; the root and special names have none."""
    assert path != "/"
    assert path not in SPECIAL
    return path[: path.rindex("/")] or "/"


def name(path: str) -> str:
    """Return the last element of a path."""
    return path[path.rindex("/") + 1 :]


def child(path: str, element: str) -> str:
    """Return the path of a child."""
    return f"{path}{element}" if path == "/" else f"{path}/{element}"


def parse_domid(text: bytes) -> int:
    """Read a domid as clients write it. Raises Refused(EINVAL)."""
    if re.fullmatch(rb"[0-9]{1,5}", text) is None or int(text) >= DOMID_FIRST_RESERVED:
        raise Refused(EINVAL, "xenstore.bad-domid")
    return int(text)
