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
    "multiple_word_count",
    "has_and",
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

# Small whole numbers: few values are common, so whatever follows from one can be looked up. Those named `log_` enter as
# log(1 + n), the others as they are.
COUNT_NAMES = (
    "log_lines",
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
    "has_statements",
    "has_negation",
    "has_capital_negation",
    "has_blank",
    "has_following",
    "has_why_how",
    "has_which",
    "has_all_or_none",
    "step_word_count",
    "multiple_word_count",
    "has_and",
    "ends_with_answer",
    "ends_with_question",
    "code_block_count",
    "turns",
    "has_tools",
    "has_images",
    "wants_json",
)
VALUE_NAMES = (
    "log_chars",
    "log_stem_chars",
    "log_words",
    "mean_word_chars",
    "unique_word_ratio",
    "long_word_ratio",
    "digit_ratio",
    "upper_ratio",
    "non_ascii_ratio",
    "log_context_chars",
    "log_input_tokens_beyond_text",
    "log_max_output_tokens",
    "log_option_mean_chars",
    "log_option_max_chars",
    "log_option_min_chars",
    "option_spread_ratio",
    "option_number_ratio",
    "option_number_first_ratio",
)
# Where each of the two stands among `DENSE_NAMES`.
COUNT_PLACES = tuple(map(DENSE_NAMES.index, COUNT_NAMES))
VALUE_PLACES = tuple(map(DENSE_NAMES.index, VALUE_NAMES))

_DIGITS = b"0123456789"
_UPPER = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_MATH = b"+=*/^<>"
_NO_DIGIT = bytes(code for code in range(256) if code not in b"0123456789\n")
_UNMARKED = bytes(range(ord("a"), ord("z") + 1)) + b" "
_LONG_WORD = b"a" * 10
_NEGATIONS = frozenset({b"not", b"except", b"least", b"never"})
_STEP_WORDS = frozenset(
    {b"each", b"per", b"then", b"after", b"twice", b"half", b"times", b"remaining", b"every", b"total"}
)
_MULTIPLE_WORDS = frozenset(
    {b"twice", b"double", b"half", b"third", b"quarter", b"thrice", b"triple", b"times", b"fourth", b"fifth"}
)
_CODE_WORDS = frozenset({b"def", b"return", b"import", b"class", b"function", b"const"})
_OPTION_LETTERS = frozenset(b"ABCDEFGHIJKLMNOP")
_OPTION_MARKS = frozenset(b".)")
_NUMBER_STARTS = frozenset(b"0123456789-$(")
_NO_OPTIONS = (0.0,) * 6
_MAX_OPTION_LINES = 24
_CHARS_PER_TOKEN = 4
_ENDING_CHARS = 12
_MAX_CODE_BLOCKS = 20
_MAX_TURNS = 50
_INSTRUCTION_TOKENS = 40  # what wraps a message in a request with nothing else in it


def _kind(code: int) -> int:
    """Letter a, digit d, line end, `.` and `)`, or o for the rest: what runs of characters are counted on."""
    char = chr(code)
    if code < 128 and char.isalpha():
        return ord("a")
    if code < 128 and char.isdigit():
        return ord("d")
    return code if char in "\n.)" else ord("o")


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


def dense(features: RequestFeatures, word_count: int, distinct: set[bytes]) -> list[float]:
    """One number per name of `DENSE_NAMES`; finite for every text. Arguments as for `measured`."""
    counts, values = measured(features, word_count, distinct)
    numbers = [0.0] * DENSE_COUNT
    for place, name, count in zip(COUNT_PLACES, COUNT_NAMES, counts, strict=True):
        numbers[place] = counted(name, count)
    for place, value in zip(VALUE_PLACES, values, strict=True):
        numbers[place] = value
    return numbers


def counted(name: str, count: int) -> float:
    """The number that a count of `COUNT_NAMES` enters as."""
    return log1p(count) if name.startswith("log_") else float(count)


