"""Token counts: exact where they can be, close where they are sampled, labelled, bounded in time, never a network."""

import os
import subprocess
import sys
import threading
from hashlib import sha1
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.tokens import TiktokenCounter, estimate_tokens
from tests.token_corpus import CODE, SENTENCES, prose

LANGUAGES = sorted(SENTENCES)


@pytest.fixture(scope="module")
def counter() -> TiktokenCounter:
    loaded = TiktokenCounter()
    assert loaded.load(), loaded.problem
    return loaded


@pytest.fixture
def bare() -> TiktokenCounter:
    return TiktokenCounter(vocabulary_dirs=[])


def exact(text: str) -> int:
    import tiktoken

    return len(tiktoken.get_encoding("o200k_base").encode_ordinary(text))  # loaded by now


def of(counter: TiktokenCounter, *texts: str) -> tuple[int, bool]:
    """Tokens of the texts alone, without those that messages add."""
    total, estimated = counter.count(texts, messages=len(texts))
    return total - 3 * len(texts) - 3, estimated


@pytest.mark.parametrize("encoding", ["o200k_base", "cl100k_base"])
@pytest.mark.parametrize("word", ["Hello", "authentication"])
def test_a_common_word_is_one_token_in_both_vocabularies(encoding, word):
    counter = TiktokenCounter(encoding)
    assert counter.load()
    assert of(counter, word) == (1, False)


def test_every_message_costs_three_tokens_and_the_reply_three_more(counter):
    assert counter.count([], messages=0) == (3, False)
    assert counter.count(["Hello", "Hello"], messages=2) == (3 + 2 * (3 + 1), False)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_message_of_usual_size_is_counted_exactly(counter, language):
    text = prose(language, 3_900)
    assert of(counter, text) == (exact(text), False)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("chars", [4_500, 12_000, 60_000])
def test_a_long_text_is_sampled_to_within_a_tenth_and_labelled(counter, language, chars):
    text = prose(language, chars, seed=chars)
    tokens, estimated = of(counter, text)
    assert estimated
    assert tokens == pytest.approx(exact(text), rel=0.10)


def test_a_long_text_of_many_kinds_is_sampled_to_within_a_tenth(counter):
    for seed in range(5):
        text = "".join(prose(language, 7_000, seed) for language in LANGUAGES) + CODE * 8
        assert of(counter, text)[0] == pytest.approx(exact(text), rel=0.10)


def test_many_texts_are_counted_in_bounded_time_and_to_within_a_tenth(counter):
    texts = [prose(language, 3_000, seed=n) for n in range(12) for language in LANGUAGES]
    fresh = TiktokenCounter()
    assert fresh.load()
    tokens, estimated = of(fresh, *texts)
    assert estimated
    assert tokens == pytest.approx(sum(map(exact, texts)), rel=0.10)


def test_a_prompt_of_500_words_is_about_700_tokens(counter):
    words = " ".join(prose("english", 4_000).split()[:500])
    tokens, _ = of(counter, words)
    assert 500 / 0.75 * 0.8 <= tokens <= 700


def test_a_repeated_text_is_remembered_with_its_label(counter):
    system, long = prose("english", 2_000, seed=99), prose("german", 9_000, seed=99)
    assert of(counter, system) == of(counter, system)
    assert of(counter, long) == of(counter, long)
    assert of(counter, long)[1]


def test_texts_that_differ_in_one_letter_are_not_mixed_up(counter):
    a = prose("english", 1_000)
    b = a[:500] + " supercalifragilistic" + a[521:]
    assert len(a) == len(b)
    assert [of(counter, t)[0] for t in (a, b, a, b)] == [exact(t) for t in (a, b, a, b)]


def test_memory_is_bounded_whatever_passes(counter):
    for n in range(3_000):
        counter.count([f"{n:300d}"], messages=1)
    assert len(counter._remembered) <= 1024


PATHOLOGICAL = ["a", "😀", " ", "=", "\n", "的", "0", "\ud800", "aB"]


class Weighed:
    """The counter's encoding, noting how much it is given: that, and not the length of a prompt, is what costs."""

    def __init__(self, inner):
        self.inner, self.calls, self.chars = inner, 0, 0

    def encode_ordinary(self, text):
        self.calls += 1
        self.chars += len(text)
        return self.inner.encode_ordinary(text)


@pytest.fixture
def weighed(counter):
    fresh = TiktokenCounter()
    fresh._encoding, fresh.problem = Weighed(counter._encoding), None
    return fresh


