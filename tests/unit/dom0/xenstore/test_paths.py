# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenlite.abi.x86_32p import EINVAL
from xenlite.dom0.xenstore import paths
from xenlite.errors import Refused


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (b"/", "/"),
        (b"/a", "/a"),
        (b"/a/B_9-@", "/a/B_9-@"),
        (b"name", "/local/domain/3/name"),
        (b"device/vbd", "/local/domain/3/device/vbd"),
        (b"/" + b"a" * 2047, "/" + "a" * 2047),
        (b"/local/domain/3/" + b"a" * 2048, "/local/domain/3/" + "a" * 2048),
        (b"/" + b"/".join([b"a"] * 1000), "/" + "/".join(["a"] * 1000)),
    ],
)
def test_a_path_is_absolute_or_below_the_clients_own(text: bytes, path: str) -> None:
    assert paths.resolve(text, 3) == path


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"//",
        b"/a/",
        b"a/",
        b"/a//b",
        b"/local/domain/",
        b"/a b",
        b"/a:b",
        b"/a.b",
        b"/\xff",
        b"/a\n",
        b"@introduceDomain",
        b"/" + b"a" * 2048,
        b"a" * 2049,
        b"/local/domain/3/" + b"a" * 2049,
        b"/local/domain/123456/" + b"a" * 2048,
        b"/" + b"a/" * 1536 + b"a",
    ],
)
def test_nothing_is_mended(text: bytes) -> None:
    with pytest.raises(Refused) as refused:
        paths.resolve(text, 3)
    assert refused.value.errno == EINVAL


def test_dom0_may_write_longer_paths_up_to_the_protocols_limit() -> None:
    longest = b"/" + b"a" * 3071
    assert paths.resolve(longest, 0) == longest.decode()
    for domid, text in [(0, longest + b"a"), (3, longest)]:
        with pytest.raises(Refused):
            paths.resolve(text, domid)


@given(st.binary(max_size=40))
def test_the_parser_is_total(text: bytes) -> None:
    try:
        path = paths.resolve(text, 3)
    except Refused:
        return
    assert path == "/" or (path[0] == "/" and all(path[1:].split("/")))


def test_only_the_two_special_names_can_be_watched() -> None:
    assert paths.resolve_watched(b"@releaseDomain", 0) == "@releaseDomain"
    for text in (b"@", b"@releaseDomain/3", b"@other"):
        with pytest.raises(Refused):
            paths.resolve_watched(text, 3)


@pytest.mark.parametrize("text", [b"", b"-1", b"+1", b"1 ", b"0x1", b"32752", b"99999", b"123456"])
def test_domids_are_plain_numbers_below_the_reserved_ones(text: bytes) -> None:
    assert paths.parse_domid(b"32751") == 32751
    with pytest.raises(Refused):
        paths.parse_domid(text)
