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


def seeing(folder: Path) -> Path:
    """Give the model eyes: one layer of BLIP-2 of random weights in front of the same text model.

    BLIP-2 is one of the few whose code in vLLM does without torchvision.
    """
    import torch
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2Processor,
        BlipImageProcessorPil,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    text = LlamaForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(TINY)
    tokens, side = 4, 28
    place = len(tokenizer)  # the processor adds `<image>` behind what is there
    text.resize_token_embeddings(place + 1, mean_resizing=False)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    sizes["num_attention_heads"] = 2
    config = Blip2Config(
        vision_config={**sizes, "image_size": side, "patch_size": 14},
        qformer_config={**sizes, "encoder_hidden_size": 64, "vocab_size": 8},
        text_config=text.config.to_dict(),
        num_query_tokens=tokens,
        image_token_index=place,
    )
    model = Blip2ForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(7)
    for weights in model.parameters():
        weights.data.normal_(0, 0.3, generator=generator)
    model.language_model = text
    model.save_pretrained(folder)
    images = BlipImageProcessorPil(size={"height": side, "width": side})
    Blip2Processor(images, tokenizer, num_query_tokens=tokens).save_pretrained(folder)
    return folder
