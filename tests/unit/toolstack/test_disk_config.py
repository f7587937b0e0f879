# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenlite.errors import ConfigError
from xenlite.toolstack.config import parse
from xenlite.toolstack.disk_config import DiskConfig, device_number, read_disk
from xenlite.toolstack.domain_config import DomainConfig

LEAST = "name: a\nkernel: b\n"
XVDA = DiskConfig(Path("d.img"), "xvda", 51712)


def read(text: str, *overrides: str) -> DomainConfig:
    return parse((LEAST + text).encode(), "dom.yaml", Path("dir"), overrides)


def faults(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(text)
    return [str(fault) for fault in caught.value.faults]


@pytest.mark.parametrize(
    "text",
    [
        "d.img,raw,xvda,rw",
        "d.img,,xvda",
        " d.img , raw , xvda , w ",
        "file:d.img,xvda,w",
        "vdev=xvda,target=d.img",
        "format=raw,vdev=xvda,access=rw,target=d.img",
        "d.img,vdev=xvda",
    ],
)
def test_xls_ways_of_writing_a_disk(text: str) -> None:
    assert read_disk(text) == XVDA


def test_a_target_may_contain_commas_at_the_end() -> None:
    assert read_disk("vdev=xvda,target=a,b.img").target == Path("a,b.img")


@pytest.mark.parametrize(
    ("text", "read_only", "cdrom"),
    [
        ("d.img,raw,xvda,ro", True, False),
        ("d.img,raw,xvda,r", True, False),
        ("d.img,raw,xvda,cdrom", True, True),
        ("vdev=xvda,devtype=cdrom,target=d.img", True, True),
    ],
)
def test_access(text: str, *, read_only: bool, cdrom: bool) -> None:
    disk = read_disk(text)
    assert (disk.read_only, disk.is_cdrom) == (read_only, cdrom)


@pytest.mark.parametrize(
    ("vdev", "number"),
    [
        ("xvda", 51712),
        ("xvdb1", 51729),
        ("xvdp15", 51967),
        ("xvdq", (1 << 28) | (16 << 8)),
        ("xvda16", (1 << 28) | 16),
        ("xvdaa", (1 << 28) | (26 << 8)),
        ("hda", 768),
        ("hdb", 832),
        ("hdc", 5632),
        ("hdd2", 5698),
        ("sda", 2048),
        ("sdb1", 2065),
    ],
)
def test_devices_have_the_numbers_that_frontends_know(vdev: str, number: int) -> None:
    assert device_number(vdev) == number


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "target"),
        ("d.img", "vdev"),
        ("d.img,qcow2,xvda,rw", "raw"),
        ("d.img,raw,vda,rw", "vdev"),
        ("d.img,raw,sdq,rw", "number"),
        ("d.img,raw,hde,rw", "number"),
        ("d.img,raw,xvda,rx", "access"),
        ("d.img,raw,xvda,rw,more", "too many"),
        ("d.img,raw,xvda,rw,cdrom", "only be read"),
        ("d.img,raw,xvda,script=x", "script"),
        ("vdev=xvda,vdev=xvdb,target=d.img", "twice"),
        ("vdev=xvda,devtype=tape,target=d", "devtype"),
    ],
)
def test_a_mistake_is_one_clear_line(text: str, what: str) -> None:
    with pytest.raises(ValueError, match=what) as caught:
        read_disk(text)
    assert "\n" not in str(caught.value)


@given(st.text())
def test_no_text_does_more_than_be_refused(text: str) -> None:
    try:
        disk = read_disk(text)
    except ValueError:
        return
    assert disk.number > 0


def test_disks_stand_in_lists_in_groups_and_alone() -> None:
    here = XVDA.below(Path("dir"))
    for text in (
        "disk: d.img,raw,xvda,rw\n",
        "disk: ['d.img,raw,xvda,rw']\n",
        "disk:\n  - d.img,raw,xvda,rw\n",
        "disk: {target: d.img, vdev: xvda}\n",
        "disk:\n  - target: d.img\n    vdev: xvda\n    access: rw\n    format: raw\n",
    ):
        assert read(text).disks == (here,)
    both = read("disk:\n  - d.img,raw,xvda,rw\n  - {target: /e.img, vdev: xvdb, access: ro}\n")
    assert [disk.target for disk in both.disks] == [Path("dir/d.img"), Path("/e.img")]
    assert read("").disks == read("disk: []\n").disks == read("disk:\n").disks == ()
    assert read("", "disk=d.img,raw,xvda,rw").disks == (XVDA,)


def test_every_mistake_has_its_line() -> None:
    text = (
        "disk:\n  - d.img,qcow2,xvda,rw\n  - [a]\n  - {target: [x], vdev: xvda}\n"
        "  - {target: a, target: b, vdev: xvdc}\n  - e.img,raw,vda\n"
    )
    assert [fault.split(" ")[0] for fault in faults(text)] == [
        f"dom.yaml:{line}:" for line in (4, 5, 6, 6, 7, 8)
    ]
    assert faults('disk: ["a,raw,xvda", "b,raw,xvda"]\n') == [
        "dom.yaml:3: disk: xvda is given twice"
    ]
    assert len(faults("disk: &x [a]\nname2: *x\n")) == 2
