"""What may be given beside text: how to tokenize it, embeddings instead of it, types as objects."""

from collections.abc import Iterator
from typing import Any

import pytest

from checkpoints import TINY, UNBOUND
from vllmport.pool import LLM, InvalidRequest, Pool, SamplingParams

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(240)]

FRANCE = "The capital of France is"
GREEDY = SamplingParams(temperature=0, max_tokens=8)


@pytest.fixture(scope="module")
def embedding_off(pool: Pool) -> Iterator[LLM]:
    """What `on` is, inside the worker."""
    import torch

    options: dict[str, Any] = {"dtype": torch.float32, "enable_prompt_embeds": True}
    with pool.llm("tiny", name="embedding", env=UNBOUND, **options) as llm:
        yield llm


@pytest.fixture(params=["embedding_off", "on"])
def embedding(request: pytest.FixtureRequest) -> LLM:
    """An engine that takes embeddings as prompts, in each mode."""
    engine: LLM = request.getfixturevalue(request.param)
    return engine


def text_of(outputs: Any) -> str:
    return str(outputs[0].outputs[0].text)


def embedded(llm: LLM, prompt: str) -> Any:
    """Look a prompt up in the model's own table, as the model does."""
    from safetensors.torch import load_file

    weights = load_file(TINY / "model.safetensors")
    return weights["model.embed_tokens.weight"][llm.tokenize(prompt)]


def refusal(call: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        call()
    return caught.value


def test_a_type_of_torch_is_as_good_as_its_name(embedding: LLM) -> None:
    assert embedding.engine_config()["dtype"] == "float32"


@pytest.mark.parametrize("kind", ["tensor", "half", "array", "batch"])
def test_embeddings_of_a_prompt_are_answered_like_the_prompt(embedding: LLM, kind: str) -> None:
    tensor = embedded(embedding, FRANCE)
    given = {
        "tensor": tensor,
        "half": tensor.bfloat16(),
        "array": tensor.float().numpy(),
        "batch": tensor[None],
    }[kind]
    (output,) = embedding.generate({"prompt_embeds": given}, GREEDY)
    assert output.outputs[0].text == text_of(embedding.generate(FRANCE, GREEDY)) == " Paris."
    assert len(output.prompt_token_ids or ()) == len(tensor)


def test_embeddings_that_cannot_be_are_refused_and_the_engine_goes_on(embedding: LLM) -> None:
    import torch

    width = embedded(embedding, FRANCE).shape[1]
    for wrong, said in (
        (torch.ones(3, width + 1), f"tokens by {width}, not [3, {width + 1}] of float32"),
        (torch.ones(width), f"not [{width}]"),
        (torch.ones(2, 3, width), f"not [2, 3, {width}]"),
        (torch.ones(3, width, dtype=torch.int64), "of int64"),
        (torch.ones(0, width), "the prompt has 0 tokens"),
        (torch.ones(9000, width), "the prompt has 9000 tokens"),
        ("text", "not str"),
    ):
        error = refusal(lambda given=wrong: embedding.generate({"prompt_embeds": given}, GREEDY))
        assert error.parameter == "prompt_embeds"
        assert said in error.message
    assert text_of(embedding.generate(FRANCE, GREEDY)) == " Paris."


def test_a_model_that_takes_no_embeddings_says_how_it_would(off: LLM) -> None:
    error = refusal(lambda: off.generate({"prompt_embeds": embedded(off, FRANCE)}, GREEDY))
    assert error.parameter == "prompt_embeds"
    assert "enable_prompt_embeds=True" in error.message


def test_how_to_tokenize_is_done_as_told(off: LLM) -> None:
    ids = off.tokenize(FRANCE)

    def used(**how: Any) -> list[int] | None:
        return off.generate(FRANCE, GREEDY, tokenization_kwargs=how)[0].prompt_token_ids

    assert used(truncate_prompt_tokens=2) == ids[-2:]
    assert used(truncate_prompt_tokens=2, truncation_side="right") == ids[:2]
    assert used(truncate_prompt_tokens=None, add_special_tokens=False) == ids
    lower = off.tokenize(FRANCE.lower())
    assert used(do_lower_case=True) == lower != ids


@pytest.mark.parametrize(
    ("how", "parameter", "said"),
    [
        ({"truncate_prompt_token": 2}, "truncate_prompt_token", "mean 'truncate_prompt_tokens'"),
        ({"return_tensors": "pt"}, "return_tensors", "unknown key"),
        ({"truncate_prompt_tokens": "2"}, "truncate_prompt_tokens", "a number of tokens"),
        ({"truncate_prompt_tokens": -5}, "truncate_prompt_tokens", "from 1, or -1"),
        ({"truncate_prompt_tokens": 10**6}, "truncate_prompt_tokens", "cannot be greater"),
        ({"add_special_tokens": 1}, "add_special_tokens", "true or false"),
        ({"truncation_side": "up"}, "truncation_side", "'left', 'right'"),
        ({"padding": "longest"}, "padding", "do_not_pad"),
        ([1], "tokenization_kwargs", "is a map"),
    ],
    ids=str,
)
@pytest.mark.parametrize("verb", ["generate", "chat"])
def test_how_to_tokenize_is_checked(
    off: LLM, verb: str, how: Any, parameter: str, said: str
) -> None:
    message = [{"role": "user", "content": "Hi"}]
    call: Any = {"generate": off.generate, "chat": off.chat}[verb]
    prompt: Any = {"generate": FRANCE, "chat": message}[verb]
    error = refusal(lambda: call(prompt, GREEDY, tokenization_kwargs=how))
    assert error.parameter == parameter
    assert said in error.message


@pytest.mark.parametrize(
    "constraint",
    [{"regex": "("}, {"json": "{"}, {"grammar": "{"}, {"structural_tag": "{}"}],
    ids=str,
)
def test_a_constraint_that_cannot_be_is_named(llm: LLM, constraint: dict[str, Any]) -> None:
    params = SamplingParams(structured_outputs=constraint)
    error = refusal(lambda: llm.generate(FRANCE, params))
    assert (error.parameter, error.value) == next(iter(constraint.items()))
    assert text_of(llm.generate(FRANCE, GREEDY)) == " Paris."


def test_what_calls_no_longer_take_is_refused_with_what_to_use(off: LLM) -> None:
    old: dict[str, Any] = {"prompt_token_ids": [[1, 2]]}
    error = refusal(lambda: off.generate(FRANCE, GREEDY, **old))
    assert error.parameter == "prompt_token_ids"
    assert '{"prompt_token_ids": […]}' in error.message
