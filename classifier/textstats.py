"""Numbers read off a request for the trained model: length, shape, mathematics, code, answer options. Pure.

Counts are taken on translated copies of the bytes (one C pass each) and on the set of words, because a Python loop
over characters would cost more than the whole score. Counts enter as log(1 + n): no single one can run away.
"""

from __future__ import annotations

from math import log1p

from classifier.datamodels import RequestFeatures

DENSE_NAMES = (
    "log_chars",
    "log_stem_chars",
    "log_words",
    "log_lines",
    "mean_word_chars",
    "unique_word_ratio",
    "long_word_ratio",
    "digit_ratio",
    "upper_ratio",
    "log_numbers",
    "log_long_numbers",
    "log_decimals",
    "log_money_percent",
    "log_math_symbols",
    "log_tex",
    "log_code_marks",
    "log_brackets",
    "log_parentheses",
    "log_commas",
    "log_sentences",
    "log_quotes",
    "log_questions",
    "option_count",
    "log_option_mean_chars",
    "log_option_max_chars",
    "log_option_min_chars",
    "option_spread_ratio",
    "option_number_ratio",
    "option_number_first_ratio",
    "has_statements",
    "has_negation",
    "has_capital_negation",
    "has_blank",
    "has_following",
    "has_why_how",
    "has_which",
    "has_all_or_none",
    "step_word_count",
    "ends_with_answer",
    "ends_with_question",
    "code_block_count",
    "non_ascii_ratio",
    "log_context_chars",
    "log_input_tokens_beyond_text",
    "turns",
    "has_tools",
    "has_images",
    "wants_json",
    "log_max_output_tokens",
)
DENSE_COUNT = len(DENSE_NAMES)

_DIGITS = b"0123456789"
_UPPER = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_MATH = b"+=*/^<>"
_LONG_WORD = b"a" * 10
_NEGATIONS = frozenset({b"not", b"except", b"least", b"never"})
_STEP_WORDS = frozenset(
    {b"each", b"per", b"then", b"after", b"twice", b"half", b"times", b"remaining", b"every", b"total"}
)
_CODE_WORDS = frozenset({b"def", b"return", b"import", b"class", b"function", b"const"})
_OPTION_LETTERS = frozenset(b"ABCDEFGHIJKLMNOP")
_OPTION_MARKS = frozenset(b".)")
_NUMBER_STARTS = frozenset(b"0123456789-$(")
_MAX_OPTION_LINES = 24
_CHARS_PER_TOKEN = 4
_ENDING_CHARS = 12


def _kind(code: int) -> int:
    """Letter a, digit d, full stop, or o for the rest: what runs of characters are counted on."""
    char = chr(code)
    if code < 128 and char.isalpha():
        return ord("a")
    if code < 128 and char.isdigit():
        return ord("d")
    return code if char == "." else ord("o")


_KINDS = bytes(map(_kind, range(256)))
_DIGITS_ONLY = bytes(code if code in _DIGITS else 32 for code in range(256))


def _letter(code: int) -> int:
    """ASCII letters in lower case, digits, and the bytes of other alphabets; a blank for the rest."""
    char = chr(code).lower()
    return ord(char) if code < 128 and char.isalnum() else (code if code >= 128 else 32)


_WORDS_ONLY = bytes(map(_letter, range(256)))

# What stands between words in typeset text; the rest of Unicode counts as letters, which it mostly is.
_TYPESET = (
    "\u00a0\u2009\u202f\u3000"
    "\u2018\u2019\u201c\u201d\u2013\u2014\u2026\u00b7\u2022\u00d7\u2212\u2192\u3001\u3002\uff0c\uff1f"
)


def words(text: str) -> list[bytes]:
    """Lower-cased runs of letters and digits, in order, in UTF-8.

    One table over the bytes, because a regular expression costs more than all the rest of a score; left as bytes,
    because making strings of them costs a third more.
    """
    if not text.isascii():
        text = text.lower()
        for mark in _TYPESET:
            text = text.replace(mark, " ")
    return text.encode("utf-8", "replace").translate(_WORDS_ONLY).split()


def _log_count(text: bytes, mark: bytes) -> float:
    # Looking whether a single byte is there costs a third of counting it, and most marks are absent.
    return log1p(text.count(mark)) if mark in text else 0.0


