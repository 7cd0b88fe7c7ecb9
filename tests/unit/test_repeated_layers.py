"""Which modules of a model are its layers."""

import pytest
from torch import nn

from anew.errors import UserError
from anew.frontend.layers import repeated_layers


class Block(nn.Module):
    def __init__(self, experts=0):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.experts = nn.ModuleList(Block() for _ in range(experts))


class Other(Block):
    pass


def model(**parts):
    net = nn.Module()
    for name, part in parts.items():
        net.add_module(name, part)
    return net


def blocks(count, **arguments):
    return [Block(**arguments) for _ in range(count)]


def test_members_of_a_list_in_order():
    layers = blocks(3)
    assert repeated_layers(model(embed=nn.Embedding(4, 4), layers=nn.ModuleList(layers))) == layers


def test_a_list_of_one_layer():
    layers = blocks(1)
    assert repeated_layers(model(layers=nn.ModuleList(layers))) == layers


def test_blocks_of_a_sequence():
    layers = blocks(2)
    assert repeated_layers(model(body=nn.Sequential(*layers))) == layers


def test_experts_inside_layers_belong_to_them():
    """Though there are more of them."""
    layers = blocks(2, experts=8)
    assert repeated_layers(model(layers=nn.ModuleList(layers))) == layers


def test_both_stacks_of_an_encoder_decoder():
    encoder, decoder = blocks(2), [Other(), Other(), Other()]
    net = model(encoder=model(block=nn.ModuleList(encoder)), decoder=model(block=nn.ModuleList(decoder)))
    assert repeated_layers(net) == encoder + decoder


def test_lists_of_plain_modules_are_no_layers():
    layers = blocks(2)
    heads = nn.ModuleList(nn.Linear(4, 4) for _ in range(5))
    mixed = nn.ModuleList([Block(), Other()])
    assert repeated_layers(model(heads=heads, mixed=mixed, layers=nn.ModuleList(layers))) == layers


def test_layers_of_pytorch_itself():
    net = nn.Transformer(8, 2, 2, 3, 16)
    assert len(repeated_layers(net)) == 5


def test_layers_inside_a_list_of_lists():
    stages = [blocks(2), blocks(3)]
    net = model(stages=nn.ModuleList(nn.ModuleList(stage) for stage in stages))
    assert repeated_layers(net) == stages[0] + stages[1]


@pytest.mark.parametrize(
    "net", [nn.Linear(4, 4), nn.ModuleList(), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), Block()]
)
def test_a_model_without_layers_is_refused(net):
    with pytest.raises(UserError, match=rf"{type(net).__name__} has no nn.ModuleList or nn.Sequential of layers"):
        repeated_layers(net)
