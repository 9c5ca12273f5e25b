"""What holds for every test: the same made-up examples, no clock beside them, logging as it was before, and Ctrl-C.

A new example every time finds more, and belongs on a desk: `make test ARGS='--hypothesis-profile=search'`.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, settings

from router.cli import main

settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("search", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("same")

# A shell starts what runs in its background deaf to Ctrl-C, and so is every child of that: tests press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A command run within the test logs to a stream that is closed after it."""
    root = logging.getLogger()
    before, level = set(root.handlers), root.level
    yield
    for handler in root.handlers[:]:
        if type(handler) is logging.StreamHandler and handler not in before:
            root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """A command as the shell runs it: `run("prices", "check")` -> (exit code, stdout, stderr)."""

    def _run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        told = capsys.readouterr()
        return int(left.value.code or 0), told.out, told.err

    return _run


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A file is one worker's: what its tests share is made once. So is a folder with a trained model to share."""
    if not config.pluginmanager.hasplugin("xdist"):  # the marker is its own, and unknown without it
        return
    for item in items:
        folder = item.path.parent
        group = folder.name if folder.name == "classifier" else f"{folder.name}/{item.path.stem}"
        item.add_marker(pytest.mark.xdist_group(group))
