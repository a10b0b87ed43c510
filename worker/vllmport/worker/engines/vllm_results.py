"""vLLM's outputs as plain data, by vLLM's own names.

Owns the shapes of results, stream deltas and unfinished results. Reads vLLM's objects and imports
nothing of it. This runs once for each token of each stream: keep it short.
"""

from collections.abc import Iterable
from typing import Any

from vllmport.worker.engine import Partial


def result(output: Any, request_id: str) -> dict[str, Any]:
    """Turn a finished RequestOutput into the result of a call."""
    tokens = sum(len(completion.token_ids) for completion in output.outputs)
    return {
        **summary(output, request_id, tokens, positions(output.prompt_logprobs)),
        "outputs": [_completion(completion) for completion in output.outputs],
    }


def summary(
    output: Any, request_id: str, tokens: int, prompt_logprobs: list[Any] | None
) -> dict[str, Any]:
    """Turn a RequestOutput into what ends a stream: everything but the generated text."""
    prompt_tokens = len(output.prompt_token_ids or ())
    return {
        "request_id": request_id,
        "prompt": output.prompt,
        "prompt_token_ids": output.prompt_token_ids,
        "prompt_logprobs": prompt_logprobs,
        "num_cached_tokens": output.num_cached_tokens,
        "finished": output.finished,
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": tokens,
            "cached_tokens": output.num_cached_tokens or 0,
        },
    }


def delta(output: Any) -> dict[str, Any]:
    """Turn a RequestOutput of kind DELTA into what is new in a stream."""
    return {"outputs": [_grown(completion) for completion in output.outputs]}


def positions(logprobs: Any) -> list[dict[int, dict[str, Any]] | None] | None:
    """Turn vLLM's logprobs into a list with a map of token ids for each position."""
    if logprobs is None:
        return None
    return [None if position is None else _position(position) for position in logprobs]


def unfinished(states: list[Any], request_id: str, delivered: int) -> Partial:
    """Say how far a request had come, from the output processor's states of its sequences.

    Args:
        states: One `RequestState` for each sequence that still runs.
        request_id: The caller's name of the request.
        delivered: Tokens already put to its stream, those of sequences that have ended included.
    """
    completions = sorted(_completions_of(states), key=lambda completion: completion["index"])
    tokens = max(delivered, sum(len(completion["token_ids"]) for completion in completions))
    if tokens == 0:
        return Partial("prefill", 0, None)
    if not states:
        return Partial("decode", tokens, None)
    first = states[0]
    prompt_tokens = first.prompt_token_ids or []
    return Partial(
        "decode",
        tokens,
        {
            "request_id": request_id,
            "prompt": first.prompt,
            "prompt_token_ids": prompt_tokens,
            "prompt_logprobs": positions(first.logprobs_processor.prompt_logprobs),
            "num_cached_tokens": first.num_cached_tokens,
            "finished": False,
            "usage": {
                "prompt_tokens": len(prompt_tokens),
                "completion_tokens": tokens,
                "cached_tokens": first.num_cached_tokens or 0,
            },
            "outputs": completions,
        },
    )


def _completions_of(states: list[Any]) -> Iterable[dict[str, Any]]:
    for state in states:
        processor = state.logprobs_processor
        yield {
            "index": state.request_index,
            "text": getattr(state.detokenizer, "output_text", ""),
            "token_ids": list(state.detokenizer.output_token_ids),
            "cumulative_logprob": processor.cumulative_logprob,
            "logprobs": positions(processor.logprobs),
            "finish_reason": None,
            "stop_reason": None,
        }
    parent = states[0].parent_req if states else None
    if parent is not None:  # n > 1: sequences that have ended wait there for the others
        yield from (_completion(done) for done in parent.output_aggregator if done is not None)


def _completion(completion: Any) -> dict[str, Any]:
    return {
        "index": completion.index,
        "text": completion.text,
        "token_ids": list(completion.token_ids),
        "cumulative_logprob": completion.cumulative_logprob,
        "logprobs": positions(completion.logprobs),
        "finish_reason": completion.finish_reason,
        "stop_reason": completion.stop_reason,
    }


def _grown(completion: Any) -> dict[str, Any]:
    grown = {
        "index": completion.index,
        "text": completion.text,
        "token_ids": completion.token_ids,
        "finish_reason": completion.finish_reason,
        "stop_reason": completion.stop_reason,
    }
    if completion.logprobs is not None:
        grown["logprobs"] = positions(completion.logprobs)
        grown["cumulative_logprob"] = completion.cumulative_logprob
    return grown


def _position(position: Any) -> dict[int, dict[str, Any]]:
    return {
        token: {"logprob": it.logprob, "rank": it.rank, "decoded_token": it.decoded_token}
        for token, it in position.items()
    }
