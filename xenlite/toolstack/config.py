# SPDX-License-Identifier: GPL-2.0-or-later
"""Read ``dom.yaml``: text in, a frozen ``DomainConfig`` out, or every mistake at once.

Three steps, each of which reports all that it finds::

    text --(libyaml events)--> Entry per key, with its line     bad YAML, duplicates, nesting
    entries --(KEYS)---------> values of the right type         unknown keys, types, ranges
    values ------------------> DomainConfig                     rules that join two keys

The first is ``config_entries.py``'s; the others are here.

KEYS is the one description of the file; the JSON Schema comes from it too. It is a table of ours
because importing pydantic and building a model of these keys takes 80 ms of the 200
that a domain may take from the start of the process to the first line of its kernel.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from xenlite.abi.x86_32p import (
    EVTCHN_2L_NR_CHANNELS,
    MAX_GUEST_CMDLINE,
    VMASST_TYPE_NAMES,
    XEN_LEGACY_MAX_VCPUS,
    VMASST_TYPE_pae_extended_cr3,
    VMASST_TYPE_writable_pagetables,
)
from xenlite.errors import ConfigError, Fault
from xenlite.toolstack.config_entries import read_entries, read_file, read_overrides
from xenlite.toolstack.console_config import ConsoleConfig, Output, read_console
from xenlite.toolstack.disk_config import DiskConfig, read_disk
from xenlite.toolstack.domain_config import MAX_MEMORY_MIB, DomainConfig, Reaction, mebibytes
from xenlite.toolstack.firmware import find_firmware
from xenlite.toolstack.network_schema import NETWORK, NETWORK_LISTS, VIF

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from xenlite.toolstack.config_entries import Entry
    from xenlite.toolstack.network_config import NetworkConfig
    from xenlite.toolstack.vif_config import VifConfig

MIN_MEMORY_MIB: Final = 4  # the smallest initial mapping
MAX_CPU_WEIGHT: Final = 65535
MAX_CAP: Final = 100 * XEN_LEGACY_MAX_VCPUS
MIN_EVENT_CHANNELS: Final = 2  # XenStore's and the console's
MAX_EVENT_CHANNELS: Final = EVTCHN_2L_NR_CHANNELS - 1
LATER_XL_KEYS: Final = frozenset({"cpus", "extra", "root", "vfb"})
ASSISTS: Final = {
    name.removeprefix("VMASST_TYPE_"): number
    for number, name in VMASST_TYPE_NAMES.items()
    if number in (VMASST_TYPE_writable_pagetables, VMASST_TYPE_pae_extended_cr3)
}
NAME: Final = r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,63}"


@dataclass(frozen=True, slots=True)
class Key:
    """What may stand behind one key. ``read`` turns its text into a value or says what is wrong.

    With ``is_list`` there may be several, and each may be a group of keys. ``lists`` are those keys
    of a group that may have several values, which are lines of one text then.

    ``default`` is what a reader of the schema sees; None stands for "derived from other keys", and
    a required key has none. ``instead`` names a key that may stand in place of a required one.
    """

    read: Callable[[Any], Any]
    about: str
    schema: dict[str, Any]
    default: object = None
    required: bool = False
    instead: str = ""
    is_list: bool = False
    lists: frozenset[str] = frozenset()


def _name(text: str) -> str:
    if re.fullmatch(NAME, text) is None:
        raise ValueError(f"{text!r} has other characters than letters, digits and _ . + - (64)")
    return text


def _path(text: str) -> str:
    if not text:
        raise ValueError("has no value")
    return text


def _memory(text: str) -> int:
    mib = mebibytes(text)
    return _within(mib, text, MIN_MEMORY_MIB, MAX_MEMORY_MIB)


def _number(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if re.fullmatch(r"-?\d{1,9}", text, re.ASCII) is None:
            raise ValueError(f"{text!r} is not a whole number")
        return _within(int(text), text, least, most)

    return read


def _within(value: int, text: str, least: int, most: int) -> int:
    if value < least:
        raise ValueError(f"{text!r} is too small; at least {least}")
    if value > most:
        raise ValueError(f"{text!r} is too large; at most {most}")
    return value


def _reaction(text: str) -> Reaction:
    reactions = [reaction.value for reaction in Reaction]
    if text in reactions:
        return Reaction(text)
    raise ValueError(f"{text!r} is none of {', '.join(reactions)}{_nearest(text, reactions)}")


def _cmdline(text: str) -> str:
    size = len(text.encode())
    if size >= MAX_GUEST_CMDLINE:
        raise ValueError(f"{size} bytes long; start_info holds {MAX_GUEST_CMDLINE - 1}")
    return text


def _assists(text: str) -> tuple[int, ...]:
    """Read names of vm_assist types; Xen's numbers come back, in order."""
    words = text.replace(",", " ").split()
    for word in words:
        if word not in ASSISTS:
            known = f"; known: {', '.join(ASSISTS)}"
            raise ValueError(f"{word!r} is no assist{_nearest(word, list(ASSISTS)) or known}")
    return tuple(sorted({ASSISTS[word] for word in words}))


