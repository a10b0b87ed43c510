"""A stream that is run again: what its client has already is checked and left out.

Pure. Tokens are compared one by one; the text is cut by the characters that were delivered, since
an engine may hand it out a little later than the tokens it belongs to.
"""

from collections.abc import Mapping
from typing import Any


class DivergedError(Exception):
    """Raised when the new run says something else than what was delivered."""


class Replay:
    """What was delivered of a stream, in the shape of the `outputs` of a resumed CALL.

    Args:
        outputs: For each output `index`, `token_ids`, `characters` and `finished`.
    """

    def __init__(self, outputs: list[dict[str, Any]]) -> None:
        self._outputs = {output["index"]: _Output(output) for output in outputs}

    def cut(self, delta: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return what of a delta is new; None if nothing is.

        Raises:
            DivergedError: A token is another one than before.
        """
        outputs = []
        for output in delta["outputs"]:
            before = self._outputs.get(output["index"])
            new = output if before is None else before.cut(output)
            if new is not None:
                outputs.append(new)
        return {**delta, "outputs": outputs} if outputs else None

    def end(self) -> None:
        """Check that all that was delivered has come again.

        Raises:
            DivergedError: Something has not.
        """
        for output in self._outputs.values():
            output.end()


class _Output:
    """One sequence."""

    def __init__(self, delivered: Mapping[str, Any]) -> None:
        self._index = delivered["index"]
        self._tokens = delivered["token_ids"]
        self._characters = delivered["characters"]
        self._finished = delivered["finished"]
        self._seen = 0

    def cut(self, output: Mapping[str, Any]) -> dict[str, Any] | None:
        ids = output["token_ids"]
        old = min(len(ids), len(self._tokens) - self._seen)
        for token in ids[:old]:
            if token != self._tokens[self._seen]:
                raise DivergedError(f"token {self._seen + 1} of output {self._index} differs")
            self._seen += 1
        if self._finished and len(ids) > old:
            raise DivergedError(f"output {self._index} goes on after its end")
        if output["finish_reason"] is not None:
            self.end()
        if self._finished:
            return None
        known = min(len(output["text"]), self._characters)
        self._characters -= known
        text, ids = output["text"][known:], ids[old:]
        if not (text or ids or output["finish_reason"] is not None):
            return None
        new = {**output, "text": text, "token_ids": ids}
        if output.get("logprobs") is not None:
            new["logprobs"] = output["logprobs"][old:]
        return new

    def end(self) -> None:
        if self._seen < len(self._tokens):
            raise DivergedError(f"output {self._index} ends after {self._seen} tokens")
