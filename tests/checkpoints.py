"""Variants of the bundled model: the same weights with another head, or with code of their own."""

import json
import shutil
from pathlib import Path
from typing import Any

from vllmport.pool.config import tiny_model_path

# On two cores vLLM would bind every worker to the same one.
UNBOUND = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}

TINY = Path(tiny_model_path())


def copied(folder: Path, **config: Any) -> Path:
    """Copy the model and change its configuration."""
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("lora-*", "README*"))
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**data, **config}))
    return folder


def classifier(folder: Path, labels: int) -> Path:
    """Make a classifier of the model: its head tells classes apart instead of tokens."""
    import torch
    from safetensors.torch import load_file, save_file

    names = {str(index): f"class-{index}" for index in range(labels)}
    copied(
        folder,
        architectures=["LlamaForSequenceClassification"],
        num_labels=labels,
        id2label=names,
        label2id={name: int(index) for index, name in names.items()},
    )
    path = folder / "model.safetensors"
    weights = load_file(path)
    hidden = json.loads((folder / "config.json").read_text())["hidden_size"]
    generator = torch.Generator().manual_seed(7)
    score = torch.randn(labels, hidden, generator=generator)
    weights["score.weight"] = score.to(next(iter(weights.values())).dtype)
    save_file(weights, path, metadata={"format": "pt"})
    return folder
