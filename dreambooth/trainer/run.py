"""A run from its plan to its result: what `train`, `resume` and `export` do."""

from __future__ import annotations

import contextlib
import logging
import shutil
import signal
import time
import traceback
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dreambooth.shared.commands import dreambooth_command
from dreambooth.shared.config import dump_settings, load_settings, read_mapping, read_notes
from dreambooth.shared.errors import DreamboothError, FailsAgain, InputError, StoppedByUser
from dreambooth.shared.events import Emit, EventLog, read_events
from dreambooth.shared.paths import write_json
from dreambooth.shared.reached import reached
from dreambooth.shared.runfolder import RunFolder, create_run, free_name, read_result
from dreambooth.shared.settings import Settings
from dreambooth.trainer.adapters.kept import keep_adapter, kept_adapter
from dreambooth.trainer.adapters.plan import adapter_plan
from dreambooth.trainer.control import Inbox, Signals, ignore_stop_signals
from dreambooth.trainer.memory.ways import ways_of
from dreambooth.trainer.models.kept_base import check_base, keep_base, known_by
from dreambooth.trainer.planning.plan import Plan, make_plan, versions
from dreambooth.trainer.planning.plan_settings import open_base
from dreambooth.trainer.processes import Processes, join_processes, shared_out
from dreambooth.trainer.reporter import Reporter
from dreambooth.trainer.saving import results
from dreambooth.trainer.saving.checkpoint import load_state, saved_steps
from dreambooth.trainer.saving.outputs import claim, outputs_of, release_own, remove_half_written
from dreambooth.trainer.session import Session
from dreambooth.trainer.stepdown import first_line, is_out_of_memory

DONE, FAILED = 0, 1


def train(settings: Settings, *, note: Path | None = None) -> int:
    """Plans, prints the plan, makes a run folder and runs it. Returns the exit code.

    `note` is a file that gets `{"run": path}` as soon as the run folder is there: who starts a trainer cannot know
    the folder's name before, since a taken one gets a number.
    """
    _check_note(note)
    processes = join_processes()

    @contextlib.contextmanager
    def start() -> Iterator[tuple[RunFolder, Plan]]:
        plan = make_plan(settings, processes=processes.count)
        notes = {
            "versions": versions(),
            "run": {
                "id": uuid.uuid4().hex,
                "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "threads": str(torch.get_num_threads()),
                "processes": str(processes.count),
            },
        }
        known = known_by(plan.settings, plan.base)
        runs_dir = Path(plan.settings.result.runs_dir)
        resolved, asked = dump_settings(plan.settings, notes), dump_settings(settings)
        folder = create_run(runs_dir, plan.outputs.name, resolved, asked)
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(folder.hold())
                claim(plan.outputs, folder.path)
                keep_base(folder.path, known)
                keep_adapter(folder.path, plan.adapter)
                _write_note(note, folder)
            except BaseException:  # such as another run of that name, which was quicker: nothing was begun
                release_own(plan.outputs, folder.path)
                held.close()  # Windows keeps what somebody has open
                shutil.rmtree(folder.path, ignore_errors=True)
                raise
            yield folder, plan

    return _lead(processes, start) if processes.is_main else _follow(processes)


def resume(folder: RunFolder, *, note: Path | None = None) -> int:
    """Goes on with a run from its last good state; a run without a state starts over. `note`: as in `train`."""
    _check_note(note)
    if is_finished(folder):
        _write_note(note, folder)
        path = read_result(folder).get("path", "")
        Reporter().write(f"This run is finished: {path}")
        return DONE
    processes = join_processes()

    @contextlib.contextmanager
    def start() -> Iterator[tuple[RunFolder, Plan]]:
        with folder.hold():  # before anything is read: another trainer may be writing
            _write_note(note, folder)
            plan = make_plan(_settings_of(folder, processes), run=folder.path, processes=processes.count)
            yield folder, _as_asked_for(plan, folder)

    return _lead(processes, start) if processes.is_main else _follow(processes)


def _as_asked_for(plan: Plan, folder: RunFolder) -> Plan:
    """The plan of a run that goes on, which says of no setting "as asked" that was chosen at the run's beginning."""
    if plan.memory is None or not folder.asked.is_file():
        return plan
    ways = ways_of(plan, load_settings(folder.asked))
    return replace(plan, memory=replace(plan.memory, ways=ways))


def _settings_of(folder: RunFolder, processes: Processes) -> Settings:
    """A run's settings for as many processes as there are now: its steps stay what they were."""
    settings = _kept_settings(folder)
    noted = read_notes(folder.config, "run").get("processes", "")
    before = int(noted) if noted.isdecimal() and int(noted) else processes.count
    shared = shared_out(settings, before, processes.count)
    if shared != settings and processes.is_main:
        training = shared.training
        Reporter().write(
            f"Processes  {processes.count}, where the run began with {before}: its steps stay what they were, with "
            f"train_batch_size {training.train_batch_size}, "
            f"gradient_accumulation_steps {training.gradient_accumulation_steps}"
        )
    return shared


