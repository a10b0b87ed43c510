"""What calls return: vLLM's names and shapes, as plain frozen dataclasses.

The fields are those of `vllm.RequestOutput` and `vllm.CompletionOutput`, vLLM 0.32.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vllmport.pool.client.telling import tell


@dataclass(frozen=True, slots=True)
class Logprob:
    """Log-probability of one token, its rank in the vocabulary from 1, and its text."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


Logprobs = list[dict[int, Logprob] | None]
"""For each position, token id → log-probability; None where there is nothing before it."""


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One generated sequence.

    Attributes:
        index: Which of the `n` sequences of the request.
        text: The generated text.
        token_ids: Its tokens.
        cumulative_logprob: Sum over the tokens, where log-probabilities were asked for.
        logprobs: For each token, where asked for.
        finish_reason: "stop", "length", "abort", or None while it goes on.
        stop_reason: The stop string or token id that ended it, or None.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: Logprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    @property
    def finished(self) -> bool:
        """Whether the sequence has ended."""
        return self.finish_reason is not None


Delta = CompletionOutput
"""What one stream item adds to one sequence: only what is new."""


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """The result of one prompt.

    Attributes:
        request_id: The caller's id, or one made up for it.
        prompt: The text, after the chat template if there was one; None for token ids.
        prompt_token_ids: Its tokens.
        prompt_logprobs: For each prompt token, where asked for.
        outputs: The generated sequences, in the order of `index`; empty in a stream's summary.
        finished: Whether all of them have ended.
        num_cached_tokens: Prompt tokens that came from the prefix cache.
        usage: Counts: prompt_tokens, completion_tokens, cached_tokens.
        attempts: How many workers were given the call; more than 1 where one was lost.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int] | None
    outputs: list[CompletionOutput] = field(default_factory=list)
    finished: bool = True
    prompt_logprobs: Logprobs | None = None
    num_cached_tokens: int | None = None
    usage: dict[str, int] = field(default_factory=dict)
    attempts: int = 1


def completion_from(data: Mapping[str, Any]) -> CompletionOutput:
    """Build a sequence from its map on the wire."""
    return CompletionOutput(
        data["index"],
        data["text"],
        data["token_ids"],
        data.get("cumulative_logprob"),
        logprobs_from(data.get("logprobs")),
        data.get("finish_reason"),
        data.get("stop_reason"),
    )


def deltas_from(data: Mapping[str, Any]) -> list[Delta]:
    """Build what one stream item brings, one for each sequence that went on."""
    return [completion_from(output) for output in data["outputs"]]


def result_from(data: Mapping[str, Any], attempts: int = 1) -> RequestOutput:
    """Build a result, or the summary of a stream, from its map on the wire."""
    warn_of_notes(data)
    return RequestOutput(
        request_id=data["request_id"],
        prompt=data["prompt"],
        prompt_token_ids=data["prompt_token_ids"],
        outputs=[completion_from(output) for output in data.get("outputs", ())],
        finished=data["finished"],
        prompt_logprobs=logprobs_from(data.get("prompt_logprobs")),
        num_cached_tokens=data.get("num_cached_tokens"),
        usage=dict(data.get("usage", {})),
        attempts=attempts,
    )


def warn_of_notes(data: Mapping[str, Any]) -> None:
    """Pass on what was translated in the arguments of a call, as Python's own warnings."""
    for note in data.get("notes", ()):
        tell(note)


def logprobs_from(rows: Sequence[Mapping[int, Mapping[str, Any]] | None] | None) -> Logprobs | None:
    """Build log-probabilities from their maps on the wire."""
    if rows is None:
        return None
    return [
        None if row is None else {token: Logprob(**entry) for token, entry in row.items()}
        for row in rows
    ]
