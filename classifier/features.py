"""What the scorer sees of a request: a bounded text and a few counts. Pure, and never raises on any text.

The cost does not grow with the prompt: what is scored is at most the first and the last 1,000 characters of the last
user message, and every count is taken on that.
"""

from __future__ import annotations

from collections.abc import Sequence

from classifier.datamodels import RequestFeatures

FEATURE_VERSION = 3
EDGE_CHARS = 1_000
MAX_TEXTS_COUNTED = 1_000
_JOINT = "\n"
_OTHER_QUESTION_MARKS = ("\uff1f", "\u061f")


def bounded(text: str) -> str:
    """`text`, or its first and last `EDGE_CHARS` characters on two lines where it is longer than both."""
    if len(text) <= 2 * EDGE_CHARS:
        return text
    return text[:EDGE_CHARS] + _JOINT + text[-EDGE_CHARS:]


def scored_text(texts: Sequence[str], last_user_text: str) -> str:
    """The text that says what is asked: the last user message, else the last message that has any text.

    System text and earlier turns are left out: they are the same for every request of an application or a
    conversation, and would drown the question. Their length counts (`context_chars`).
    """
    # isspace() stops at the first letter, where strip() would copy a long text that ends in a line end
    if last_user_text and not last_user_text.isspace():
        return last_user_text
    for text in reversed(texts[-MAX_TEXTS_COUNTED:]):
        if text and not text[:EDGE_CHARS].isspace():
            return text
    return ""


def non_ascii_ratio(text: str) -> float:
    """Share of characters outside ASCII, 0..1; 0 for an empty text."""
    if text.isascii():
        return 0.0
    return 1.0 - len(text.encode("ascii", "ignore")) / len(text)


def _question_count(text: str) -> int:
    # Looking whether a character is there costs a fifth of counting it; the others are not looked for in vain.
    count = text.count("?") if "?" in text else 0
    return count if text.isascii() else count + sum(map(text.count, _OTHER_QUESTION_MARKS))


def features(
    *,
    texts: Sequence[str],
    system_text: str,
    last_user_text: str,
    turns: int,
    input_tokens: int,
    input_tokens_estimated: bool,
    has_tools: bool,
    has_images: bool,
    wants_json: bool,
    max_output_tokens: int | None,
) -> RequestFeatures:
    """Features of a request whose messages hold `texts` (system text included, in order).

    `system_text` is the text of system and developer messages, `last_user_text` that of the last user message (empty
    where there is none), `turns` the number of user messages.
    """
    asked = scored_text(texts, last_user_text)
    text = bounded(asked)
    total_chars = max(sum(map(len, texts[-MAX_TEXTS_COUNTED:])), len(asked) + len(system_text))
    return RequestFeatures(
        text=text,
        input_tokens=input_tokens,
        input_tokens_estimated=input_tokens_estimated,
        turns=turns,
        code_block_count=text.count("```") // 2 if "`" in text else 0,
        question_count=_question_count(text),
        non_ascii_ratio=non_ascii_ratio(text),
        has_tools=has_tools,
        has_images=has_images,
        wants_json=wants_json,
        max_output_tokens=max_output_tokens,
        feature_version=FEATURE_VERSION,
        text_chars=len(asked),
        context_chars=max(0, total_chars - len(asked)),
    )
