"""transformers' Trainer and pipelines."""

import numpy as np
import pytest
import torch
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments, pipeline

pytestmark = pytest.mark.slow


def rows(tokenizer, chats):
    made = []
    for chat in chats:
        out = tokenizer.apply_chat_template(chat, chat_template="training", return_assistant_tokens_mask=True)
        labels = [i if one else -100 for i, one in zip(out["input_ids"], out["assistant_masks"], strict=True)]
        made.append({"input_ids": out["input_ids"], "labels": labels})
    return made


def test_the_trainer_trains_and_its_metrics_see_logits(model, tokenizer, chats, tmp_path):
    data, seen = rows(tokenizer, chats), {}

    def metrics(prediction):
        seen["shape"] = prediction.predictions.shape
        chosen = prediction.label_ids[:, 1:] != -100
        logits = torch.tensor(prediction.predictions[:, :-1][chosen])
        return {
            "nll": torch.nn.functional.cross_entropy(logits, torch.tensor(prediction.label_ids[:, 1:][chosen])).item()
        }

    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=8,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=8,
        learning_rate=1e-2,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(
        model, arguments, DataCollatorForSeq2Seq(tokenizer), data, data, tokenizer, compute_metrics=metrics
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert seen["shape"][-1] == model.config.vocab_size
    assert before["eval_nll"] == pytest.approx(before["eval_loss"], rel=1e-4)
    assert after["eval_loss"] < 0.8 * before["eval_loss"]


def test_pipelines_answer_batches_as_they_answer_one(model, tokenizer):
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)
    asked = {"do_sample": False, "max_new_tokens": 5}
    texts = ["云川", "云川岭溪泉"]
    together = [one[0]["generated_text"] for one in pipe(texts, batch_size=2, **asked)]
    assert together == [pipe(text, **asked)[0]["generated_text"] for text in texts]
    chat = pipe([{"role": "user", "content": "云川"}], **asked)[0]["generated_text"]
    assert chat[-1]["role"] == "assistant"


def test_generated_ids_are_those_of_the_logits(model, tokenizer):
    batch = tokenizer(["云川"], return_tensors="pt")
    ids = model.eval().generate(**batch, do_sample=False, max_new_tokens=3, eos_token_id=-1)
    logits = model(ids).logits[0, -4:-1]
    assert np.array_equal(ids[0, -3:], logits.argmax(-1))