def dense(features: RequestFeatures, word_count: int, distinct: set[bytes]) -> list[float]:
    """One number per name of `DENSE_NAMES`; finite for every text.

    `word_count` is the number of `words(features.text)`, `distinct` the set of them. What a word rules out is not
    searched for: `NOT` stands only where `not` does.
    """
    text = features.text.encode("ascii", "ignore")
    kinds = b"o" + text.translate(_KINDS)
    chars = len(features.text)
    per_char = 1.0 / (chars + 1)
    per_word = 1.0 / (word_count + 1)
    stem_chars, option_numbers = _options(text)
    ending = text[-_ENDING_CHARS:].lower().rstrip()
    numbers = text.translate(_DIGITS_ONLY).split()
    decimals = kinds.count(b"d.d") if numbers else 0
    return [
        log1p(chars),
        log1p(stem_chars),
        log1p(word_count),
        log1p(text.count(b"\n")),
        chars * per_word,
        len(distinct) * per_word,
        kinds.count(_LONG_WORD) * per_word,
        len(b"".join(numbers)) * per_char,
        (len(text) - len(text.translate(None, _UPPER))) * per_char,
        log1p(len(numbers)),
        log1p(kinds.count(b"dddd")) if numbers else 0.0,
        log1p(decimals),
        log1p((text.count(b"$") if b"$" in text else 0) + (text.count(b"%") if b"%" in text else 0)),
        log1p(len(text) - len(text.translate(None, _MATH))),
        _log_count(text, b"\\"),
        log1p(text.count(b"    ") + 2 * len(_CODE_WORDS & distinct)),
        log1p((text.count(b"[") if b"[" in text else 0) + (text.count(b"{") if b"{" in text else 0)),
        _log_count(text, b"("),
        _log_count(text, b","),
        log1p(max(0, text.count(b".") - decimals)),
        _log_count(text, b'"'),
        log1p(features.question_count),
        *option_numbers,
        float(b"statement" in distinct),
        float(not _NEGATIONS.isdisjoint(distinct)),
        float((b"not" in distinct and b" NOT " in text) or (b"except" in distinct and b"EXCEPT" in text)),
        float(b"_" in text and b"__" in text),
        float(b"following" in distinct),
        float(b"why" in distinct or b"how" in distinct),
        float(b"which" in distinct),
        float(_all_or_none(text, distinct)),
        float(len(_STEP_WORDS & distinct)),
        float(ending.endswith(b"answer:")),
        float(ending.endswith(b"?")),
        float(min(features.code_block_count, 20)),
        features.non_ascii_ratio,
        log1p(features.context_chars),
        log1p(max(0, features.input_tokens - features.text_chars // _CHARS_PER_TOKEN - 40)),
        float(min(features.turns, 50)),
        float(features.has_tools),
        float(features.has_images),
        float(features.wants_json),
        log1p(max(0, features.max_output_tokens or 0)),
    ]


def _all_or_none(text: bytes, distinct: set[bytes]) -> bool:
    if b"of" not in distinct or not (b"above" in distinct or b"these" in distinct):
        return False
    lowered = text.lower()
    return b"of the above" in lowered or b"of these" in lowered


def _options(text: bytes) -> tuple[int, tuple[float, ...]]:
    """Characters before the answer options, and what the options look like (lines such as `B. 42`)."""
    sizes: list[int] = []
    with_number = number_first = option_chars = 0
    for line in text.rsplit(b"\n", _MAX_OPTION_LINES)[1:]:
        size = len(line) - 3
        if size >= 0 and line[1] in _OPTION_MARKS and line[0] in _OPTION_LETTERS:
            sizes.append(size)
            option_chars += size + 4
            number_first += size > 0 and line[3] in _NUMBER_STARTS
            with_number += len(line.translate(None, _DIGITS)) < size + 3
    count = len(sizes)
    if not count:
        return len(text), (0.0,) * 7
    mean = sum(sizes) / count
    longest, shortest = max(sizes), min(sizes)
    return len(text) - option_chars, (
        float(count),
        log1p(mean),
        log1p(longest),
        log1p(shortest),
        (longest - shortest) / (mean + 1.0),
        with_number / count,
        number_first / count,
    )
