"""What README and docs/ tell to type exists: commands with their options, make targets, files and headings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from router.cli import app
from router.core.vocabulary import Tier
from router.settings import parse_settings

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
COMMAND = re.compile(r"hybrid-llm-router ([a-z][^`#|\n]*)")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def options_of(words: list[str]) -> tuple[str, set[str]]:
    """(the command that `words` name, its options)."""
    found, name = typer.main.get_command(app), ""
    for word in words:
        inner = getattr(found, "commands", {}).get(word)
        if inner is None:
            break
        found, name = inner, f"{name} {word}".strip()
    return name, {option for param in found.params for option in (*param.opts, *param.secondary_opts)}


def anchor(heading: str) -> str:
    """As a forge names the place of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_that_a_page_tells_exists_with_its_options(page: Path) -> None:
    for told in COMMAND.findall(page.read_text(encoding="utf-8").replace("\\\n", " ")):
        name, options = options_of(told.split())
        assert name, f"{page.name}: hybrid-llm-router {told}"
        wrong = {
            option for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", told) if option not in options | {"--help"}
        }
        assert not wrong, f"{page.name}: {name} has no {wrong}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_make_target_that_a_page_tells_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    told = set(
        re.findall(r"(?:^ {4}|`)(?:[A-Z_]+=\S+ )*make ([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert told <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, place = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        if place:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert place in {anchor(heading) for heading in headings}, f"{page.name}: {link}"


def test_the_config_in_the_readme_is_one() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    settings = parse_settings(text, {"OPENAI_API_KEY": "sk-1", "ANTHROPIC_API_KEY": "sk-2"}, source="README.md")
    assert [tier for tier, _ in settings.tiers.api_models()] == [Tier.CHEAP, Tier.PREMIUM]
