"""One small trained model for all tests of the learner."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from threadpoolctl import threadpool_limits

from classifier import cli
from tests.learning_data import rows, write

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """On data this small a second thread only waits, and waits by spinning: it would slow whatever else runs."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="session")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled rows of two applications."""
    made = rows(300, seed=1) + rows(200, seed=2, source="other-app")
    return write(tmp_path_factory.mktemp("labels") / "labels.jsonl", made)


@pytest.fixture(scope="session")
def model(labels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder trained on `labels`; not to be written to."""
    out = tmp_path_factory.mktemp("models") / "model"
    cli.train(labels, out, now_utc=NOW)
    return out
