# SPDX-License-Identifier: GPL-2.0-or-later
"""Turn bytes into XenStore messages and back; no connection is known here.

A message is a header of four words (type, request id, transaction id, length) and a payload of that
length. A payload longer than XENSTORE_PAYLOAD_MAX is the peer's fault: nothing that follows it can
be trusted to begin where it seems to.

Source: public/io/xs_wire.h.
"""

from __future__ import annotations

from typing import NamedTuple

from xenlite.abi.x86_32p import (
    EINVAL,
    ERRNO_NAMES,
    SIZEOF_XSD_SOCKMSG,
    XENSTORE_PAYLOAD_MAX,
    XS_ERROR,
    XS_WATCH_EVENT,
    XsdSockmsg,
)
from xenlite.errors import PeerError, Refused


class Message(NamedTuple):
    """One request, reply or event."""

    type: int
    req_id: int
    tx_id: int
    payload: bytes

    def encode(self) -> bytes:
        """Lay the message out as it goes over the wire."""
        assert len(self.payload) <= XENSTORE_PAYLOAD_MAX, len(self.payload)
        header = XsdSockmsg(self.type, self.req_id, self.tx_id, len(self.payload))
        return header.pack() + self.payload


class Decoder:
    """Cut a stream of bytes, in pieces of any size, into messages."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._header: XsdSockmsg | None = None

    def feed(self, data: bytes) -> None:
        """Take the next piece of the stream."""
        self._bytes += data

    def next(self) -> Message | None:
        """Return the next whole message, if it is there.

        Raises PeerError at a header that announces too long a payload, each time it is called.
        """
        if self._header is None:
            if len(self._bytes) < SIZEOF_XSD_SOCKMSG:
                return None
            self._header = XsdSockmsg.unpack(bytes(self._bytes[:SIZEOF_XSD_SOCKMSG]))
        header = self._header
        if header.len > XENSTORE_PAYLOAD_MAX:
            raise PeerError(f"a message of {header.len} bytes, of at most {XENSTORE_PAYLOAD_MAX}")
        end = SIZEOF_XSD_SOCKMSG + header.len
        if len(self._bytes) < end:
            return None
        payload = bytes(self._bytes[SIZEOF_XSD_SOCKMSG:end])
        del self._bytes[:end]
        self._header = None
        return Message(header.type, header.req_id, header.tx_id, payload)


def reply(request: Message, payload: bytes) -> Message:
    """Answer a request."""
    return Message(request.type, request.req_id, request.tx_id, payload)


def refusal(request: Message, errno: int) -> Message:
    """Answer a request with the name of an error."""
    name = ERRNO_NAMES[errno].encode() + b"\0"
    return Message(XS_ERROR, request.req_id, request.tx_id, name)


def event(path: bytes, token: bytes) -> Message:
    """Tell a watch that something at ``path`` has changed."""
    return Message(XS_WATCH_EVENT, 0, 0, path + b"\0" + token + b"\0")


def strings(payload: bytes, count: int | None = None) -> list[bytes]:
    """Split a payload that is made of NUL-terminated strings, ``count`` of them where given.

    Raises Refused(EINVAL) where the last one is not terminated, or the count is another.
    """
    *found, rest = payload.split(b"\0")
    if rest or not found or (count is not None and len(found) != count):
        raise Refused(EINVAL, "xenstore.malformed-request")
    return found
