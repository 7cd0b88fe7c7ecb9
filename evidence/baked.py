"""SmolLM2-135M with LoRA on the emulated m4: its base as inputs of programs, and as constants of 16 and 8 bits.

``python -m evidence baked`` after ``make finetune-demo``, which brings model and data. Each form trains the demo's
first steps, validates and answers a question in a process of its own.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from typing import Any

import torch
from torch import nn

import anew
from anew.chips import load_chip
from anew.compiler.bake import as_quantized
from anew.estimate.host import times
from anew.finetune.adapt import adapt
from anew.finetune.loop import Finetuning, evaluate
from anew.frontend.explain import Explanation, explain
from anew.frontend.scales import weight_exponent
from anew.frontend.weight_store import magnitude
from anew.generation.prompt import Prompt, encode
from anew.generation.stream import Sampling, answer
from anew.models import load
from anew.projection import Work, from_memory, read_rates
from anew.projection.machine import read_machine
from anew.train.device import place
from anew.train.display import PlainDisplay
from anew.train.memory import peak_memory
from evidence import finetune, record

STEPS = 20
#: Steps of a report, as many as the demo's.
REPORT = 10
FORMS = {"inputs": 0, "constants_of_16_bits": 16, "constants_of_8_bits": 8}
FP16_BYTES = 2


def form(bits: int, steps: int) -> dict[str, Any]:
    """Train, validate and generate with a base of so many bits; 0: as inputs."""
    config = finetune.settings("emulator", "fast", steps, base_bits=bits, chip="m4")
    model, tokenizer = load(config.model)
    model = place(adapt(model, config), config).train()
    batches, _ = finetune.batches_of(config)
    loop = Finetuning(model, config, batches, None, PlainDisplay())
    losses = [loop.take_step(at).loss for at in range(steps)]
    training = anew.statistics(model)
    validation = evaluate(model, [batches.at(at, config.seed) for at in range(2)])
    text = _answer(model.eval(), tokenizer)
    found = anew.statistics(model)
    peak = peak_memory()  # before the step is taken apart, which copies the model
    return {
        "losses": losses,
        "last_loss": losses[-1],
        "validation_loss": validation,
        "answer": text,
        "programs_in_training": training.programs,
        "programs": found.programs,
        "stale": found.stale,
        "fallbacks": sum(operation.kind != "boundary" for operation in found.host_operations),
        "layers_baked": {use.name: use.layers for use in found.baked},
        "constant_megabytes": sum(use.bytes for use in training.baked) / 1e6,
        "peak_memory_gb": peak,
        **_step(explain(model.train(), dict(batches.at(0, config.seed).arguments))),
    }


def _answer(model: nn.Module, tokenizer: Any) -> str:
    ids = encode(Prompt(finetune.QUESTION), tokenizer)
    with torch.no_grad():
        found = answer(model, tokenizer, ids, Sampling(max_tokens=8), lambda text: None)
    return str(tokenizer.decode(found.tokens, skip_special_tokens=True))


def _step(step: Explanation) -> dict[str, Any]:
    """Bytes that a training step moves and streams, and its projected time in milliseconds."""
    work = _work(step)
    rates = read_rates("m4")
    parts = times(work, rates, read_machine("m4"))
    total = sum(parts.values())
    return {
        "dispatches": step.dispatches,
        "megabytes_moved": step.bytes_moved / 1e6,
        "projected_ms": 1e3 * total,
        "projected_ms_low": 1e3 * total * rates.error[0],
        "projected_ms_high": 1e3 * total * rates.error[1],
        "projected_parts_ms": {name: 1e3 * seconds for name, seconds in parts.items() if seconds},
    }


def _work(step: Explanation) -> Work:
    """The work of a step's programs: dispatches, copies, products and the weights that these stream.

    A weight that is an input is copied by the host before the forward program, which leaves it there for the backward
    one. What lies between the products is the same in every form, and left out.
    """
    layers = {f"{use.name} baked": use.layers for use in step.baked}
    total = Work()
    for p in step.programs:
        constants = p.constant_bytes / layers.get(p.name, math.inf)
        copied = p.bytes_in + (0 if "backward" in p.name else p.weight_bytes)
        once = Work(
            dispatches=1,
            read=copied / FP16_BYTES,
            write=p.bytes_out / FP16_BYTES,
            matmul=p.flops,
        ) + from_memory(p.weight_bytes + constants)
        total += once * p.dispatches
    return total


def _apart(call: str) -> Any:
    """The result of a call in a process of its own."""
    code = f"import json; from evidence import baked; print(json.dumps(baked.{call}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def plain_losses(steps: int, bits: int) -> list[float]:
    """The same steps in PyTorch and peft alone; with 8 bits, over the numbers that constants of 8 bits stand for."""
    step, model = finetune.plain_run(steps)
    if bits == 8:
        for name, p in model.named_parameters():
            if name.endswith("base_layer.weight"):
                p.data.copy_(as_quantized(p, weight_exponent(magnitude(p))))
    return [*map(step, range(steps))]


def _reports(losses: list[float]) -> list[float]:
    """The losses that `anew finetune` reports: means over so many steps."""
    return [statistics.fmean(losses[at : at + REPORT]) for at in range(0, len(losses), REPORT)]


def main(steps: int = STEPS) -> None:
    """Run every form, compare the losses, write the record and the table of docs/baked.md."""
    forms = {name: _apart(f"form({bits}, {steps})") for name, bits in FORMS.items()}
    wanted = forms["inputs"]["losses"]
    for found in forms.values():
        found["deviation"] = finetune.deviation(found["losses"], wanted)
        found["deviation_of_reports"] = finetune.deviation(_reports(found["losses"]), _reports(wanted))
    plain, rounded = (_apart(f"plain_losses({steps}, {bits})") for bits in (32, 8))
    figures = {
        "steps": steps,
        "report": REPORT,
        "programs_of_m4": load_chip("m4").loaded_programs,
        "forms": forms,
        "plain": {
            "deviation": finetune.deviation(rounded, plain),
            "deviation_of_reports": finetune.deviation(_reports(rounded), _reports(plain)),
            "losses": plain,
            "losses_of_8_bits": rounded,
        },
    }
    record.write("baked", figures)
    record.write_table("baked.md", "forms", [_row(name, found) for name, found in forms.items()])


def _row(name: str, found: dict[str, Any]) -> list[str]:
    def quote(text: str, key: str) -> str:
        return f'[{text}](evidence/baked.json "forms.{name}.{key}")'

    return [
        name.replace("_", " "),
        quote(f"{found['deviation']:.2%}", "deviation"),
        quote(f"{found['deviation_of_reports']:.2%}", "deviation_of_reports"),
        quote(f"{found['last_loss']:.4f}", "last_loss"),
        quote(f"{found['programs']}", "programs"),
        quote(f"{found['constant_megabytes']:.0f}", "constant_megabytes"),
        quote(f"{found['megabytes_moved']:.0f}", "megabytes_moved"),
        quote(f"{found['projected_ms']:.0f}", "projected_ms"),
        quote(f"{found['peak_memory_gb']:.2f}", "peak_memory_gb"),
    ]
