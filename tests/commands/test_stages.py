"""How ranks and layers are dealt out to stages, and what no pipeline goes with."""

import pytest
import torch

from glmft.commands.stages import in_stages, require_pipeline
from glmft.dist import World
from glmft.errors import ConfigError
from glmft.settings.config import TrainConfig

ZERO1 = {"zero_optimization": {"stage": 1}}


def world(size: int, dtype: torch.dtype = torch.float32, rank: int = 0) -> World:
    return World(rank, rank, size, torch.device("cpu"), dtype)


def test_the_first_ranks_have_the_first_stage_each_for_a_share_of_the_data():
    ranks = [in_stages(world(6, rank=rank), 3) for rank in range(6)]
    assert [(r.stage, r.data_rank, r.sees_loss) for r in ranks] == [
        *((0, 0, False), (0, 1, False), (1, 0, False), (1, 1, False), (2, 0, True), (2, 1, True))
    ]


def test_without_stages_every_rank_sees_the_loss_of_its_share():
    ranks = [in_stages(world(2, rank=rank), 1) for rank in range(2)]
    assert [(r.stage, r.data_rank, r.sees_loss) for r in ranks] == [(0, 0, True), (0, 1, True)]


@pytest.mark.parametrize(("stages", "size", "ranks"), [(3, 2, "2 ranks"), (2, 1, "1 rank"), (4, 2, "2 ranks")])
def test_stages_that_do_not_divide_the_ranks_are_refused(stages, size, ranks):
    with pytest.raises(
        ConfigError, match=f"--pipeline_stages {stages}: does not divide {ranks}; start with --num_gpus"
    ):
        in_stages(world(size), stages)


def test_fp16_is_refused_however_it_came_about():
    with pytest.raises(ConfigError, match="fp16 is not scaled across stages"):
        in_stages(world(2, torch.float16), 2)


@pytest.mark.parametrize(
    ("settings", "ds_config", "problem"),
    [
        ({}, {"zero_optimization": {"stage": 2}}, "ZeRO-2 splits gradients as they come"),
        ({}, {"zero_optimization": {"stage": 3}}, "ZeRO-3 splits gradients as they come"),
        ({}, {**ZERO1, "wall_clock_breakdown": True}, "wall_clock_breakdown starts a timer twice"),
        ({}, {**ZERO1, "flops_profiler": {"enabled": True}}, "flops_profiler starts a timer twice"),
        ({"pipeline_partition": "3,0"}, ZERO1, "stage 2 would have no layer"),
        ({"pipeline_stages": 4}, ZERO1, "the model has 3 layers, so a stage would have none"),
    ],
)
def test_what_no_pipeline_goes_with_is_refused(settings, ds_config, problem, tiny_config):
    config = TrainConfig(**{"pipeline_stages": 2, **settings})
    with pytest.raises(ConfigError, match=problem):
        require_pipeline(config, tiny_config(), ds_config)
    require_pipeline(TrainConfig(pipeline_stages=3), tiny_config(), ZERO1)
