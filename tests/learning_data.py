"""Made-up labelled prompts with a known truth, for tests of the learner."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

SUBJECTS = {"colour": 0.95, "capital": 0.85, "recipe": 0.75, "proof": 0.35, "theorem": 0.25, "compiler": 0.45}
DOMAINS = {
    "colour": "life",
    "recipe": "life",
    "proof": "mathematics",
    "theorem": "mathematics",
    "capital": "facts",
    "compiler": "facts",
}
TIERS = ("local", "cheap", "premium")
_FILLER = ("please", "tell", "me", "about", "this", "thing", "in", "some", "detail", "keep", "it", "short", "friend")
MODELS = {"local": "small-8b", "cheap": "mid-30b", "premium": "big-1t"}


def truth(subject: str) -> dict[str, float]:
    """P(adequate) of each tier for prompts on a subject."""
    easy = SUBJECTS[subject]
    return {"local": easy, "cheap": 0.5 * easy + 0.45, "premium": 0.2 * easy + 0.75}


def rows(count: int, *, seed: int = 0, tiers: Sequence[str] = TIERS, source: str = "app") -> list[dict[str, Any]]:
    """Fully labelled rows, each with its own stem; `subject` is kept beside what the format knows."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        subject = str(rng.choice(list(SUBJECTS)))
        filler = " ".join(rng.choice(_FILLER, size=int(rng.integers(3, 25))))
        p = truth(subject)
        made.append(
            {
                "request_id": f"{source}/{seed}/{i}",
                "source": source,
                "domain": DOMAINS[subject],
                "messages": [{"role": "user", "content": f"{filler} the {subject} number {seed}x{i}?"}],
                "outcomes": {t: float(rng.random() < p[t]) for t in tiers},
                "models": {t: MODELS[t] for t in tiers},
                "output_tokens": {t: int(rng.integers(20, 300)) for t in tiers},
                "subject": subject,
            }
        )
    return made


def write(path: Path, made: Sequence[dict[str, Any]]) -> Path:
    """Rows as a labels file."""
    path.write_text("".join(json.dumps(r) + "\n" for r in made), encoding="utf-8")
    return path
