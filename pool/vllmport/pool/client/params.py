"""Sampling parameters, by vLLM's names; the worker checks their values against the engine."""

from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How to choose tokens: the parameters of `vllm.SamplingParams`, vLLM 0.32.

    None leaves a parameter at the engine's default. Only what is set travels.

    Attributes:
        n: Sequences for each prompt.
        temperature: 0 is greedy; the engine's default is 1.
        top_p: Nucleus sampling, 0 < top_p ≤ 1.
        top_k: Only the k most probable tokens; 0 for all.
        min_p: Smallest probability, relative to the most probable token.
        seed: For repeatable sampling.
        max_tokens: Tokens to generate at the most; the engine's default is 16.
        min_tokens: Tokens before which the sequence may not end.
        stop: Strings that end it.
        stop_token_ids: Tokens that end it.
        ignore_eos: Go on past the end-of-sequence token.
        include_stop_str_in_output: Keep the stop string in the text.
        presence_penalty: In [-2, 2].
        frequency_penalty: In [-2, 2].
        repetition_penalty: Greater than 0; 1 for none.
        logprobs: How many log-probabilities for each token.
        prompt_logprobs: The same for each prompt token.
        detokenize: Whether to make text of the tokens.
        skip_special_tokens: Leave special tokens out of the text.
        spaces_between_special_tokens: Put spaces between them.
        truncate_prompt_tokens: Use only the last so many prompt tokens.
        logit_bias: Token id → bias.
        allowed_token_ids: Only these tokens.
        bad_words: Words that may not come.
        structured_outputs: A map with one of json, regex, choice, grammar, json_object,
            structural_tag.
        extra_args: For engine plugins.
    """

    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = None
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    structured_outputs: dict[str, Any] | None = None
    extra_args: dict[str, Any] | None = None

    def to_wire(self) -> dict[str, Any]:
        """Return what was set."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in values.items() if value is not None}
