"""Commands on text: generate, fill-mask."""

import argparse
import functools
import json
import pathlib
import sys
from typing import Any

from ssljax.base.errors import UserError
from ssljax.cli.arguments import Overrides, compilation_cache


def add(commands: Any) -> None:
    """Adds the commands to the parser."""
    generate = commands.add_parser("generate", help="continue prompts of text")
    fill_mask = commands.add_parser("fill-mask", help="predict the masked words of a text")
    for command, call in ((generate, _generate), (fill_mask, _fill_mask)):
        command.set_defaults(call=call)
        command.add_argument("folder", metavar="DIR", help="a workdir, or a model in the Hugging Face format")
        command.add_argument("--prompt", action="append", default=[], help="a prompt; may be repeated")
        command.add_argument("--file", help="file with one prompt per line")
        command.add_argument("--step", type=int, help="step of the checkpoint of a workdir (default: the newest)")
        command.add_argument("--json", action="store_true", help="print one JSON object per line")
    generate.add_argument("--max-new-tokens", type=int, default=64)
    generate.add_argument("--temperature", type=float, default=0.0, help="0 (the default): the most probable token")
    generate.add_argument("--top-k", type=int, help="sample from the K most probable tokens only")
    generate.add_argument("--top-p", type=float, help="sample from the fewest tokens whose probabilities sum to P")
    generate.add_argument("--repetition-penalty", type=float, default=1.0)
    generate.add_argument("--stop", action="append", default=[], help="text that ends the output; may be repeated")
    generate.add_argument(
        "--special-tokens", action="store_true", help="special tokens that a prompt spells (</s>) are these tokens"
    )
    generate.add_argument("--seed", type=int, default=0)
    fill_mask.add_argument("--top", type=int, default=5, help="number of words per mask")


def _generate(options: argparse.Namespace, overrides: Overrides) -> int:
    compilation_cache()
    from ssljax import runs
    from ssljax.base import schema
    from ssljax.evals.generation import Sampling

    names = ("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty")
    sampling = schema.build(Sampling, {name: getattr(options, name) for name in names}, "generate")
    texts = _prompts(options)
    given = {name: getattr(options, name) for name in ("stop", "special_tokens", "seed", "step")}
    shown = _Shown() if sys.stdout.isatty() and not options.json else None
    watch = functools.partial(shown.so_far, texts[0]) if shown and len(texts) == 1 else None
    made = runs.generate(options.folder, texts, sampling, watch=watch, **given)
    for prompt, text in zip(texts, made):
        if shown:
            shown.finish(prompt, text)
        else:
            print(json.dumps({"prompt": prompt, "text": text}) if options.json else text)
    return 0


def _visible(text: str) -> str:
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


class _Shown:
    """A generated text on a terminal: the prompt dimmed, after "> ", then the text, as it comes."""

    def __init__(self) -> None:
        self._printed: str | None = None  # of the text of this prompt; None: not even the prompt

    def so_far(self, prompt: str, text: str) -> None:
        """Prints what is new in a text. Characters that would control the terminal are printed as escapes."""
        prompt, text = _visible(prompt), _visible(text)
        if self._printed is None:
            from rich.console import Console
            from rich.text import Text

            Console(highlight=False).print(Text("> " + prompt.replace("\n", "\n> "), "dim"), soft_wrap=True)
            self._printed = ""
        if text.startswith(self._printed):  # a tokenizer may change the spacing of its last word
            print(text[len(self._printed) :], end="", flush=True)
            self._printed = text

    def finish(self, prompt: str, text: str) -> None:
        """Prints the rest of a text; the next prompt follows after an empty line."""
        self.so_far(prompt, text)
        if self._printed != _visible(text):  # the beginning has changed
            print(f"\n{_visible(text)}", end="")
        print("\n")
        self._printed = None


def _fill_mask(options: argparse.Namespace, overrides: Overrides) -> int:
    compilation_cache()
    from ssljax import runs

    texts = _prompts(options)
    for prompt, masks in zip(texts, runs.fill_mask(options.folder, texts, options.top, options.step)):
        if options.json:
            print(json.dumps({"prompt": prompt, "masks": [[guess._asdict() for guess in mask] for mask in masks]}))
            continue
        print(prompt)
        for number, mask in enumerate(masks, 1):
            for guess in mask:
                print(f"  {number}  {guess.probability:.4f}  {guess.token}")
    return 0


def _prompts(options: argparse.Namespace) -> list[str]:
    """The prompts of --prompt, then the lines of --file."""
    lines: list[str] = []
    if options.file is not None:
        try:
            lines = pathlib.Path(options.file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--file: cannot read {options.file!r} ({error})") from error
    texts = [*options.prompt, *(line for line in lines if line.strip())]
    if not texts:
        raise UserError("--prompt: missing; give --prompt TEXT, or --file with one prompt per line")
    return texts
