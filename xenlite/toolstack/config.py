# SPDX-License-Identifier: GPL-2.0-or-later
"""Read ``dom.yaml``: text in, a frozen ``DomainConfig`` out, or every mistake at once.

Three steps, each of which reports all that it finds::

    text --(libyaml events)--> Entry per key, with its line     bad YAML, duplicates, nesting
    entries --(pydantic)-----> values of the right type         unknown keys, types, ranges
    values ------------------> DomainConfig                     rules that join two keys

Every value is taken as the text that stands in the file, so that ``name: 1`` and ``name: yes`` are
names. The file is read as events and never composed: the C composer recurses on nested lists
without a bound, so that a file of a million ``[`` would end the process.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema

from xenlite.abi.x86_32p import MAX_GUEST_CMDLINE, XEN_LEGACY_MAX_VCPUS
from xenlite.errors import ConfigError, Fault
from xenlite.toolstack.domain_config import DomainConfig, Reaction, mebibytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pydantic_core import ErrorDetails

MAX_FILE_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_MEMORY_MIB = 64 << 10  # what a 36-bit physical address reaches
MIN_MEMORY_MIB = 4  # the smallest initial mapping
LATER_XL_KEYS = frozenset({"cap", "cpus", "cpu_weight", "disk", "extra", "root", "vfb", "vif"})


@dataclass(frozen=True, slots=True)
class Entry:
    """The value of one key as it was written, None for none; and where it stands.

    ``nested`` names what stood there instead of a plain value. Paths start at ``base``.
    """

    value: str | None
    where: str
    base: Path
    nested: str = ""


def _reaction(text: str) -> str:
    if text.startswith("coredump-"):
        rest = text.removeprefix("coredump-")
        raise ValueError(f"{text!r}: xenlite cannot dump a core yet; write {rest!r}")
    return text


def _cmdline(text: str) -> str:
    size = len(text.encode())
    if size >= MAX_GUEST_CMDLINE:
        raise ValueError(f"{size} bytes long; start_info holds {MAX_GUEST_CMDLINE - 1}")
    return text


Memory = Annotated[
    int,
    Field(ge=MIN_MEMORY_MIB, le=MAX_MEMORY_MIB),
    BeforeValidator(mebibytes),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": MIN_MEMORY_MIB, "maximum": MAX_MEMORY_MIB},
                {"type": "string", "pattern": "^\\s*\\d+\\s*[KMGkmg]?([iI]?[bB])?\\s*$"},
            ]
        }
    ),
]
Processors = Annotated[int, Field(ge=1, le=XEN_LEGACY_MAX_VCPUS)]
Action = Annotated[Literal["destroy", "restart", "preserve"], BeforeValidator(_reaction)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+-]{0,63}$")]
FilePath = Annotated[str, Field(min_length=1)]


class DomainFile(BaseModel):
    """A xenlite domain (`dom.yaml`)."""

    model_config = ConfigDict(extra="forbid", frozen=True, title="xenlite domain configuration")

    name: Name = Field(description="Name of the domain: letters, digits and `_ . + -`.")
    kernel: FilePath = Field(
        description="Kernel to boot: a 32-bit PAE ELF with Xen notes, as it is or packed with "
        "gzip or xz, or an assembly file (`.s`). Relative to this file."
    )
    memory: Memory = Field(32, description="Memory at the start: MiB, or a size such as `32M`.")
    maxmem: Memory | None = Field(
        None, description="Most memory the domain may have; as much as `memory` when left out."
    )
    cmdline: Annotated[str, BeforeValidator(_cmdline)] = Field(
        "", description="Command line for the kernel."
    )
    ramdisk: FilePath | None = Field(
        None, description="Initial RAM disk, handed to the kernel as it is. Relative to this file."
    )
    vcpus: Processors = Field(1, description="Virtual processors at the start.")
    maxvcpus: Processors | None = Field(
        None, description="Most virtual processors; as many as `vcpus` when left out."
    )
    on_poweroff: Action = Field("destroy", description="What to do when the guest powers off.")
    on_reboot: Action = Field("restart", description="What to do when the guest asks to reboot.")
    on_crash: Action = Field("destroy", description="What to do when the guest crashes.")


def load(path: Path, overrides: Iterable[str] = ()) -> DomainConfig:
    """Read a domain's file and the ``key=value`` words that replace keys of it.

    Raises ConfigError with every fault: each names the file, the line and the key.
    """
    return parse(_read(path), str(path), path.parent, overrides)


def parse(text: bytes, name: str, directory: Path, overrides: Iterable[str] = ()) -> DomainConfig:
    """Read a domain from the bytes of file ``name``; its paths start at ``directory``."""
    faults: list[Fault] = []
    entries: dict[str, Entry] = {}
    for key, entry in _entries(text, name, directory, faults):
        if key in entries:
            faults.append(Fault(entry.where, f"{key}: given twice, first at {entries[key].where}"))
        else:
            entries[key] = entry
    entries.update(_overrides(overrides, faults))
    for key, entry in entries.items():
        if entry.nested and key in DomainFile.model_fields:
            faults.append(Fault(entry.where, f"{key}: {entry.nested}, where one value belongs"))
    given = {key: entry.value for key, entry in entries.items() if entry.value is not None}
    try:
        values = DomainFile.model_validate(given)
    except ValidationError as error:
        for one in error.errors(include_url=False):
            entry = entries.get(str(one["loc"][0]))
            if entry is None or not entry.nested or one["type"] == "extra_forbidden":
                faults.append(_explain(one, entries, name))
        raise ConfigError(*_in_order(faults)) from None
    faults += _joint_rules(values, entries)
    if faults:
        raise ConfigError(*_in_order(faults))
    return _config(values, entries)


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the file, for editors."""
    schema = DomainFile.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