def _vif(given: str | dict[str, str]) -> VifConfig:
    from xenlite.toolstack.vif_config import read_vif

    return read_vif(given)


def _network(given: str | dict[str, str]) -> NetworkConfig:
    from xenlite.toolstack.network_config import read_network

    return read_network(given)


_TEXT: Final = {"type": "string"}
_PATH: Final = {"type": "string", "minLength": 1}
_SIZE: Final = {
    "anyOf": [
        {"type": "integer", "minimum": MIN_MEMORY_MIB, "maximum": MAX_MEMORY_MIB},
        {"type": "string", "pattern": r"^\s*\d{1,12}([KMGkmg]?([iI]?[bB])?)\s*$"},
    ]
}
_processors: Final = _number(1, XEN_LEGACY_MAX_VCPUS)
_COUNT: Final = {"type": "integer", "minimum": 1, "maximum": XEN_LEGACY_MAX_VCPUS}
_ACTION: Final = {"enum": [reaction.value for reaction in Reaction]}

_DISK: Final = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {
            "type": "object",
            "properties": {
                "target": _PATH,
                "format": {"const": "raw"},
                "vdev": {"type": "string"},
                "access": {"enum": ["rw", "ro", "w", "r"]},
                "devtype": {"enum": ["disk", "cdrom"]},
            },
            "required": ["target", "vdev"],
            "additionalProperties": False,
        },
    ]
}

_CONSOLE: Final = {
    "anyOf": [
        {"type": "string", "pattern": "^(terminal|pty|file:.+|socket:.+)$"},
        {
            "type": "object",
            "properties": {
                "output": {"enum": list(Output)},
                "path": _PATH,
                "log": _PATH,
                "rate": {"type": ["string", "integer"]},
                "name": {"type": "string"},
            },
            "additionalProperties": False,
        },
    ]
}

KEYS: Final = {
    "name": Key(
        _name,
        "Name of the domain: letters, digits and `_ . + -`.",
        {"type": "string", "pattern": f"^{NAME}$"},
        required=True,
    ),
    "kernel": Key(
        _path,
        "Kernel to boot: a 32-bit PAE ELF with Xen notes, as it is or packed with gzip or xz, or"
        " an assembly file (`.s`). Relative to this file.",
        _PATH,
        required=True,
        instead="firmware",
    ),
    "firmware": Key(
        find_firmware,
        "In place of `kernel`, what boots one from the domain's disk: `pvgrub32`, which is GRUB as"
        " Debian's grub-xen-host has it, or a path. Relative to this file.",
        _PATH,
    ),
    "cmdline": Key(_cmdline, "Command line for the kernel.", _TEXT, ""),
    "ramdisk": Key(
        _path,
        "Initial RAM disk, handed to the kernel as it is; or a directory of programs, which are"
        " built and packed into an archive. Relative to this file.",
        _PATH,
    ),
    "memory": Key(_memory, "Memory at the start: MiB, or a size such as `32M`.", _SIZE, 32),
    "maxmem": Key(_memory, "Most memory it may have; as much as `memory` when left out.", _SIZE),
    "vcpus": Key(_processors, "Virtual processors at the start.", _COUNT, 1),
    "maxvcpus": Key(
        _processors, "Most virtual processors; as many as `vcpus` when left out.", _COUNT
    ),
    "cpu_weight": Key(
        _number(1, MAX_CPU_WEIGHT),
        "Share of the CPU, against the weights of the other domains.",
        {"type": "integer", "minimum": 1, "maximum": MAX_CPU_WEIGHT},
        256,
    ),
    "cap": Key(
        _number(0, MAX_CAP),
        "Most it may use, in percent of one CPU, even where nobody else wants it; 0 for no limit.",
        {"type": "integer", "minimum": 0, "maximum": MAX_CAP},
        0,
    ),
    "max_event_channels": Key(
        _number(MIN_EVENT_CHANNELS, MAX_EVENT_CHANNELS),
        "Most event channels it may have.",
        {"type": "integer", "minimum": MIN_EVENT_CHANNELS, "maximum": MAX_EVENT_CHANNELS},
        MAX_EVENT_CHANNELS,
    ),
    "on_poweroff": Key(
        _reaction, "What to do when the guest powers off.", _ACTION, Reaction.DESTROY
    ),
    "on_reboot": Key(
        _reaction, "What to do when the guest asks for a reboot.", _ACTION, Reaction.RESTART
    ),
    "on_crash": Key(_reaction, "What to do when the guest crashes.", _ACTION, Reaction.DESTROY),
    "assists": Key(
        _assists,
        "Assists (`vm_assist`) to turn on before the kernel starts, for one that counts on them"
        f" without asking: {' or '.join(f'`{name}`' for name in ASSISTS)}.",
        _TEXT,
        "",
    ),
    "disk": Key(
        read_disk,
        "Disks, each as xl writes it, `target,format,vdev,access`, or as a group of these keys."
        " Targets are relative to this file.",
        {"anyOf": [_DISK, {"type": "array", "items": _DISK}]},
        is_list=True,
    ),
    "vif": Key(
        _vif,
        "Network cards, each as xl writes it, `mac=...,bridge=...,ip=...,rate=10Mb/s`, or as a"
        " group of these keys; an empty string is a card on `xenbr0`.",
        {"anyOf": [VIF, {"type": "array", "items": VIF}]},
        is_list=True,
    ),
    "networks": Key(
        _network,
        "Networks that are not as usual, each as a group of keys. A bridge that a card names and"
        " nobody describes has a service host in a subnet of its own. Paths are relative to this"
        " file.",
        {"anyOf": [NETWORK, {"type": "array", "items": NETWORK}]},
        is_list=True,
        lists=NETWORK_LISTS,
    ),
    "console": Key(
        read_console,
        "Consoles: `terminal` (only the first, and what that is when left out), `pty`, `file:PATH`,"
        " `socket:PATH`, or a group of these keys. Paths are relative to this file.",
        {"anyOf": [_CONSOLE, {"type": "array", "items": _CONSOLE}]},
        is_list=True,
    ),
}


