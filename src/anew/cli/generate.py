"""`anew generate`: answer a prompt with a pretrained model, text as it comes."""

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from anew.cli.flags import add_device, add_model, place_of
from anew.errors import UserError

if TYPE_CHECKING:
    from anew.generation.stream import Answer

RULE = "=" * 10


def add_parser(verbs: "argparse._SubParsersAction[Any]") -> None:
    """Add the verb and its flags, those of `mlx_lm.generate` with their defaults."""
    parser = verbs.add_parser(
        "generate",
        help="answer a prompt with a pretrained model",
        description="Answer a prompt with a pretrained model, alone or with an adapter. The prompt runs through the "
        "tokenizer's chat template if it has one.",
    )
    parser.set_defaults(run=run)
    add_model(parser.add_argument_group("the model"))
    _add_prompt(parser.add_argument_group("the prompt"))
    _add_sampling(parser.add_argument_group("the answer"))
    add_device(parser.add_argument_group("where to compute"))


def _add_prompt(group: Any) -> None:
    group.add_argument("--prompt", "-p", default="hello", metavar="TEXT", help="what to answer; - reads it from stdin")
    group.add_argument("--system-prompt", metavar="TEXT", help="instructions that come before it")
    group.add_argument("--prefill-response", metavar="TEXT", help="how the answer is to begin")
    group.add_argument("--ignore-chat-template", action="store_true", help="go on from the prompt as it is")
    group.add_argument(
        "--chat-template-config",
        type=_json_object,
        default={},
        metavar="JSON",
        help='further variables of the chat template: {"enable_thinking": false}',
    )


def _add_sampling(group: Any) -> None:
    group.add_argument("--max-tokens", "-m", type=int, default=100, metavar="N", help="at most so many (default: 100)")
    group.add_argument(
        "--temp", type=float, default=0.0, metavar="X", help="0: the likeliest token each time (default: 0)"
    )
    group.add_argument(
        "--top-p", type=float, default=1.0, metavar="X", help="draw from the likeliest that reach it (default: 1)"
    )
    group.add_argument(
        "--min-p", type=float, default=0.0, metavar="X", help="draw from those so likely, relatively (default: 0)"
    )
    group.add_argument("--top-k", type=int, default=0, metavar="N", help="draw from so many; 0: all (default: 0)")
    group.add_argument("--seed", type=int, metavar="N", help="of the draws (default: other draws each time)")
    group.add_argument(
        "--extra-eos-token", nargs="+", default=(), metavar="TOKEN", help="further tokens that end the answer"
    )
    group.add_argument(
        "--verbose",
        type=_true_or_false,
        default=True,
        metavar="T|F",
        help="F prints the answer alone, without rates (default: T)",
    )


def _true_or_false(text: str) -> bool:
    return text.lower() not in ("false", "f")


def _json_object(text: str) -> dict[str, Any]:
    value = json.loads(text)  # its errors are ValueError, which argparse turns into its own
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object")
    return value


def _text(arguments: argparse.Namespace) -> str:
    """Return the prompt; on the command line, \\n and \\t stand for a line's end and a tab, as in mlx_lm."""
    if arguments.prompt != "-":
        return str(arguments.prompt).replace("\\n", "\n").replace("\\t", "\t")
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise UserError(f"the prompt on standard input is no UTF-8: {error}") from error


def run(arguments: argparse.Namespace) -> int:
    """Print the answer, and what it took; return the exit code."""
    # Here, not above: these import torch and transformers, and `anew --help` should not wait for them.
    from anew.generation.prompt import Prompt, encode
    from anew.generation.stream import Sampling, answer
    from anew.models import load
    from anew.train.device import place, statistics
    from anew.train.memory import peak_memory

    prompt = Prompt(
        _text(arguments),
        arguments.system_prompt,
        arguments.prefill_response,
        not arguments.ignore_chat_template,
        arguments.chat_template_config,
    )
    sampling = Sampling(
        arguments.max_tokens,
        arguments.temp,
        arguments.top_p,
        arguments.min_p,
        arguments.top_k,
        arguments.seed,
        arguments.extra_eos_token,
    )
    where = place_of(arguments)
    model, tokenizer = load(
        arguments.model, adapter=arguments.adapter_path, trust_remote_code=arguments.trust_remote_code
    )
    ids = encode(prompt, tokenizer)
    model = place(model, where)
    if arguments.verbose:
        print(RULE)
    found = answer(model, tokenizer, ids, sampling, lambda text: print(text, end="", flush=True))
    print()
    if arguments.verbose:
        print(RULE)
        for line in _rates(found, statistics(model, where)):
            print(line)
        print(f"Peak memory: {peak_memory():.3f} GB")
    return 0


def _rates(found: "Answer", counters: Any) -> list[str]:
    """Return mlx_lm's lines, and what computed at these rates."""
    from anew.train.device import describe_device

    device = describe_device(counters) + (", compiling included" if counters.programs else "")
    rate = found.generation_rate
    generation = f"{len(found.tokens)} tokens" + (f", {rate:.3f} tokens-per-sec" if rate is not None else "")
    return [
        f"Prompt: {found.prompt_tokens} tokens, {found.prompt_rate:.3f} tokens-per-sec ({device})",
        f"Generation: {generation} ({device})",
    ]
