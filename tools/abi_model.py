# SPDX-License-Identifier: GPL-2.0-or-later
"""Read hypercall_abi.yaml for one architecture.

`Abi` holds what the file says, checked: fields obey C's layout rules and add up to the stated size,
names are unique, every reference has a target. A mistake raises `ValueError` and names its place.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

# Scalars of the YAML: size in bytes, code of Python's struct module, C type.
SCALARS = {
    "u8": (1, "B", "uint8_t"),
    "u16": (2, "H", "uint16_t"),
    "u32": (4, "I", "uint32_t"),
    "u64": (8, "Q", "uint64_t"),
    "s8": (1, "b", "int8_t"),
    "s16": (2, "h", "int16_t"),
    "s32": (4, "i", "int32_t"),
}
ARRAY = re.compile(r"(\w+)\[(\d+)\]")
PADDING = re.compile(r"_*(pad\d*|unused|rsvd|res0|pvt)")

Kind = Literal["scalar", "named", "struct", "union"]


@dataclass(frozen=True, slots=True)
class Type:
    """A scalar type of the ABI."""

    name: str
    scalar: str  # key of SCALARS
    c: str  # the headers' name; empty for C's own types
    doc: str

    @property
    def size(self) -> int:
        return SCALARS[self.scalar][0]


@dataclass(frozen=True, slots=True)
class Member:
    """A field: a scalar, another structure, or a struct or union written in place."""

    name: str
    kind: Kind
    type: str  # name of the scalar type or structure; empty when written in place
    count: int | None  # of an array; 0 for a flexible one
    offset: int  # from the start of the outermost structure
    size: int
    align: int
    members: tuple["Member", ...] = ()
    view: str = ""

    @property
    def is_padding(self) -> bool:
        return PADDING.fullmatch(self.name) is not None


@dataclass(frozen=True, slots=True)
class Layout:
    """A structure."""

    name: str
    header: str
    c: str  # the headers' type; empty when they have none
    c_size: str  # C expression of its size
    doc: str
    size: int
    members: tuple[Member, ...]

    @property
    def align(self) -> int:
        return max(m.align for m in self.members)


@dataclass(frozen=True, slots=True)
class Constant:
    """A named number or string."""

    name: str
    value: int | str
    c: str  # C expression with this value; empty when the headers have none
    c_name: str  # macro of the C header that we generate
    arg: str
    doc: str


@dataclass(frozen=True, slots=True)
class Group:
    """Constants that belong together."""

    name: str
    header: str
    names: str
    shown_in: tuple[str, ...]
    doc: str
    constants: tuple[Constant, ...]
    unimplemented: dict[str, str]  # sub-operation: reason

    @property
    def arguments_table(self) -> str:
        """Name of the table from sub-operation to argument structure; empty without one."""
        has_arguments = any(c.arg for c in self.constants)
        return self.names.removesuffix("NAMES") + "ARGS" if has_arguments else ""


@dataclass(frozen=True, slots=True)
class ListShape:
    """How long the list is that an argument points to: counted by another, or up to a zero."""

    count: str = ""
    each: int = 1
    until: str = ""


@dataclass(frozen=True, slots=True)
class Hypercall:
    """One hypercall."""

    name: str
    number: int
    header: str
    doc: str
    args: dict[str, str]
    lists: dict[str, ListShape]
    selector: str  # argument that selects a sub-operation; empty without any
    operations: str  # group of the sub-operations
    unimplemented: str


class Abi:
    """The ABI of one architecture."""

    def __init__(self, document: dict[str, Any], arch: str) -> None:
        self.arch = arch
        self._architectures = set(document["architectures"])
        self.headers: str = document["interface"]["headers"]
        self.interface_version: int = document["interface"]["version"]
        self.word: int = document["architectures"][arch]["word"]
        self.compiler_flags: list[str] = document["architectures"][arch]["compiler"]
        self.types = {
            name: Type(name, raw[arch], raw.get("c", ""), raw.get("doc", ""))
            for name, raw in document["types"].items()
        }
        self.layouts: dict[str, Layout] = {}
        for name, raw in document["structures"].items():
            if arch in raw["size"]:
                self._load(document["structures"], name)
        self.hypercalls = [_hypercall(n, raw) for n, raw in document["hypercalls"].items()]
        self.constants = self._groups(document["constants"])
        self.conventions = self._groups(document["conventions"])
        self.architecture = self._groups(document["architecture"])
        additions = tuple(
            Constant(name, raw["value"], "", name, "", raw["doc"])
            for name, raw in document["xenlite"].items()
        )
        doc = "xenlite's own additions, off until a guest asks for them."
        self.xenlite = Group("xenlite", "", "", (), doc, additions, {})
        self._check_references()

    def groups(self) -> list[Group]:
        """Return every group, Xen's and the others."""
        return [*self.constants, *self.conventions, *self.architecture, self.xenlite]

    def group(self, name: str) -> Group:
        return next(g for g in self.constants if g.name == name)

    def offsets(self, layout: Layout) -> Iterator[tuple[str, int]]:
        """Yield the name and byte offset of every field, inner fields and unions included."""
        yield from self._offsets(layout.name.upper(), layout.members, 0)

    def _offsets(
        self, prefix: str, members: tuple[Member, ...], base: int
    ) -> Iterator[tuple[str, int]]:
        for m in members:
            name = f"{prefix}_{m.name.upper().lstrip('_')}"
            yield name, base + m.offset
            if m.kind == "named" and m.count is None and not m.is_padding:
                yield from self._offsets(name, self.layouts[m.type].members, base + m.offset)
            yield from self._offsets(name, m.members, base)
            for shown in m.members:
                if shown.name == m.view:
                    yield from self._offsets(name, shown.members, base)

    def _load(self, raws: dict[str, Any], name: str) -> Layout:
        if name in self.layouts:
            return self.layouts[name]
        raw = raws[name]
        members = self._members(raws, name, raw["fields"])
        header = raw.get("header", "")
        c = raw.get("c", f"struct {name}" if header else "")
        c_size = raw.get("c_size", f"sizeof({c})")
        size = raw["size"][self.arch]
        layout = Layout(name, header, c, c_size, raw["doc"], size, members)
        end = 0
        for m in members:
            if m.offset < end or m.offset % m.align:
                raise ValueError(f"{name}.{m.name}: no C compiler would put it at {m.offset}")
            end = m.offset + m.size
        if _round_up(end, layout.align) != size:
            raise ValueError(f"{name}: the fields end at {end}, but the size is {size}")
        self.layouts[name] = layout
        return layout

    def _members(
        self, raws: dict[str, Any], place: str, fields: dict[str, Any]
    ) -> tuple[Member, ...]:
        return tuple(
            self._member(raws, f"{place}.{name}", name, raw)
            for name, raw in fields.items()
            if self._exists(f"{place}.{name}", raw)
        )

    def _exists(self, place: str, raw: dict[str, Any]) -> bool:
        """Say whether this architecture has the field: it does when the field has its offset."""
        if "type" not in raw:
            return True
        self._refuse_unknown(place, raw, {"type"})
        return self.arch in raw

    def _refuse_unknown(self, place: str, raw: dict[str, Any], known: set[str]) -> None:
        unknown = raw.keys() - self._architectures - known
        if unknown:
            raise ValueError(f"{place}: unknown keys {', '.join(sorted(unknown))}")

    def _member(self, raws: dict[str, Any], place: str, name: str, raw: dict[str, Any]) -> Member:
        kinds: tuple[Kind, Kind] = ("struct", "union")
        for kind in kinds:
            if kind in raw:
                inner = self._members(raws, place, raw[kind])
                offset = inner[0].offset
                align = max(m.align for m in inner)
                size = _round_up(max(m.offset + m.size for m in inner) - offset, align)
                view = raw.get("view", "")
                return Member(name, kind, "", None, offset, size, align, inner, view)
        match = ARRAY.fullmatch(raw["type"])
        base = match[1] if match else raw["type"]
        count = int(match[2]) if match else None
        offset = raw[self.arch]
        times = 1 if count is None else count
        if base in self.types:
            size = self.types[base].size
            return Member(name, "scalar", base, count, offset, size * times, min(size, self.word))
        if base not in raws:
            raise ValueError(f"{place}: there is no type {base}")
        layout = self._load(raws, base)
        return Member(name, "named", base, count, offset, layout.size * times, layout.align)

    def _groups(self, raws: dict[str, Any]) -> list[Group]:
        return [self._group(name, raw) for name, raw in raws.items()]

    def _group(self, name: str, raw: dict[str, Any]) -> Group:
        header = raw.get("header", "")
        constants = []
        for key, item in raw["values"].items():
            entry = item if isinstance(item, dict) else {"value": item}
            self._refuse_unknown(key, entry, {"value", "c", "arg"})
            c_name = raw.get("c_prefix", "") + key
            c = entry.get("c", c_name if header else "")
            value = entry.get(self.arch, entry.get("value"))
            if value is not None:
                constants.append(Constant(key, value, c, c_name, entry.get("arg", ""), ""))
        reasons = raw.get("unimplemented", {})
        unimplemented = {op: reason for reason, ops in reasons.items() for op in ops}
        names, shown_in = raw.get("names", ""), tuple(raw.get("shown_in", ()))
        doc = raw.get("doc", "")
        return Group(name, header, names, shown_in, doc, tuple(constants), unimplemented)

    def _check_references(self) -> None:
        known = {*self.types, *self.layouts, "void"}
        for h in self.hypercalls:
            for type_ in h.args.values():
                if type_.removesuffix("*") not in known:
                    raise ValueError(f"{h.name}: there is no type {type_}")
            for name, shape in h.lists.items():
                for argument in filter(None, (name, shape.count)):
                    if argument not in h.args:
                        raise ValueError(f"{h.name}: there is no argument {argument}")
            if h.operations and h.operations not in {g.name for g in self.constants}:
                raise ValueError(f"{h.name}: there is no group {h.operations}")
        places = set(self._places())
        for group in self.constants:
            for place in group.shown_in:
                if place not in places:
                    raise ValueError(f"{group.name}: there is no {place}")
            for c in group.constants:
                if c.arg and c.arg not in known:
                    raise ValueError(f"{c.name}: there is no structure {c.arg}")
            for name in group.unimplemented:
                if name not in {c.name for c in group.constants}:
                    raise ValueError(f"{group.name}: there is no sub-operation {name}")
        seen: dict[str, str] = {}
        for name, place in self._all_names():
            if name in seen:
                raise ValueError(f"{name}: defined by {seen[name]} and by {place}")
            seen[name] = place

    def _places(self) -> Iterator[str]:
        """Yield what `shown_in` may name: structure.field, hypercall(argument)."""
        for h in self.hypercalls:
            yield from (f"{h.name}({argument})" for argument in h.args)
        for layout in self.layouts.values():
            yield from (f"{layout.name}.{m.name}" for m in layout.members)

    def _all_names(self) -> Iterator[tuple[str, str]]:
        for h in self.hypercalls:
            yield f"HYPERVISOR_{h.name}", "hypercalls"
        for group in self.groups():
            for c in group.constants:
                yield c.name, group.name
            if group.names:
                yield group.names, group.name
        for layout in self.layouts.values():
            yield f"SIZEOF_{layout.name.upper()}", layout.name
            for name, _ in self.offsets(layout):
                yield name, layout.name


def read(path: Path, arch: str) -> Abi:
    """Return the ABI that the YAML file at `path` describes for `arch`."""
    return Abi(yaml.safe_load(path.read_text(encoding="utf-8")), arch)


def _hypercall(name: str, raw: dict[str, Any]) -> Hypercall:
    operations = raw.get("operations", {})
    return Hypercall(
        name=name,
        number=raw["number"],
        header=raw["header"],
        doc=raw.get("doc", ""),
        args=raw["args"],
        lists={name: ListShape(**shape) for name, shape in raw.get("lists", {}).items()},
        selector=operations.get("by", ""),
        operations=operations.get("of", ""),
        unimplemented=raw.get("unimplemented", ""),
    )


def _round_up(value: int, to: int) -> int:
    return -(-value // to) * to
