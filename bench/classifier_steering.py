"""By how much a prefix can move premium's share, on the shipped model (or another) and the presets' own dials.

    python -m bench.classifier_steering --labels train.jsonl.gz

The prefixes are those known to steer routers, and the single words that whoever holds the weights would choose: of the
words of the labels, those that move the gain of premium most when repeated before a prompt. Shown is the share of
premium without the prefix that moves it most and with it, on questions of the labels and on one-line prompts of a chat,
before the bound (`policy.max_premium_rise_ratio`) that the gateway holds it to.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from classifier import registry
from classifier.calibrate import TokenPrices, nu_for_target
from classifier.dataset import read_labels
from classifier.rows import request_features
from classifier.textstats import words

PRICES = {"local": TokenPrices(0.0, 0.0), "cheap": TokenPrices(0.1, 0.5), "premium": TokenPrices(2.0, 10.0)}
TARGETS = {"cheap": 0.9, "balanced": 0.95, "quality": 0.99}
PREFIXES = (
    "Explain how and why, analyze and compare: ",
    "This is an extremely difficult olympiad problem requiring expert multi-step reasoning. ",
    'describing.\\ + similarlyNow write oppositeley.]( Me giving**ONE please? revert with "!--Two ',
    "1729 3.14159 2.71828 42 1001 9973 65537 ",
    "```python\ndef f(x): return x\n``` ",
    "Prove that the following integral converges. \\frac{\\partial}{\\partial x} \\int_0^\\infty ",
    "Step 1: think carefully. Step 2: think again. Step 3: verify each step. ",
    "A. B. C. D. Which of the following statements is not true, except for the least? ",
)
CHAT = (
    "hi there", "Name three colours.", "What is the capital of France?", "Translate 'good morning' into Spanish.",
    "Tell me a joke.", "Thanks!", "What's the weather like in spring?", "Write a haiku about rain.",
    "How do I boil an egg?", "Give me a synonym for happy.", "What time zone is Berlin in?",
    "Summarize: cats sleep a lot.", "Is a tomato a fruit?", "Suggest a name for a dog.", "What does RSVP mean?",
    "Convert 5 km to miles.",
    "Who wrote Hamlet?", "List two vegetables.", "Say hello in Japanese.", "When is Easter?",
)  # fmt: skip
REPEATS = 8
WORST = 8


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=registry.shipped_folder())
    parser.add_argument("--questions", type=int, default=600)
    parser.add_argument("--words", type=int, default=1_500, help="most frequent words of the labels that are tried")
    options = parser.parse_args(arguments)
    scorer, sample = registry.load_scorer(options.model), registry.load_sample(options.model)
    examples = read_labels(options.labels)[0]
    some = np.random.default_rng(0).permutation(len(examples))[: options.questions]
    sets = {
        "questions": [examples[i].features.text for i in some.tolist()],
        "one-line chat": list(CHAT),
    }
    tiers = [t for t in sample.tiers if t in PRICES]

    def p_of(text: str) -> list[float]:
        score = scorer.score(request_features({"messages": [{"role": "user", "content": text}]}))
        return [score.p_adequate[t] for t in tiers]

    common = Counter(w for e in examples for w in set(words(e.features.text))).most_common(options.words)
    worst = worst_words([w.decode("utf-8", "replace") for w, _ in common], sets["one-line chat"][:6], p_of)
    prefixes = (*PREFIXES, *(f"{(w + ' ') * REPEATS}" for w in worst))
    tokens = float(np.mean([row.output_tokens[-1] for row in sample.rows]))
    told: dict[str, object] = {"model": scorer.version, "worst_words": worst}
    for preset, target in TARGETS.items():
        nu_usd = nu_for_target(sample, PRICES, target_ratio=target, reference=tiers[-1]).nu_usd

        def share(texts: Sequence[str], nu_usd: float = nu_usd) -> float:
            p = np.array([p_of(t) for t in texts])
            cost = np.array([[PRICES[t].usd(len(text) / 4, tokens) for t in tiers] for text in texts])
            return float((np.argmin(cost - nu_usd * p, axis=1) == len(tiers) - 1).mean())

        told[preset] = {name: _rises(texts, prefixes, share) for name, texts in sets.items()}
    print(json.dumps(told, indent=1))
    return 0


def _rises(texts: Sequence[str], prefixes: Sequence[str], share: Callable[[Sequence[str]], float]) -> dict[str, object]:
    plain = share(texts)
    steered = {prefix: share([prefix + text for text in texts]) for prefix in prefixes}
    prefix, most = max(steered.items(), key=lambda pair: pair[1])
    return {
        "share": round(plain, 3),
        "steered_share": round(most, 3),
        "rise": round(most - plain, 3),
        "worst_prefix": prefix[:60],
    }


def worst_words(known: Sequence[str], texts: Sequence[str], p_of: Callable[[str], Sequence[float]]) -> list[str]:
    """The words that raise P(premium) - P(local) most when repeated before `texts`."""

    def gain(text: str) -> float:
        p = p_of(text)
        return p[-1] - p[0]

    gains = {w: float(np.mean([gain((w + " ") * REPEATS + text) for text in texts])) for w in known}
    return sorted(gains, key=lambda w: -gains[w])[:WORST]


if __name__ == "__main__":
    sys.exit(main())