_LISTS: Final = {word: key.lists for word, key in KEYS.items() if key.is_list}


def load(path: Path, overrides: Iterable[str] = ()) -> DomainConfig:
    """Read a domain's file and the ``key=value`` words that replace keys of it.

    Raises ConfigError with every fault: each names the file, the line and the key.
    """
    return parse(read_file(path), str(path), path.parent, overrides)


def parse(text: bytes, name: str, directory: Path, overrides: Iterable[str] = ()) -> DomainConfig:
    """Read a domain from the bytes of file ``name``; its paths start at ``directory``."""
    faults: list[Fault] = []
    entries: dict[str, Entry] = {}
    for key, entry in read_entries(text, name, directory, _LISTS, faults):
        if key in entries:
            faults.append(Fault(entry.where, f"{key}: given twice, first at {entries[key].where}"))
        else:
            entries[key] = entry
    entries.update(read_overrides(overrides, faults))
    values = _values(entries, name, faults)
    if not faults:
        faults += _joint_rules(values, entries)
    if faults:
        raise ConfigError(*_in_order(faults))
    return _config(values, entries)


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the file, for editors."""
    properties = {}
    for name, key in KEYS.items():
        properties[name] = {"description": key.about, **key.schema}
        if key.default is not None:
            properties[name]["default"] = key.default
    required = {name: key.instead for name, key in KEYS.items() if key.required}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "xenlite domain (dom.yaml)",
        "type": "object",
        "properties": properties,
        "required": [name for name, instead in required.items() if not instead],
        "allOf": [
            {"oneOf": [{"required": [name]}, {"required": [instead]}]}
            for name, instead in required.items()
            if instead
        ],
        "additionalProperties": False,
    }


# -- entries to values ----------------------------------------------------------------------------


def _values(entries: dict[str, Entry], name: str, faults: list[Fault]) -> dict[str, Any]:
    """Read every entry by its key; keys that are left out, or empty, are absent."""
    values = {}
    for word, entry in entries.items():
        key = KEYS.get(word)
        if key is None:
            faults.append(Fault(entry.where, f"{word}: {_unknown(word)}"))
        elif key.is_list:
            values[word] = _read_items(word, key, entry, faults)
        elif entry.nested:
            faults.append(Fault(entry.where, f"{word}: {entry.nested}, where one value belongs"))
        elif entry.value is None:
            if key.required:
                faults.append(Fault(entry.where, f"{word}: has no value"))
        else:
            try:
                values[word] = key.read(entry.value)
            except ValueError as error:
                faults.append(Fault(entry.where, f"{word}: {error}"))
    faults += _missing(entries, name)
    return values


def _missing(entries: dict[str, Entry], name: str) -> Iterator[Fault]:
    """Find required keys that are not there, or are there with what stands in their place."""
    filled = {word for word, entry in entries.items() if entry.value is not None}
    for word, key in KEYS.items():
        if key.instead in filled and word in filled:
            what = f"{key.instead}: stands in place of {word}; give one of them"
            yield Fault(entries[key.instead].where, what)
        elif key.required and word not in entries and key.instead not in filled:
            instead = f", or {key.instead} in its place" if key.instead else ""
            yield Fault(name, f"{word}: is missing{instead}")


def _read_items(word: str, key: Key, entry: Entry, faults: list[Fault]) -> list[Any]:
    """Read each value of a key that may have several."""
    if entry.nested:
        faults.append(Fault(entry.where, f"{word}: {entry.nested}, where values belong"))
    values = []
    items = entry.items or (((entry.where, entry.value),) if entry.value else ())
    for where, item in items:
        try:
            values.append(key.read(item))
        except ValueError as error:
            faults.append(Fault(where, f"{word}: {error}"))
    return values


def _unknown(word: str) -> str:
    if word in LATER_XL_KEYS:
        return "a key of xl.cfg for which xenlite has nothing yet"
    hint = _nearest(word, list(KEYS)) or f"; known keys: {', '.join(KEYS)}"
    return f"not a key of this file{hint}"


def _nearest(word: str, words: list[str]) -> str:
    import difflib

    close = difflib.get_close_matches(word.lower(), words, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def _in_order(faults: list[Fault]) -> list[Fault]:
    """Sort by line, the file as a whole first."""

    def line(fault: Fault) -> int:
        tail = fault.where.rpartition(":")[2]
        return int(tail) if tail.isdigit() else 0

    return sorted(faults, key=line)


# -- rules that join two keys, and the result -----------------------------------------------------


def _joint_rules(values: dict[str, Any], entries: dict[str, Entry]) -> list[Fault]:
    faults = []
    for most, now, unit in (("maxmem", "memory", " MiB"), ("maxvcpus", "vcpus", "")):
        least = values.get(now, KEYS[now].default)
        if most in values and values[most] < least:
            what = f"{most}: {values[most]}{unit} is less than {now}, {least}{unit}"
            faults.append(Fault(entries[most].where, what))
    processors = values.get("maxvcpus") or values.get("vcpus", KEYS["vcpus"].default)
    if values.get("cap", 0) > 100 * processors:
        what = f"cap: {values['cap']} is more than the {processors} virtual processors can use"
        faults.append(Fault(entries["cap"].where, what))
    names: dict[int, DiskConfig] = {}
    for disk in values.get("disk", ()):
        if disk.number in names:
            what = f"disk: {disk.vdev} is given twice"
            faults.append(Fault(entries["disk"].where, what))
        names[disk.number] = disk
    if "vif" in values and "name" in values:
        from xenlite.toolstack.vif_config import complete

        try:
            values["vif"] = complete(values["vif"], values["name"])
        except ValueError as error:
            faults.append(Fault(entries["vif"].where, f"vif: {error}"))
    networks = [network.name for network in values.get("networks", ())]
    for network in sorted({one for one in networks if networks.count(one) > 1}):
        what = f"networks: {network} is given twice"
        faults.append(Fault(entries["networks"].where, what))
    consoles: Sequence[ConsoleConfig] = values.get("console", ())
    if any(console.output is Output.TERMINAL for console in consoles[1:]):
        what = "console: only the first can be on the terminal"
        faults.append(Fault(entries["console"].where, what))
    return faults


def _config(given: dict[str, Any], entries: dict[str, Entry]) -> DomainConfig:
    values = {word: given.get(word, key.default) for word, key in KEYS.items()}
    ramdisk = values["ramdisk"]
    boots = "kernel" if "kernel" in given else "firmware"
    return DomainConfig(
        name=values["name"],
        kernel=entries[boots].base / values[boots],
        kernel_name=str(values[boots]),
        memory_mib=values["memory"],
        maxmem_mib=values["maxmem"] or values["memory"],
        cmdline=values["cmdline"],
        ramdisk=None if ramdisk is None else entries["ramdisk"].base / ramdisk,
        vcpus=values["vcpus"],
        maxvcpus=values["maxvcpus"] or values["vcpus"],
        on_poweroff=values["on_poweroff"],
        on_reboot=values["on_reboot"],
        on_crash=values["on_crash"],
        assists=values["assists"] or (),
        cpu_weight=values["cpu_weight"],
        cap=values["cap"],
        max_event_channels=values["max_event_channels"],
        disks=tuple(disk.below(entries["disk"].base) for disk in values["disk"] or ()),
        vifs=tuple(values["vif"] or ()),
        networks=tuple(one.below(entries["networks"].base) for one in values["networks"] or ()),
        consoles=tuple(one.below(entries["console"].base) for one in values["console"] or ()),
    )
