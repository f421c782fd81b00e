import torch

from glmft.models.checkpointing import checkpoint_layers


def test_the_first_of_every_so_many_layers_is_computed_again(tiny_model):
    for every, again in ((0, [False] * 3), (1, [True] * 3), (2, [True, False, True]), (9, [True, False, False])):
        model = tiny_model()
        checkpoint_layers(model, every)
        assert [layer.gradient_checkpointing for layer in model.transformer.blocks] == again


def test_nothing_below_the_lowest_trained_layer_is_computed_again(tiny_model):
    model, passes = tiny_model().train(), []
    model.requires_grad_(False)
    model.transformer.blocks[2].requires_grad_(True)
    checkpoint_layers(model, every=1)
    for i, layer in enumerate(model.transformer.blocks):
        layer.mlp.register_forward_pre_hook(lambda *_, i=i: passes.append(i))
    rows = torch.arange(1, 9)[None]
    model(rows, labels=rows).loss.backward()
    assert passes == [0, 1, 2, 2]
