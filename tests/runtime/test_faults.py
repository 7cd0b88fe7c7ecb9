"""A call that fails, at every position of a run in turn, and what a failed operation does at its next run."""

import pytest
import torch

from anew.device.framework import FrameworkError
from anew.mil import Builder, print_program
from tests.runtime.faults import ANE, COMPILES, E5RT, SHAPE, compile_outcome, memory_outcomes, outcomes


def test_every_call_fails_once(make_fake):
    found = outcomes(make_fake)
    assert found.keys() == {
        "raised_compile",
        "raised_load",
        "raised_bind",
        "raised_execute",
        "went_on_with_a_warning",
    }


@pytest.mark.parametrize("client_refuses", [0, 1])
@pytest.mark.filterwarnings("ignore:.*go through _ANEInMemoryModel")
def test_every_message_fails_once(make_classes, monkeypatch, client_refuses):
    monkeypatch.setattr("anew.device.ane.models.PATIENCE", 0.0)

    def make():
        fake = make_classes(client_refuses=client_refuses)
        fake.log_calls()
        return fake

    found = outcomes(make, ANE)
    raised = {f"raised_{stage}" for stage in ("compile", "load", "bind", "execute")}
    assert raised <= found.keys() <= raised | {"went_on_with_a_warning", "went_on_without_it"}
    assert found.total() > 100


@pytest.mark.parametrize(("maker", "subject"), [("make_fake", E5RT), ("make_classes", ANE)])
def test_the_memory_of_the_process_runs_out_at_each_lease(request, maker, subject):
    assert memory_outcomes(request.getfixturevalue(maker), subject) == {"raised_memory": 6}


def test_the_120th_compile_is_refused_and_what_was_loaded_still_runs(make_fake):
    assert compile_outcome(make_fake(compiles=COMPILES)) == "raised_compile"
    assert compile_outcome(make_fake()) == "went_on_without_it"


def test_a_run_that_failed_may_be_repeated(fake, open_engine):
    engine = open_engine(fake)
    b = Builder()
    program = engine.compile(*print_program(b.program([b.op("exp", "y", x=b.input("x", SHAPE))])))
    operation, out = program.operation(), engine.buffers.lease(SHAPE)
    operation.bind({"x": engine.buffers.lease(SHAPE).zero_(), "y": out})
    operation.execute()
    fake.fail_at(fake.library.fake_calls_made() + 1)
    with pytest.raises(FrameworkError, match="execute: e5rt_execution_stream_execute_sync failed with e5rt code 77"):
        operation.execute()
    out.zero_()
    operation.execute()
    assert out.unique().tolist() == torch.ones(1).tolist()


def test_a_compile_budget_of_the_process_is_an_error_of_its_own(make_fake, open_engine):
    engine = open_engine(make_fake(compiles=3))
    b = Builder()
    text = print_program(b.program([b.op("exp", "y", x=b.input("x", SHAPE))]))
    programs = [engine.compile(*text) for _ in range(2)]
    with pytest.raises(FrameworkError, match=r"e5rt_e5_compiler_compile failed .*the compile budget") as raised:
        engine.compile(*text)
    assert raised.value.stage == "compile"
    assert engine.statistics.programs == len(programs)
