"""The starting prior: three classes of prompts told apart by length and a few words, each with a fixed P(adequate).

It is what scores requests when no trained model can be loaded, and what a trained model shrinks to on prompts unlike
anything it has seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from classifier.datamodels import RequestFeatures, Score

SIMPLE_BELOW_CHARS = 50
SIMPLE_CONTEXT_BELOW_CHARS = 2_000


class PromptClass(StrEnum):
    """How hard a prompt looks."""

    SIMPLE = "simple"
    MIDDLE = "middle"
    REASONING = "reasoning"


P_ADEQUATE: Mapping[PromptClass, Mapping[str, float]] = {
    PromptClass.SIMPLE: {"local": 0.93, "cheap": 0.93, "premium": 0.95},
    PromptClass.MIDDLE: {"local": 0.65, "cheap": 0.85, "premium": 0.93},
    PromptClass.REASONING: {"local": 0.35, "cheap": 0.65, "premium": 0.92},
}

# (opening word, words of which one follows it on the same line). These are the patterns `why.*(happen|work|fail)` and
# so on; searched as plain strings because `.*` backtracks over the whole line for every opening word.
_REASONING_PAIRS = (
    ("why", ("happen", "work", "fail")),
    ("compare", ("and", "vs", "versus")),
    ("explain", ("how", "why")),
)


def needs_reasoning(text: str) -> bool:
    """Whether `text` asks to analyse, to compare, to explain, or why; linear in its length."""
    # Lower case of other alphabets takes several times as long and cannot matter here.
    lowered = (text if text.isascii() else text.encode("ascii", "replace").decode("ascii")).lower()
    if "analyze" in lowered:
        return True
    return any(_follows(lowered, opening, followers) for opening, followers in _REASONING_PAIRS)


def _follows(text: str, opening: str, followers: tuple[str, ...]) -> bool:
    """Whether one of `followers` stands behind `opening` on the same line."""
    at = text.find(opening)
    while at >= 0:
        end = text.find("\n", at)
        end = len(text) if end < 0 else end
        if any(text.find(word, at + len(opening), end) >= 0 for word in followers):
            return True
        at = text.find(opening, end)
    return False


def prompt_class(features: RequestFeatures) -> PromptClass:
    """The class of a prompt.

    A short question is simple only if it stands nearly alone: behind a long document, with an image, or with tools to
    call, the message says little about the work.
    """
    if needs_reasoning(features.text):
        return PromptClass.REASONING
    short = max(len(features.text), features.text_chars) < SIMPLE_BELOW_CHARS
    alone = features.context_chars < SIMPLE_CONTEXT_BELOW_CHARS and not (features.has_images or features.has_tools)
    return PromptClass.SIMPLE if short and alone else PromptClass.MIDDLE


class HeuristicScorer:
    """Scores by `prompt_class`. Not calibrated: the numbers are a prior, not a measurement."""

    version = "heuristic-b-1"

    def score(self, features: RequestFeatures) -> Score:
        """P(adequate) per tier of the prompt's class."""
        p_adequate = P_ADEQUATE[prompt_class(features)]
        return Score(
            complexity_ratio=1.0 - p_adequate["local"],
            p_adequate=p_adequate,
            novelty_ratio=0.0,
            model_version=self.version,
            feature_version=features.feature_version,
            calibrated=False,
        )
