"""Start TensorZero's HTTP gateway, which its Python package carries, and keep it up; run by TensorZero's own Python.

The gateway picks its own port; it is written to PORT_FILE once it listens.

    python bench/tensorzero_start.py CONFIG PORT_FILE
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from urllib.parse import urlsplit

from tensorzero import _start_http_gateway

if __name__ == "__main__":
    gateway = _start_http_gateway(
        config_file=sys.argv[1], clickhouse_url=None, postgres_url=None, valkey_url=None, async_setup=False
    )
    whole = Path(sys.argv[2] + ".new")
    whole.write_text(str(urlsplit(gateway.base_url).port))
    whole.rename(sys.argv[2])
    signal.pause()
