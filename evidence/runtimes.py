"""The routes to the engine on their fakes: losses, growth, what a call costs, and what the worker adds.

No engine takes part. Behind the fake the emulated engine computes, so equal losses show that text, weights and buffers
arrive whole; the overhead is measured on a fake that does nothing, beside a bare call of its own.
"""

from __future__ import annotations

import gc
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from anew.chips import load_chip
from anew.device.base import Device
from anew.device.e5rt.operation import BIND, ENCODE, EXECUTE, PREPARE, RESET
from anew.device.emulator.engine import EmulatedEngine
from anew.device.worker.client import WorkerDevice
from anew.frontend.model import compile_in
from anew.frontend.options import Options
from anew.frontend.session import Session
from anew.mil import Builder, print_program
from anew.train.presets import PRESETS
from evidence import record
from tests.runtime import espresso, faults, neural_engine, worker_devices
from tests.runtime.espresso import FakeEspresso
from tests.runtime.neural_engine import FakeNeuralEngine

#: Leases from each to the next of two sets without a buffer in common; a set begins at any of them: more than are kept.
COMBINATIONS = 150
CHIP, STEPS, CALLS, ROUNDS = "m4", 20, 500, 9
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64}
PORTS = (3, 30)


def train(device: Device, config: dict[str, Any], steps: int, each: Callable[[], None] = lambda: None) -> list[float]:
    """Take AdamW steps on random tokens on a device; returns the losses."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    net: Any = LlamaForCausalLM(LlamaConfig(**config, use_cache=False))
    compile_in(net, Session(Options(device="emulator", chip=CHIP, strict=True), device))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(4)
    losses = []
    for _ in range(steps):
        tokens = torch.randint(0, config["vocab_size"], (1, 64), generator=generator)
        loss = net(input_ids=tokens, labels=tokens).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        each()
    return losses


@dataclass(frozen=True)
class Bench:
    """A route with its fakes: one that is strict, and one that does nothing.

    Attributes:
        make, make_idle: begin a use of each. subject: opens the route, and knows its errors.
        bare: given an operation that ran, one call of the framework, and all calls that a run over other buffers
            cannot do without, with nothing between them.
    """

    make: Callable[[], Any]
    make_idle: Callable[[], Any]
    subject: faults.Subject
    bare: Callable[[Any], tuple[Callable[[], Any], Callable[[], Any]]]


def e5rt_bench(folder: Path) -> Bench:
    """The C functions of Espresso."""
    checked, unchecked = espresso.build(folder), espresso.build(folder, "UNCHECKED")

    def bare(operation: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
        instance, functions = operation._instance, operation.engine.espresso.functions
        bind, reset, prepare, encode, execute = (functions[name] for name in (BIND, RESET, PREPARE, ENCODE, EXECUTE))
        ports, handles = list(instance.ports.values()), [o.handle for o in instance.bound]

        def calls() -> None:
            reset(instance.stream)
            prepare(instance.operation)
            list(map(bind, ports, handles))
            encode(instance.stream, instance.operation)
            execute(instance.stream)

        return partial(execute, instance.stream), calls

    chip = load_chip(CHIP)
    return Bench(partial(FakeEspresso, checked, chip), partial(FakeEspresso, unchecked, chip), faults.E5RT, bare)


def ane_bench(folder: Path) -> Bench:
    """The classes of AppleNeuralEngine."""
    checked, unchecked = neural_engine.build(folder), neural_engine.build(folder, "UNCHECKED")

    def make() -> FakeNeuralEngine:
        fake = FakeNeuralEngine(checked, load_chip(CHIP))
        fake.log_calls()
        return fake

    def bare(operation: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
        request = next(iter(operation._requests.values()))
        surfaces = request._surfaces
        surface, functions = surfaces.surfaces[0], surfaces.functions

        def calls() -> None:
            list(itertools.starmap(functions.unlocks, surfaces._arguments))
            request._evaluate(request._handle)
            list(itertools.starmap(functions.locks, surfaces._arguments))

        return partial(functions.base_address, surface.handle), calls

    idle = {"idle": 1, "coherent": 1}
    return Bench(make, lambda: FakeNeuralEngine(unchecked, load_chip(CHIP), switches=idle), faults.ANE, bare)


def losses(bench: Bench) -> dict[str, Any]:
    """stories15m for some steps on the fake and on the emulator."""
    model = PRESETS["stories15m"].model
    fake = bench.make()  # held: the library calls it back
    found = train(bench.subject.open(fake), model, STEPS)
    wanted = train(EmulatedEngine(load_chip(CHIP)), model, STEPS)
    differing = sum(a != b for a, b in zip(found, wanted, strict=True))
    return {"steps": STEPS, "losses": found, "losses_differing": differing}


def growth(bench: Bench) -> dict[str, Any]:
    """Many steps of a small model, watched; then all is dropped, and what is left is counted."""
    fake = bench.make()
    samples = watched(bench, fake)
    torch._dynamo.reset()
    gc.collect()
    gc.collect()
    early, late = samples[49], samples[-1]
    return {
        "watched_steps": CALLS,
        "objects_after_50_steps": early[0],
        "objects_at_the_end": late[0],
        "buffer_megabytes_after_50_steps": early[1],
        "buffer_megabytes_at_the_end": late[1],
        "objects_left": sum(fake.alive.values()),
        "violations": len(fake.violations),
    }


def watched(bench: Bench, fake: Any) -> list[tuple[int, float]]:
    """Objects of the library and megabytes of buffers after each step."""
    device, samples = bench.subject.open(fake), []

    def sample() -> None:
        samples.append((sum(fake.alive.values()), device.buffers.allocated_bytes / 1e6))

    train(device, SMALL, CALLS, sample)
    return samples


def microseconds(call: Callable[[], Any], times: int = 2000) -> float:
    """Of one call."""
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times * 1e6


def overhead(bench: Bench, ports: int) -> dict[str, float]:
    """Microseconds of a program call on a library that does nothing.

    The same buffers again; all of them others, as in training, which comes back to the same sets of buffers; all of
    them in a combination that was not seen lately; and for comparison the framework's calls alone.
    """
    fake = bench.make_idle()
    device, b = bench.subject.open(fake), Builder()
    inputs = [b.input(f"x{i}", (1, 16, 32)) for i in range(ports - 1)]
    total = inputs[0]
    for x in inputs[1:]:
        total = b.op("add", x=total, y=x)
    program = device.compile(*print_program(b.program([total])))
    operation = program.operation()
    names = list(program.ports)
    leases = [device.buffers.lease((1, 16, 32)) for _ in range(2 * COMBINATIONS)]
    combinations = [dict(zip(names, leases[i:] + leases[:i], strict=False)) for i in range(len(leases))]

    def over(sets: list[dict[str, torch.Tensor]]) -> Callable[[], None]:
        turn = itertools.cycle(sets)

        def call() -> None:
            operation.bind(next(turn))
            operation.execute()

        return call

    others = over(combinations[::COMBINATIONS])
    others()
    bare, all_calls = bench.bare(operation)
    calls = {
        "bare_call": bare,
        "calls_alone": all_calls,
        "same_buffers": operation.execute,
        "other_buffers": others,
        "unseen_buffers": over(combinations),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            times[name].append(microseconds(call))
    program.release()
    return {name: statistics.median(taken) for name, taken in times.items()}


def worker_cost() -> dict[str, float]:
    """Microseconds of a matmul of [64, 288] x [288, 288] on the emulator, in this process and in a worker."""
    devices: dict[str, Device] = {
        "in_process": EmulatedEngine(load_chip(CHIP)),
        "worker": WorkerDevice(load_chip(CHIP), worker_devices.emulator),
    }
    b = Builder()
    x, w = b.input("x", (1, 64, 288)), b.input("w", (288, 288))
    text, weights = print_program(b.program([b.op("matmul", "y", x=x, y=w, transpose_x=False, transpose_y=False)]))
    calls = {}
    for name, device in devices.items():
        program = device.compile(text, weights)
        operation = program.operation()
        operation.bind({n: device.buffers.lease(p.type.shape).zero_() for n, p in program.ports.items()})
        calls[name] = operation.execute
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            times[name].append(microseconds(call, 200))
    return {name: statistics.median(taken) for name, taken in times.items()}


def route(bench: Bench) -> dict[str, Any]:
    """All figures of one route."""
    costs = {f"overhead_{ports}_ports": overhead(bench, ports) for ports in PORTS}
    return losses(bench) | growth(bench) | costs


def main() -> None:
    """Measure and write the record."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        figures = {
            "e5rt": route(e5rt_bench(Path(folder))),
            "ane": route(ane_bench(Path(folder))),
            "worker_microseconds": worker_cost(),
        }
    record.write("runtimes", figures)
