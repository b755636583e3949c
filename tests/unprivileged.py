"""What root may do in spite of a file's mode is set aside for a while, so that modes count; or
root is somebody else for a while."""

import ctypes
import importlib.metadata
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

_VERSION = 0x20080522
"""Of the kernel's structures: capabilities as two words of 32 bits."""


@contextmanager
def unprivileged() -> Iterator[None]:
    """File modes count in this thread, and in those that it starts, whoever runs the tests."""
    if os.geteuid() != 0:
        yield
        return
    if sys.platform != "linux":
        pytest.skip("root sets its rights aside on Linux only")
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_VERSION, 0)
    before = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable, twice
    assert libc.capget(header, before) == 0
    without = (ctypes.c_uint32 * 6)(0, *before[1:3], 0, *before[4:])
    assert libc.capset(header, without) == 0
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0


def skip_where_packages_are_private() -> None:
    """Skip a test whose other user imports late, where packages lie in a folder of the owner."""
    with user(12345, 54321):
        try:
            importlib.metadata.version("torch")
            return
        except importlib.metadata.PackageNotFoundError:
            pass
    pytest.skip("another user cannot read the folder that the packages are installed in")


@contextmanager
def user(number: int, group: int) -> Iterator[None]:
    """Files are made and opened by another user, who is in a group beside the own."""
    groups = os.getgroups()
    os.setgroups([group])
    os.setegid(number)
    os.seteuid(number)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)
