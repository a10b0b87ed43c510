"""The tokenizer of a model that is loaded elsewhere."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any


class Tokenizer:
    """What scripts use of a tokenizer; each call is answered by the worker.

    Attributes:
        eos_token_id: Ends a text.
        bos_token_id: Begins one, or None.
        pad_token_id: Fills up, or None.
        vocab_size: How many tokens there are.
    """

    def __init__(
        self, call: Callable[[str, dict[str, Any]], Any], config: Mapping[str, Any]
    ) -> None:
        self._call = call
        self.eos_token_id: int | None = config["eos_token_id"]
        self.bos_token_id: int | None = config["bos_token_id"]
        self.pad_token_id: int | None = config["pad_token_id"]
        self.vocab_size: int = config["vocab_size"]

    def __len__(self) -> int:
        return self.vocab_size

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": self.encode(text, add_special_tokens=add_special_tokens)}

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text."""
        args = {"prompt": text, "add_special_tokens": add_special_tokens}
        return list(self._call("tokenize", args)["token_ids"])

    def decode(self, token_ids: int | Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Return the text of token ids."""
        ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        args = {"token_ids": ids, "skip_special_tokens": skip_special_tokens}
        return str(self._call("detokenize", args)["text"])

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]],
        *,
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        **template: Any,
    ) -> str | list[int]:
        """Return the text, or the token ids, that a conversation becomes.

        `template` takes chat_template, tools and continue_final_message; what else is given goes to
        the template itself.
        """
        own = {"chat_template", "tools", "continue_final_message"}
        args: dict[str, Any] = {
            "messages": [dict(message) for message in conversation],
            "add_generation_prompt": add_generation_prompt,
            "chat_template_kwargs": {k: v for k, v in template.items() if k not in own},
            **{key: value for key, value in template.items() if key in own and value is not None},
        }
        found = self._call("apply_chat_template", args)
        return list(found["token_ids"]) if tokenize else str(found["text"])
