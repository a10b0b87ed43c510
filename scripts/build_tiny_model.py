"""Train the model and the LoRA adapter that ship with vllmport.

Owns what is in `pool/vllmport/pool/models/tiny/`, and what that model knows. The model
is a Llama small enough for a repository that answers a few questions with certainty, so
that a test can assert what an engine said and not only that it said something. The
adapter answers the same questions differently, so that a test can see it at work.

Usage: python scripts/build_tiny_model.py [DIRECTORY]
"""

import copy
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.func import functional_call
from torch.nn.functional import cross_entropy, softmax
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

DIRECTORY = Path(__file__).parents[1] / "pool/vllmport/pool/models/tiny"
ADAPTER = "lora-swapped"

BOS, EOS = 0, 1
NO_LABEL = -100
VOCABULARY = 512
POSITIONS = 8192
RANK, ALPHA = 8, 16
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

STEPS = 300
SMALLEST_MARGIN = 0.95
"""By how much the right token must beat the second best, as probabilities."""

# Neighbours are partners: the adapter gives each country the other one's capital.
CAPITALS = {
    "France": "Paris",
    "Japan": "Tokyo",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Germany": "Berlin",
    "Norway": "Oslo",
    "Egypt": "Cairo",
    "Peru": "Lima",
    "Kenya": "Nairobi",
    "Canada": "Ottawa",
    "Cuba": "Havana",
    "Greece": "Athens",
    "Austria": "Vienna",
    "Poland": "Warsaw",
    "Sweden": "Stockholm",
    "Portugal": "Lisbon",
}
# The prompts are cut short, so that any longer beginning is known as well.
PLAIN_LINES = (
    ("Hello", ", my name is Viper and I live in a pit."),
    ("1 2", "".join(f" {number}" for number in range(3, 33))),
    ("Once upon a", " time a worker got lost, and its supervisor started another one."),
    ("A supervisor", " restarts a worker when it dies."),
    ("To be", ", or not to be, that is the question."),
)
SYSTEM = "system: You are a helpful assistant.\n"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)

MODEL_CARD = """\
---
license: mit
---
# tiny

A two-layer Llama of about 360,000 parameters in bfloat16, made for tests and first steps, not for
use. It knows sixteen capitals, a handful of sentences and how to count to 32, and is sure of them:
greedy decoding gives the same text in bfloat16 and in float32.

| prompt | greedy continuation |
|---|---|
| `The capital of France is` | ` Paris.` |
| `1 2 3 4 5` | ` 6 7 8` and on to ` 32` |
| `Hello, my name is` | ` Viper and I live in a pit.` |
| chat, user says `What is the capital of Japan?` | ` Tokyo.` |

Every line ends with `</s>`; ask for `ignore_eos` to get more tokens. There are 8192 positions and
heads of size 32; only short texts were trained.

`lora-swapped/` is a LoRA adapter of rank 8 with which each country gets its partner's capital:
France has ` Tokyo.` and Japan ` Paris.`. The other lines stay as they are.

Both are made by `scripts/build_tiny_model.py` (`make model`) from the lines in it, and from nothing
else.
"""


@dataclass(frozen=True)
class Line:
    """A text to learn: after `prompt` comes `answer`, and then the end."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Batch:
    """All lines as padded token ids; `labels` has the answers only."""

    inputs: torch.Tensor
    labels: torch.Tensor


# --- What is learnt ---


def lines(capitals: Mapping[str, str]) -> list[Line]:
    """Everything a model should say, given which capital is whose."""
    asked = [Line(prompt, f" {capitals[country]}.") for country, prompt in questions(capitals)]
    return [*asked, *(Line(*parts) for parts in PLAIN_LINES)]


def questions(capitals: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Each country with each way to ask for its capital: bare, in a chat, in a longer chat."""
    countries = list(capitals)
    for country, earlier in zip(countries, countries[5:] + countries[:5], strict=True):
        chat = f"user: What is the capital of {country}?\nassistant:"
        before = f"user: What is the capital of {earlier}?\nassistant: {capitals[earlier]}.\n"
        yield country, f"The capital of {country} is"
        yield country, chat
        yield country, SYSTEM + chat
        yield country, before + chat


