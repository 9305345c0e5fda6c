"""The command line. Each command imports what it needs, so that `--help` and `runs` never wait for torch."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from dreambooth import __version__
from dreambooth.shared.errors import DreamboothError, InputError
from dreambooth.shared.problems import all_of

DONE, FAILED, WRONG_INPUT, STOPPED = 0, 1, 2, 130


class _Parser(argparse.ArgumentParser):
    """Wrong usage gets one message and exit code 2, like every other wrong input."""

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_INPUT, f"{message}\n  What to do: see `{self.prog} --help`\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python3 -m dreambooth", description="Trains Stable Diffusion checkpoints with DreamBooth."
    )
    parser.add_argument("--version", action="version", version=f"dreambooth-trainer {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    def command(name: str, help: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=help, description=help)
        made.set_defaults(run=run)
        return made

    demo = command(
        "demo", "Train the small checkpoint that comes with the project, and show the result.", _demo
    )
    demo.add_argument(
        "--out", type=Path, default=Path("demo-result"), metavar="DIR", help="where the results go"
    )
    base = command("base", "Put the small checkpoint that comes with the project into a folder.", _base)
    base.add_argument(
        "folder", type=Path, metavar="DIR", help="where it goes, such as the WebUI's models/Stable-diffusion"
    )
    base.add_argument("--json", action="store_true", help='print {"path": its file} as one JSON object')
    for name, help, run in (
        ("train", "Train what a YAML or JSON file says.", _train),
        ("plan", "Say what a training would do and what is wrong with it, and write nothing.", _plan),
    ):
        made = command(name, help, run)
        made.add_argument("config", type=Path, metavar="CONFIG", help="a YAML or JSON file")
        made.add_argument(
            "overrides", nargs="*", default=[], metavar="key=value", help="settings that win over the file's"
        )
        if name == "plan":
            made.add_argument("--json", action="store_true", help="print the plan as one JSON object")
        else:
            _add_note(made)
    resume = command("resume", "Go on with a run from its last good state.", _resume)
    stop = command("stop", "Stop a run after its state is saved.", _stop)
    export = command("export", "Write a checkpoint from a run's saved state.", _export)
    for made in (resume, stop, export):
        made.add_argument("run_name", metavar="RUN", help="a run folder or its name")
    _add_note(resume)
    stop.add_argument("--now", action="store_true", help="stop at once, without saving")
    export.add_argument("--step", type=int, metavar="N", help="the state of that step; default: the newest")
    runs = command("runs", "List the runs.", _runs)
    runs.add_argument("dir", nargs="?", type=Path, metavar="DIR", help="the folder of the runs")
    convert = command("convert", "Convert between single files and diffusers folders.", _convert)
    convert.add_argument(
        "src", type=Path, metavar="SRC", help="a .safetensors or .ckpt file or a diffusers folder"
    )
    convert.add_argument(
        "dst", type=Path, metavar="DST", help="a folder, or a file that ends in .safetensors or .ckpt"
    )
    convert.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), help="default: as it is")
    convert.add_argument("--prediction-type", choices=("auto", "epsilon", "v_prediction"), default="auto")
    convert.add_argument("--use-ema-weights", action="store_true", help="take the averaged weights")
    convert.add_argument("--overwrite", action="store_true", help="replace what is there")
    _add_lora(convert, "merge an adapter in, in float32; may be given several times")
    _add_generate(command("generate", "Make a picture with a checkpoint.", _generate))
    inspect = command("inspect", "Say what a model file is.", _inspect)
    inspect.add_argument("file", type=Path, metavar="FILE")
    inspect.add_argument("--json", action="store_true", help="print it as one JSON object")
    inspect.add_argument("--no-hash", action="store_true", help="leave out the hash of the whole file")
    command("doctor", "Say what this machine can do, and what to do about what it cannot.", _doctor)
    return parser


def _add_note(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--note",
        type=Path,
        metavar="FILE",
        help='write {"run": the run\'s folder} into this file as soon as there is one',
    )


def _add_generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="a single file or a diffusers folder")
    parser.add_argument("prompt", metavar="PROMPT")
    parser.add_argument("--out", type=Path, required=True, metavar="PNG", help="the picture's file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument(
        "--size", default="", metavar="W[xH]", help="pixels; default: what the model was made for"
    )
    parser.add_argument("--negative", default="", metavar="PROMPT")
    parser.add_argument("--guidance-scale", type=float, default=7.5)
    parser.add_argument("--sampler", default="dpmpp_2m")
    parser.add_argument("--clip-skip", type=int, default=1)
    parser.add_argument("--overwrite", action="store_true", help="replace a picture that is there")
    _add_lora(parser, "use an adapter too; may be given several times")


def _add_lora(parser: argparse.ArgumentParser, help: str) -> None:
    parser.add_argument("--lora", action="append", default=[], metavar="FILE[:WEIGHT]", help=help)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The arguments; ends the process with a message for wrong usage and for --help."""
    return _parser().parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0 done, 2 wrong input, 130 stopped after a save, 1 anything else."""
    # a console that cannot show a character must not end a training
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    parsed = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        code: int = parsed.run(parsed)
        return code
    except DreamboothError as error:
        with contextlib.suppress(OSError):  # nobody reads it any more; the exit code still tells
            print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return FAILED
    except BrokenPipeError:
        return FAILED


def _demo(arguments: argparse.Namespace) -> int:
    from dreambooth.trainer.demo import demo

    return demo(arguments.out)


def _base(arguments: argparse.Namespace) -> int:
    from dreambooth.trainer.models.place_base import place_base

    try:
        placed = place_base(arguments.folder.absolute())
    except InputError as error:
        return _refused(error, arguments.json)
    print(json.dumps({"path": str(placed)}) if arguments.json else f"Written: {placed}")
    return DONE


def _train(arguments: argparse.Namespace) -> int:
    from dreambooth.shared.config import load_settings
    from dreambooth.trainer.run import train

    return train(load_settings(arguments.config, arguments.overrides), note=arguments.note)


def _plan(arguments: argparse.Namespace) -> int:
    from dreambooth.shared.config import load_settings

    settings = None
    try:
        from dreambooth.trainer.planning.plan import make_plan

        settings = load_settings(arguments.config, arguments.overrides)
        plan = make_plan(settings, measure=True)
    except InputError as error:
        if arguments.json and settings is not None:
            from dreambooth.trainer.planning.remarks import remarks_despite

            error.more["concepts"] = remarks_despite(settings)
        return _refused(error, arguments.json, form=str(arguments.config))
    print(json.dumps(plan.as_event(), ensure_ascii=False, indent=1) if arguments.json else plan.text())
    return DONE


def _refused(error: InputError, as_json: bool, *, form: str = "") -> int:
    """Says what is wrong as one JSON object where that was asked for. Raises the error otherwise."""
    if not as_json:
        raise error
    problems = [one.as_json(form=form) for one in all_of(error)]
    print(json.dumps({"error": problems[0], "problems": problems, **error.more}, ensure_ascii=False))
    return WRONG_INPUT


def _resume(arguments: argparse.Namespace) -> int:
    from dreambooth.shared.runfolder import find_run
    from dreambooth.trainer.run import resume

    return resume(find_run(arguments.run_name), note=arguments.note)


def _stop(arguments: argparse.Namespace) -> int:
    from dreambooth.shared.commands import dreambooth_command
    from dreambooth.shared.reached import reached
    from dreambooth.shared.runfolder import find_run, summarize

    run = find_run(arguments.run_name)
    if not run.is_alive():
        print(f"{run.name} is not running.")
        return DONE
    cost = reached(run).loss() if arguments.now else ""
    run.order("stop_now" if arguments.now else "stop")
    print(f"Stopping {run.name} …{f' ({cost})' if cost else ''}", flush=True)
    while run.is_alive():
        time.sleep(0.1)
    summary = summarize(run)
    if summary.state == "finished":
        print(f"{run.name} had come to its end: {summary.result.get('path', '')}")
    else:
        failure = f" (it failed: {summary.error})" if summary.state == "failed" else ""
        came = reached(run)
        lost = f" {came.loss().capitalize()}." if came.lost else ""
        resume = dreambooth_command("resume", run.path)
        print(f"Stopped{failure}.{lost} `{resume}` {came.beginning()}.")
    return DONE


def _export(arguments: argparse.Namespace) -> int:
    from dreambooth.shared.runfolder import find_run
    from dreambooth.trainer.control import terminated_as_interrupted
    from dreambooth.trainer.run import export

    with terminated_as_interrupted():
        return export(find_run(arguments.run_name), arguments.step)


def _runs(arguments: argparse.Namespace) -> int:
    from dreambooth.shared.paths import default_runs_dir
    from dreambooth.shared.runfolder import list_runs

    folder = arguments.dir or default_runs_dir()
    runs = list_runs(folder)
    if not runs:
        print(f"There are no runs in {folder}.")
    for run in runs:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.changed))
        line = f"{run.name:<32} {run.state:<12} step {run.step}/{run.steps}  {when}"
        kept = f"  saved up to step {run.saved}" if run.state != "finished" and run.saved < run.step else ""
        print(line + kept + (f"  {run.error}" if run.state == "failed" else ""))
    return DONE


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def _convert(arguments: argparse.Namespace) -> int:
    from dreambooth.trainer.adapters.merging import parse_request
    from dreambooth.trainer.control import terminated_as_interrupted
    from dreambooth.trainer.models.convert import convert

    with terminated_as_interrupted():
        report = convert(
            arguments.src,
            arguments.dst,
            dtype=arguments.dtype,
            prediction_type=arguments.prediction_type,
            use_ema_weights=arguments.use_ema_weights,
            overwrite=arguments.overwrite,
            adapters=[parse_request(text) for text in arguments.lora],
            say=_note,
        )
    print(report)
    return DONE


def _generate(arguments: argparse.Namespace) -> int:
    from dreambooth.trainer.adapters.merging import parse_request
    from dreambooth.trainer.sampling.generate import generate

    written = generate(
        arguments.model,
        arguments.prompt,
        arguments.out,
        seed=arguments.seed,
        steps=arguments.steps,
        size=arguments.size,
        negative=arguments.negative,
        guidance_scale=arguments.guidance_scale,
        sampler=arguments.sampler,
        clip_skip=arguments.clip_skip,
        overwrite=arguments.overwrite,
        adapters=[parse_request(text) for text in arguments.lora],
        say=_note,
    )
    print(written)
    return DONE


def _inspect(arguments: argparse.Namespace) -> int:
    from dreambooth.trainer.models.inspection import inspect

    try:
        found = inspect(arguments.file, hashed=not arguments.no_hash)
    except InputError as error:
        return _refused(error, arguments.json)
    print(json.dumps(found.as_json(), ensure_ascii=False, indent=1) if arguments.json else found)
    return DONE


def _doctor(arguments: argparse.Namespace) -> int:
    from dreambooth.trainer.doctor import examine, render

    print(render(examine()))
    return DONE
