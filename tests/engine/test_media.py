"""Images on real vLLM: a small model with eyes sees what was sent, byte for byte."""

import base64
import importlib.util
import io
from collections.abc import Iterator
from typing import Any

import pytest

from checkpoints import UNBOUND, seeing
from vllmport.pool import LLM, EngineError, InvalidRequest, Pool, RequestOutput, SamplingParams

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore"),  # transformers' own, while it makes the model
]

FRANCE = "The capital of France is"
GREEDY = SamplingParams(temperature=0, max_tokens=4, logprobs=0)
PLACES = 4  # for one picture


@pytest.fixture(scope="module")
def eyes(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = seeing(tmp_path_factory.mktemp("model") / "seeing")
    options: dict[str, Any] = {
        "dtype": "float32",
        "enforce_eager": True,
        "v1_multiprocessing": "off",
        "kv_cache_memory_bytes": 32 << 20,
        "max_model_len": 1024,
        "limit_mm_per_prompt": {"image": 1},
    }
    with pool.llm(str(folder), name="eyes", env=UNBOUND, **options) as llm:
        yield llm


def picture(colour: str) -> Any:
    from PIL import Image

    return Image.new("RGB", (40, 30), colour)


def file(colour: str, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture(colour).save(buffer, format=kind)
    return buffer.getvalue()


def seen(llm: LLM, image: Any) -> RequestOutput:
    prompt = {"prompt": FRANCE, "multi_modal_data": {"image": image}}
    return llm.generate(prompt, GREEDY)[0]


def certainty(output: RequestOutput) -> float:
    logprob = output.outputs[0].cumulative_logprob
    assert logprob is not None
    return logprob


def test_what_is_on_a_picture_decides_what_the_model_computes(eyes: LLM) -> None:
    assert eyes.engine_config()["multimodal"]
    blind = eyes.generate(FRANCE, GREEDY)[0]
    red, blue, again = (seen(eyes, file(colour)) for colour in ("red", "blue", "red"))
    assert blind.outputs[0].text == " Paris."
    assert len(red.prompt_token_ids or ()) == len(blind.prompt_token_ids or ()) + PLACES
    assert certainty(red) == certainty(again)
    assert len({certainty(output) for output in (blind, red, blue)}) == 3


def test_an_object_that_saves_itself_is_seen_as_its_file_is(eyes: LLM) -> None:
    assert certainty(seen(eyes, picture("red"))) == certainty(seen(eyes, file("red")))
    assert certainty(seen(eyes, file("red", "BMP"))) == certainty(seen(eyes, file("red")))


def test_a_picture_in_a_chat_is_seen_in_each_way_to_write_it(eyes: LLM) -> None:
    def told(part: dict[str, Any]) -> RequestOutput:
        parts = [part, {"type": "text", "text": "What is the capital of Japan?"}]
        return eyes.chat([{"role": "user", "content": parts}], GREEDY)[0]

    url = f"data:image/png;base64,{base64.b64encode(file('red')).decode()}"
    ways: list[dict[str, Any]] = [
        {"type": "image", "image": file("red")},
        {"type": "image_pil", "image_pil": picture("red")},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    assert len({certainty(told(part)) for part in ways}) == 1
    other = told({"type": "image", "image": file("blue")})
    assert certainty(other) != certainty(told(ways[0]))
    assert "capital of Japan" in str(other.prompt)


def test_more_pictures_than_allowed_and_what_is_none_are_refused(eyes: LLM) -> None:
    with pytest.raises(InvalidRequest, match="At most 1 image"):
        seen(eyes, [file("red"), file("blue")])
    with pytest.raises(InvalidRequest, match="cannot identify image"):
        seen(eyes, b"no image")
    local = {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}
    with pytest.raises(EngineError, match="allowed-local-media-path"):
        eyes.chat([{"role": "user", "content": [local]}], GREEDY)


def test_prepared_pictures_are_forgotten_when_told(eyes: LLM) -> None:
    before = certainty(seen(eyes, file("green")))
    eyes.reset_mm_cache()
    assert certainty(seen(eyes, file("green"))) == before


def test_a_file_that_is_no_video_is_refused_by_its_decoder(eyes: LLM) -> None:
    prompt = {"prompt": FRANCE, "multi_modal_data": {"video": b"no video"}}
    with pytest.raises(InvalidRequest, match="Could not open video"):
        eyes.generate(prompt, GREEDY)


@pytest.mark.skipif(
    any(map(importlib.util.find_spec, ("soundfile", "av"))), reason="a decoder is installed here"
)
def test_audio_has_no_decoder_in_the_cpu_build(eyes: LLM) -> None:
    prompt = {"prompt": FRANCE, "multi_modal_data": {"audio": b"RIFF"}}
    with pytest.raises(EngineError, match="PackageNotFoundError"):
        eyes.generate(prompt, GREEDY)
    assert eyes.generate(FRANCE, GREEDY)[0].outputs[0].text == " Paris."
