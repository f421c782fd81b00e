"""Make the tiny ChatGLM2-layout base model that the quickstart fine-tunes, tokenizer included.

It learns to chat in ChatGLM2's prompt format: to find triples of the BASE world under several instructions, to call
relations by new names that the prompt gives, and to repeat what it is told. What it is fine-tuned for later (the TASK
world's relations and sentences) it never sees: only the characters of that world, as text to repeat.

    python -m examples.quickstart.make_base [--steps 8000]     # writes examples/quickstart/base
"""

import argparse
import json
import random
import re
import time
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence

import glmft  # noqa: F401 (registers the model type)
from examples.official_layout import sentencepiece_model
from examples.quickstart import sentences
from glmft.models.chatglm2 import ChatGLM2ForConditionalGeneration
from glmft.models.configuration import ChatGLM2Config
from glmft.tokenizers.chatglm2 import ChatGLM2Tokenizer

HERE = Path(__file__).parent / "base"
REPEAT_INSTRUCTION = "请复述："
INSTRUCTIONS = [sentences.BASE_INSTRUCTION, sentences.TASK_INSTRUCTION]
RENAME_INSTRUCTION = "按名称找出关系。"
SHAPE = {
    "hidden_size": 128,
    "num_layers": 4,
    "num_attention_heads": 4,
    "kv_channels": 32,
    "multi_query_group_num": 2,
    "ffn_hidden_size": 344,
}


def world_characters() -> str:
    """Every character that the two worlds use, each once, in a fixed order."""
    worlds = json.dumps([sentences.BASE, sentences.TASK, sentences.OPENINGS, sentences.JOINTS], ensure_ascii=False)
    text = worlds + sentences.ENTITY_CHARACTERS + "".join(INSTRUCTIONS) + RENAME_INSTRUCTION + REPEAT_INSTRUCTION
    return "".join(sorted({c for c in text if ord(c) > 127} | set("_\\n=")))


def corpus() -> list[str]:
    """What longer pieces are learned from: prompts. The characters of sentences stay single."""
    prompt = ChatGLM2Tokenizer.build_prompt(None, "", [])
    return [prompt.replace("\n", " ")] * 50 + [*INSTRUCTIONS, RENAME_INSTRUCTION, REPEAT_INSTRUCTION] * 20


def make_tokenizer(folder: Path) -> ChatGLM2Tokenizer:
    """A ChatGLM2 tokenizer whose sentencepiece model is of the official form."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = sentencepiece_model("glm2", corpus(), world_characters())
    (folder / "tokenizer.model").write_bytes(vocabulary)
    names = {"name_or_path": "glmft/tiny-chatglm2", "tokenizer_class": "ChatGLMTokenizer", "glmft_family": "glm2"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names, indent=2) + "\n", encoding="utf-8")
    return ChatGLM2Tokenizer.from_pretrained(folder)


def question(rng: random.Random, names: list[str], characters: str) -> tuple[str, str]:
    """A question and its answer."""
    kind = rng.random()
    if kind < 0.4:
        text, answer = sentences.sentence(rng, names, sentences.BASE)
        return rng.choice(INSTRUCTIONS) + text, answer
    if kind < 0.75:
        return renamed(rng, names, characters)
    alphabet = characters if rng.random() < 0.5 else sentences.ENTITY_CHARACTERS
    answer = "".join(rng.choices(alphabet, k=rng.randint(2, 12)))
    return REPEAT_INSTRUCTION + answer, answer


def renamed(rng: random.Random, names: list[str], characters: str) -> tuple[str, str]:
    """A sentence whose relations bear made-up names, told in the prompt as `cue=name` for up to three cues."""
    patterns = rng.sample([p for of_relation in sentences.BASE.values() for p in of_relation], rng.randint(1, 3))
    made_up = {"".join(rng.choices(characters, k=rng.randint(2, 4))): [pattern] for pattern in patterns}
    table = "，".join(f"{cue(pattern)}={name}" for name, [pattern] in made_up.items())
    text, answer = sentences.sentence(rng, names, made_up)
    return f"{RENAME_INSTRUCTION}{table}。{rng.choice(INSTRUCTIONS)}{text}", answer


def cue(pattern: str) -> str:
    """The longest run of a pattern's own characters."""
    return max(re.split(r"\{[ht]\}", pattern), key=len)


def example(rng: random.Random, names: list[str], characters: str, tokenizer: ChatGLM2Tokenizer) -> list[int]:
    """Ids of one question and its answer."""
    query, answer = question(rng, names, characters)
    prompt = tokenizer.prefix_ids + tokenizer.encode_text(tokenizer.build_prompt(query))
    return [*prompt, *tokenizer.encode_text(answer), tokenizer.eos_token_id]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--folder", type=Path, default=HERE)
    args = parser.parse_args()

    torch.manual_seed(0)
    rng = random.Random(0)
    tokenizer = make_tokenizer(args.folder)
    names, _ = sentences.entities()
    characters = world_characters()
    vocabulary = -(-tokenizer.vocab_size // 64) * 64
    config = ChatGLM2Config(
        padded_vocab_size=vocabulary, seq_length=1024, glmft_family="glm2", torch_dtype="float32", **SHAPE
    )
    model = ChatGLM2ForConditionalGeneration(config).train()
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, vocabulary {tokenizer.vocab_size}")
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    started = time.time()
    for step in range(args.steps):
        warmup, fall = min(1.0, (step + 1) / 200), min(1.0, (args.steps - step) / (0.2 * args.steps))
        optimizer.param_groups[0]["lr"] = args.learning_rate * warmup * fall
        rows = [torch.tensor(example(rng, names, characters, tokenizer)) for _ in range(args.batch_size)]
        ids = pad_sequence(rows, batch_first=True, padding_value=0)
        labels = pad_sequence(rows, batch_first=True, padding_value=-100)
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0 or step == args.steps - 1:
            print(f"step {step}  loss {loss.item():.4f}  {time.time() - started:.0f} s", flush=True)
    model.save_pretrained(args.folder)


if __name__ == "__main__":
    main()
