"""Sums: what a prompt that is nothing but a calculation comes to, and whether an answer says so. Pure, exact, bounded.

Only a prompt that is a calculation and little else is taken ("What is 17 * 23?", "compute (3 + 4)^2"): one with a story
around it can mean anything. What cannot be worked out exactly and quickly gets no verdict.
"""

from __future__ import annotations

import re
from fractions import Fraction

MAX_PROMPT_CHARS = 120
MAX_DIGITS = 60
MAX_EXPONENT = 64
MAX_DEPTH = 20
_ASKED = re.compile(
    r"(?:please[ ,]+)?(?:what(?:'s| is| does)|how much is|calculate|compute|evaluate|work out|solve)?[ :]*"
    r"([-+*/^().,\d \u00d7\u00f7\u2212]*\d[-+*/^().,\d \u00d7\u00f7\u2212]*)"
    r"(?:equal)?[ =]*[?.!]?(?: ?(?:please|thanks|thank you|answer with (?:only )?the number)[.!]?)?",
    re.IGNORECASE,
)
_TOKEN = re.compile(r"\d+(?:\.\d+)?|\*\*|[-+*/^()]")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_NUMBER = re.compile(r"(?<![\w.])[-\u2212]?\d+(?:\.\d+)?(?:/\d+)?(?![\w])")
_SIGNS = str.maketrans({"\u00d7": "*", "\u00f7": "/", "\u2212": "-"})


def result_of(prompt: str) -> Fraction | None:
    """What the calculation in `prompt` comes to; `None` for anything that is not plainly one."""
    if len(prompt) > MAX_PROMPT_CHARS:
        return None
    asked = _ASKED.fullmatch(" ".join(prompt.split()))
    if asked is None:
        return None
    text = _THOUSANDS.sub("", asked[1].translate(_SIGNS)).strip(" .=")
    tokens = _TOKEN.findall(text)
    if "".join(tokens) != text.replace(" ", "") or sum(t[0].isdigit() for t in tokens) < 2 or re.search(r"\d \d", text):
        return None
    try:
        value, left = _sum(["^" if t == "**" else t for t in tokens], 0)
    except (_NotPlain, ZeroDivisionError):
        return None
    return None if left else value


def says(answer: str, expected: Fraction, *, prompt: str) -> bool | None:
    """Whether `answer` gives `expected`, exactly or rounded to the digits it shows; `None` where it cannot be told.

    The last number counts, or any that did not stand in the prompt: what is shown on the way there is no answer.
    """
    said = _THOUSANDS.sub("", answer)
    found = _NUMBER.findall(said)
    given = set(_NUMBER.findall(_THOUSANDS.sub("", prompt)))
    right = [_equal(number, expected) for number in found]
    if not any(right):
        return False
    return True if right[-1] or any(r and n not in given for n, r in zip(found, right, strict=True)) else None


class _NotPlain(ValueError):
    """Not a calculation we do."""


def _equal(number: str, expected: Fraction) -> bool:
    try:
        value = Fraction(number.replace("\u2212", "-"))
    except (ValueError, ZeroDivisionError):
        return False
    digits = len(number.partition(".")[2])
    rounded = Fraction(1, 2 * 10**digits) if digits else Fraction(0)
    return abs(value - expected) <= rounded


def _sum(tokens: list[str], depth: int) -> tuple[Fraction, list[str]]:
    value, tokens = _product(tokens, depth)
    while tokens and tokens[0] in "+-":
        sign = tokens[0]
        other, tokens = _product(tokens[1:], depth)
        value = _bounded(value + other if sign == "+" else value - other)
    return value, tokens


def _product(tokens: list[str], depth: int) -> tuple[Fraction, list[str]]:
    value, tokens = _signed(tokens, depth)
    while tokens and tokens[0] in "*/":
        sign = tokens[0]
        other, tokens = _signed(tokens[1:], depth)
        value = _bounded(value * other if sign == "*" else value / other)
    return value, tokens


def _signed(tokens: list[str], depth: int) -> tuple[Fraction, list[str]]:
    if depth > MAX_DEPTH:
        raise _NotPlain
    if tokens and tokens[0] in "+-":
        value, left = _signed(tokens[1:], depth + 1)
        return (-value if tokens[0] == "-" else value), left
    value, tokens = _atom(tokens, depth)
    if tokens and tokens[0] == "^":
        exponent, tokens = _signed(tokens[1:], depth + 1)
        if exponent.denominator != 1 or abs(exponent) > MAX_EXPONENT:
            raise _NotPlain
        value = _bounded(value ** int(exponent))
    return value, tokens


def _atom(tokens: list[str], depth: int) -> tuple[Fraction, list[str]]:
    if not tokens:
        raise _NotPlain
    first, rest = tokens[0], tokens[1:]
    if first == "(":
        value, rest = _sum(rest, depth + 1)
        if not rest or rest[0] != ")":
            raise _NotPlain
        return value, rest[1:]
    if not first[0].isdigit():
        raise _NotPlain
    return _bounded(Fraction(first)), rest


def _bounded(value: Fraction) -> Fraction:
    if max(abs(value.numerator), value.denominator) >= 10**MAX_DIGITS:
        raise _NotPlain
    return value
