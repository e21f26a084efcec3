"""A system call filter for Linux: it allows only calls that affect nothing beyond the process.

The filter is a classic BPF program for seccomp(2). On other systems, other machines and kernels without seccomp there
is no filter, and only the resource limits of `worker.confine` hold.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Callable

_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 4, 22, 38  # linux/prctl.h
_SECCOMP_MODE_FILTER = 2  # linux/seccomp.h, as are the actions below
_ALLOW, _KILL_PROCESS = 0x7FFF0000, 0x80000000
_REFUSE = 0x00050000 | errno.EPERM
_LOAD_WORD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # linux/bpf_common.h
_NUMBER_AT, _MACHINE_AT, _FIRST_ARGUMENT_AT = 0, 4, 16  # struct seccomp_data; words are little-endian on both machines
_POINTER_BYTES = 8
"""32-bit programs have other system call numbers on the same machine."""
_INSTRUCTION = struct.Struct("<HBBI")

_MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # linux/audit.h
_ALLOWED = {
    # what is open already
    "read": (0, 63),
    "write": (1, 64),
    "readv": (19, 65),
    "writev": (20, 66),
    "close": (3, 57),
    "lseek": (8, 62),
    "fstat": (5, 80),  # glibc 2.33 to 2.38 uses newfstatat, which takes paths: its refusal does no harm
    # memory
    "brk": (12, 214),
    "mmap": (9, 222),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "mprotect": (10, 226),
    "madvise": (28, 233),
    # synchronization of threads
    "futex": (202, 98),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "membarrier": (324, 283),
    "rseq": (334, 293),
    # time, and the signal that ends a slow process
    "clock_gettime": (228, 113),
    "gettimeofday": (96, 169),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101),
    "times": (100, 153),
    "setitimer": (38, 103),
    "getitimer": (36, 102),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    # about itself
    "getpid": (39, 172),
    "gettid": (186, 178),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "getcwd": (79, 17),
    "getrusage": (98, 165),
    "sysinfo": (99, 179),
    "getrandom": (318, 278),
    # the end
    "exit": (60, 93),
    "exit_group": (231, 94),
}
"""System call numbers on x86_64 (asm/unistd_64.h) and aarch64 (asm-generic/unistd.h)."""
_TGKILL = (234, 131)


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("num_instructions", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def be_unreadable() -> None:
    """Keep other processes of the same user from reading this one and its children, which serve different brands."""
    prctl = _prctl()
    if prctl is not None:
        prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def allow_only_computing() -> bool:
    """Refuse (EPERM) all calls that reach beyond this process: files, other processes and their limits, shared memory.

    Signals to itself are allowed, so that a crash ends the process with the right signal.

    Returns:
        Whether the filter is active; it stays so until the process ends.
    """
    prctl = _prctl()
    if prctl is None or platform.machine() not in _MACHINES or struct.calcsize("P") != _POINTER_BYTES:
        return False
    code = _filter(platform.machine(), os.getpid())
    program = _Program(len(code) // _INSTRUCTION.size, code)
    return bool(
        prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
        and prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) == 0
    )


def _filter(machine: str, pid: int) -> bytes:
    """The BPF program. It kills a process that uses another machine's call numbers, which mean other calls."""
    column = list(_MACHINES).index(machine)
    allowed = sorted(numbers[column] for numbers in _ALLOWED.values())
    refuse = len(allowed) + 3
    return b"".join(
        _INSTRUCTION.pack(*each)
        for each in (
            (_LOAD_WORD, 0, 0, _MACHINE_AT),
            (_JUMP_IF_EQUAL, 1, 0, _MACHINES[machine]),
            (_RETURN, 0, 0, _KILL_PROCESS),
            (_LOAD_WORD, 0, 0, _NUMBER_AT),
            *((_JUMP_IF_EQUAL, refuse - at, 0, number) for at, number in enumerate(allowed)),
            (_JUMP_IF_EQUAL, 0, 2, _TGKILL[column]),
            (_LOAD_WORD, 0, 0, _FIRST_ARGUMENT_AT),
            (_JUMP_IF_EQUAL, 1, 0, pid),
            (_RETURN, 0, 0, _REFUSE),
            (_RETURN, 0, 0, _ALLOW),
        )
    )


def _prctl() -> Callable[..., int] | None:
    prctl: Callable[..., int] | None = getattr(ctypes.CDLL(None), "prctl", None)
    return prctl
