# SPDX-License-Identifier: GPL-2.0-or-later
"""Unpack a kernel file: gzip and xz, with a bound on what comes out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from xenlite.errors import ConfigError, Fault

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_IMAGE_BYTES: Final = 128 << 20

_OTHER_PACKERS: Final = {
    b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x02\x21\x4c\x18": "lz4",
    b"\x04\x22\x4d\x18": "lz4",
    b"\x5d\x00\x00": "lzma",
    b"\x89LZO": "lzo",
}


class _Unpacker(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def decompress(self) -> Callable[[bytes, int], bytes]: ...


def unpack(data: bytes, name: str) -> bytes:
    """Undo gzip or xz, to at most MAX_IMAGE_BYTES; return other bytes as they are.

    ConfigError about file ``name`` where it is broken, cut off, or packed in a way unknown here.
    """
    if data[:2] == b"\x1f\x8b":
        import zlib

        try:
            return _expand(zlib.decompressobj(wbits=31), data, name)
        except zlib.error as error:
            raise ConfigError(Fault(name, f"broken gzip file: {error}")) from None
    if data[:6] == b"\xfd7zXZ\0":
        import lzma

        unpacker = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=MAX_IMAGE_BYTES)
        try:
            return _expand(unpacker, data, name)
        except lzma.LZMAError as error:
            raise ConfigError(Fault(name, f"broken xz file: {error}")) from None
    for magic, packer in _OTHER_PACKERS.items():
        if data.startswith(magic):
            raise ConfigError(Fault(name, f"packed with {packer}; xenlite unpacks gzip and xz"))
    return data


def _expand(unpacker: _Unpacker, data: bytes, name: str) -> bytes:
    image = unpacker.decompress(data, MAX_IMAGE_BYTES + 1)
    if len(image) > MAX_IMAGE_BYTES:
        raise ConfigError(Fault(name, f"unpacks to more than {MAX_IMAGE_BYTES >> 20} MiB"))
    if not unpacker.eof:
        raise ConfigError(Fault(name, f"packed, and cut off after {len(data)} bytes"))
    return image
