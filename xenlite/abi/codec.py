# SPDX-License-Identifier: GPL-2.0-or-later
"""Turn structures of the guest ABI into bytes and back.

The generated modules declare one `Structure` per C structure: an immutable value with slots. It is a plain class instead of a standard dataclass: importing a hundred of those takes longer
than a domain may take to start.
"""

from collections.abc import Callable
from struct import Struct
from typing import Any, ClassVar, Self, dataclass_transform

Part = tuple[Callable[[bytes], Any], Callable[[Any], bytes]]


def array(code: str, count: int) -> Part:
    """Describe a field of `count` scalars with the `struct` code `code`: a tuple of integers."""
    layout = Struct(f"<{count}{code}")
    return layout.unpack, lambda values: layout.pack(*values)


def nested(cls: "type[Structure]") -> Part:
    """Describe a field that is another structure."""
    return cls.unpack, cls.pack


def nested_array(cls: "type[Structure]", count: int) -> Part:
    """Describe a field of `count` structures: a tuple of them."""
    size = cls.LAYOUT.size

    def unpack(raw: bytes) -> "tuple[Structure, ...]":
        return tuple(cls.unpack(raw, start) for start in range(0, size * count, size))

    def pack(values: "tuple[Structure, ...]") -> bytes:
        if len(values) != count:
            raise ValueError(f"{len(values)} of {count} {cls.__name__}")
        return b"".join(value.pack() for value in values)

    return unpack, pack


@dataclass_transform(frozen_default=True)
class Structure:
    """A C structure as an immutable value: compares, hashes and prints by its fields.

    `LAYOUT` is the whole structure, little-endian, padding included: read many of them with
    `LAYOUT.iter_unpack`. `PARTS` converts the fields that are not plain integers or bytes.
    """

    __slots__: ClassVar[tuple[str, ...]] = ()
    LAYOUT: ClassVar[Struct]
    PARTS: ClassVar[dict[str, Part]] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        names = self.__slots__
        if len(args) > len(names):
            raise TypeError(f"{type(self).__name__} has {len(names)} fields, not {len(args)}")
        values = dict(zip(names, args, strict=False))
        for name, value in kwargs.items():
            if name in values or name not in names:
                raise TypeError(f"{type(self).__name__}: unexpected field {name!r}")
            values[name] = value
        if len(values) != len(names):
            missing = ", ".join(name for name in names if name not in values)
            raise TypeError(f"{type(self).__name__}: no value for {missing}")
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @classmethod
    def unpack(cls, buffer: bytes | bytearray | memoryview, offset: int = 0) -> Self:
        """Read one structure at byte `offset`; `struct.error` when the buffer is too short."""
        self = object.__new__(cls)
        for name, value in zip(cls.__slots__, cls.LAYOUT.unpack_from(buffer, offset), strict=True):
            if name in cls.PARTS:
                value = cls.PARTS[name][0](value)
            object.__setattr__(self, name, value)
        return self

    def pack(self) -> bytes:
        """Return the bytes, padding zero; `struct.error` for a value that does not fit."""
        values = [getattr(self, name) for name in self.__slots__]
        if self.PARTS:
            for index, name in enumerate(self.__slots__):
                if name in self.PARTS:
                    values[index] = self.PARTS[name][1](values[index])
        return self.LAYOUT.pack(*values)

    def replace(self, **changes: Any) -> Self:
        """Return a copy with the fields named in `changes` changed."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return type(self)(**{**values, **changes})

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be changed")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be deleted")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    def __hash__(self) -> int:
        return hash((type(self), *(getattr(self, name) for name in self.__slots__)))

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"{type(self).__name__}({fields})"
