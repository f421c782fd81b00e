"""What all tuners share: files that are whole, tensors that fit, descriptions that a person can read."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from glmft.errors import CheckpointError
from glmft.tuners import base
from glmft.tuners.freeze import Freeze
from glmft.tuners.full import Full
from glmft.tuners.lora import Lora
from glmft.tuners.prefix import Prefix
from glmft.tuners.prompt import Prompt


@pytest.mark.parametrize("harm", ["one tensor changed", "one tensor lost"])
def test_a_file_that_does_not_hold_every_tensor_as_it_was_is_refused(harm, tmp_path, monkeypatch):
    """A disk that loses something: the first tensor is whole, the second is not."""

    def write(state, path, **options):
        kept = {"a": state["a"]} if harm == "one tensor lost" else {**state, "b": state["b"] + 1}
        save_file(kept, path, **options)

    monkeypatch.setattr(base, "save_file", write)
    state = {"a": torch.ones(2), "b": torch.ones(3)}
    with pytest.raises(CheckpointError, match="the file does not hold what was written; check the disk"):
        base.save_checked(state, tmp_path / "adapter.safetensors")
    monkeypatch.undo()
    base.save_checked(state, tmp_path / "adapter.safetensors")


def test_one_empty_tensor_among_others_makes_an_adapter_empty(tmp_path):
    for state in ({}, {"a": torch.ones(2), "b": torch.empty(0)}):
        with pytest.raises(CheckpointError, match=rf"refused to write an empty adapter \({len(state)} tensors\)"):
            base.save_checked(state, tmp_path / "adapter.safetensors")
        assert not list(tmp_path.iterdir())


def test_tensors_that_do_not_fit_are_named_and_nothing_is_copied(tiny_model):
    model = Prefix(4, False).apply(tiny_model())
    before = model.transformer.prefix_encoder.embedding.weight.clone()
    name = "transformer.prefix_encoder.embedding.weight"
    for state, line in (
        ({name: before[:2] + 1}, f"folder: {name} [2, 192] does not fit the model's [4, 192]"),
        ({name: before + 1, "other": before}, "folder: other [4, 192] does not fit any parameter of the model"),
    ):
        with pytest.raises(CheckpointError) as caught:
            base.load_named(model, state, Path("folder"))
        assert list(caught.value.problems) == [line]
        assert torch.equal(model.transformer.prefix_encoder.embedding.weight, before)


def test_what_was_gathered_does_not_change_as_training_goes_on(tiny_model):
    tuner = Prefix(4, False)
    model = tuner.apply(tiny_model())
    state = tuner.state(model)
    with torch.no_grad():
        model.transformer.prefix_encoder.embedding.weight.add_(1.0)
    assert all(not torch.equal(p, state[name]) for name, p in model.named_parameters() if p.requires_grad)


def test_a_description_may_lack_what_has_a_default(tmp_path):
    """As those of older versions do."""
    file = tmp_path / "glmft_adapter.json"
    file.write_text('{"train_type": "ptuning", "pre_seq_len": 4, "prefix_projection": true}')
    assert Prefix.from_description(tmp_path) == Prefix(4, True)
    file.write_text('{"train_type": "ptuning", "pre_seq_len": 4}')
    with pytest.raises(CheckpointError, match=r"glmft_adapter\.json: lacks prefix_projection$"):
        Prefix.from_description(tmp_path)


def test_a_description_can_be_read_by_a_person(tmp_path):
    Prefix(4, True).save_description(tmp_path, {"base_model_name_or_path": "/模型/基座"})
    text = (tmp_path / "glmft_adapter.json").read_text(encoding="utf-8")
    assert '\n  "base_model_name_or_path": "/模型/基座"\n' in text


def test_every_parameter_trains_at_the_runs_rate_but_where_a_tuner_says_otherwise():
    names = ["a.lora_A.default.weight", "a.lora_B.default.weight", "prefix_encoder.embedding.weight"]
    for tuner in (Full(), Freeze("layers.1."), Prefix(4, False), Prompt(4, "none"), Lora(3, 6, 0.0, "")):
        assert {tuner.learning_rate_ratio(name) for name in names} == {1.0}, tuner.name
    assert [Lora(3, 6, 0.0, "", loraplus_lr_ratio=4.0).learning_rate_ratio(n) for n in names] == [1.0, 4.0, 1.0]
