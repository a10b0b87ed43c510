"""The operations of adapters on the CPU: rows that have none."""

import pytest

from vllmport.worker.no_adapter import sparing

pytestmark = pytest.mark.vllm


@pytest.mark.filterwarnings("ignore")  # vLLM's and torch's own
def test_rows_without_an_adapter_get_nothing_of_the_last_slot() -> None:
    import torch
    from vllm.lora.ops.torch_ops import lora_ops

    inputs, slots = torch.ones(3, 2), torch.tensor([0, -1, 1])
    weights = torch.stack([torch.full((1, 4, 2), 1.0), torch.full((1, 4, 2), 2.0)])
    shrunk = torch.full((3, 4), 9.0)
    sparing(lora_ops.bgmv_shrink)(inputs, weights, shrunk, slots, 0.5)
    assert shrunk[:, 0].tolist() == [1.0, 0.0, 2.0]
    for operation, more in ((lora_ops.bgmv_expand, ()), (lora_ops.bgmv_expand_slice, (0, 4))):
        output = torch.full((3, 4), 10.0)
        sparing(operation)(inputs, weights, output, slots, *more, add_inputs=True)
        assert output[:, 0].tolist() == [12.0, 10.0, 14.0]
