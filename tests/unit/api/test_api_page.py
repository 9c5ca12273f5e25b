"""docs/api.md names every word that the gateway may say, and none that it cannot."""

from __future__ import annotations

import re
from pathlib import Path

from router import errors
from router.core.vocabulary import Flag, Reason, Reject

PAGE = (Path(__file__).parents[3] / "docs" / "api.md").read_text(encoding="utf-8")


def test_every_reason_and_flag_stands_on_the_page_and_no_other() -> None:
    told = set(re.findall(r"`([A-Z_]{6,})`", PAGE))
    assert told == {word.value for kind in (Reason, Reject, Flag) for word in kind}


def test_every_code_of_an_error_stands_on_the_page() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.RouterError)]
    codes = {kind.code for kind in kinds} - {errors.ConfigError.code}
    assert len(codes) > 20
    assert not {code for code in codes if f"`{code}`" not in PAGE}
