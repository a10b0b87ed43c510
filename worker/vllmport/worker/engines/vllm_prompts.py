"""Prompts, messages and media of callers → what vLLM's engines take.

`engine` is an LLMEngine or an AsyncLLM; what is used of it here, both have. Imports vLLM: only for
workers that run it.
"""

import base64
from collections.abc import Mapping
from typing import Any

from vllm.renderers import ChatParams, merge_kwargs
from vllm.renderers.inputs.preprocess import parse_model_prompt
from vllm.utils.mistral import is_mistral_tokenizer

from vllmport.bridge.errors import InvalidRequest
from vllmport.worker.engines.vllm_errors import blaming, plain, unknown
from vllmport.worker.engines.vllm_inputs import prompt_embeddings

_MEDIA = ("multi_modal_data", "multi_modal_uuids", "mm_processor_kwargs")
_PROMPT_KEYS = frozenset({"prompt", "prompt_token_ids", "prompt_embeds", "cache_salt", *_MEDIA})


def completion_prompt(engine: Any, prompt: Any, args: Mapping[str, Any] | None = None) -> Any:
    """Tokenize and check one prompt, as `LLM.generate` does."""
    if isinstance(prompt, Mapping):
        for name, value in prompt.items():
            if name not in _PROMPT_KEYS:
                raise unknown("key of a prompt", name, value, _PROMPT_KEYS)
        prompt = _with_embeddings(engine, _with_media(prompt))
    renderer = engine.renderer
    with blaming("prompt"):
        parsed = parse_model_prompt(engine.model_config, prompt)
        tokenization = _tokenization(renderer.default_cmpl_tok_params, args or {})
        extras = _extras(args or {})
        (rendered,) = renderer.render_cmpl([parsed], tokenization, prompt_extras=extras)
        _check_tokens(engine, rendered, "prompt")
    return rendered


def chat_prompt(engine: Any, args: Mapping[str, Any]) -> Any:
    """Apply the chat template and tokenize, as `LLM.chat` does."""
    renderer = engine.renderer
    messages = _messages(args["messages"])
    with blaming("messages"):
        params = _chat_params(engine, args)
        # The template writes the special tokens itself; a second BOS would change the answer.
        defaults = renderer.default_chat_tok_params.with_kwargs(add_special_tokens=False)
        tokenization = _tokenization(defaults, args)
        _, (rendered,) = renderer.render_chat(
            [messages], params, tokenization, prompt_extras=_extras(args)
        )
        _check_tokens(engine, rendered, "messages")
    return rendered


def chat_text(engine: Any, args: Mapping[str, Any]) -> dict[str, Any]:
    """Apply the chat template and answer with what the model would be given."""
    rendered = chat_prompt(engine, args)
    return {"text": rendered.get("prompt"), "token_ids": list(rendered["prompt_token_ids"])}


def tokenize(engine: Any, args: Mapping[str, Any]) -> dict[str, Any]:
    """Turn text into token ids."""
    prompt = args["prompt"]
    if not isinstance(prompt, str):
        raise InvalidRequest.of("prompt", plain(prompt), "tokenize needs a text")
    with blaming("prompt"):
        ids = engine.get_tokenizer().encode(
            prompt, add_special_tokens=bool(args.get("add_special_tokens", True))
        )
    return {"token_ids": list(ids), "count": len(ids)}


def detokenize(engine: Any, args: Mapping[str, Any]) -> dict[str, Any]:
    """Turn token ids back into text."""
    ids = args["token_ids"]
    if not isinstance(ids, list) or not all(type(token) is int for token in ids):
        raise InvalidRequest.of("token_ids", plain(ids), "token_ids must be a list of integers")
    with blaming("token_ids"):
        engine.renderer.validate_token_ids(ids, parameter="token_ids")
        skip = bool(args.get("skip_special_tokens", False))
        return {"text": engine.get_tokenizer().decode(ids, skip_special_tokens=skip)}


def vocabulary(engine: Any, _args: Mapping[str, Any]) -> dict[str, Any]:
    """Tell what tokens there are, and which of them are special."""
    tokenizer = engine.get_tokenizer()
    special = getattr(tokenizer, "special_tokens_map", {})
    template = getattr(tokenizer, "chat_template", None)
    return {
        "tokens": dict(tokenizer.get_vocab()),
        "special_tokens": {name: str(it) for name, it in special.items() if isinstance(it, str)},
        "special_ids": list(tokenizer.all_special_ids),
        "chat_template": template if isinstance(template, str) else None,
    }


