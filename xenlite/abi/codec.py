# SPDX-License-Identifier: GPL-2.0-or-later
"""Turn structures of the guest ABI into bytes and back.

The generated modules declare one `Structure` for each C structure: an immutable value with slots.
It is a plain class, not a standard dataclass, because decorating a hundred of those takes 50 ms at
import, and this takes 2. Type checkers see a frozen dataclass all the same.
"""

from collections.abc import Callable
from struct import Struct
from typing import TYPE_CHECKING, Any, ClassVar, Self, dataclass_transform

if TYPE_CHECKING:
    from typing_extensions import override
else:

    def override(method):
        """Mark a method for the type checker; Python 3.11 has no such mark of its own."""
        return method


Buffer = bytes | bytearray | memoryview
# How to get a field's value from its bytes, and its bytes from the value.
Part = tuple[Callable[[bytes], Any], Callable[[Any], bytes]]


def array(code: str, count: int) -> Part:
    """Describe a field of `count` scalars, each with the `struct` code `code`."""
    layout = Struct(f"<{count}{code}")
    return layout.unpack, lambda values: layout.pack(*values)


def nested(cls: "type[Structure]") -> Part:
    """Describe a field that is a structure."""
    return cls.unpack, cls.pack


def nested_array(cls: "type[Structure]", count: int) -> Part:
    """Describe a field of `count` structures. Packing another number of them is a `ValueError`."""
    size = cls.LAYOUT.size

    def unpack(raw: bytes) -> "tuple[Structure, ...]":
        return tuple(cls.unpack(raw, offset) for offset in range(0, size * count, size))

    def pack(values: "tuple[Structure, ...]") -> bytes:
        if len(values) != count:
            raise ValueError(f"{len(values)} of {count} {cls.__name__}")
        return b"".join(value.pack() for value in values)

    return unpack, pack


@dataclass_transform(frozen_default=True)
class Structure:
    """A C structure as an immutable value: compares, hashes and prints by its fields.

    `LAYOUT` is the whole structure, little-endian, padding included. Where speed matters, read
    plain structures in bulk with `LAYOUT.iter_unpack`. `PARTS` converts the other fields.
    """

    __slots__: ClassVar[tuple[str, ...]] = ()
    LAYOUT: ClassVar[Struct]
    PARTS: ClassVar[dict[str, Part]] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        names = self.__slots__
        values = dict(zip(names, args, strict=False))
        if len(args) > len(names) or not values.keys().isdisjoint(kwargs):
            raise TypeError(f"{type(self).__name__}: too many values")
        values.update(kwargs)
        if values.keys() != set(names):
            wrong = ", ".join(sorted(values.keys() ^ set(names)))
            raise TypeError(f"{type(self).__name__}: missing or unknown: {wrong}")
        for name in names:
            object.__setattr__(self, name, values[name])

    @classmethod
    def unpack(cls, buffer: Buffer, offset: int = 0) -> Self:
        """Read a structure at byte `offset`. `struct.error` when the buffer ends too early."""
        self = object.__new__(cls)
        values = cls.LAYOUT.unpack_from(buffer, offset)
        for name, value in zip(cls.__slots__, values, strict=True):
            part = cls.PARTS.get(name)
            object.__setattr__(self, name, value if part is None else part[0](value))
        return self

    def pack(self) -> bytes:
        """Return the bytes, padding zero. `struct.error` when a value does not fit its field."""
        values = []
        for name in self.__slots__:
            part = self.PARTS.get(name)
            value = getattr(self, name)
            values.append(value if part is None else part[1](value))
        return self.LAYOUT.pack(*values)

    def replace(self, **changes: Any) -> Self:
        """Return a copy that differs in the fields named by `changes`."""
        return type(self)(**{**{name: getattr(self, name) for name in self.__slots__}, **changes})

    @override
    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be changed")

    @override
    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be deleted")

    @override
    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    @override
    def __hash__(self) -> int:
        return hash((type(self), *(getattr(self, name) for name in self.__slots__)))

    @override
    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"{type(self).__name__}({fields})"