# -- text to entries ------------------------------------------------------------------------------


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(Fault(str(path), f"{error.strerror}")) from None
    if len(text) > MAX_FILE_BYTES:
        raise ConfigError(Fault(str(path), f"longer than {MAX_FILE_BYTES >> 20} MiB"))
    return text


def _entries(
    text: bytes, name: str, directory: Path, faults: list[Fault]
) -> Iterator[tuple[str, Entry]]:
    """Yield the keys of the file's one mapping, with duplicates; note what is not a plain value."""
    try:
        events = yaml.parse(text, Loader=_LOADER)
        yield from _pairs(events, name, directory, faults)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        what = " ".join(filter(None, (error.context, error.problem)))
        raise ConfigError(*faults, Fault(where, f"not YAML: {what}")) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        what = str(error).splitlines()[0]
        raise ConfigError(*faults, Fault(name, f"not YAML: {what}")) from None


def _pairs(
    events: Iterator[yaml.Event], name: str, directory: Path, faults: list[Fault]
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


def _overrides(words: Iterable[str], faults: list[Fault]) -> dict[str, Entry]:
    """Read ``key=value`` words of the command line; their paths start where the user stands."""
    entries = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            faults.append(Fault("command line", f"{word!r} is not key=value"))
            continue
        entries[key] = Entry(text, "command line", Path())
    return entries


# -- faults ---------------------------------------------------------------------------------------


def _explain(error: ErrorDetails, entries: dict[str, Entry], name: str) -> Fault:
    """Put one of pydantic's errors into the user's words."""
    key = str(error["loc"][0])
    if error["type"] == "missing" and key not in entries:
        return Fault(name, f"{key}: is missing")
    entry = entries[key]
    value = entry.value
    context = error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            what = _unknown_key(key)
        case "missing" | "string_too_short":
            what = "has no value"
        case "value_error":
            what = str(context["error"])
        case "literal_error":
            reactions = [reaction.value for reaction in Reaction]
            what = f"{value!r} is none of {', '.join(reactions)}"
            what += _nearest(str(value), reactions)
        case "greater_than_equal":
            what = f"{value!r} is too small; at least {context['ge']}"
        case "less_than_equal":
            what = f"{value!r} is too large; at most {context['le']}"
        case "int_parsing" | "int_parsing_size":
            what = f"{value!r} is not a whole number"
        case "string_pattern_mismatch":
            what = f"{value!r} has other characters than letters, digits and _ . + - (64 at most)"
        case _:
            what = error["msg"]
    return Fault(entry.where, f"{key}: {what}")


def _unknown_key(key: str) -> str:
    if key in LATER_XL_KEYS:
        return "a key of xl.cfg for which xenlite has nothing yet"
    keys = list(DomainFile.model_fields)
    hint = _nearest(key, keys) or f"; known keys: {', '.join(keys)}"
    return f"not a key of this file{hint}"


def _nearest(word: str, words: list[str]) -> str:
    close = difflib.get_close_matches(word.lower(), words, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def _in_order(faults: list[Fault]) -> list[Fault]:
    """Sort by line, the file as a whole first."""

    def line(fault: Fault) -> int:
        tail = fault.where.rpartition(":")[2]
        return int(tail) if tail.isdigit() else 0

    return sorted(faults, key=line)


# -- rules that join two keys, and the result -----------------------------------------------------


def _joint_rules(values: DomainFile, entries: dict[str, Entry]) -> list[Fault]:
    faults = []
    if values.maxmem is not None and values.maxmem < values.memory:
        what = f"maxmem: {values.maxmem} MiB is less than memory, {values.memory} MiB"
        faults.append(Fault(entries["maxmem"].where, what))
    if values.maxvcpus is not None and values.maxvcpus < values.vcpus:
        what = f"maxvcpus: {values.maxvcpus} is less than vcpus, {values.vcpus}"
        faults.append(Fault(entries["maxvcpus"].where, what))
    return faults


def _config(values: DomainFile, entries: dict[str, Entry]) -> DomainConfig:
    ramdisk = values.ramdisk
    return DomainConfig(
        name=values.name,
        kernel=entries["kernel"].base / values.kernel,
        kernel_name=values.kernel,
        memory_mib=values.memory,
        maxmem_mib=values.memory if values.maxmem is None else values.maxmem,
        cmdline=values.cmdline,
        ramdisk=None if ramdisk is None else entries["ramdisk"].base / ramdisk,
        ramdisk_name=ramdisk or "",
        vcpus=values.vcpus,
        maxvcpus=values.vcpus if values.maxvcpus is None else values.maxvcpus,
        on_poweroff=Reaction(values.on_poweroff),
        on_reboot=Reaction(values.on_reboot),
        on_crash=Reaction(values.on_crash),
    )
