"""Real vLLM servers on CPU, started once for all tests and always stopped with everything they started.

`make test-vllm` installs the engine first. There are two: `engine` is started by deploy/engine/vllm_cpu.sh and is
somebody else's server to us; `supervised_engine` is started by our own supervision, with almost no KV cache. Both start
at the same time, and only where a selected test asks for them. Tests that take `dying_engine` kill the first one: they
run last.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.vllm.vllm_servers import ScriptedStart, SupervisedStart, VllmServer


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that kill the engine come last."""
    items.sort(key=lambda item: "dying_engine" in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def starting(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, ScriptedStart | SupervisedStart]]:
    """Every server that a selected test needs, starting side by side."""
    needed = {name for item in request.session.items for name in getattr(item, "fixturenames", ())}
    started: dict[str, ScriptedStart | SupervisedStart] = {}
    try:
        if "engine" in needed:
            started["engine"] = ScriptedStart(tmp_path_factory.mktemp("vllm") / "engine.log")
        if "supervised_start" in needed:
            started["supervised"] = SupervisedStart(tmp_path_factory.mktemp("supervised"))
        yield started
    finally:
        for start in started.values():
            start.stop()


@pytest.fixture(scope="session")
def engine(starting: dict[str, ScriptedStart | SupervisedStart]) -> VllmServer:
    """A healthy engine that is not ours: MAX_NUM_SEQS at a time, a queue of MAX_QUEUED, then 503."""
    return starting["engine"].wait_ready()


@pytest.fixture
def no_engine_starts(starting: dict[str, ScriptedStart | SupervisedStart]) -> None:
    """Every server is up: none of them is busy with that."""
    for start in starting.values():
        start.wait_ready()


@pytest.fixture
def dying_engine(engine: VllmServer) -> VllmServer:
    """The same engine, for the tests that kill it."""
    return engine


@pytest.fixture(scope="session")
def supervised_start(starting: dict[str, ScriptedStart | SupervisedStart]) -> SupervisedStart:
    """The supervision of `supervised_engine`."""
    start = starting["supervised"]
    assert isinstance(start, SupervisedStart)
    return start


@pytest.fixture
def supervised_engine(supervised_start: SupervisedStart) -> VllmServer:
    """An engine under our supervision whose KV cache holds KV_BLOCKS blocks; ready, even if a test before killed it."""
    return supervised_start.wait_ready()