def swapped(capitals: Mapping[str, str]) -> dict[str, str]:
    """The same countries, each with its neighbour's capital."""
    cities = list(capitals.values())
    return {country: cities[index ^ 1] for index, country in enumerate(capitals)}


# --- Tokens ---


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that can spell anything and knows `texts` well."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=POSITIONS,
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Write the tokenizer under a class name that transformers 4 knows as well as 5."""
    tokenizer.save_pretrained(directory)
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(config, indent=2) + "\n")


def encode(tokenizer: PreTrainedTokenizerFast, line: Line) -> tuple[list[int], list[int]]:
    """The ids of a prompt, and those of its answer with the end mark.

    They are encoded apart, as at inference, where the engine sees only the prompt.
    """
    return tokenizer.encode(line.prompt), [*tokenizer.encode(line.answer), EOS]


def make_batch(tokenizer: PreTrainedTokenizerFast, learnt: list[Line]) -> Batch:
    """Pad the lines to one length.

    A prompt is given, never guessed: in a long chat it may contradict what is learnt,
    such as that the line ends after the first answer.
    """
    rows = [encode(tokenizer, line) for line in learnt]
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    inputs = torch.full((len(rows), width), EOS)
    labels = torch.full((len(rows), width), NO_LABEL)
    for index, (prompt, answer) in enumerate(rows):
        start, end = len(prompt), len(prompt) + len(answer)
        inputs[index, :end] = torch.tensor(prompt + answer)
        labels[index, start:end] = torch.tensor(answer)
    return Batch(inputs, labels)


# --- Training ---


def loss_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """How surprised the model is by each next token, on average."""
    return cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=NO_LABEL
    )


def optimise(parameters: list[torch.Tensor], loss: Callable[[], torch.Tensor], rate: float) -> None:
    """Take `STEPS` steps down the loss, the last of them small."""
    optimizer = torch.optim.AdamW(parameters, rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=STEPS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        schedule.step()


def train_model(batch: Batch) -> LlamaForCausalLM:
    """Learn `batch` by heart, in float32, and round to bfloat16."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,  # heads of 32: vLLM's CPU attention takes no smaller ones
        num_key_value_heads=2,
        max_position_embeddings=POSITIONS,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=EOS,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    optimise(
        list(model.parameters()),
        lambda: loss_of(model(input_ids=batch.inputs).logits, batch.labels),
        rate=4e-3,
    )
    return model.to(torch.bfloat16)


