"""`python obedient.py ARGUMENTS`: python, for whom files marked read-only count even where the tests run as root."""

from __future__ import annotations

import ctypes
import os
import sys

_PR_CAPBSET_DROP = 24
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 1, 2


def obey_file_permissions() -> None:
    """For a process about to exec: even root may then not write what is marked read-only."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        for capability in (_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH):
            if libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
                raise OSError(ctypes.get_errno(), "cannot drop a capability")


if __name__ == "__main__":
    obey_file_permissions()
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])  # noqa: S606