def _kept_settings(folder: RunFolder) -> Settings:
    """The settings that a run began with. Raises InputError if they are gone."""
    if not read_mapping(folder.config):
        anew = f"train anew with {folder.asked}" if folder.asked.exists() else "train anew"
        raise InputError(
            "this run's settings are gone: the file is empty",
            where=str(folder.config),
            remedy=f"put a copy of the file back, since nothing else of the run is lost, or {anew}",
        )
    return load_settings(folder.config)


def _check_note(note: Path | None) -> None:
    if note is not None and (note.is_dir() or not note.absolute().parent.is_dir()):
        raise InputError(
            f"{note} cannot be a file", where="--note", remedy="name a file in a folder that is there"
        )


def _write_note(note: Path | None, folder: RunFolder) -> None:
    """Raises InputError if the file cannot be written."""
    if note is None:
        return
    try:
        write_json(note, {"run": str(folder.path)})
    except OSError as error:
        raise InputError(
            f"{note} cannot be written ({error.strerror})", where="--note", remedy="name another file"
        ) from error


def _lead(processes: Processes, start: Callable[[], AbstractContextManager[tuple[RunFolder, Plan]]]) -> int:
    """The first process: it plans, keeps the run folder and its lock, and tells the others which it is."""
    with contextlib.ExitStack() as held:
        try:
            folder, plan = held.enter_context(start())
        except BaseException:
            processes.share("")
            raise
        processes.share(str(folder.path))
        return _work(folder, plan, processes)


def _follow(processes: Processes) -> int:
    """Another process of the same run: it computes, and leaves news and orders to the first one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the first one decides
    path = processes.share("")
    if not path:
        return FAILED
    folder = RunFolder(Path(path))
    try:
        plan = make_plan(_settings_of(folder, processes), run=folder.path, processes=processes.count)
        Session(plan, folder, run_id(folder), _quiet, None, processes).run()
    except DreamboothError:
        raise
    except Exception as error:
        raise DreamboothError(
            f"process {processes.index} ended ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})",
            remedy=f"see what process 0 says, and {folder.log}",
        ) from error
    return DONE


def export(folder: RunFolder, step: int | None) -> int:
    """Writes a checkpoint from a saved state, the newest or that of `step`. The photos need not be there any more."""
    with folder.hold():
        settings = _kept_settings(folder)
        _check_saved(folder, step)
        final = outputs_of(settings, run=folder.path).final
        if _is_result(final, folder, saved_steps(folder.states)[-1] if step is None else step):
            Reporter().write(f"This run is finished, and its checkpoint is there: {final}")
            return DONE
        base, outputs = open_base(settings), outputs_of(settings, run=folder.path)
        check_base(folder.path, settings, base)
        state = load_state(folder.states, step, weights_alone=True)
        kept = kept_adapter(folder.path, settings, base)
        adapter = kept or adapter_plan(settings, base, list(state.weights))
        for place in (outputs.folder, folder.path):
            remove_half_written(place, lambda said: Reporter().write(f"Note: {said}"))
        written = results.write_checkpoint(
            outputs.at_step(state.progress.step),
            base,
            results.trained_of(state),
            settings,
            results.metadata(settings, run_id(folder), results.learned_by(folder)),
            scratch=folder.path,
            adapter=adapter,
        )
    Reporter().write(f"Written: {written.path}")
    return DONE


def _is_result(path: Path, folder: RunFolder, step: int) -> bool:
    """Whether a finished run's own result is there, and is that of `step`."""
    is_it = is_finished(folder) and read_result(folder).get("steps") == step and path.exists()
    return is_it and results.belongs_to_run(path, run_id(folder))


def _check_saved(folder: RunFolder, step: int | None) -> None:
    steps = saved_steps(folder.states)
    if not steps or (step is not None and step not in steps):
        there = (
            f"there are those of step {', '.join(map(str, steps))}" if steps else "train until one is saved"
        )
        raise InputError(
            f"there is no saved state{'' if step is None else f' of step {step}'}",
            where=folder.name,
            remedy=there,
        )


def _quiet(event: str, **fields: Any) -> None:
    """Only the first process has news."""


def is_finished(folder: RunFolder) -> bool:
    """Whether a run ended with its result written and noted."""
    events, _ = read_events(folder.events)
    return bool(read_result(folder)) and any(event.name == "done" for event in events)


def run_id(folder: RunFolder) -> str:
    """The id by which a run knows its own files."""
    return read_notes(folder.config, "run").get("id", folder.name)


