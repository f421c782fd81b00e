"""Make the tiny ChatGLM2-layout base model that the quickstart fine-tunes, tokenizer included.

It learns to chat in ChatGLM2's prompt format, in two lessons: `first_lesson.py`, then the BASE world of `sentences.py`
and its frames around made-up words, whose names the prompt tells. What it is fine-tuned for later (the TASK world's
relations, and the words that tell them) stands in no question; it knows the instruction, the frames, the form of an
answer, and the characters.

    python -m examples.quickstart.make_base      # writes examples/quickstart/base
"""

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence

import glmft  # noqa: F401 (registers the model type)
from examples.official_layout import sentencepiece_model
from examples.quickstart import first_lesson, sentences
from examples.quickstart.first_lesson import CHARACTERS, INSTRUCTIONS, RENAME_INSTRUCTION, REPEAT_INSTRUCTION
from glmft.models.chatglm2 import ChatGLM2ForConditionalGeneration
from glmft.models.configuration import ChatGLM2Config
from glmft.tokenizers.chatglm2 import ChatGLM2Tokenizer

HERE = Path(__file__).parent / "base"
SHAPE = {
    "hidden_size": 128,
    "num_layers": 4,
    "num_attention_heads": 4,
    "kv_channels": 32,
    "multi_query_group_num": 2,
    "ffn_hidden_size": 344,
}
Row = tuple[list[int], list[int]]  # ids, labels


def corpus() -> list[str]:
    """What longer pieces are learned from: prompts. The characters of sentences stay single."""
    prompt = ChatGLM2Tokenizer.build_prompt(None, "", [])
    return [prompt.replace("\n", " ")] * 50 + [*INSTRUCTIONS, RENAME_INSTRUCTION, REPEAT_INSTRUCTION] * 20


def make_tokenizer(folder: Path) -> ChatGLM2Tokenizer:
    """A ChatGLM2 tokenizer whose sentencepiece model is of the official form."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = sentencepiece_model("glm2", corpus(), CHARACTERS)
    (folder / "tokenizer.model").write_bytes(vocabulary)
    names = {"name_or_path": "glmft/tiny-chatglm2", "tokenizer_class": "ChatGLMTokenizer", "glmft_family": "glm2"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names, indent=2) + "\n", encoding="utf-8")
    return ChatGLM2Tokenizer.from_pretrained(folder)


class SecondLesson:
    """Sentences of the BASE world, and its frames around made-up words; now and then the first lesson again."""

    def __init__(self, names: list[str]):
        self.names = names
        self.patterns = sentences.patterns(sentences.BASE)
        self.kinds = {pattern.cue: pattern.frame in sentences.VERB_FRAMES for pattern in self.patterns}
        no_letters = sentences.ENTITY_CHARACTERS + "，；：。"
        self.letters = "".join(c for c in CHARACTERS if ord(c) > 127 and c not in no_letters)
        cues = {pattern.cue for pattern in sentences.patterns(sentences.TASK)}
        self.never = cues | set(sentences.TASK) | set(sentences.SYNONYMS.split())

    def ask(self, rng: random.Random) -> tuple[str, str]:
        """A question and its answer."""
        kind = rng.random()
        if kind < 0.2:
            return first_lesson.ask(rng, self.names)
        if kind < 0.6:
            text, answer = sentences.sentence(rng, self.names, self.patterns)
            return rng.choice(INSTRUCTIONS) + text, answer
        return self.renamed(rng)

    def renamed(self, rng: random.Random) -> tuple[str, str]:
        """A sentence whose cues bear made-up names, told in the prompt: `cue=name`, reversed `cue_name`."""
        patterns, table = [], []
        for _ in range(rng.randint(1, 4)):
            if rng.random() < 0.2:
                cue, is_verb = rng.choice(list(self.kinds.items()))
            else:
                cue, is_verb = self.word(rng, 2), rng.random() < 0.65
            name, is_reversed = self.word(rng, rng.randint(2, 4)), rng.random() < 0.3
            frames = sentences.VERB_FRAMES if is_verb else sentences.NOUN_FRAMES
            patterns += [sentences.Pattern(frame, cue, name, is_reversed) for frame in frames]
            table.append(f"{cue}{'_' if is_reversed else '='}{name}")
        text, answer = sentences.sentence(rng, self.names, patterns)
        return f"{RENAME_INSTRUCTION}{'，'.join(table)}。{rng.choice(INSTRUCTIONS)}{text}", answer

    def word(self, rng: random.Random, length: int) -> str:
        """A made-up word, none of those that the TASK world uses."""
        while (word := "".join(rng.choices(self.letters, k=length))) in self.never:
            pass
        return word


def row(tokenizer: ChatGLM2Tokenizer, query: str, answer: str, learn_prompt: bool) -> Row:
    """Ids and labels of a question and its answer."""
    prompt = tokenizer.prefix_ids + tokenizer.encode_text(tokenizer.build_prompt(query))
    answer_ids = [*tokenizer.encode_text(answer), tokenizer.eos_token_id]
    return [*prompt, *answer_ids], [*(prompt if learn_prompt else [-100] * len(prompt)), *answer_ids]


def batches(draw: Callable[[], Row], size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Ids and labels [size, longest] without end."""
    while True:
        ids, labels = zip(*(map(torch.tensor, draw()) for _ in range(size)), strict=True)
        yield pad_sequence(ids, batch_first=True), pad_sequence(labels, batch_first=True, padding_value=-100)


def teach(
    model: torch.nn.Module, draw: Callable[[], Row], steps: int, rate: float, warm_up: int, fall: int, size: int = 32
) -> None:
    """`steps` of AdamW on batches of `size` rows; the learning rate rises to `rate` first and falls at the end."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    started = time.time()
    for step, (ids, labels) in zip(range(steps), batches(draw, size), strict=False):
        share = min(1.0, (step + 1) / warm_up, (steps - step) / fall if fall else 1.0)
        optimizer.param_groups[0]["lr"] = rate * share
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step}  loss {loss.item():.4f}  {time.time() - started:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--after_first", type=Path, help="a model that has had its first lesson: give the second only")
    parser.add_argument("--folder", type=Path, default=HERE)
    args = parser.parse_args()

    torch.manual_seed(0)
    tokenizer = make_tokenizer(args.folder)
    names, _ = sentences.entities()

    def draw(lesson: Callable[[random.Random], tuple[str, str]], seed: int, learn_prompt: bool) -> Callable[[], Row]:
        rng = random.Random(seed)
        return lambda: row(tokenizer, *lesson(rng), learn_prompt)

    if args.after_first:
        model = ChatGLM2ForConditionalGeneration.from_pretrained(args.after_first).train()
    else:
        vocabulary = -(-tokenizer.vocab_size // 64) * 64
        config = ChatGLM2Config(
            padded_vocab_size=vocabulary, seq_length=1024, glmft_family="glm2", torch_dtype="float32", **SHAPE
        )
        model = ChatGLM2ForConditionalGeneration(config).train()
        first = draw(lambda rng: first_lesson.ask(rng, names), seed=0, learn_prompt=True)
        teach(model, first, steps=8000, rate=2e-3, warm_up=200, fall=1600)
    lesson = SecondLesson(names).ask
    teach(model, draw(lesson, seed=1, learn_prompt=False), steps=900, rate=1e-3, warm_up=200, fall=0)
    teach(model, draw(lesson, seed=2, learn_prompt=False), steps=500, rate=1e-3, warm_up=50, fall=450)
    model.save_pretrained(args.folder)


if __name__ == "__main__":
    main()
