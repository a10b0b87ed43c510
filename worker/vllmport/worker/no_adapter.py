"""Prompts without an adapter, beside others with one, on the CPU: they stay the model's own.

vLLM 0.32 numbers the slot of "no adapter" -1, and its operations for the CPU take that as an index:
it means the last slot, and with it somebody's adapter. What goes into them is zero here for such
rows, and then what comes out adds nothing. Imports vLLM: only for processes that run it.
"""

import functools
from collections.abc import Callable
from typing import Any, Final

OPERATIONS: Final = ("bgmv_shrink", "bgmv_expand", "bgmv_expand_slice")
"""All others of them call these."""


def spare_rows_without_adapter() -> None:
    """Correct the operations of this process, if it computes on the CPU."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.lora.ops import torch_ops
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    for name in OPERATIONS:
        operation = sparing(getattr(lora_ops, name))
        for module in (lora_ops, torch_ops, punica_cpu):
            setattr(module, name, operation)


def sparing(operation: Callable[..., None]) -> Callable[..., None]:
    """Make an operation take rows whose index is negative as zeros.

    Its first arguments are the inputs [rows, width], weights by slot, the output, and the slots
    [rows].
    """

    @functools.wraps(operation)
    def spared(
        inputs: Any, weights: Any, output: Any, slots: Any, *rest: Any, **named: Any
    ) -> None:
        given = inputs.masked_fill((slots < 0).unsqueeze(1), 0)
        operation(given, weights, output, slots, *rest, **named)

    return spared
