"""CPU time of features and score together for prompts that are all different, with a yardstick for the machine."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

from classifier.datamodels import RequestFeatures
from classifier.features import features
from classifier.versions import load_serving_scorer

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
    """Mean microseconds of CPU per prompt by size: as the gateway scores it, and with the model asked about tiers.

    Prompts put together at random are novel, and of what is wholly novel the prior's numbers are the score; the second
    figure is nearer to what prompts like the training data cost. Of each prompt the fastest of all rounds counts, a
    round being once over all prompts: what other processes do to the caches is left out, what the prompts themselves
    do is not.
    """
    scorer = load_serving_scorer(None, None)

    def features_of(text: str) -> RequestFeatures:
        return features(
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

    ways: dict[str, Callable[[str], object]] = {
        "us": lambda text: scorer.score(features_of(text)),
        "asked_us": lambda text: scorer.unshrunk(features_of(text)),
    }
    found = {"yardstick_ms": min(yardstick_s() for _ in range(5)) * 1e3}
    for size, count in SIZES.items():
        made = prompts(texts, size, count)
        for name, once in ways.items():
            best_s = [1.0] * count
            for _ in range(ROUNDS):
                for i, text in enumerate(made):
                    start_s = time.thread_time()
                    once(text)
                    best_s[i] = min(best_s[i], time.thread_time() - start_s)
            found[f"{size}_chars_{name}"] = sum(best_s) / count * 1e6
    return found
