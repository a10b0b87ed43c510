"""Through the pool vLLM says what it says without it: tokens, embeddings, classes, scores."""

from typing import Any, NamedTuple

import pytest

from checkpoints import TINY, UNBOUND, classifier
from inprocess import in_process
from vllmport.pool import BeamSearchParams, Pool

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400)]

CPU: dict[str, Any] = {"enforce_eager": True, "dtype": "float32", "kv_cache_memory_bytes": 64 << 20}
TEXTS = ["The capital of France is", "1 2 3", "What is the capital of Japan?", "a"]
CAPITALS = ["France", "Japan", "Italy", "Norway", "Spain", "Peru", "Egypt", "Cuba"]


def mixed(count: int) -> tuple[list[str], list[dict[str, Any]]]:
    """Make prompts and parameters, greedy and seeded, short and long, with every kind of filter."""
    prompts, params = [], []
    for index in range(count):
        country = CAPITALS[index % len(CAPITALS)]
        prompts.append(f"The capital of {country} is" if index % 2 else f"{index} {index + 1}")
        one: dict[str, Any] = {"max_tokens": 1 + index % 24, "ignore_eos": index % 3 == 0}
        if index % 4 == 0:
            one |= {"temperature": 0.0}
        else:
            one |= {"temperature": 0.5 + index % 3 / 2, "seed": index, "top_p": 0.9, "top_k": 20}
        if index % 5 == 0:
            one |= {"repetition_penalty": 1.2, "min_tokens": 1}
        if index % 7 == 0 and one["temperature"]:
            one |= {"n": 2, "presence_penalty": 0.5}
        params.append(one)
    return prompts, params


PAIRS: list[Any] = [TEXTS[0], TEXTS]
BEAMS: dict[str, Any] = {"beam_width": 3, "max_tokens": 6}
GENERATING: dict[str, Any] = {
    **CPU,
    "model": str(TINY),
    "max_num_seqs": 16,
    "enable_prefix_caching": False,
}
EMBEDDING: dict[str, Any] = {**CPU, "model": str(TINY), "runner": "pooling", "convert": "embed"}


class Theirs(NamedTuple):
    """Checkpoints of two classifiers, and what vLLM itself answered, engine by engine."""

    three: str
    one: str
    generated: list[Any]
    embedded: list[Any]
    classified: list[Any]
    scored: list[Any]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Theirs:
    folder = tmp_path_factory.mktemp("models")
    three, one = (str(classifier(folder / str(labels), labels)) for labels in (3, 1))
    answers = in_process(
        (GENERATING, [("generate", [*mixed(200)])] * 2 + [("beam_search", [TEXTS[:2], BEAMS])]),
        (EMBEDDING, [("embed", [TEXTS]), ("score", PAIRS)]),
        ({**CPU, "model": three}, [("classify", [TEXTS])]),
        ({**CPU, "model": one}, [("score", PAIRS)]),
    )
    return Theirs(three, one, *answers)


def test_200_mixed_requests_give_the_same_tokens(pool: Pool, theirs: Theirs) -> None:
    first, second, searched = theirs.generated
    assert first == second, "vLLM itself does not repeat itself"
    options: dict[str, Any] = {"v1_multiprocessing": "off", "env": UNBOUND, **GENERATING}
    with pool.llm(**options, name="same") as llm:
        results = llm.generate(*mixed(200))
        ours = [[output.token_ids for output in result.outputs] for result in results]
        differing = [index for index in range(200) if ours[index] != first[index]]
        assert differing == []
        found = llm.beam_search(TEXTS[:2], BeamSearchParams(**BEAMS))
        assert [[beam.tokens for beam in one.sequences] for one in found] == searched


def test_embeddings_and_scores_are_the_same(pool: Pool, theirs: Theirs) -> None:
    embedded, one_to_many = theirs.embedded
    with pool.llm(**EMBEDDING, name="embed", env=UNBOUND) as llm:
        for ours, vector in zip(llm.embed(TEXTS), embedded, strict=True):
            assert ours.outputs.hidden_size == len(vector) == 128
            assert list(ours.outputs.embedding) == pytest.approx(vector, rel=1e-6, abs=1e-7)
        scores = [one.outputs.score for one in llm.score(*PAIRS)]
        assert scores == pytest.approx(one_to_many, abs=1e-6)
        assert scores[0] == pytest.approx(1.0, abs=1e-6)
        assert max(scores[1:]) < 0.999


def test_classes_and_cross_encoder_scores_are_the_same(pool: Pool, theirs: Theirs) -> None:
    options: dict[str, Any] = {"v1_multiprocessing": "off", "env": UNBOUND, **CPU}
    with pool.llm(theirs.three, name="three", **options) as llm:
        found = llm.classify(TEXTS)
        assert [one.outputs.num_classes for one in found] == [3] * len(TEXTS)
        for ours, probabilities in zip(found, theirs.classified[0], strict=True):
            assert sum(ours.outputs.probs) == pytest.approx(1, abs=1e-5)
            assert list(ours.outputs.probs) == pytest.approx(probabilities, abs=1e-6)
    with pool.llm(theirs.one, name="one", **options) as llm:
        scores = [found.outputs.score for found in llm.score(*PAIRS)]
        assert scores == pytest.approx(theirs.scored[0], abs=1e-6)
