# SPDX-License-Identifier: GPL-2.0-or-later
"""Let a guest's output reach a terminal without letting it command the terminal.

Text, colours and cursor movement pass. What makes a terminal answer (the answer would be typed
into the user's shell), set titles or the clipboard, print, or change modes that outlive the run is
shown instead of obeyed: the escape byte becomes ``^[``. Sequences may be split anywhere between
writes; nothing else is held back.

Source: ECMA-48 (control sequences); xterm's list of control sequences for the private ones.
"""

from __future__ import annotations

import re
from typing import Final

ESC: Final = 0x1B
_PASSING_CONTROLS: Final = frozenset(b"\0\a\b\t\n\v\f\r")
# Second byte of two-byte sequences: save and restore cursor, index, tab stop, keypad, reset.
_PASSING_PAIRS: Final = frozenset(b"78DEHM=>c")
# Three-byte sequences: select a character set.
_CHARACTER_SETS: Final = frozenset(b"()*+")
_CSI: Final = re.compile(rb"\x1b\[(?:\d{0,4};){0,15}\d{0,4}[@A-HJ-MPSTXZ`adefgmrsu]")
# Modes whose effect ends with the next reset of the screen: cursor keys, wrap, cursor, alternate
# screen, insert, new line. Not mouse reports, focus reports or bracketed paste.
_MODES: Final = re.compile(rb"\x1b\[(?:\?(?:1|7|12|25|47|1047|1048|1049)|4|20)[hl]")
_LONGEST: Final = 80


class EscapeFilter:
    """The state between two writes: the sequence or character that has begun."""

    def __init__(self) -> None:
        self._begun = bytearray()
        self._continuations = 0  # bytes that the current UTF-8 character still lacks

    def feed(self, data: bytes) -> bytes:
        """Return what the terminal may see of ``data``."""
        if not self._begun and not self._continuations and _is_plain(data):
            return data
        out = bytearray()
        for byte in data:
            if self._begun:
                self._sequence(byte, out)
            else:
                self._text(byte, out)
        return bytes(out)

    def _text(self, byte: int, out: bytearray) -> None:
        if self._continuations:
            self._continuations -= 1
            if 0x80 <= byte < 0xC0:
                out.append(byte)
                return
            self._continuations = 0
        if byte == ESC:
            self._begun.append(byte)
        elif byte < 0x20:
            out += bytes((byte,)) if byte in _PASSING_CONTROLS else b"^%c" % (byte + 0x40)
        elif byte < 0x7F:
            out.append(byte)
        elif byte == 0x7F:
            out += b"^?"
        elif byte == 0xC2:
            self._begun.append(byte)
        elif byte > 0xC2 and byte < 0xF5:
            self._continuations = 1 + (byte >= 0xE0) + (byte >= 0xF0)
            out.append(byte)
        else:
            out += b"\\x%02x" % byte

    def _sequence(self, byte: int, out: bytearray) -> None:
        begun = self._begun
        begun.append(byte)
        if begun[0] == 0xC2:
            # U+0080 to U+009F are the controls of the upper half, spelt C2 80 to C2 9F.
            self._begun = bytearray()
            if 0xA0 <= byte < 0xC0:
                out += begun
            elif 0x80 <= byte < 0xA0:
                out += b"\\x%02x" % byte
            else:
                out += b"\\xc2"
                self._text(byte, out)
        elif len(begun) == 2:
            if byte in _PASSING_PAIRS:
                self._pass(out)
            elif byte not in _CHARACTER_SETS and byte != 0x5B:
                self._show(out)
        elif begun[1] in _CHARACTER_SETS:
            (self._pass if 0x30 <= byte < 0x7F else self._show)(out)
        elif not 0x20 <= byte < 0x40 or len(begun) > _LONGEST:
            passes = _CSI.fullmatch(begun) or _MODES.fullmatch(begun)
            (self._pass if passes else self._show)(out)

    def _pass(self, out: bytearray) -> None:
        out += self._begun
        self._begun = bytearray()

    def _show(self, out: bytearray) -> None:
        """Show a refused sequence; its last byte may itself begin something."""
        begun, self._begun = self._begun, bytearray()
        out += b"^["
        for byte in begun[1:]:
            self._text(byte, out)


def _is_plain(data: bytes) -> bool:
    return _PLAIN.fullmatch(data) is not None


_PLAIN: Final = re.compile(rb"[\0\a-\r\x20-\x7e]*")
