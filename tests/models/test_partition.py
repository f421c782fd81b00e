"""How layers are dealt out to stages."""

from itertools import combinations, pairwise

import pytest

from glmft.errors import ConfigError
from glmft.models.partition import balanced, by_hand, require_stages, stage_lines, weights_by_parameters
from glmft.models.stages import Cut


def heaviest(layers, before, behind, counts) -> tuple[float, float]:
    """The weight of the heaviest stage, and the sum of the squares."""
    stages, first = [], 0
    for count in counts:
        stages.append(sum(layers[first : first + count]))
        first += count
    stages[0] += before
    stages[-1] += behind
    return max(stages), sum(weight * weight for weight in stages)


@pytest.mark.parametrize(
    ("layers", "before", "behind"), [([1.0] * 7, 0, 0), ([1.0] * 7, 1.3, 1.4), ([3, 1, 1, 1, 5, 1, 2], 0.5, 4)]
)
@pytest.mark.parametrize("stages", [2, 3, 4, 7])
def test_no_other_cut_has_a_lighter_heaviest_stage(layers, before, behind, stages):
    """Against all cuts that there are."""
    got = balanced(layers, before, behind, stages)
    assert len(got) == stages
    assert sum(got) == len(layers)
    ends = ([0, *cut, len(layers)] for cut in combinations(range(1, len(layers)), stages - 1))
    every = [heaviest(layers, before, behind, [b - a for a, b in pairwise(c)]) for c in ends]
    assert heaviest(layers, before, behind, got) == pytest.approx(min(every))


def test_a_cut_by_hand_is_taken_as_it_is():
    assert by_hand("10,9,9", 28, 3) == (10, 9, 9)


@pytest.mark.parametrize(
    ("partition", "stages", "problem"),
    [
        ("14,14", 3, "has 2 parts, --pipeline_stages is 3"),
        ("28,0", 2, "stage 2 would have no layer"),
        ("14,13", 2, "makes up 27 layers, the model has 28"),
    ],
)
def test_a_cut_by_hand_that_is_none_is_refused(partition, stages, problem):
    with pytest.raises(ConfigError, match=problem):
        by_hand(partition, 28, stages)


def test_more_stages_than_layers_are_refused():
    with pytest.raises(ConfigError, match="--pipeline_stages 4: the model has 3 layers, so a stage would have none"):
        require_stages(3, 4)


def test_the_lines_name_every_stage_what_it_holds_and_the_bubble(tiny_model):
    model = tiny_model()
    lines = stage_lines(Cut((2, 1), 0), model, micro_batches=3, shares=2)
    layers, before, behind = weights_by_parameters(model)
    assert before + sum(layers) + behind == sum(p.numel() for p in model.parameters())
    assert lines[1].startswith("  stage 1 of 2 (ranks 0 to 1): the embedding, layers 0 to 1; ")
    assert lines[2].startswith("  stage 2 of 2 (ranks 2 to 3): layer 2, the final norm and the head; ")
    assert f"; {int(behind + layers[2]):,} parameters" in lines[2]
    assert "with 3 micro-batches in a step each stage waits 25.0% of the time" in lines[3]
