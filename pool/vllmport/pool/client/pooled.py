"""What pooling models, beam searches and metrics return: vLLM's names and shapes.

Pure. Vectors are numpy arrays of float32 where numpy is installed, else lists of numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from vllmport.bridge.codec import Array
from vllmport.pool.client.results import Logprobs, logprobs_from, warn_of_notes

Vector = Sequence[float]
"""A numpy array of float32, or a list."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class EmbeddingOutput:
    """An embedding."""

    embedding: Vector

    @property
    def hidden_size(self) -> int:
        """How many numbers it has."""
        return len(self.embedding)


@dataclass(frozen=True, slots=True)
class ClassificationOutput:
    """The probability of each class."""

    probs: Vector

    @property
    def num_classes(self) -> int:
        """How many classes the model knows."""
        return len(self.probs)


@dataclass(frozen=True, slots=True)
class ScoringOutput:
    """How well two texts go together."""

    score: float


@dataclass(frozen=True, slots=True)
class PoolingOutput:
    """What a pooler made of the hidden states: one vector, or one for each token."""

    data: Any


@dataclass(frozen=True, slots=True)
class PoolingRequestOutput(Generic[T]):
    """The result of one prompt of a pooling model.

    Attributes:
        request_id: The caller's id, or one made up for it.
        outputs: What was made of it.
        prompt_token_ids: Its tokens.
        num_cached_tokens: Prompt tokens that came from the prefix cache.
        finished: Always true.
        usage: Counts: prompt_tokens.
    """

    request_id: str
    outputs: T
    prompt_token_ids: list[int]
    num_cached_tokens: int | None = None
    finished: bool = True
    usage: dict[str, int] = field(default_factory=dict)


EmbeddingRequestOutput = PoolingRequestOutput[EmbeddingOutput]
ClassificationRequestOutput = PoolingRequestOutput[ClassificationOutput]
ScoringRequestOutput = PoolingRequestOutput[ScoringOutput]


@dataclass(frozen=True, slots=True)
class BeamSearchSequence:
    """One beam: the prompt's tokens and what was found after them.

    Attributes:
        tokens: All tokens, the prompt's included.
        text: Their text.
        cum_logprob: Sum of the log-probabilities of the tokens found.
        logprobs: For each token found.
        finish_reason: None unless it was aborted.
        stop_reason: None unless it was aborted.
    """

    tokens: list[int]
    text: str
    cum_logprob: float
    logprobs: Logprobs
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass(frozen=True, slots=True)
class BeamSearchOutput:
    """The best beams, the best first."""

    sequences: list[BeamSearchSequence]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One of the engine's metrics.

    Attributes:
        kind: "counter", "gauge", "histogram" or "vector".
        name: vLLM's name of it, as in Prometheus.
        labels: What tells it from others of the name.
        value: Of a counter or gauge.
        values: Of a vector.
        count: Of a histogram: how many were observed.
        sum: Of a histogram: what they add up to.
        buckets: Of a histogram: upper limit → how many were below.
    """

    kind: str
    name: str
    labels: dict[str, str]
    value: float | None = None
    values: list[int] = field(default_factory=list)
    count: int | None = None
    sum: float | None = None
    buckets: dict[str, int] = field(default_factory=dict)


def embedding_from(data: Mapping[str, Any]) -> EmbeddingRequestOutput:
    """Build the result of `embed`."""
    return _request_output(data, EmbeddingOutput(numbers(data["outputs"]["embedding"])))


def classification_from(data: Mapping[str, Any]) -> ClassificationRequestOutput:
    """Build the result of `classify`."""
    return _request_output(data, ClassificationOutput(numbers(data["outputs"]["probs"])))


def pooling_from(data: Mapping[str, Any]) -> PoolingRequestOutput[PoolingOutput]:
    """Build the result of `encode`."""
    return _request_output(data, PoolingOutput(numbers(data["outputs"]["data"])))


def scores_from(data: Sequence[Mapping[str, Any]]) -> list[ScoringRequestOutput]:
    """Build the results of one call of `score`."""
    return [_request_output(one, ScoringOutput(one["outputs"]["score"])) for one in data]


def beams_from(data: Mapping[str, Any]) -> BeamSearchOutput:
    """Build the result of `beam_search`."""
    return BeamSearchOutput(
        [
            BeamSearchSequence(
                tokens=one["tokens"],
                text=one["text"],
                cum_logprob=one["cum_logprob"],
                logprobs=logprobs_from(one["logprobs"]) or [],
                finish_reason=one["finish_reason"],
                stop_reason=one["stop_reason"],
            )
            for one in data["sequences"]
        ]
    )


def numbers(array: Any) -> Any:
    """Return an array as numpy has it, else as nested lists."""
    if not isinstance(array, Array):
        return array
    try:
        return array.numpy()
    except ImportError:
        return memoryview(array.data).cast("B").cast("f", array.shape).tolist()


def _request_output(data: Mapping[str, Any], outputs: T) -> PoolingRequestOutput[T]:
    warn_of_notes(data)
    return PoolingRequestOutput(
        request_id=data["request_id"],
        outputs=outputs,
        prompt_token_ids=data["prompt_token_ids"],
        num_cached_tokens=data["num_cached_tokens"],
        finished=data["finished"],
        usage=dict(data["usage"]),
    )
