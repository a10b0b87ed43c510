"""Engine arguments by one name: for throughput, for latency, for little memory.

Pure data. What a caller gives besides wins over the preset.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from vllmport.bridge.errors import InvalidRequest, shown

PRESETS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "throughput": {
            "gpu_memory_utilization": 0.95,
            "max_num_batched_tokens": 8192,
            "max_num_seqs": 256,
        },
        "latency": {"gpu_memory_utilization": 0.8, "max_num_seqs": 1},
        # A quantized checkpoint says by itself how it was quantized.
        "memory": {"gpu_memory_utilization": 0.7, "max_model_len": 2048},
    }
)
"""Name → engine arguments."""


def preset(name: Any) -> dict[str, Any]:
    """Return the arguments that a preset stands for; None stands for none.

    Raises:
        InvalidRequest: There is no such preset.
    """
    if name is None:
        return {}
    if not isinstance(name, str) or name not in PRESETS:
        text = f"preset is one of {', '.join(PRESETS)}, not {shown(name)}"
        raise InvalidRequest.of("preset", shown(name), text)
    return dict(PRESETS[name])
