"""DistributedDataParallel over compiled layers, and what processes settle about their operand scales."""

import copy

import pytest
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import anew
from anew.errors import AnewError
from anew.frontend.ranks import merged
from anew.train.ranks import Ranks
from tests.emulator.training import compiled, gradients, reference, worst_error


@pytest.fixture
def group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("fresh", "group")
def test_layers_larger_than_a_bucket_of_gradients_stay_whole(llama):
    net = llama()
    wanted = reference(copy.deepcopy(net))
    parallel = DistributedDataParallel(compiled(net), bucket_cap_mb=0.01)
    found = {name.removeprefix("module."): x for name, x in gradients(parallel).items()}
    assert worst_error(found, wanted) < 0.02
    assert anew.statistics(net).regions == 1


def state(exponents, cotangent=6, calibrated=True):
    return {"exponents": exponents, "cotangent": cotangent, "calibrated": calibrated}


def test_the_smallest_factor_of_each_operand_holds():
    one = {"w": {"forward": state([3, -2]), "backward": state([1], 6)}, "v": {"forward": state([4])}}
    two = {"w": {"forward": state([2, 5]), "backward": state([0], 3)}}
    both = {
        "w": {"forward": state([2, -2]), "backward": state([0], 3)},
        "v": {"forward": state([4])},  # a program that only one process has run
    }
    assert merged([one, two]) == merged([two, one]) == both


def test_an_unconfirmed_state_does_not_count():
    one, two = {"w": {"forward": state([3])}}, {"w": {"forward": state([0], calibrated=False)}}
    assert merged([one, two]) == merged([two, one]) == one


def test_a_process_alone_settles_everything():
    ranks = Ranks()
    with ranks.together():
        assert ranks.sum(2.5, 1.0) == [2.5, 1.0]
        assert ranks.mean(3.0) == 3.0
        assert ranks.any(True)
        assert not ranks.any(False)


def test_an_error_says_which_process_it_was(monkeypatch):
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: None)
    with pytest.raises(AnewError, match="process 1 of 2: too large"), Ranks(1, 2).together():
        raise AnewError("too large")