@pytest.mark.parametrize("piece", PATHOLOGICAL)
def test_of_two_million_characters_of_anything_a_few_thousand_are_looked_at(weighed, piece):
    tokens, estimated = of(weighed, piece * (2_000_000 // len(piece)))
    assert estimated
    assert tokens > 1_000
    assert weighed._encoding.chars <= 4_000


def test_a_hundred_thousand_small_texts_are_bounded_too(weighed):
    of(weighed, *(f"word {n}" for n in range(100_000)))
    assert weighed._encoding.chars <= 12_000
    assert weighed._encoding.calls <= 1_000


def test_special_tokens_count_as_the_characters_they_are(counter):
    tokens, _ = of(counter, "<|endoftext|>")
    assert tokens > 1


@given(st.text())
def test_any_text_can_be_counted(counter, text):
    for one in (counter, TiktokenCounter(vocabulary_dirs=[])):
        assert of(one, text)[0] >= (1 if text else 0)


def test_any_lone_surrogate_can_be_counted(counter, bare):
    for one in (counter, bare):
        assert of(one, "\udc00 half a character \ud83d")[0] > 0


def test_without_a_vocabulary_counts_are_estimates_and_the_problem_is_named(bare):
    assert not bare.load()
    assert "estimates" in (bare.problem or "")
    assert bare.count(["Hello there"], messages=1)[1]


def test_before_it_is_loaded_it_estimates_and_afterwards_it_does_not_remember_that():
    counter = TiktokenCounter()
    text = prose("chinese", 1_000)
    guess, estimated = of(counter, text)
    assert estimated
    assert counter.load()
    assert counter.problem is None
    assert of(counter, text) == (exact(text), False)
    assert guess != exact(text)


@pytest.mark.parametrize("language", LANGUAGES)
def test_an_estimate_from_characters_is_within_a_fifth_in_every_language(bare, language):
    text = prose(language, 3_000)
    assert of(bare, text)[0] == pytest.approx(exact(text), rel=0.20)


def test_an_estimate_from_characters_is_within_a_tenth_over_all_languages(bare):
    texts = [prose(language, 3_000) for language in LANGUAGES]
    assert of(bare, *texts)[0] == pytest.approx(sum(map(exact, texts)), rel=0.10)


def test_an_estimate_of_nothing_is_nothing_and_of_something_is_something():
    assert estimate_tokens("") == 0
    assert [estimate_tokens(t) for t in ("a", "é", "的", "😀", "word")] == [1, 1, 1, 2, 1]


def test_a_broken_vocabulary_is_neither_used_nor_touched(tmp_path):
    name = sha1(
        b"https://openaipublic.blob.core.windows.net/encodings/o200k_base.tiktoken", usedforsecurity=False
    ).hexdigest()
    (tmp_path / name).write_bytes(b"broken")
    counter = TiktokenCounter(vocabulary_dirs=[tmp_path])
    assert not counter.load()
    assert (tmp_path / name).read_bytes() == b"broken"


def test_a_vocabulary_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="gpt2"):
        TiktokenCounter("gpt2")


def test_loading_in_a_thread_while_counting_is_safe():
    counter = TiktokenCounter()
    text = prose("english", 1_000)
    thread = threading.Thread(target=counter.load)
    thread.start()
    while thread.is_alive():
        assert of(counter, text)[0] > 0
    thread.join()
    assert of(counter, text) == (exact(text), False)


LOADS_ALONE = """
import os, socket, sys
def refuse(*args, **kwargs): raise SystemExit("network")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
before = dict(os.environ)
from router.tokens import TiktokenCounter
assert "tiktoken" not in sys.modules
counter = TiktokenCounter()
assert counter.load(), counter.problem
assert counter.count(["Hello"], messages=1) == (7, False)
assert dict(os.environ) == before
assert "litellm" not in sys.modules
"""


@pytest.mark.parametrize("cache_dir", [None, "", "empty"])
def test_it_loads_without_a_network_without_litellm_and_leaves_the_environment_alone(tmp_path, cache_dir):
    env = {k: v for k, v in os.environ.items() if k not in {"TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"}}
    env["TMPDIR"] = str(tmp_path)
    if cache_dir is not None:
        env["TIKTOKEN_CACHE_DIR"] = cache_dir and str(tmp_path / cache_dir)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", LOADS_ALONE], env=env, cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not any(tmp_path.iterdir())
