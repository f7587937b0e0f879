# SPDX-License-Identifier: GPL-2.0-or-later
"""Keep recorded events in a file, and read them again: ``xenlite run --trace``.

The file is what the recorder made (``trace_format.py``), with the labels of each kernel, so that
one file is enough to show it all.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO

from xenlite.errors import ConfigError, Fault
from xenlite.toolstack.symbols import Symbols
from xenlite.trace_format import (
    MAGIC,
    Kind,
    Record,
    pack,
    pack_symbols,
    read,
    unpack_symbols,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class TraceFile:
    """A watcher of a host that writes everything down. A full disk ends the file, not the run."""

    def __init__(self, path: Path, failed: Callable[[str], None]) -> None:
        self._path = path
        self._failed = failed
        self._file: BinaryIO | None
        try:
            self._file = path.open("wb")
            self._file.write(MAGIC)
        except OSError as error:
            raise ConfigError(Fault(str(path), f"{error.strerror} (--trace)")) from None

    def started(self, domid: int, symbols: Callable[[], Symbols]) -> None:
        """Write the labels of a new domain's kernel."""
        extra = pack_symbols(symbols().names, symbols().code)
        self._append(pack(Record(0, 0, domid, 0, Kind.SYMBOLS, (), extra)))

    def events(self, data: bytes, lost: int) -> None:
        """Write what was recorded."""
        self._append(data)
        if lost:
            self._append(pack(Record(0, 0, 0, 0, Kind.LOST, (min(lost, 0xFFFFFFFF),), b"")))

    def close(self) -> None:
        """Close the file; what comes later is dropped."""
        if self._file is None:
            return
        try:
            self._file.close()
        except OSError as error:
            self._give_up(error)
        self._file = None

    def _append(self, data: bytes) -> None:
        if self._file is None:
            return
        try:
            self._file.write(data)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        file, self._file = self._file, None
        self._failed(f"{self._path}: {error.strerror}: the trace ends here")
        with suppress(OSError):  # what it holds back finds no room either
            if file is not None:
                file.close()


class Trace:
    """A file of events, read."""

    def __init__(self, path: Path) -> None:
        """Read ``path``. Raises ConfigError where it is no trace, or a broken one."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ConfigError(Fault(str(path), error.strerror or str(error))) from None
        if not data.startswith(MAGIC):
            raise ConfigError(Fault(str(path), "not a trace of this version"))
        self.symbols: dict[int, Symbols] = {}
        self.records: list[Record] = []
        try:
            for record in read(data, len(MAGIC)):
                if record.kind is Kind.SYMBOLS:
                    self.symbols[record.domid] = Symbols(*unpack_symbols(record.extra))
                else:
                    self.records.append(record)
        except ValueError as error:
            raise ConfigError(Fault(str(path), str(error))) from None

    def symbols_of(self, domid: int) -> Symbols:
        """Return the labels of a domain's kernel; none where there are none."""
        return self.symbols.get(domid, Symbols({}, []))

    def in_order(self) -> Iterator[Record]:
        """Yield the events by the time at which they began."""
        return iter(sorted(self.records, key=lambda record: record.time_ns))
