"""What is kept of the frozen layers: from which layer on, when it is of no use, and that the file is whole."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock

from glmft.data.sampler import Plan
from glmft.errors import ConfigError
from glmft.models.loading import load_config, meta_model
from glmft.settings.config import TrainConfig
from glmft.training.boundary import boundary_layer, remove_dead, why_not
from glmft.training.kept_states import DamagedStates, KeptStates, StatesFile, damage, require_room, seal, shares
from glmft.tuners import make_tuner

WIDTH = 4
PLAN = Plan(7, 2, 1, 2, seed=3, tokens=[3, 1, 4, 1, 5, 9, 2], max_tokens=6)
SHAPE = SimpleNamespace(pre_seq_len=None, prompt_seq_len=None)


def lowest(folder, **flags) -> int:
    config = load_config(folder)
    trained = make_tuner(TrainConfig(**flags)).expected(meta_model(config), "")
    return boundary_layer(trained, config.num_hidden_layers)


@pytest.mark.parametrize("family", ["glm", "glm2", "native-glm4"])
def test_the_boundary_is_the_lowest_layer_that_trains(family, all_folders):
    folder, norm = all_folders[family], "model.norm" if "native" in family else "final_layernorm"
    assert lowest(folder, train_type="freeze") == 2
    assert lowest(folder, train_type="freeze", freeze_last_n=2, freeze_part="mlp") == 1
    assert lowest(folder, train_type="freeze", freeze_module_name="layers.1.mlp,layers.2") == 1
    assert lowest(folder, train_type="freeze", freeze_module_name=norm) == 2
    for train_type in ("full", "ptuning", "prompt", "lora"):
        assert lowest(folder, train_type=train_type) == 0


def test_a_head_that_is_the_embedding_trains_below_all_layers(official_folders):
    assert lowest(official_folders["glm"], train_type="freeze", freeze_module_name="word_embeddings") == 0
    assert lowest(official_folders["glm2"], train_type="freeze", freeze_module_name="output_layer") == 2


def test_lora_of_an_upper_layer_leaves_those_below_alone(all_folders):
    names = {"glm2": "layers.1.mlp.dense_4h_to_h", "native-glm": "layers.1.mlp.down_proj"}
    for family, name in names.items():
        assert lowest(all_folders[family], train_type="lora", lora_module_name=name) == 1
        whole = {"glm2": "final_layernorm", "native-glm": "lm_head"}[family]
        assert lowest(all_folders[family], train_type="lora", lora_module_name=name, modules_to_save=whole) == 1


@pytest.mark.parametrize(
    ("settings", "shape", "layer", "reason"),
    [
        ({"num_train_epochs": 2}, {}, 2, None),
        ({"num_train_epochs": 2, "gradient_checkpointing": "full"}, {}, 2, None),
        ({"num_train_epochs": 2, "use_reentrant": True}, {}, 2, None),
        ({"num_train_epochs": 1}, {}, 2, "the run sees each record once"),
        ({"num_train_epochs": 3, "max_steps": 2}, {}, 2, "the run sees each record once"),
        ({"num_train_epochs": 2, "train_type": "prompt"}, {}, 0, "--train_type prompt and its settings, layer 0"),
        ({"num_train_epochs": 2}, {"pre_seq_len": 4}, 2, "virtual tokens of the base"),
        ({"num_train_epochs": 2}, {"attention_dropout": 0.1}, 2, "the base's attention has a dropout"),
        ({"num_train_epochs": 2, "gradient_checkpointing": 1, "use_reentrant": True}, {}, 2, "--use_reentrant needs"),
    ],
)
def test_why_nothing_is_kept(settings, shape, layer, reason):
    found = why_not(TrainConfig(**settings), SimpleNamespace(**{**vars(SHAPE), **shape}), layer, PLAN)
    assert found == reason or reason in found


@pytest.fixture
def sealed(tmp_path):
    """A folder as two ranks write it: every number of a row's states is the row's own."""
    entries = []
    for rank in range(PLAN.world_size):
        file = StatesFile(tmp_path, rank)
        for _, rows in shares(PLAN, rank):
            for row in rows:
                file.write(torch.full((PLAN.tokens[row], WIDTH), float(row), dtype=torch.bfloat16))
        entries.append(file.close())
    seal(tmp_path, entries, torch.bfloat16, WIDTH)
    return tmp_path


def test_the_states_of_any_rows_come_in_any_order(sealed):
    states = KeptStates(sealed, PLAN, range(2, 3))
    assert [damage(sealed, rank) for rank in range(2)] == [None, None]
    found = states.of([5, 0, 6])
    assert found.shape == (1, 9 + 3 + 2, WIDTH)
    assert found[0, :, 0].tolist() == [5.0] * 9 + [0.0] * 3 + [6.0] * 2
    batch = states.in_place_of_ids({"input_ids": None, "labels": 1}, [1])
    assert batch.keys() == {"labels", "inputs_embeds", "layers"}
    assert batch["layers"] == range(2, 3)


def test_what_was_changed_cut_or_lost_is_found(sealed, tmp_path_factory):
    def harmed(harm) -> tuple[str, bool]:
        folder = shutil.copytree(sealed, tmp_path_factory.mktemp("harmed") / "states")
        harm(folder)
        try:
            KeptStates(folder, PLAN, range(2, 3))
        except DamagedStates:
            return damage(folder, 1), True
        return damage(folder, 1), False

    data = (sealed / "rank1.states").read_bytes()
    assert harmed(lambda f: None) == (None, False)
    assert harmed(lambda f: (f / "rank1.states").write_bytes(data[:-2] + b"xx")) == ("rank1.states has changed", False)
    assert harmed(lambda f: (f / "rank1.states").write_bytes(data[:-2])) == ("rank1.states has changed", True)
    assert harmed(lambda f: (f / "rank1.states").unlink()) == ("rank1.states: No such file or directory", True)
    for text in ("", "[]", "{}", '{"files": 3}', '{"files": {"rank1.states": 1}}'):
        assert harmed(lambda f, text=text: (f / "seal.json").write_text(text)) == ("seal.json is none", True)
    other = {"dtype": "load", "width": WIDTH, "files": {}}
    assert harmed(lambda f: (f / "seal.json").write_text(str(other).replace("'", '"'))) == ("seal.json is none", True)


def test_too_little_room_is_told_before_anything_is_written(tmp_path, monkeypatch):
    require_room(tmp_path / "states", 1 << 20, "--flag")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 30))
    with pytest.raises(ConfigError, match=r"--flag: needs 3\.00 GiB, and .* has 1\.00 GiB free; name a --cache_dir"):
        require_room(tmp_path / "states", 3 << 30, "--flag")


def test_what_the_disk_refuses_is_told_when_the_file_is_closed(tmp_path):
    file = StatesFile(tmp_path / "gone", 0)
    file.write(torch.zeros(2, WIDTH))
    with pytest.raises(FileNotFoundError):
        file.close()


def test_what_a_killed_run_left_half_written_goes_and_what_is_being_written_stays(tmp_path):
    dead, alive = tmp_path / ".writing-boundary-a", tmp_path / ".writing-boundary-b"
    for folder in (dead, alive, tmp_path / "boundary-c"):
        folder.mkdir()
        (folder / "rank0.states").write_text("x")
    with FileLock(tmp_path / "boundary-b.lock"):
        remove_dead(tmp_path)
    assert not dead.exists()
    assert alive.exists()
    assert (tmp_path / "boundary-c").exists()
