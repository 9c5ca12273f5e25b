"""Tokens of a prompt before the call: counted with tiktoken where its vocabulary is at hand, never over a network.

The only file that imports tiktoken. Time is bounded whatever the text: long texts are counted in windows spread over
their length and scaled up, and the answer says it is estimated. Until `load` has run, and where no vocabulary can be
found, an estimate from the number of characters of each width in UTF-8 stands in, also labelled.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from hashlib import sha1, sha256
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tiktoken import Encoding

TOKENS_PER_MESSAGE = 3
TOKENS_PER_REPLY = 3

_BLOB = "https://openaipublic.blob.core.windows.net/encodings/{}.tiktoken"
_SHA256 = {
    "cl100k_base": "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    "o200k_base": "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
}

_WHOLE_CHARS = 4000
"""A text up to this long is counted whole."""
# Windows are encoded, places only weighed; of the sizes tried this was the cheapest to stay within 6 % on mixed texts.
_WINDOWS = 16
_WINDOW_CHARS = 160
_PLACES = 64
_PLACE_CHARS = 100
_EXACT_CHARS_PER_CALL = 8_000
"""Characters that one call counts whole at most; further texts are sampled together."""
_CALL_COST_CHARS = 20
"""What handing over one text costs, in characters counted."""
_REMEMBERED_FROM_CHARS = 32
_REMEMBERED_TEXTS = 1024

# Characters per token by width in UTF-8 (o200k): Latin; accented Latin, Cyrillic, Greek, Arabic; CJK; emoji.
_CHARS_PER_TOKEN = (4.6, 3.5, 1.2, 0.8)
_LEAD_3, _LEAD_4 = bytes(range(0xE0, 0xF0)), bytes(range(0xF0, 0xF8))


class TiktokenCounter:
    """Counts the tokens of conversations; good for every model, exact for those that use `encoding_name`.

    It can be used at once and is exact once `load` has returned True. `problem` says why it is not.
    """

    def __init__(self, encoding_name: str = "o200k_base", *, vocabulary_dirs: Sequence[Path] | None = None) -> None:
        if encoding_name not in _SHA256:
            raise ValueError(f"encoding must be one of {', '.join(sorted(_SHA256))}: {encoding_name!r}")
        self.encoding_name = encoding_name
        self.problem: str | None = "the vocabulary has not been loaded yet"
        self._dirs = vocabulary_dirs
        self._encoding: Encoding | None = None
        # (hash, length) of a text to its count; no text is kept
        self._remembered: dict[tuple[int, int], tuple[int, bool]] = {}

    def load(self) -> bool:
        """Load the vocabulary from disk: about 0.2 s, so call it from a thread. Never raises, never downloads."""
        directory = _vocabulary_dir(self.encoding_name, _default_dirs() if self._dirs is None else self._dirs)
        if directory is None:
            self.problem = f"no intact vocabulary of {self.encoding_name} on disk: token counts are estimates"
            return False
        try:
            self._encoding = _load(self.encoding_name, directory)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, an estimate serves
            self.problem = f"the vocabulary of {self.encoding_name} cannot be loaded: {error}"
            return False
        self.problem = None
        return True

    def count(self, texts: Sequence[str], *, messages: int) -> tuple[int, bool]:
        """(tokens, estimated) of `messages` messages holding `texts`: 3 a message, 3 for the reply, and the texts'.

        Bounded in time; exact up to 8,000 characters not seen before, in texts of at most 4,000. Any text is safe:
        special tokens in it count as the characters they are.
        """
        total = TOKENS_PER_MESSAGE * messages + TOKENS_PER_REPLY
        # one look: another thread may load it meanwhile, and an estimate must not be remembered as a count
        encoding = self._encoding
        estimated = encoding is None
        left = _EXACT_CHARS_PER_CALL
        rest: list[str] = []
        for text in texts:
            length = len(text)
            if length >= _REMEMBERED_FROM_CHARS:
                known = self._remembered.get((hash(text), length))
                if known is not None:
                    total += known[0]
                    estimated = estimated or known[1]
                    continue
            if left <= 0:
                rest.append(text)
                continue
            left -= min(length, _WHOLE_CHARS) + _CALL_COST_CHARS
            tokens, sampled = self._count_text(text, length, encoding)
            total += tokens
            estimated = estimated or sampled
        if rest:
            total += _sampled("".join(rest), encoding)
            estimated = True
        return total, estimated

    def _count_text(self, text: str, length: int, encoding: Encoding | None) -> tuple[int, bool]:
        sampled = length > _WHOLE_CHARS
        tokens = _sampled(text, encoding) if sampled else _measured(text, encoding)
        if length >= _REMEMBERED_FROM_CHARS and encoding is not None:
            if len(self._remembered) >= _REMEMBERED_TEXTS:
                # the oldest half goes: system prompts come back at once, and nothing is kept in order per request
                for key in list(self._remembered)[: _REMEMBERED_TEXTS // 2]:
                    self._remembered.pop(key, None)
            self._remembered[hash(text), length] = tokens, sampled
        return tokens, sampled


def _measured(text: str, encoding: Encoding | None) -> int:
    if encoding is None:
        return estimate_tokens(text)
    return len(encoding.encode_ordinary(text))


def _sampled(text: str, encoding: Encoding | None) -> int:
    """Tokens of windows spread evenly from head to tail, scaled to the whole.

    The scale is not length but the estimate from characters, taken over many more places: the windows tell how far it
    is off for this text, so that a text that is half Chinese and half code still comes out right.
    """
    length = len(text)
    if length <= _WHOLE_CHARS:
        return _measured(text, encoding)
    windows = "".join(_spread(text, _WINDOWS, _WINDOW_CHARS, whole_words=True))
    tokens = _measured(windows, encoding)
    if text.isascii():
        return round(tokens * length / len(windows))
    places = text if length <= _PLACES * _PLACE_CHARS else "".join(_spread(text, _PLACES, _PLACE_CHARS))
    return round(tokens / _weight(windows) * _weight(places) * length / len(places))


def estimate_tokens(text: str) -> int:
    """Tokens from characters alone, by their width in UTF-8; for texts of the size of a window or a message."""
    return ceil(_weight(text))


def _weight(text: str) -> float:
    if text.isascii():
        return len(text) / _CHARS_PER_TOKEN[0]
    data = text.encode("utf-8", "replace")
    size = len(data)
    # leading bytes tell the width; what is deleted is counted by what remains
    three = size - len(data.translate(None, _LEAD_3))
    four = size - len(data.translate(None, _LEAD_4))
    two = size - len(text) - 2 * three - 3 * four
    widths = zip((len(text) - two - three - four, two, three, four), _CHARS_PER_TOKEN, strict=True)
    return sum(chars / per_token for chars, per_token in widths)


def _spread(text: str, pieces: int, chars: int, *, whole_words: bool = False) -> list[str]:
    """`pieces` pieces of about `chars` characters, evenly from the first to the last; the text must be longer."""
    step = (len(text) - chars) / (pieces - 1)
    starts = [round(n * step) for n in range(pieces)]
    if not whole_words:
        return [text[start : start + chars] for start in starts]
    return [text[_word_start(text, start) : _word_start(text, start + chars)] for start in starts]


def _word_start(text: str, at: int) -> int:
    """`at`, or the next blank after it if one is near: cutting a word in two would count it twice."""
    if at == 0 or at >= len(text):
        return at
    blank = text.find(" ", at, at + 24)
    return at if blank < 0 else blank


def _default_dirs() -> list[Path]:
    """Where vocabularies may lie: the user's caches, litellm's packaged copies (found without importing it)."""
    dirs = [Path(value) for name in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR") if (value := os.environ.get(name))]
    spec = find_spec("litellm")
    if spec is not None and spec.origin is not None:
        dirs.append(Path(spec.origin).parent / "litellm_core_utils" / "tokenizers")
    dirs.append(Path(tempfile.gettempdir()) / "data-gym-cache")
    return dirs


def _vocabulary_dir(name: str, dirs: Sequence[Path]) -> Path | None:
    """The first directory with an intact copy. tiktoken would delete and download a broken one: it must not see it."""
    filename = sha1(_BLOB.format(name).encode(), usedforsecurity=False).hexdigest()
    for directory in dirs:
        try:
            data = (directory / filename).read_bytes()
        except OSError:
            continue
        if sha256(data).hexdigest() == _SHA256[name]:
            return directory
    return None


def _load(name: str, directory: Path) -> Encoding:
    import tiktoken

    before = os.environ.get("TIKTOKEN_CACHE_DIR")
    os.environ["TIKTOKEN_CACHE_DIR"] = str(directory)
    try:
        encoding = tiktoken.get_encoding(name)
        # What encodes is the library's compiled core; this dictionary of 200,000 entries is its source and 28 MB.
        encoding._mergeable_ranks = {}
        return encoding
    finally:
        if before is None:
            del os.environ["TIKTOKEN_CACHE_DIR"]
        else:
            os.environ["TIKTOKEN_CACHE_DIR"] = before
