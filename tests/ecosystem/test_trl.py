"""trl's trainers, with the tokenizer's training template."""

import pytest

trl = pytest.importorskip("trl", reason="trl is not installed; `make ecosystem` makes an environment with it")
datasets = pytest.importorskip("datasets")

pytestmark = pytest.mark.slow
COMMON = {
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "use_cpu": True,
    "bf16": False,
    "report_to": [],
    "save_strategy": "no",
    "disable_tqdm": True,
}


@pytest.fixture
def trained(tokenizer):
    """The tokenizer with its training template."""
    tokenizer.chat_template = tokenizer.get_chat_template("training")
    return tokenizer


def split(chat):
    return {"prompt": chat[:-1], "completion": chat[-1:]}


@pytest.mark.parametrize("assistant_only_loss", [False, True])
def test_sft_learns_the_rows_of_our_own_training(assistant_only_loss, model, trained, chats, tmp_path):
    data = datasets.Dataset.from_list([{"messages": chat} for chat in chats])
    arguments = trl.SFTConfig(str(tmp_path), assistant_only_loss=assistant_only_loss, **COMMON)
    trainer = trl.SFTTrainer(model, args=arguments, train_dataset=data, processing_class=trained)
    for chat, row in zip(chats, trainer.train_dataset, strict=True):
        out = trained.apply_chat_template(chat, return_assistant_tokens_mask=True)
        assert row["input_ids"] == out["input_ids"]
        if assistant_only_loss:
            learned = [i if one else -100 for i, one in zip(out["input_ids"], out["assistant_masks"], strict=True)]
            assert row["labels"] == learned
    assert trainer.train().training_loss > 0


def test_sft_trains_on_prompts_and_completions(model, trained, chats, tmp_path):
    data = datasets.Dataset.from_list([split(chat) for chat in chats])
    trainer = trl.SFTTrainer(
        model, args=trl.SFTConfig(str(tmp_path), **COMMON), train_dataset=data, processing_class=trained
    )
    for row in trainer.train_dataset:
        assert row["labels"][-1] == row["input_ids"][-1] == trained.end_id  # stopping is learned
    assert trainer.train().training_loss > 0


def test_dpo_prefers_what_was_chosen(model, trained, chats, tmp_path):
    worse = [{"role": "assistant", "content": "不"}]
    data = datasets.Dataset.from_list([{"prompt": chat[:-1], "chosen": chat[-1:], "rejected": worse} for chat in chats])
    arguments = trl.DPOConfig(str(tmp_path), **{**COMMON, "max_steps": 4, "learning_rate": 1e-3, "logging_steps": 1})
    trainer = trl.DPOTrainer(model, args=arguments, train_dataset=data, processing_class=trained)
    trainer.train()
    logged = [row["rewards/margins"] for row in trainer.state.log_history if "rewards/margins" in row]
    assert logged[-1] > 0