def _work(folder: RunFolder, plan: Plan, processes: Processes) -> int:
    """Listens to orders, and turns whatever ends the run into an event and an exit code. The run is held."""
    with contextlib.closing(Reporter(folder.log)) as reporter:
        log = EventLog(folder.events)

        def emit(event: str, **fields: Any) -> None:
            log.emit(event, **fields)
            reporter.show(event, fields)

        signals = Signals()
        with contextlib.closing(log), signals.caught(), _warnings_into(reporter):
            reporter.write(plan.text())
            reporter.write(f"Run        {folder.path}")
            emit("plan", **plan.as_event())
            try:
                inbox = Inbox(folder, signals, emit)
                inbox.clear()
                Session(plan, folder, run_id(folder), emit, inbox, processes).run()
            except BaseException as error:
                ignore_stop_signals()
                ending = _ending(error, folder, reporter)
                if isinstance(ending, (InputError, FailsAgain)) and not saved_steps(folder.states):
                    release_own(
                        plan.outputs, folder.path
                    )  # nothing to go on from: the name is anybody's again
                with contextlib.suppress(DreamboothError, OSError):  # a full disk does not hide why it ended
                    _note_ending(ending, emit)
                _tell_the_way_on(ending, folder)
                if ending is error:
                    raise
                raise ending from error
    return DONE


def _ending(error: BaseException, folder: RunFolder, reporter: Reporter) -> DreamboothError:
    """Whatever ended a run, as one message; the traceback of what nobody foresaw is in the run's log."""
    if isinstance(error, DreamboothError):
        return error
    if isinstance(error, KeyboardInterrupt):
        cost = reached(folder).loss()
        return StoppedAtOnce(f"stopped at once, without saving{f': {cost}' if cost else ''}")
    reporter.log("".join(traceback.format_exception(error)))
    return _explained(error, folder)


def _note_ending(ending: DreamboothError, emit: Emit) -> None:
    if isinstance(ending, (StoppedByUser, StoppedAtOnce)):
        emit("phase", name="stopped", of=0)
    else:
        emit("error", text=_line(ending), remedy=ending.remedy)


def _tell_the_way_on(ending: DreamboothError, folder: RunFolder) -> None:
    """Says at the command line how the run goes on, and from where; a page has a button and numbers of its own."""
    if isinstance(ending, (InputError, StoppedByUser)):
        return
    if isinstance(ending, FailsAgain):
        ending.remedy += f": {_anew(ending, folder)}"
        return
    command = f"`{dreambooth_command('resume', folder.path)}`"
    if "`resume`" in ending.remedy:  # it says what `resume` will do
        ending.remedy = ending.remedy.replace("`resume`", command)
        return
    way = f"{command} {reached(folder).beginning()}"
    ending.remedy = f"{ending.remedy.rstrip('.')}; then {way}" if ending.remedy else way


def _anew(ending: FailsAgain, folder: RunFolder) -> str:
    """The command that trains with other settings. A run that has saved a state keeps its name."""
    settings = folder.asked if folder.asked.exists() else folder.config
    saved = saved_steps(folder.states)
    name = [f"output_name={free_name(folder)}"] if saved else []
    command = f"`{dreambooth_command('train', settings, *name, ending.change)}`"
    if not saved:
        return command
    export = dreambooth_command("export", folder.path)
    return f"{command}; what was learned by step {saved[-1]} is written by `{export}`"


class StoppedAtOnce(DreamboothError):
    """The user ended the run without waiting for a save."""


def _line(error: DreamboothError) -> str:
    return f"{error.where}: {error.what}" if error.where else error.what


def _explained(error: BaseException, folder: RunFolder) -> DreamboothError:
    """An error that nobody foresaw, or a full memory, as one message; the traceback is in the run's log."""
    if is_out_of_memory(error):
        return DreamboothError(
            f"memory ran out: {first_line(error)}",
            remedy="turn gradient_checkpointing on, lower train_batch_size or resolution, or train without the text "
            "encoder (train_text_encoder: no)",
        )
    if isinstance(error, OSError) and error.filename is not None:
        return DreamboothError(
            str(error.strerror),
            where=str(error.filename),
            remedy="see that this place is there, and may be read and written",
        )
    return DreamboothError(
        f"{type(error).__name__}: {error}",
        remedy=f"the details are in {folder.log}",
    )


@contextlib.contextmanager
def _warnings_into(reporter: Reporter) -> Iterator[None]:
    """Libraries' warnings go to the log: between the lines of a progress bar nobody reads them."""

    def show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: Any) -> None:
        reporter.log(f"{category.__name__}: {message} ({filename}:{lineno})")

    class _Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            reporter.log(f"{record.name}: {record.getMessage()}")

    handler = _Lines(logging.WARNING)
    libraries = [
        logging.getLogger(name) for name in ("diffusers", "transformers", "accelerate", "bitsandbytes")
    ]
    with warnings.catch_warnings():
        warnings.showwarning = show  # type: ignore[assignment]
        before = [(library, library.propagate, list(library.handlers)) for library in libraries]
        for library in libraries:
            library.handlers, library.propagate = [handler], False
        try:
            yield
        finally:
            for library, propagate, handlers in before:
                library.handlers, library.propagate = handlers, propagate
