"""What the decision rests on holds no fully loaded cost: deciding on it would make an idle GPU dearer and so idler."""

from __future__ import annotations

import subprocess
import sys

LOADED_COST = (
    "router.core.periods",
    "router.core.break_even",
    "router.core.savings",
    "router.closing",
    "router.stores",
)


def test_the_decision_cannot_reach_the_fully_loaded_cost() -> None:
    asked = "import sys, router.core.policy; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, check=True, text=True)
    loaded = done.stdout.split()
    assert "router.core.policy" in loaded
    assert [name for name in loaded if name.startswith(LOADED_COST)] == []
