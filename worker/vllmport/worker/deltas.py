"""Stream deltas: what two of them are together.

Pure. A delta is `{"outputs": [...]}`, with one entry for each output that grew. Text, token ids and
logprobs of an entry are what is new; everything else in it is how things stand.
"""

from typing import Any

_GROWING = ("text", "token_ids", "logprobs")


def merge(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Return the one delta that says what two successive ones say; neither is changed."""
    outputs = {output["index"]: output for output in first["outputs"]}
    for output in second["outputs"]:
        earlier = outputs.get(output["index"])
        outputs[output["index"]] = output if earlier is None else _joined(earlier, output)
    return {"outputs": [outputs[index] for index in sorted(outputs)]}


def _joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    joined = {**first, **second}
    for name in _GROWING:
        if first.get(name) is not None and second.get(name) is not None:
            joined[name] = first[name] + second[name]
        elif first.get(name) is not None:
            joined[name] = first[name]
    return joined
