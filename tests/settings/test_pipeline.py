"""What the settings of a pipeline show to be wrong before anything is read."""

import pytest

from glmft.settings.checks import pipeline_problems
from glmft.settings.config import TrainConfig


def test_without_a_file_a_pipeline_takes_zero_1_and_other_runs_zero_2():
    assert TrainConfig().ds_file == "ds_zero2_no_offload.json"
    assert TrainConfig(pipeline_stages=2).ds_file == "ds_zero1.json"
    assert TrainConfig(pipeline_stages=2, ds_file="a.json").ds_file == "a.json"


@pytest.mark.parametrize("partition", ["parameters", "time", "10,9,9"])
def test_layers_are_dealt_out_in_three_ways(partition):
    assert pipeline_problems(TrainConfig(pipeline_stages=3, pipeline_partition=partition)) == []


@pytest.mark.parametrize("partition", ["", "10;9", "profile", "-1,4", "3,", "1.5,2"])
def test_another_way_is_refused(partition):
    [problem] = pipeline_problems(TrainConfig(pipeline_partition=partition))
    assert problem.startswith(f"--pipeline_partition {partition}: is neither parameters nor time nor layers")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("use_reentrant", True),
        ("predict_with_generate", True),
        ("cache_frozen_activations", True),
        ("plan", True),
        ("dtype", "fp16"),
        ("quantization_bit", "nf4"),
    ],
)
def test_what_does_not_go_with_stages_is_refused_with_them_alone(name, value):
    assert pipeline_problems(TrainConfig(**{name: value})) == []
    [problem] = pipeline_problems(TrainConfig(pipeline_stages=2, **{name: value}))
    assert problem.startswith(f"--pipeline_stages 2 with --{name}")


def test_a_refused_in_loop_answer_says_how_to_get_it_after_the_run():
    [problem] = pipeline_problems(TrainConfig(pipeline_stages=2, predict_with_generate=True))
    assert "after the run answer with predict.py" in problem
