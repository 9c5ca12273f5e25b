"""CPU time of features and score together for prompts that are all different, with a yardstick for the machine."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

from classifier.features import features
from classifier.registry import load_serving_scorer

SIZES = {400: 800, 2_048: 600, 32_768: 300}  # characters: prompts
ROUNDS = 7
YARDSTICK_STEPS = 300_000
SYSTEM_TEXT = "You are a helpful assistant."


def yardstick_s() -> float:
    """CPU seconds of a fixed loop, so that figures of two machines, or of a busy and a quiet one, can be compared."""
    start_s = time.thread_time()
    total = 0
    for i in range(YARDSTICK_STEPS):
        total += i * i % 7
    return time.thread_time() - start_s


def prompts(texts: Sequence[str], size: int, count: int) -> list[str]:
    """`count` different prompts of `size` characters, put together from `texts` drawn at random."""
    draw = random.Random(1)
    made = []
    for _ in range(count):
        text = ""
        while len(text) < size:
            text += draw.choice(texts) + "\n\n"
        made.append(text[:size])
    return made


def latency(texts: Sequence[str]) -> dict[str, float]:
    """Mean microseconds of CPU per prompt by size.

    Of each prompt the fastest of all rounds counts, a round being once over all prompts: what other processes do to the
    caches is left out, what the prompts themselves do is not.
    """
    scorer = load_serving_scorer(None, None)

    def once(text: str) -> None:
        scorer.score(
            features(
                texts=[SYSTEM_TEXT, text],
                system_text=SYSTEM_TEXT,
                last_user_text=text,
                turns=1,
                input_tokens=len(text) // 4,
                input_tokens_estimated=True,
                has_tools=False,
                has_images=False,
                wants_json=False,
                max_output_tokens=None,
            )
        )

    found = {"yardstick_ms": min(yardstick_s() for _ in range(5)) * 1e3}
    for size, count in SIZES.items():
        made = prompts(texts, size, count)
        best_s = [1.0] * count
        for _ in range(ROUNDS):
            for i, text in enumerate(made):
                start_s = time.thread_time()
                once(text)
                best_s[i] = min(best_s[i], time.thread_time() - start_s)
        found[f"{size}_chars_us"] = sum(best_s) / count * 1e6
    return found
