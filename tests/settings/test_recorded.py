"""What a model was trained with holds wherever no flag says otherwise; a line says what does."""

import pytest

from glmft.settings.answers import PredictConfig
from glmft.settings.config import DataSettings, TrainConfig
from glmft.settings.recorded import RECORDED, TRAINED_WITH, as_trained, record_of_settings, trained_with

DEFAULTS = {name: getattr(DataSettings(), name) for name in RECORDED}


def settings_of(config: PredictConfig) -> dict:
    return {name: getattr(config, name) for name in RECORDED}


def recorded(**given) -> DataSettings:
    return trained_with({TRAINED_WITH: record_of_settings(TrainConfig(**given))})


def test_the_record_holds_what_a_record_must_be_read_by():
    given = {"template": "raw", "max_len": 99, "source_prefix": "问：", "prompt_column": "q", "input_separator": "|"}
    assert record_of_settings(TrainConfig(**given)) == DEFAULTS | given
    assert all(hasattr(PredictConfig(), name) for name in RECORDED)
    assert trained_with({}) is None


def test_without_a_record_the_defaults_of_training_hold():
    config, lines = as_trained(PredictConfig(), None)
    assert settings_of(config) == DEFAULTS
    assert lines == []
    assert as_trained(PredictConfig(template="raw"), None)[0].template == "raw"


def test_what_was_recorded_holds_and_a_line_says_what_is_not_the_default():
    trained = recorded(template="raw", max_len=99, source_prefix="问：")
    config, lines = as_trained(PredictConfig(), trained)
    assert settings_of(config) == DEFAULTS | {"template": "raw", "max_len": 99, "source_prefix": "问："}
    assert lines == ["as the model was trained: template raw, max_len 99, source_prefix '问：'"]
    assert as_trained(PredictConfig(), recorded())[1] == []


def test_a_flag_overrides_and_a_line_says_what():
    config, lines = as_trained(PredictConfig(template="default", max_src_len=50), recorded(template="raw", max_len=99))
    assert (config.template, config.max_len, config.max_src_len) == ("default", 99, 50)
    assert lines == [
        "as the model was trained: max_len 99",
        "--template default: overrides template raw, which the model was trained with",
        "--max_src_len 50: overrides max_src_len None, which the model was trained with",
    ]
    assert as_trained(PredictConfig(template="raw"), recorded(template="raw"))[1] == []


@pytest.mark.parametrize(
    ("trained", "given", "lengths"),
    [
        ({"max_source_length": 64, "max_target_length": 32}, {}, (1024, None, 64, 32)),
        ({"max_source_length": 64, "max_target_length": 32}, {"max_len": 300}, (300, None, None, None)),
        (
            {"max_len": 300, "max_src_len": 200},
            {"max_source_length": 64, "max_target_length": 32},
            (1024, None, 64, 32),
        ),
        ({"max_len": 300, "max_src_len": 200}, {"max_len": 150}, (150, None, None, None)),
        ({"max_len": 300, "max_src_len": 200}, {"max_len": 250}, (250, 200, None, None)),
    ],
)
def test_one_way_to_give_lengths_excludes_the_other(trained, given, lengths):
    config, _ = as_trained(PredictConfig(**given), recorded(**trained))
    names = ("max_len", "max_src_len", "max_source_length", "max_target_length")
    assert tuple(getattr(config, name) for name in names) == lengths
