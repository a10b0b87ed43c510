"""What `vllmport.pool.LLM` does to look like `vllm.LLM`, as far as it needs no engine."""

import struct
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest

from vllmport.bridge.codec import Array
from vllmport.bridge.errors import InvalidRequest
from vllmport.pool.client.drop_in import ELSEWHERE
from vllmport.pool.client.llm import LLM
from vllmport.pool.client.media import message_with_media, prompt_with_media
from vllmport.pool.client.pooled import numbers
from vllmport.pool.client.tokenizer import Tokenizer


class Recorder(LLM):
    """Keeps what it was made of."""

    def __init__(self, model: str | None = None, **options: Any) -> None:
        self.made_of = (model, options)


@dataclass
class EngineArgs:
    """In the shape of vLLM's."""

    model: str = "Qwen/Qwen3-0.6B"
    dtype: str = "auto"
    max_model_len: int | None = None
    hf_overrides: dict[str, Any] = field(default_factory=dict)


def test_of_engine_arguments_only_what_differs_counts() -> None:
    made = Recorder.from_engine_args(EngineArgs(model="m", max_model_len=5))
    assert made.made_of == ("m", {"max_model_len": 5})
    made = Recorder.from_engine_args({"model": "m", "dtype": "auto"})
    assert made.made_of == ("m", {"dtype": "auto"})


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_cannot_cross_a_process_says_what_to_use(name: str) -> None:
    with pytest.raises(InvalidRequest, match="from another process") as caught:
        getattr(Recorder(), name)(print)
    assert ELSEWHERE[name] in str(caught.value)
    assert not hasattr(Recorder(), "no_such_method")


def test_the_tokenizer_asks_the_worker() -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def call(verb: str, args: dict[str, Any]) -> dict[str, Any]:
        asked.append((verb, args))
        return {"token_ids": [1, 2], "text": "ab"}

    facts: dict[str, Any] = {
        "eos_token_id": 1,
        "bos_token_id": None,
        "pad_token_id": 1,
        "vocab_size": 9,
    }
    facts["tokenizer"] = "/a/model"
    tokenizer = Tokenizer(call, facts)
    assert tokenizer.encode("ab") == tokenizer("ab")["input_ids"] == [1, 2]
    assert tokenizer.decode(7) == "ab"
    assert asked[-1] == ("detokenize", {"token_ids": [7], "skip_special_tokens": False})
    said = [{"role": "user", "content": "x"}]
    assert tokenizer.apply_chat_template(said, tokenize=False, tools=[], thinking=True) == "ab"
    assert asked[-1][1] == {
        "messages": said,
        "add_generation_prompt": False,
        "chat_template_kwargs": {"thinking": True},
        "tools": [],
    }
    assert tokenizer.apply_chat_template([said, said], tokenize=False) == ["ab", "ab"]
    assert tokenizer.batch_decode([[1], [2]]) == ["ab", "ab"]
    assert tokenizer(["ab", "b"]) == {"input_ids": [[1, 2]] * 2, "attention_mask": [[1, 1]] * 2}
    with pytest.raises(AttributeError, match=r"AutoTokenizer.from_pretrained\('/a/model'\)"):
        _ = tokenizer.backend_tokenizer


def test_the_vocabulary_is_asked_for_once() -> None:
    asked: list[str] = []

    def call(verb: str, _args: dict[str, Any]) -> dict[str, Any]:
        asked.append(verb)
        return {
            "tokens": {"<unk>": 0, "</s>": 1, "▁a": 2},
            "special_tokens": {"eos_token": "</s>", "unk_token": "<unk>"},
            "special_ids": [0, 1],
            "chat_template": None,
        }

    facts: dict[str, Any] = {"eos_token_id": 1, "bos_token_id": None, "pad_token_id": None}
    tokenizer = Tokenizer(call, {**facts, "vocab_size": 3, "tokenizer": "m"})
    assert tokenizer.convert_tokens_to_ids("▁a") == 2
    assert tokenizer.convert_tokens_to_ids(["</s>", "nope"]) == [1, 0]
    assert tokenizer.convert_ids_to_tokens(2) == "▁a"
    assert tokenizer.convert_ids_to_tokens([2, 1], skip_special_tokens=True) == ["▁a"]
    assert tokenizer.get_vocab()["▁a"] == 2
    assert (tokenizer.eos_token, tokenizer.bos_token) == ("</s>", None)
    assert tokenizer.all_special_tokens == ["<unk>", "</s>"]
    assert tokenizer.chat_template is None
    assert asked == ["vocabulary"]


class Picture:
    """Saves itself as an image of PIL does."""

    def save(self, file: Any, format: str) -> None:  # noqa: A002  # PIL's name
        file.write(f"as {format}".encode())


def test_media_become_bytes() -> None:
    prompt = {"prompt": "x", "multi_modal_data": {"image": [Picture(), b"raw"], "audio": b"wav"}}
    assert prompt_with_media(prompt)["multi_modal_data"] == {
        "image": [b"as PNG", b"raw"],
        "audio": b"wav",
    }
    parts = [
        {"type": "text", "text": "x"},
        {"type": "image", "image": Picture()},
        {"type": "image_pil", "image_pil": Picture()},
        {"type": "image_url", "image_url": {"url": "http://x"}},
    ]
    found = message_with_media({"role": "user", "content": parts})["content"]
    assert found == [
        parts[0],
        {"type": "image", "image": b"as PNG"},
        {"type": "image", "image": b"as PNG"},
        parts[3],
    ]
    assert message_with_media({"role": "user", "content": "x"})["content"] == "x"


def test_vectors_are_numpy_arrays_where_it_is_installed_else_lists(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = Array("float32", (2, 2), struct.pack("<4f", 1, 2, 3, 4))
    assert numbers(rows).shape == (2, 2)
    monkeypatch.setitem(sys.modules, "numpy", None)
    assert numbers(rows) == [[1.0, 2.0], [3.0, 4.0]]
    assert numbers(Array("float32", (2,), struct.pack("<2f", 1, 2))) == [1.0, 2.0]
