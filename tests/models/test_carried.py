"""What a written folder has of its base's, and how it says where the official code is."""

import json

from glmft.models.carried import carry_files, name_official_classes

CODE = {
    "configuration_chatglm.py": "class ChatGLMConfig(PretrainedConfig):\n    pass\n",
    "modeling_chatglm.py": "class ChatGLMModel:\n    pass\nclass ChatGLMForConditionalGeneration:\n    pass\n",
    "tokenization_chatglm.py": "class ChatGLMTokenizer(PreTrainedTokenizer):\n    pass\n",
}


def test_every_file_but_weights_and_what_a_run_left_is_carried_and_nothing_is_overwritten(tmp_path):
    base, target = tmp_path / "base", tmp_path / "target"
    for folder in (base / "assets", base / "checkpoint-7", base / ".git", target):
        folder.mkdir(parents=True)
    carried = ("modeling_chatglm.py", "MODEL_LICENSE", "generation_config.json", "quantization.py", "assets/a.png")
    left = (
        "model-1.safetensors",
        "pytorch_model.bin.index.json",
        "a.gguf",
        "metrics.jsonl",
        "checkpoint-7/x",
        ".git/x",
    )
    for name in (*carried, *left, "README.md"):
        (base / name).write_text("base")
    (target / "README.md").write_text("mine")
    carry_files(base, target)
    files = {str(path.relative_to(target)): path.read_text() for path in target.rglob("*") if path.is_file()}
    assert files == {**dict.fromkeys(carried, "base"), "README.md": "mine"}


def test_a_folder_below_its_base_does_not_hold_itself(tmp_path):
    target = tmp_path / "out" / "model"
    target.mkdir(parents=True)
    (tmp_path / "LICENSE").write_text("free")
    carry_files(tmp_path, target)
    assert [path.name for path in target.iterdir()] == ["LICENSE"]


def test_auto_map_names_the_official_classes_that_are_beside_it_and_their_code_is_only_read(tmp_path):
    for name, text in CODE.items():
        (tmp_path / name).write_text(f"{text}\nraise SystemExit(9)\n", encoding="utf-8")
    (tmp_path / "config.json").write_text('{"model_type": "chatglm"}', encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"remove_space": false}', encoding="utf-8")
    name_official_classes(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    model = "modeling_chatglm.ChatGLMForConditionalGeneration"
    autos = ("AutoModel", "AutoModelForCausalLM", "AutoModelForSeq2SeqLM")
    assert config["auto_map"] == {"AutoConfig": "configuration_chatglm.ChatGLMConfig", **dict.fromkeys(autos, model)}
    tokenizer = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert tokenizer == {
        "remove_space": False,
        "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]},
    }


def test_an_auto_map_that_is_there_stays_and_none_is_made_without_the_code(tmp_path):
    given = {"model_type": "chatglm", "auto_map": {"AutoConfig": "mine.Config"}}
    for config in (given, {"model_type": "chatglm"}, {"model_type": "glm"}):
        (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
        for name, text in CODE.items() if config is given else ():
            (tmp_path / name).write_text(text, encoding="utf-8")
        name_official_classes(tmp_path)
        assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8")) == config
        for name in CODE:
            (tmp_path / name).unlink(missing_ok=True)
