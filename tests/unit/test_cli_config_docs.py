"""The configuration page is made from the schema and says all of it."""

from __future__ import annotations

from pathlib import Path

from router.commands.config_docs import main, render
from router.settings_schema import ApiModelFile, OwnedFile, PolicyFile, ServerFile


def test_every_key_is_on_the_page() -> None:
    page = render()
    for prefix, section in (("server", ServerFile), ("tiers.cheap", ApiModelFile), ("policy", PolicyFile)):
        for key in section.model_fields:
            assert f"`{prefix}.{key}" in page, key
    for key in OwnedFile.model_fields:
        assert key in page


def test_every_key_says_what_it_means() -> None:
    rows = [line for line in render().splitlines() if line.startswith("| `")]
    assert rows and all(line.rstrip(" |").rsplit("|", 1)[-1].strip() for line in rows)


def test_the_page_in_the_repository_is_the_one_the_schema_makes() -> None:
    page = Path(__file__).parents[2] / "docs" / "configuration.md"
    assert main(["--check", str(page)]) == 0


def test_a_page_that_is_out_of_date_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "configuration.md"
    page.write_text(render().replace("8080", "8081"))
    assert main(["--check", str(page)]) == 1
