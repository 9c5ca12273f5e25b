"""A stand-in for the NVIDIA driver's library, compiled from fixtures/nvml and read by the real pynvml."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).parent / "fixtures" / "nvml" / "nvml_stand_in.c"


def build_library(folder: Path, *flags: str) -> Path:
    """Compile it into `folder`; whoever has that in LD_LIBRARY_PATH sees the machine that the file NVML_STATE tells."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler is not None, "a C compiler is needed: apt-get install gcc"
    subprocess.run(
        [
            *(compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-Wl,-soname,libnvidia-ml.so.1", *flags),
            *("-o", str(folder / "libnvidia-ml.so.1"), str(SOURCE)),
        ],
        check=True,
    )
    return folder