def measured(features: RequestFeatures, word_count: int, distinct: set[bytes]) -> tuple[list[int], list[float]]:
    """The counts of `COUNT_NAMES` and the values of `VALUE_NAMES`.

    `word_count` is the number of `words(features.text)`, `distinct` the set of them. What a word rules out is not
    searched for: `NOT` stands only where `not` does. Most text is small letters and blanks: whatever else there is, is
    counted on a copy without those, a tenth as long.
    """
    text = features.text.encode("ascii", "ignore")
    kinds = text.translate(_KINDS)
    marks = text.translate(None, _UNMARKED)
    count = marks.count
    chars = len(features.text)
    per_char = 1.0 / (chars + 1)
    per_word = 1.0 / (word_count + 1)
    ending = text[-_ENDING_CHARS:].lower().rstrip()
    digits = len(marks) - len(marks.translate(None, _DIGITS))
    if digits:
        runs = len(text.translate(_DIGITS_ONLY).split())
        long_runs = kinds.count(b"dddd") if digits > 3 else 0
        decimals = kinds.count(b"d.d") if digits > 1 else 0
    else:
        runs = long_runs = decimals = 0
    option_count, stem_chars, option_values = _options(text, kinds, has_digits=digits > 0)
    beyond = features.input_tokens - features.text_chars // _CHARS_PER_TOKEN - _INSTRUCTION_TOKENS
    return [
        count(b"\n"),
        runs,
        long_runs,
        decimals,
        count(b"$") + count(b"%"),
        len(marks) - len(marks.translate(None, _MATH)),
        count(b"\\"),
        text.count(b"    ") + 2 * len(_CODE_WORDS & distinct),
        count(b"[") + count(b"{"),
        count(b"("),
        count(b","),
        count(b".") - decimals,
        count(b'"'),
        features.question_count,
        option_count,
        b"statement" in distinct,
        not _NEGATIONS.isdisjoint(distinct),
        (b"NOT" in marks and b"not" in distinct and b" NOT " in text)
        or (b"EXCEPT" in marks and b"except" in distinct and b"EXCEPT" in text),
        b"__" in marks and b"__" in text,
        b"following" in distinct,
        b"why" in distinct or b"how" in distinct,
        b"which" in distinct,
        b"of" in distinct and (b"above" in distinct or b"these" in distinct) and _all_or_none(text),
        len(_STEP_WORDS & distinct),
        len(_MULTIPLE_WORDS & distinct),
        b"and" in distinct,
        ending.endswith(b"answer:"),
        ending.endswith(b"?"),
        min(features.code_block_count, _MAX_CODE_BLOCKS),
        min(features.turns, _MAX_TURNS),
        features.has_tools,
        features.has_images,
        features.wants_json,
    ], [
        log1p(chars),
        log1p(stem_chars),
        log1p(word_count),
        chars * per_word,
        len(distinct) * per_word,
        kinds.count(_LONG_WORD) * per_word,
        digits * per_char,
        (len(marks) - len(marks.translate(None, _UPPER))) * per_char,
        features.non_ascii_ratio,
        log1p(features.context_chars),
        log1p(beyond) if beyond > 0 else 0.0,
        log1p(features.max_output_tokens) if features.max_output_tokens and features.max_output_tokens > 0 else 0.0,
        *option_values,
    ]


def _all_or_none(text: bytes) -> bool:
    lowered = text.lower()
    return b"of the above" in lowered or b"of these" in lowered


def _options(text: bytes, kinds: bytes, *, has_digits: bool) -> tuple[int, int, tuple[float, ...]]:
    """Number of answer options (lines such as `B. 42`), characters before them, and what they look like."""
    # A prompt on one line has none: one byte is looked for in a tenth of the time of three.
    if b"\n" not in kinds or (b"\na." not in kinds and b"\na)" not in kinds):
        return 0, len(text), _NO_OPTIONS
    options = [
        line[3:]
        for line in text.rsplit(b"\n", _MAX_OPTION_LINES)[1:]
        if len(line) > 2 and line[1] in _OPTION_MARKS and line[0] in _OPTION_LETTERS
    ]
    count = len(options)
    if not count:
        return 0, len(text), _NO_OPTIONS
    sizes = list(map(len, options))
    total = sum(sizes)
    # Without all else, an option is its digits: as many lines have a number as are not empty then.
    with_number = len(b"\n".join(options).translate(None, _NO_DIGIT).split()) if has_digits else 0
    number_first = sum([option[0] in _NUMBER_STARTS for option in options if option])
    mean = total / count
    longest, shortest = max(sizes), min(sizes)
    return (
        count,
        len(text) - total - 4 * count,
        (
            log1p(mean),
            log1p(longest),
            log1p(shortest),
            (longest - shortest) / (mean + 1.0),
            with_number / count,
            number_first / count,
        ),
    )
