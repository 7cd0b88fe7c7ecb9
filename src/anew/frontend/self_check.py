"""The self-check of a route before its first use: port names, row strides, one layer forward and backward.

What the route computes is compared with the emulated engine. It runs in a process of its own, so that a framework that
aborts or hangs costs no more than the check. That it passed is remembered for the chip, the build of the system, the
route and the version of anew. ``python -m anew.frontend.self_check ROUTE CHIP`` prints what deviates.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anew.chips import Chip, load_chip
from anew.device.base import Device
from anew.device.emulator.engine import EmulatedEngine
from anew.device.machine import system_build
from anew.device.routes import ROUTES
from anew.mil import Builder, print_program

#: Seconds that a check may take, imports included; what it does on the engine takes a few.
LIMIT_SECONDS = 120
#: Largest relative error (norm of the difference) of a layer's results: the emulated engine without its finest rounding
#: is within about 1.5 % of fp64, and the calibrated operations within 1 % of the silicon.
LIMIT_ERROR = 0.05


def reason_against(route: str, chip: Chip) -> str | None:
    """Why a route should not be used, None when its self-check passes or has passed before on this system."""
    key = f"{route} {chip.name} {version('anew')} {system_build()}"
    if key in _passed():
        return None
    reason = _check_apart(route, chip.name)
    if reason is None:
        _remember(key)
    return reason


def _check_apart(route: str, chip: str) -> str | None:
    command = [sys.executable, "-m", "anew.frontend.self_check", route, chip]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"its self-check did not end within {LIMIT_SECONDS} s"
    if done.returncode == 0:
        return None
    said = (done.stdout.strip() or done.stderr.strip()).splitlines()
    ended = f"ended by signal {-done.returncode}" if done.returncode < 0 else "failed"
    return f"its self-check {ended}" + (f": {said[-1]}" if said else "")


def _cache_file() -> Path:
    system = "~/Library/Caches" if sys.platform == "darwin" else os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(system).expanduser() / "anew" / "self_checks.json"


def _passed() -> list[str]:
    try:
        found = json.loads(_cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [key for key in found if isinstance(key, str)] if isinstance(found, list) else []


def _remember(key: str) -> None:
    file = _cache_file()
    partial = file.with_suffix(f".{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps([*_passed(), key], indent=1), encoding="utf-8")
        partial.replace(file)
    except OSError:
        pass  # the check runs again next time


def deviations(device: Device) -> list[str]:
    """What a device does differently from the emulated engine, one sentence each; empty when it passes."""
    reference = EmulatedEngine(device.chip)
    return _ports_and_rows(device, reference) or _layer(device, reference)


def _ports_and_rows(device: Device, reference: Device) -> list[str]:
    """Two inputs and two outputs whose order by name is not that of the text, in rows that want padding."""
    shape = (1, 3, 2, 5)
    b = Builder()
    y, x = b.input("y", shape), b.input("x", shape)
    low = b.op("sub", "low", x=x, y=y)
    program = print_program(b.program([b.op("add", "high", x=low, y=x), low]))
    ramp = torch.arange(30, dtype=torch.float16).reshape(shape)
    found, wanted = (_run(engine, *program, x=ramp, y=3 * ramp.flip(-1)) for engine in (device, reference))
    return [
        f"port '{name}' of a difference of two inputs gives {found[name].flatten().tolist()}, "
        f"the emulated engine {wanted[name].flatten().tolist()}: ports or rows are bound in another order"
        for name in wanted
        if not torch.equal(found[name], wanted[name])
    ]


def _run(engine: Device, text: str, weights: bytes, **inputs: Tensor) -> dict[str, Tensor]:
    """The outputs of a program, by name."""
    program = engine.compile(text, weights)
    buffers = {name: engine.buffers.lease(port.type.shape) for name, port in program.ports.items()}
    for name, x in inputs.items():
        buffers[name].copy_(x)
    operation = program.operation()
    operation.bind(buffers)
    operation.execute()
    program.release()
    return {port.name: buffers[port.name].clone() for port in program.outputs}


class _Layer(nn.Module):
    """A decoder layer: norms, causal attention, gated feed-forward."""

    def __init__(self, dim: int = 32, hidden: int = 48) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.RMSNorm(dim) for _ in range(2))
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.up, self.gate = nn.Linear(dim, hidden, bias=False), nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in self.qkv(self.norms[0](x)).chunk(3, -1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        y = self.norms[1](x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def _layer(device: Device, reference: Device) -> list[str]:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        net, x = nn.Sequential(_Layer(), _Layer()), torch.randn(1, 16, 32)
    found, wanted = (_results(copy.deepcopy(net), x, engine) for engine in (device, reference))
    errors = {name: float((found[name] - wanted[name]).norm() / wanted[name].norm()) for name in wanted}
    return [
        f"{name} of a decoder layer deviates from the emulated engine by {error:.1%}, {LIMIT_ERROR:.0%} is allowed"
        for name, error in errors.items()
        if not error <= LIMIT_ERROR
    ]


def _results(net: nn.Module, x: Tensor, engine: Device) -> dict[str, Tensor]:
    """The output and every gradient of a model compiled for a device."""
    from anew.frontend.model import compile_in
    from anew.frontend.options import Options
    from anew.frontend.session import Session

    options = Options(device="emulator", chip=engine.chip.name, strict=True, loss="apart")
    compile_in(net, Session(options, engine))
    out = net(x)
    out.square().mean().backward()
    gradients = {f"the gradient of {name}": p.grad for name, p in net.named_parameters() if p.grad is not None}
    return {"the output": out.detach(), **gradients}


def main(route: str, chip: str) -> int:
    """Check a route and print what deviates; returns the exit code."""
    found = deviations(ROUTES[route].open(load_chip(chip)))
    print("\n".join(found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