def _chat_params(engine: Any, args: Mapping[str, Any]) -> ChatParams:
    fixed = {
        "add_generation_prompt": args.get("add_generation_prompt", True),
        "continue_final_message": args.get("continue_final_message", False),
        "tools": args.get("tools"),
        "tokenize": is_mistral_tokenizer(engine.renderer.tokenizer)
        or engine.model_config.enable_prompt_embeds,
    }
    return ChatParams(
        chat_template=args.get("chat_template"),
        chat_template_content_format=args.get("chat_template_content_format") or "auto",
        chat_template_kwargs=merge_kwargs(args.get("chat_template_kwargs"), fixed),
    )


def _tokenization(defaults: Any, args: Mapping[str, Any]) -> Any:
    given = args.get("tokenization_kwargs")
    return defaults.with_kwargs(**given) if given else defaults


def _extras(args: Mapping[str, Any]) -> dict[str, Any] | None:
    given = args.get("mm_processor_kwargs")
    return {"mm_processor_kwargs": given} if given else None


def _messages(messages: Any) -> list[dict[str, Any]]:
    """Check what templates would stumble over with any odd exception; put bytes into data URLs."""
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest.of("messages", plain(messages), "messages must be a list of maps")
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            text = "each message must be a map with a 'role'"
            raise InvalidRequest.of("messages", plain(message), text)
    return [{**message, **_content(message.get("content"))} for message in messages]


def _content(content: Any) -> dict[str, Any]:
    if not isinstance(content, list):
        return {}
    return {"content": [_content_part(part) for part in content]}


def _content_part(part: Any) -> Any:
    """Turn `{"type": "image", "image": b"…"}` into the URL that vLLM's chat takes."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    data = part.get(kind) if isinstance(kind, str) else None
    if not isinstance(data, bytes) or kind not in _MIME:
        return part
    encoded = base64.b64encode(data).decode()
    return {"type": f"{kind}_url", f"{kind}_url": {"url": f"data:{_MIME[kind]};base64,{encoded}"}}


_MIME = {"image": "image/png", "audio": "audio/wav", "video": "video/mp4"}
"""Kind → a type of it; vLLM looks into the bytes for the real one."""


def _with_media(prompt: Mapping[str, Any]) -> dict[str, Any]:
    """Decode the media of a prompt, which travel as the bytes of their files."""
    media = prompt.get("multi_modal_data")
    if media is None:
        return dict(prompt)
    if not isinstance(media, Mapping):
        text = 'multi_modal_data is a map such as {"image": b"…"}'
        raise InvalidRequest.of("multi_modal_data", plain(media), text)
    with blaming("multi_modal_data"):
        return {
            **prompt,
            "multi_modal_data": {kind: _decoded(kind, data) for kind, data in media.items()},
        }


def _with_embeddings(engine: Any, prompt: dict[str, Any]) -> dict[str, Any]:
    """Turn embeddings, which travel as an array, into a tensor."""
    given = prompt.pop("prompt_embeds", None)
    if given is None:
        return prompt
    return {**prompt, "prompt_embeds": prompt_embeddings(engine.model_config, given)}


def _decoded(kind: str, data: Any) -> Any:
    if isinstance(data, list | tuple):
        return type(data)(_decoded(kind, item) for item in data)
    if not isinstance(data, bytes):
        return data.numpy() if hasattr(data, "numpy") else data
    match kind:
        case "image":
            from vllm.multimodal.media.image import ImageMediaIO

            return ImageMediaIO().load_bytes(data).media
        case "audio":
            from vllm.multimodal.media.audio import AudioMediaIO

            return AudioMediaIO().load_bytes(data)
        case "video":
            from vllm.multimodal.media.image import ImageMediaIO
            from vllm.multimodal.media.video import VideoMediaIO

            return VideoMediaIO(ImageMediaIO()).load_bytes(data)
    raise unknown("kind of multi_modal_data", kind, None, _MIME)


def _check_tokens(engine: Any, rendered: Mapping[str, Any], parameter: str) -> None:
    """Refuse what the engine would refuse, before it gets there and with a name."""
    ids = rendered.get("prompt_token_ids")
    if ids is None:
        return
    pooling = engine.model_config.runner_type == "pooling"
    room = engine.model_config.max_model_len - (0 if pooling else 1)  # for one token at least
    if not 0 < len(ids) <= room:
        text = f"the prompt has {len(ids)} tokens; 1 to {room} are possible"
        raise InvalidRequest.of(parameter, len(ids), text)
    engine.renderer.validate_token_ids(ids, parameter=parameter)
