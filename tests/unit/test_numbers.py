"""Numbers in a graph: tensors without axes that belong to the operation that reads them."""

import operator

import torch
from torch.fx import Graph, GraphModule

from anew.compiler.numbers import number_of, numbers_of_host, one_reader_each

aten = torch.ops.aten


def graph():
    """A number that two selections read, one returned, and a tensor that is no number."""
    g = Graph()
    mask, x = g.placeholder("mask"), g.placeholder("x")

    def call(name, target, *args):
        return g.create_node("call_function", target, args, name=name)

    half = call("half", aten.scalar_tensor.default, 0.5)
    one = call("one", aten.full.default, [], 1)
    row = call("row", aten.full.default, [8], 1)
    first = call("first", aten.where.self, mask, x, half)
    second = call("second", aten.where.self, mask, half, first)
    g.output((call("sum", operator.add, second, row), one))
    return GraphModule(torch.nn.Module(), g)


def named(module):
    return {node.name: node for node in module.graph.nodes}


def test_numbers_are_known():
    nodes = named(graph())
    assert number_of(nodes["half"]) == 0.5
    assert number_of(nodes["one"]) == 1
    assert number_of(nodes["row"]) is None
    assert number_of(nodes["first"]) is None


def test_every_reader_has_its_own():
    module = graph()
    mask, x = torch.tensor([True, False] * 4), torch.arange(8.0)
    before = module(mask, x)
    one_reader_each(module)
    module.graph.lint()
    numbers = [node for node in module.graph.nodes if number_of(node) is not None]
    assert [len(node.users) for node in numbers] == [1, 1, 1]
    assert torch.equal(module(mask, x)[0], before[0])


def test_numbers_that_the_host_reads_are_its_own():
    module = graph()
    one_reader_each(module)
    nodes = named(module)
    found = numbers_of_host(module, {nodes["second"]})
    assert {number_of(node) for node in found} == {0.5, 1}
    assert all(nodes["first"] not in node.users for node in found)
