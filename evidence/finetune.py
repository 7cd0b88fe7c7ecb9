"""Fine-tuning SmolLM2-135M: the demo's figures, and the same steps in plain PyTorch and peft.

``python -m evidence finetune`` after ``make finetune-demo``, which brings model and data.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from evidence import record

DEMO = record.ROOT / "examples" / "finetune-demo.yaml"
QUESTION = "My printer won't print."
#: Steps of each comparison.
STEPS = {"fast": 20, "exact": 5}


def settings(device: str, numerics: str, steps: int, **more: Any) -> Any:
    """The demo's settings, for fewer steps, each one reported."""
    from anew.finetune.config import resolve

    chosen = {"device": device, "numerics": numerics, "iters": steps, "plain": True, **more}
    return resolve({**chosen, "steps_per_report": 1, "steps_per_eval": steps, "val_batches": 1, "save_every": 0}, DEMO)


def demo() -> dict[str, Any]:
    """Run the demo's training in this process, then ask base and tuned model."""
    from anew.cli.main import main as anew

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        start = time.monotonic()
        if anew(["finetune", "-c", str(DEMO), "--plain", "--adapter-path", str(out)]):
            sys.exit("the demo failed")
        seconds = time.monotonic() - start
        run = json.loads((out / "run.json").read_text())
        model = run["config"]["model"]
        answers = {"base": answer(model), "tuned": answer(model, "--adapter-path", str(out))}
    first, last = run["first_val_loss"], run["last_val_loss"]
    return {
        "minutes": seconds / 60,
        "first_val_loss": first,
        "last_val_loss": last,
        "fall": 1 - last / first,
        "peak_memory_gib": run["peak_memory"] * 1e9 / 2**30,
        "trained_parameters": run["trained_parameters"],
        "programs": run["programs"],
        "rescaled": run["rescaled"],
        "question": QUESTION,
        "answers": answers,
    }


def answer(model: str, *words: str) -> str:
    """What ``anew generate`` says to the question."""
    code = "import sys; from anew.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "generate", "--model", model, "--prompt", QUESTION, "--max-tokens", "40"]
    return subprocess.run([*command, *words], capture_output=True, text=True, check=True).stdout.strip()


def losses(numerics: str, steps: int) -> list[float]:
    """The losses of the demo's first steps on the emulator."""
    from anew.finetune.run import run
    from anew.train.display import PlainDisplay

    with tempfile.TemporaryDirectory() as folder:
        config = settings("emulator", numerics, steps, adapter_path=Path(folder) / "out")
        run(config, PlainDisplay(), ["evidence"])
        lines = (config.adapter_path / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["train_loss"] for line in lines[1:]]


def plain_step(steps: int) -> Callable[[int], float]:
    """A step of the same run in PyTorch and peft alone."""
    return plain_run(steps)[0]


def plain_run(steps: int) -> tuple[Callable[[int], float], torch.nn.Module]:
    """That step and its model: model, adapters, loss and optimizer are written out here."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = settings("cpu", "fast", steps)
    lora = config.lora_parameters
    model: Any = AutoModelForCausalLM.from_pretrained(config.model, dtype=torch.float32, use_cache=False)
    torch.manual_seed(config.seed)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapters = LoraConfig(r=lora["rank"], lora_alpha=lora["rank"] * lora["scale"], target_modules=targets)
    model = get_peft_model(model, adapters).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    batches, schedule = batches_of(config)

    def step(at: int) -> float:
        ids, labels = (batches.at(at, config.seed).arguments[key] for key in ("input_ids", "labels"))
        logits = model(input_ids=ids).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
        optimizer.param_groups[0]["lr"] = schedule(at)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step, model


def anew_step(steps: int) -> Callable[[int], float]:
    """A step of the demo on the emulator, without what stands around it."""
    from anew.finetune.adapt import adapt
    from anew.finetune.loop import Finetuning
    from anew.models import load
    from anew.train.device import place
    from anew.train.display import PlainDisplay

    config = settings("emulator", "fast", steps)
    model = place(adapt(load(config.model)[0], config), config).train()
    loop = Finetuning(model, config, batches_of(config)[0], None, PlainDisplay())
    return lambda at: loop.take_step(at).loss


def batches_of(config: Any) -> tuple[Any, Callable[[int], float]]:
    """The run's training batches and learning rates."""
    from transformers import AutoTokenizer

    from anew.finetune.batches import Batches
    from anew.finetune.examples import Encoder, fit
    from anew.finetune.rows import read_rows
    from anew.finetune.schedule import build_schedule

    encoder = Encoder(AutoTokenizer.from_pretrained(config.model), mask_prompt=config.mask_prompt)
    examples, _ = fit(encoder.encode(read_rows(config, ["train"])["train"]), config.max_seq_length, "train")
    schedule = build_schedule(config.lr_schedule, config.learning_rate)
    return Batches(examples, config.batch_size, config.max_seq_length), schedule


def deviation(found: list[float], wanted: list[float]) -> float:
    """The largest relative difference of two runs' losses."""
    return max(abs(a - b) / b for a, b in zip(found, wanted, strict=True))


def apart(call: str, module: str = "finetune") -> Any:
    """The result of a call of a module of measurements in a process of its own."""
    code = f"import json; from evidence import {module}; print(json.dumps({module}.{call}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure everything, each in a process of its own, and write the record."""
    figures: dict[str, Any] = {"demo": apart("demo()")}
    for numerics, steps in STEPS.items():
        found, wanted = apart(f"losses('{numerics}', {steps})"), apart(f"plain_losses({steps})")
        figures[numerics] = {"losses": found, "plain_losses": wanted, "deviation": deviation(found, wanted)}
    record.write("finetune", figures)


def plain_losses(steps: int) -> list[float]:
    """The losses of the same steps in PyTorch and peft alone."""
    return [*map(plain_step(steps), range(steps))]
