"""Variants of the bundled model: with another head, in four bits, with eyes, or other settings."""

import json
import shutil
from collections.abc import Iterable
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


def quantized(folder: Path, method: str) -> Path:
    """Write the model as "awq" or "gptq" checkpoints are: four bits a weight, groups of 32.

    Eight weights share a word; AWQ puts neighbours along the outputs, in an order of its own, and
    GPTQ along the inputs, with 7 for the zero that is 8.
    """
    import torch
    from safetensors.torch import load_file, save_file

    ours = {"zero_point": True, "version": "gemm"} if method == "awq" else {"desc_act": False}
    settings = {"quant_method": method, "bits": 4, "group_size": GROUP, "sym": True, **ours}
    path = copied(folder, quantization_config=settings) / "model.safetensors"
    weights = load_file(path)
    for name in [name for name in weights if name.endswith("_proj.weight")]:
        matrix = weights.pop(name).float().T  # inputs by outputs
        groups = matrix.reshape(-1, GROUP, matrix.shape[1])
        scales = (groups.abs().amax(1) / 7).clamp(min=1e-6)
        numbers = ((groups / scales[:, None]).round() + 8).clamp(0, 15).reshape(matrix.shape)
        zeros = torch.full_like(scales, 8 if method == "awq" else 7)
        here = name.removesuffix("weight")
        weights[f"{here}scales"] = scales.bfloat16()
        if method == "awq":
            weights[f"{here}qweight"] = _in_words(numbers, AWQ_ORDER)
            weights[f"{here}qzeros"] = _in_words(zeros, AWQ_ORDER)
        else:
            weights[f"{here}qweight"] = _in_words(numbers.T, range(8)).T.contiguous()
            weights[f"{here}qzeros"] = _in_words(zeros, range(8))
            rows = torch.arange(len(matrix), dtype=torch.int32)
            weights[f"{here}g_idx"] = rows // GROUP
    save_file(weights, path, metadata={"format": "pt"})
    return folder


GROUP = 32
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def _in_words(numbers: Any, order: Iterable[int]) -> Any:
    """Put eight numbers of four bits, neighbours in a row, into each word of 32."""
    import torch

    eights = numbers.reshape(len(numbers), -1, 8)[..., list(order)].long()
    words = (eights << (4 * torch.arange(8))).sum(-1)
    return torch.where(words < 2**31, words, words - 2**32).int()


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
