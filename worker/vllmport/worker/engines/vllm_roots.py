"""What of a loaded engine universal calls may have: copies, so that no caller changes the engine.

Imports vLLM: only for workers that run it.
"""

import copy
from collections.abc import Mapping
from typing import Any

from vllm.tokenizers import TokenizerLike

from vllmport.worker.universal.performing import Root


def roots_of(engine: Any, info: Mapping[str, Any]) -> dict[str, Root]:
    """Return the names that `engine` has as a module of universal calls.

    Args:
        engine: vLLM's.
        info: What it resolved its arguments to.
    """
    config = engine.vllm_config
    return {
        "default_sampling_params": Root(config.model_config.get_diff_sampling_param),
        "info": Root(lambda: dict(info)),
        "model_config": Root(lambda: copy.deepcopy(config.model_config)),
        "tokenizer": Root(lambda: copy.deepcopy(engine.get_tokenizer()), lambda: TokenizerLike),
        "vllm_config": Root(lambda: copy.deepcopy(config)),
    }