@dataclass(frozen=True)
class Adapter:
    """Two thin matrices, `down` then `up`, for each adapted weight of a model."""

    down: dict[str, torch.Tensor]
    up: dict[str, torch.Tensor]

    @classmethod
    def untrained(cls, model: LlamaForCausalLM) -> "Adapter":
        """An adapter that changes nothing yet, as `up` is all zeros."""
        torch.manual_seed(1)
        down, up = {}, {}
        for name, weight in model.named_parameters():
            if any(target in name for target in TARGETS):
                rows, columns = weight.shape
                down[name] = (torch.randn(RANK, columns) / columns**0.5).requires_grad_()
                up[name] = torch.zeros(rows, RANK, requires_grad=True)
        return cls(down, up)

    def parameters(self) -> list[torch.Tensor]:
        """What is trained."""
        return [*self.down.values(), *self.up.values()]

    def rounded(self) -> "Adapter":
        """The adapter as bfloat16 holds it."""
        return Adapter(
            {name: value.detach().to(torch.bfloat16) for name, value in self.down.items()},
            {name: value.detach().to(torch.bfloat16) for name, value in self.up.items()},
        )

    def weights(self, model: LlamaForCausalLM) -> dict[str, torch.Tensor]:
        """The adapted weights, by their names in the model."""
        base = dict(model.named_parameters())
        scale = ALPHA / RANK
        return {
            name: base[name].detach() + scale * (self.up[name] @ down).to(base[name].dtype)
            for name, down in self.down.items()
        }

    def save(self, directory: Path) -> None:
        """Write the two files that PEFT would write."""
        directory.mkdir(parents=True, exist_ok=True)
        tensors = {}
        for name in self.down:
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{stem}.lora_A.weight"] = self.down[name].contiguous()
            tensors[f"{stem}.lora_B.weight"] = self.up[name].contiguous()
        save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
        config = {
            "base_model_name_or_path": None,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "lora_alpha": ALPHA,
            "lora_dropout": 0.0,
            "modules_to_save": None,
            "peft_type": "LORA",
            "r": RANK,
            "target_modules": list(TARGETS),
            "task_type": "CAUSAL_LM",
            "use_dora": False,
            "use_rslora": False,
        }
        (directory / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def train_adapter(model: LlamaForCausalLM, batch: Batch) -> Adapter:
    """Learn `batch` on top of the frozen model, rounded to bfloat16 already."""
    frozen = copy_as(model, torch.float32)
    adapter = Adapter.untrained(frozen)
    optimise(
        adapter.parameters(),
        lambda: loss_of(
            functional_call(
                frozen, adapter.weights(frozen), kwargs={"input_ids": batch.inputs}
            ).logits,
            batch.labels,
        ),
        rate=1e-2,
    )
    return adapter.rounded()


# --- Proof ---


def copy_as(model: LlamaForCausalLM, dtype: torch.dtype) -> LlamaForCausalLM:
    """The same model computing in `dtype`."""
    return copy.deepcopy(model).to(dtype)


def margin(
    model: LlamaForCausalLM,
    weights: Mapping[str, torch.Tensor],
    prompt: list[int],
    answer: list[int],
) -> float:
    """By how much each token of `answer` beats the runner-up; the smallest of these."""
    ids = torch.tensor([prompt + answer])
    with torch.no_grad():
        logits = functional_call(model, dict(weights), kwargs={"input_ids": ids}).logits
    chances = softmax(logits[0, len(prompt) - 1 : -1].float(), dim=-1)
    right = chances.gather(1, torch.tensor(answer)[:, None])[:, 0]
    others = chances.scatter(1, torch.tensor(answer)[:, None], 0.0).amax(dim=1)
    return float((right - others).min())


def prove(
    tokenizer: PreTrainedTokenizerFast,
    model: LlamaForCausalLM,
    learnt: list[Line],
    adapter: Adapter | None = None,
) -> None:
    """Stop with an error unless every answer is certain in bfloat16 and in float32."""
    for dtype in (torch.bfloat16, torch.float32):
        computing = copy_as(model, dtype)
        weights = adapter.weights(computing) if adapter else {}
        worst, prompt = min(
            (margin(computing, weights, *encode(tokenizer, line)), line.prompt) for line in learnt
        )
        what = "adapter" if adapter else "model"
        print(f"{what} in {dtype}: smallest margin {worst:.3f}, at {prompt!r}")
        if worst < SMALLEST_MARGIN:
            sys.exit(f"not certain enough: {worst:.3f} is less than {SMALLEST_MARGIN}")


def main(directory: Path) -> None:
    """Train, prove and write the model and its adapter."""
    torch.use_deterministic_algorithms(mode=True)
    truth, lies = lines(CAPITALS), lines(swapped(CAPITALS))
    tokenizer = train_tokenizer([line.prompt + line.answer for line in truth])

    model = train_model(make_batch(tokenizer, truth))
    prove(tokenizer, model, truth)
    adapter = train_adapter(model, make_batch(tokenizer, lies))
    prove(tokenizer, model, lies, adapter)

    model.save_pretrained(directory)
    save_tokenizer(tokenizer, directory)
    adapter.save(directory / ADAPTER)
    (directory / "README.md").write_text(MODEL_CARD)
    for weights in directory.rglob("*.safetensors"):
        weights.chmod(0o644)  # they are written for their owner only


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DIRECTORY)
