# SPDX-License-Identifier: GPL-2.0-or-later
"""Take a user's YAML file, and a command line, apart into entries: keys and their values as text.

The file is read as events and never composed: the C composer recurses on nested lists without a
bound, so that a file of a million ``[`` would end the process. Every value is taken as the text
that stands in the file, so that ``name: 1`` and ``name: yes`` are names.

What keys there are is not known here, but for those that may have several values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import yaml

from xenlite.errors import ConfigError, Fault

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MAX_FILE_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 32

Lists = Mapping[str, frozenset[str]]
"""By the keys that may have several values: the keys of a group below that may, too."""


@dataclass(frozen=True, slots=True)
class Entry:
    """The value of one key as it was written, None for none; and where it stands.

    ``nested`` names what stood there instead of a plain value; ``items`` are the values of a key
    that may have several, each with its own place. Paths start at ``base``.
    """

    value: str | None
    where: str
    base: Path
    nested: str = ""
    items: tuple[tuple[str, str | dict[str, str]], ...] = ()


def read_file(path: Path) -> bytes:
    """Return the bytes of a file. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(Fault(str(path), f"{error.strerror}")) from None
    if len(text) > MAX_FILE_BYTES:
        raise ConfigError(Fault(str(path), f"longer than {MAX_FILE_BYTES >> 20} MiB"))
    return text


def read_entries(
    text: bytes, name: str, directory: Path, lists: Lists, faults: list[Fault]
) -> Iterator[tuple[str, Entry]]:
    """Yield the keys of the file's one mapping, with duplicates; note what is not a plain value.

    Raises ConfigError, with the faults so far, where the rest can't be read.
    """
    try:
        events = _checked(yaml.parse(text, Loader=_LOADER), name, faults)
        yield from _pairs(events, name, directory, lists, faults)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        what = " ".join(filter(None, (error.context, error.problem)))
        raise ConfigError(*faults, Fault(where, f"not YAML: {what}")) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        what = str(error).splitlines()[0]
        raise ConfigError(*faults, Fault(name, f"not YAML: {what}")) from None


def _checked(events: Iterator[yaml.Event], name: str, faults: list[Fault]) -> Iterator[yaml.Event]:
    for event in events:
        if isinstance(event, yaml.ScalarEvent) and "\0" in event.value:
            what = "a NUL character (\\0), which no name and no path can have"
            raise ConfigError(*faults, Fault(_where(name, event), what))
        yield event


def _pairs(
    events: Iterator[yaml.Event], name: str, directory: Path, lists: Lists, faults: list[Fault]
) -> Iterator[tuple[str, Entry]]:
    top = next((e for e in events if not isinstance(e, _FRAMING)), None)
    if top is None:
        raise ConfigError(Fault(name, "empty; it needs at least `name:` and `kernel:`"))
    if not isinstance(top, yaml.MappingStartEvent):
        raise ConfigError(Fault(_where(name, top), "not a list of `key: value` lines"))
    for key in events:
        if isinstance(key, yaml.MappingEndEvent):
            break
        where = _where(name, key)
        if isinstance(key, yaml.ScalarEvent):
            value = next(events)
            below = lists.get(key.value)
            if below is not None and isinstance(value, yaml.CollectionStartEvent):
                items = tuple(_items(value, events, name, faults, below))
                yield key.value, Entry("", where, directory, items=items)
                continue
            yield key.value, _entry(value, where, directory)
        else:
            faults.append(Fault(where, "a key must be a plain word"))
            _skip(key, events)
            value = next(events)
        _skip(value, events)
    for more in events:
        if isinstance(more, yaml.DocumentStartEvent):
            what = "a second document; one file describes one domain"
            faults.append(Fault(_where(name, more), what))


def _items(
    start: yaml.Event,
    events: Iterator[yaml.Event],
    name: str,
    faults: list[Fault],
    lists: frozenset[str],
) -> Iterator[tuple[str, str | dict[str, str]]]:
    """Yield the plain values and groups of a list, or the one group that stands in its place."""
    if isinstance(start, yaml.MappingStartEvent):
        yield _where(name, start), _group(events, name, faults, lists)
        return
    for event in events:
        if isinstance(event, yaml.SequenceEndEvent):
            return
        where = _where(name, event)
        if isinstance(event, yaml.ScalarEvent):
            yield where, event.value
        elif isinstance(event, yaml.MappingStartEvent):
            yield where, _group(events, name, faults, lists)
        else:
            faults.append(Fault(where, f"{_kind(event)}, where a value or a group of keys belongs"))
            _skip(event, events)


def _group(
    events: Iterator[yaml.Event], name: str, faults: list[Fault], lists: frozenset[str]
) -> dict[str, str]:
    """Read a group of plain keys and values; the values of those in ``lists`` become lines."""
    group: dict[str, str] = {}
    for key in events:
        if isinstance(key, yaml.MappingEndEvent):
            break
        where = _where(name, key)
        _skip(key, events)
        value = next(events)
        text: str | None = None
        is_known_list = isinstance(key, yaml.ScalarEvent) and key.value in lists
        if isinstance(value, yaml.SequenceStartEvent) and is_known_list:
            text = _lines(events, name, faults)
        else:
            _skip(value, events)
            if isinstance(value, yaml.ScalarEvent):
                text = value.value
        if not isinstance(key, yaml.ScalarEvent) or text is None:
            faults.append(Fault(where, "keys and values of a group must be plain"))
        elif key.value in group:
            faults.append(Fault(where, f"{key.value}: given twice"))
        else:
            group[key.value] = text
    return group


def _lines(events: Iterator[yaml.Event], name: str, faults: list[Fault]) -> str:
    """Read a list of plain values, up to its end, as lines."""
    lines = []
    for event in events:
        if isinstance(event, yaml.SequenceEndEvent):
            break
        if isinstance(event, yaml.ScalarEvent):
            lines.append(event.value)
        else:
            faults.append(Fault(_where(name, event), f"{_kind(event)}, where a value belongs"))
            _skip(event, events)
    return "\n".join(lines)


def _where(name: str, event: yaml.Event) -> str:
    return f"{name}:{event.start_mark.line + 1}" if event.start_mark else name


def _skip(event: yaml.Event, events: Iterator[yaml.Event]) -> None:
    """Pass over the rest of the node that ``event`` starts.

    libyaml's own work grows with the square of the depth, so that has a bound.
    """
    depth = int(isinstance(event, yaml.CollectionStartEvent))
    while depth:
        if depth > MAX_DEPTH:
            raise yaml.YAMLError(f"nested more than {MAX_DEPTH} deep")
        event = next(events)
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)


def _entry(event: yaml.Event, where: str, base: Path) -> Entry:
    if isinstance(event, yaml.ScalarEvent):
        is_null = event.implicit[0] and event.value in {"", "~", "null"}
        return Entry(None if is_null else event.value, where, base)
    return Entry("", where, base, nested=_kind(event))


_FRAMING = (yaml.StreamStartEvent, yaml.StreamEndEvent, yaml.DocumentStartEvent)
# The same events come from the pure parser, where PyYAML was built without libyaml.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _kind(event: yaml.Event) -> str:
    if isinstance(event, yaml.SequenceStartEvent):
        return "a list"
    return "a group of keys" if isinstance(event, yaml.MappingStartEvent) else "an alias"


def read_overrides(words: Iterable[str], faults: list[Fault]) -> dict[str, Entry]:
    """Read ``key=value`` words of the command line; their paths start where the user stands."""
    entries = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            faults.append(Fault("command line", f"{word!r} is not key=value"))
            continue
        entries[key] = Entry(text, "command line", Path())
    return entries
