"""Tables on a terminal: figures and days are kept together however narrow it is, and nothing is cut off."""

from __future__ import annotations

import io
import re
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.commands.output import Format, write_rows

COLUMNS = ("day", "model", "input_tokens", "cost_usd")
ROWS = [
    {"day": "2026-11-22", "model": "smollm2-135m-instruct", "input_tokens": 272_001, "cost_usd": Decimal("0.000784")},
    {"day": "2026-11-23", "model": None, "input_tokens": 7, "cost_usd": Decimal("12.5")},
]


class Terminal(io.StringIO):
    """Somebody looks at it."""

    def isatty(self) -> bool:
        return True


def shown(width: int, patch: pytest.MonkeyPatch) -> str:
    patch.setenv("COLUMNS", str(width))
    out = Terminal()
    write_rows(ROWS, COLUMNS, Format.TABLE, out)
    return re.sub(r"\x1b\[\d+m", "", out.getvalue())


@settings(max_examples=30)
@given(st.integers(20, 150))
def test_no_width_breaks_a_figure_or_cuts_a_column_off(width: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        text = shown(width, patch)
    for whole in ("2026-11-22", "2026-11-23", "272001", "0.000784", "12.5"):
        assert whole in text
    assert max(map(len, text.splitlines())) <= max(width, len("input tokens   smollm2-135m-instruct"))


def test_a_name_is_folded_before_the_table_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    wide, narrow, too_narrow = (shown(width, monkeypatch) for width in (100, 50, 40))
    assert "smollm2-135m-instruct" in wide and "─" in wide
    assert "smollm2-135m-instruct" not in narrow and "─" in narrow
    assert "─" not in too_narrow
    assert too_narrow.split("\n\n")[1].splitlines() == [
        "day            2026-11-23",
        "input tokens   7",
        "cost usd       12.5",
    ]
