"""Images and the like in prompts and messages: they travel as the bytes of a file.

Pure. What can save itself, as images of PIL can, is saved as PNG; bytes pass as they are.
"""

import io
from collections.abc import Mapping
from typing import Any


def prompt_with_media(prompt: Mapping[str, Any]) -> dict[str, Any]:
    """Return a prompt whose media can travel."""
    media = prompt.get("multi_modal_data")
    if not isinstance(media, Mapping):
        return dict(prompt)
    return {**prompt, "multi_modal_data": {kind: _bytes_of(data) for kind, data in media.items()}}


def message_with_media(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a chat message whose media can travel: a part is `{"type": "image", "image": …}`."""
    content = message.get("content")
    if not isinstance(content, list):
        return dict(message)
    return {**message, "content": [_part(part) for part in content]}


def _part(part: Any) -> Any:
    if not isinstance(part, Mapping):
        return part
    kind = str(part.get("type"))
    short = kind.removesuffix("_pil")
    if kind != short and short not in part:
        return {"type": short, short: _bytes_of(part[kind])}
    return {**part, kind: _bytes_of(part[kind])} if kind in part else dict(part)


def _bytes_of(data: Any) -> Any:
    if isinstance(data, list):
        return [_bytes_of(item) for item in data]
    if isinstance(data, bytearray | memoryview):
        return bytes(data)
    if hasattr(data, "save"):
        buffer = io.BytesIO()
        data.save(buffer, format="PNG")
        return buffer.getvalue()
    return data
