"""The serving form: the estimator's numbers, on any text, without sklearn, fast."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from classifier import registry
from classifier.datamodels import RequestFeatures
from classifier.dataset import read_labels
from classifier.heuristic import HeuristicScorer
from classifier.registry import shipped_folder
from classifier.rows import request_features
from classifier.scorer import TrainedScorer, normal_model_name
from classifier.serving import FIXED_LANES, ServingFormatError
from tests.learning_data import SUBJECTS, truth
from tests.patience import PATIENCE_S

PROSE = "The committee compared three plans for the harbour and asked which of them would cost least over ten years. "
SHIPPED = registry.load_scorer(shipped_folder())


def asked(text: str) -> RequestFeatures:
    return request_features({"messages": [{"role": "user", "content": text}]})


def test_both_forms_give_the_same_numbers_on_labelled_rows(model: Path, labels: Path) -> None:
    estimator, scorer = registry.load_estimator(model), registry.load_scorer(model)
    requests = [e.features for e in read_labels(labels)[0]]
    wanted, far = estimator.predict_proba(requests), estimator.novelty(requests)
    for features, p, novelty in zip(requests, wanted, far, strict=True):
        score = scorer.score(features)
        assert score.novelty_ratio == pytest.approx(novelty, abs=1e-9)
        if novelty == 0.0:
            assert [score.p_adequate[t] for t in estimator.tiers] == pytest.approx(p.tolist(), abs=1e-9)


def test_both_forms_of_the_shipped_model_agree_on_made_up_prompts() -> None:
    estimator = registry.load_estimator(shipped_folder())
    rng = np.random.default_rng(0)
    vocabulary = sorted(estimator.base_.vectorizer_.vocabulary_)
    texts = [" ".join(rng.choice(vocabulary, size=int(rng.integers(5, 120)))) + "?" for _ in range(40)]
    texts += [t + "\nA. 12\nB. 40\nC. none of these\nAnswer:" for t in texts[:20]]
    requests = [asked(t) for t in texts]
    wanted, far = estimator.predict_proba(requests), estimator.novelty(requests)
    for features, p, novelty in zip(requests, wanted, far, strict=True):
        shrunk = [(1 - novelty) * x + novelty * q for x, q in zip(p, SHIPPED.prior(features), strict=True)]
        score = SHIPPED.score(features)
        assert [score.p_adequate[t] for t in estimator.tiers] == pytest.approx(shrunk, abs=1e-9)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.text(st.characters(), max_size=300))
def test_every_text_gets_probabilities(text: str) -> None:
    score = SHIPPED.score(asked(text))
    assert all(0.0 < p < 1.0 for p in score.p_adequate.values())
    assert score.complexity_ratio == pytest.approx(1.0 - score.p_adequate["local"])
    assert 0.0 <= score.novelty_ratio <= 1.0
    assert score.calibrated


@pytest.mark.parametrize("text", ["", "x", "\u202e\u05d0\u05d1", "\U0001f98a" * 3, "x" * 2_000_000, "\ud800", "\x00"])
def test_strange_prompts_are_far_from_the_training_data(text: str) -> None:
    score = SHIPPED.score(asked(text))
    prior = HeuristicScorer().score(asked(text)).p_adequate
    assert score.novelty_ratio == 1.0
    assert score.p_adequate == pytest.approx(prior, abs=0.021)


def test_what_was_learned_is_true(model: Path) -> None:
    scorer = registry.load_scorer(model)
    asking = "please tell me about this thing in some detail the {} number 1x7?"
    p = {s: scorer.unshrunk(asked(asking.format(s)))[0][0] for s in SUBJECTS}
    order = sorted(SUBJECTS, key=lambda s: truth(s)["local"])
    assert p[order[0]] < p[order[-1]] - 0.15
    assert np.corrcoef([p[s] for s in order], [truth(s)["local"] for s in order])[0, 1] > 0.8


def test_knowing_the_models_changes_only_what_is_read_from_their_labels() -> None:
    question = asked("Tom has 12 apples and buys 3 bags of 7 apples each. How many apples does Tom have in total?")
    sources = SHIPPED.model.source_models
    plain = SHIPPED.score(question)
    bound = SHIPPED.bind(sources[SHIPPED.model.sources.index("routellm_gsm8k")])
    assert bound.score(question).p_adequate["local"] < plain.p_adequate["local"]
    assert SHIPPED.bind({"local": "unheard-of-7b"}).score(question) == plain
    assert normal_model_name("meta-llama/Llama-3.1-8B-Instruct") == normal_model_name("meta-llama-3.1-8b-instruct")


def test_a_cut_or_foreign_serving_form_is_refused(model: Path) -> None:
    data = (model / registry.SERVING).read_bytes()
    for broken in (b"", data[:-1], data[:200], b"{}\n", data.replace(b'"format":4', b'"format":9', 1)):
        with pytest.raises(ServingFormatError):
            TrainedScorer.from_bytes(broken)


def test_serving_imports_no_learning_library() -> None:
    program = (
        "import sys; from classifier import cli, registry; from classifier.golden import golden_requests; "
        "s = cli.load_serving_scorer(None, None); s.score(golden_requests()[3]); "
        "print(sorted(m for m in ('sklearn', 'numpy', 'scipy', 'skops', 'matplotlib') if m in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("size", "limit_s"), [(2_000, 0.002), (32_000, 0.003)])
def test_features_and_score_stay_within_ten_times_their_budget_on_any_machine(size: int, limit_s: float) -> None:
    text = (PROSE * (size // len(PROSE) + 1))[:size]

    def once() -> float:
        start_s = time.thread_time()
        for _ in range(20):
            SHIPPED.score(asked(text))
        return (time.thread_time() - start_s) / 20

    once()
    assert min(once() for _ in range(15)) < limit_s


def test_a_short_prefix_moves_a_bounded_share_to_premium() -> None:
    """The worst eight words an attacker who knows the weights can put in front."""
    scorer = SHIPPED
    tiers = scorer.model.tiers
    local, premium = tiers.index("local"), tiers.index("premium")
    lanes = {w.decode(): scorer._word_lanes([w]) for w in scorer._table}
    worst = sorted(lanes, key=lambda w: lanes[w][FIXED_LANES + premium] - lanes[w][FIXED_LANES + local], reverse=True)[
        :8
    ]
    prompts = [
        f"{PROSE * (1 + i % 5)} Point {i}: name the {w} of a harbour." for i, w in enumerate(list(lanes)[5_000:5_200])
    ]

    def gains(prefix: str) -> list[float]:
        scores = [scorer.score(asked(prefix + p)).p_adequate for p in prompts]
        return [s["premium"] - s["local"] for s in scores]

    plain, steered = gains(""), gains(" ".join(worst) + " ")
    cut = sorted(plain)[int(0.7 * len(plain))]
    share = [sum(g >= cut for g in gs) / len(gs) for gs in (plain, steered)]
    shift = [b - a for a, b in zip(plain, steered, strict=True)]
    assert max(shift) < 0.45, "no prefix of eight words turns a sure prompt"
    assert sum(shift) / len(shift) < 0.2
    assert share[0] <= share[1] <= 1.0


def test_a_request_unlike_what_its_models_were_judged_on_is_novel() -> None:
    question = asked("Which of these planets is the largest?\nA. Mars\nB. Jupiter\nC. Venus\nD. Earth\nAnswer:")
    model = SHIPPED.model
    at_home = SHIPPED.bind(model.source_models[model.sources.index("routellm_mmlu")])
    elsewhere = SHIPPED.bind(model.source_models[model.sources.index("zeroeval_math_l5")])
    assert SHIPPED.score(question).novelty_ratio == at_home.score(question).novelty_ratio == 0.0
    far = elsewhere.score(question)
    assert far.novelty_ratio == 1.0
    assert [far.p_adequate[t] for t in model.tiers] == pytest.approx(elsewhere.prior(question))


@given(st.integers(60, 40_000), st.integers(1, 20_000))
def test_prompts_nobody_has_seen_are_ranked_by_their_length(chars: int, more: int) -> None:
    def gain(size: int) -> float:
        prior = SHIPPED.prior(asked("x" * size))
        return prior[-1] - prior[0]

    assert gain(chars + more) > gain(chars)
