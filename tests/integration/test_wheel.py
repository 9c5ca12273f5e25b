"""What is shipped: a wheel of three packages, which works where nothing else of this project is."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("router", "classifier", "local_llm")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from this checkout, without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


@pytest.fixture(scope="module")
def elsewhere(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel unpacked by pip in a folder of its own."""
    target = tmp_path_factory.mktemp("elsewhere")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
    command += ["--no-index", "--no-compile", "--target", str(target), str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def sources() -> Iterator[str]:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc":
                yield str(path.relative_to(ROOT))


def run_there(elsewhere: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python without the site's own start-up, hence without the editable checkout: the wheel, then the libraries."""
    libraries = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    paths = [str(elsewhere), *libraries]
    return subprocess.run(
        [sys.executable, "-S", *arguments],
        cwd=folder,
        env={"PYTHONPATH": ":".join(paths), "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_wheel_holds_our_three_packages_and_nothing_else(names: list[str]) -> None:
    top = {name.partition("/")[0] for name in names}
    (metadata,) = top - set(PACKAGES)
    assert top >= set(PACKAGES)
    assert metadata.startswith("hybrid_llm_router-")
    assert metadata.endswith(".dist-info")
    assert f"{metadata}/licenses/LICENSE" in names


def test_every_file_of_the_packages_is_in_it(names: list[str]) -> None:
    assert {name for name in names if name.partition("/")[0] in PACKAGES} == set(sources())
    shipped = {"router/shipped/router.yaml", "router/shipped/prices.yaml"}
    assert shipped | {f"{package}/py.typed" for package in PACKAGES} <= set(names)


def test_its_command_has_a_name_of_its_own(wheel: Path, names: list[str]) -> None:
    (entry_points,) = [name for name in names if name.endswith(".dist-info/entry_points.txt")]
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(entry_points).decode()
    assert text.split() == ["[console_scripts]", "hybrid-llm-router", "=", "router.cli:main"]


def test_installed_elsewhere_it_is_what_runs_there(elsewhere: Path, tmp_path: Path) -> None:
    code = f"import importlib, sys; [print(importlib.import_module(n).__file__) for n in {PACKAGES!r}]"
    done = run_there(elsewhere, tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(elsewhere / package / "__init__.py") for package in PACKAGES]


def test_installed_elsewhere_it_explains_a_decision(elsewhere: Path, tmp_path: Path) -> None:
    done = run_there(elsewhere, tmp_path, "-m", "router", "explain", "--prompt", "hi")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert {alternative["tier"] for alternative in told["alternatives"]} == {"local", "cheap", "premium"}
    assert told["chosen"]["tier"] == "local"


def test_installed_elsewhere_it_knows_its_version_and_prices(elsewhere: Path, tmp_path: Path) -> None:
    version = run_there(elsewhere, tmp_path, "-m", "router", "--version")
    assert version.stdout.split()[0] == "hybrid-llm-router"
    prices = run_there(elsewhere, tmp_path, "-m", "router", "prices", "check", "--format", "json")
    assert prices.returncode == 0, prices.stdout + prices.stderr
