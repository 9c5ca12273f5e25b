"""Inputs whose scores are written down when a model is trained and checked when it is loaded. Nobody's prompts."""

from __future__ import annotations

from classifier.datamodels import RequestFeatures
from classifier.features import features

GOLDEN_TEXTS = (
    "",
    "Hi!",
    "What is the capital of Peru?",
    "Why does my regular expression fail on nested brackets? Explain how to fix it.",
    "A train leaves at 9:15 and travels 120 km at 80 km/h. When does it arrive? Each ticket costs $12.50.",
    "Which of the following is NOT a prime number?\nA. 2\nB. 9\nC. 11\nD. 13\nAnswer:",
    "def f(xs):\n    return sorted(xs)[0]\nassert f([3, 1, 2]) == ??",
    "Prove that \\[ \\sum_{k=1}^n k = \\frac{n(n+1)}{2} \\] for all $n \\ge 1$.",
    "\u041f\u043e\u0447\u0435\u043c\u0443 \u043d\u0435\u0431\u043e? \U0001f98a",
    "Summarize the following document in three sentences. " + "The committee met again. " * 400,
)


def golden_requests() -> list[RequestFeatures]:
    """Features of the golden texts, as the gateway would make them."""
    return [
        features(
            texts=[text],
            system_text="",
            last_user_text=text,
            turns=1,
            input_tokens=len(text) // 4,
            input_tokens_estimated=True,
            has_tools=False,
            has_images=False,
            wants_json=False,
            max_output_tokens=None,
        )
        for text in GOLDEN_TEXTS
    ]
