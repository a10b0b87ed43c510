"""The tokenizer of a model that is loaded elsewhere."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any


class Tokenizer:
    """What scripts use of a tokenizer, by the names of Hugging Face's; the worker answers.

    The vocabulary is asked for once, when it is first needed.

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
        self._known: dict[str, Any] = {}
        self._texts: dict[int, str] = {}
        self.eos_token_id: int | None = config["eos_token_id"]
        self.bos_token_id: int | None = config["bos_token_id"]
        self.pad_token_id: int | None = config["pad_token_id"]
        self.vocab_size: int = config["vocab_size"]
        self.name_or_path: str = config["tokenizer"]

    def __len__(self) -> int:
        return self.vocab_size

    def __call__(
        self, text: str | Sequence[str], *, add_special_tokens: bool = True
    ) -> dict[str, list[Any]]:
        one = isinstance(text, str)
        texts = [text] if isinstance(text, str) else text
        ids = [self.encode(part, add_special_tokens=add_special_tokens) for part in texts]
        found: list[Any] = ids[0] if one else ids
        ones: list[Any] = [1] * len(ids[0]) if one else [[1] * len(part) for part in ids]
        return {"input_ids": found, "attention_mask": ones}

    def __getattr__(self, name: str) -> Any:
        """Return `bos_token`, `eos_token`, … ; say what to do about the rest."""
        if name.endswith("_token"):
            return self.special_tokens_map.get(name)
        text = f"{type(self).__name__!r} object has no attribute {name!r}: the tokenizer works in "
        text += "the worker; for one of your own, transformers.AutoTokenizer.from_pretrained("
        raise AttributeError(f"{text}{self.__dict__.get('name_or_path')!r})")

    # Text and token ids.

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text."""
        args = {"prompt": text, "add_special_tokens": add_special_tokens}
        return list(self._call("tokenize", args)["token_ids"])

    def tokenize(self, text: str, *, add_special_tokens: bool = False) -> list[str]:
        """Return the tokens of a text, as the vocabulary writes them."""
        ids = self.encode(text, add_special_tokens=add_special_tokens)
        return list(self.convert_ids_to_tokens(ids))

    def decode(self, token_ids: int | Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Return the text of token ids."""
        ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        args = {"token_ids": ids, "skip_special_tokens": skip_special_tokens}
        return str(self._call("detokenize", args)["text"])

    def batch_decode(
        self, sequences: Sequence[Sequence[int]], *, skip_special_tokens: bool = False
    ) -> list[str]:
        """Return the texts of several lists of token ids."""
        return [self.decode(ids, skip_special_tokens=skip_special_tokens) for ids in sequences]

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        *,
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        **template: Any,
    ) -> Any:
        """Return the text, or the token ids, that a conversation becomes; for a list, a list.

        `template` takes chat_template, tools and continue_final_message; what else is given goes to
        the template itself.
        """
        own = {"chat_template", "tools", "continue_final_message"}
        wanted: dict[str, Any] = {
            "add_generation_prompt": add_generation_prompt,
            "chat_template_kwargs": {k: v for k, v in template.items() if k not in own},
            **{key: value for key, value in template.items() if key in own and value is not None},
        }
        several = bool(conversation) and not isinstance(conversation[0], Mapping)
        answers: list[Any] = []
        for messages in conversation if several else [conversation]:
            said = [dict(message) for message in messages]  # type: ignore[arg-type]
            found = self._call("apply_chat_template", {"messages": said, **wanted})
            answers.append(list(found["token_ids"]) if tokenize else str(found["text"]))
        return answers if several else answers[0]

    # The vocabulary.

    def get_vocab(self) -> dict[str, int]:
        """Return all tokens, as the vocabulary writes them, with their ids."""
        return dict(self._vocabulary["tokens"])

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """Return the id of a token, or of each; of an unknown one that of `unk_token`, or None."""
        ids = self._vocabulary["tokens"]
        unknown = ids.get(self.unk_token)
        if isinstance(tokens, str):
            return ids.get(tokens, unknown)
        return [ids.get(token, unknown) for token in tokens]

    def convert_ids_to_tokens(
        self, ids: int | Sequence[int], *, skip_special_tokens: bool = False
    ) -> Any:
        """Return the token of an id, or of each, as the vocabulary writes it.

        Raises:
            KeyError: There is no such id.
        """
        if not self._texts:
            self._texts = {number: text for text, number in self._vocabulary["tokens"].items()}
        if isinstance(ids, int):
            return self._texts[ids]
        left_out = set(self.all_special_ids) if skip_special_tokens else set()
        return [self._texts[number] for number in ids if number not in left_out]

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """The special tokens: `eos_token`, `bos_token`, … → text."""
        return dict(self._vocabulary["special_tokens"])

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of all special tokens."""
        return list(self._vocabulary["special_ids"])

    @property
    def all_special_tokens(self) -> list[str]:
        """All special tokens."""
        return list(self.convert_ids_to_tokens(self.all_special_ids))

    @property
    def chat_template(self) -> str | None:
        """The template that the model came with."""
        template: str | None = self._vocabulary["chat_template"]
        return template

    @property
    def _vocabulary(self) -> dict[str, Any]:
        if not self._known:
            self._known = self._call("vocabulary", {})
        return self._known
