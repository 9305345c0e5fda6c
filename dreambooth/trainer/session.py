"""One run's work, as a list of named steps from class images to the finished checkpoint."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from dreambooth.shared.commands import dreambooth_command
from dreambooth.shared.config import read_notes
from dreambooth.shared.errors import RunFailed, StoppedByUser
from dreambooth.shared.events import Emit
from dreambooth.shared.paths import write_json
from dreambooth.shared.runfolder import RunFolder
from dreambooth.trainer import assembly
from dreambooth.trainer.adapters.writing import learned_from
from dreambooth.trainer.control import Inbox
from dreambooth.trainer.data.batches import StepBatches
from dreambooth.trainer.data.dataset import DataPlan
from dreambooth.trainer.data.encoding import Encoding
from dreambooth.trainer.data.store import TensorStore
from dreambooth.trainer.engine import Denoiser, NotFinite, TextEncoderSpan, TrainingEngine
from dreambooth.trainer.loop import Outcome, train
from dreambooth.trainer.machine import DTYPES
from dreambooth.trainer.memory.room import keep_to
from dreambooth.trainer.models import text
from dreambooth.trainer.models.convert import LoadedModel
from dreambooth.trainer.models.tokenizer import default_tokenizer
from dreambooth.trainer.not_finite import explained
from dreambooth.trainer.planning.plan import Plan, data_plan
from dreambooth.trainer.planning.plan_settings import runs_dir_of, survey_of
from dreambooth.trainer.processes import ALONE, Processes, SharedInbox, SharedKeeper
from dreambooth.trainer.run_models import RunModels
from dreambooth.trainer.sampling.class_phase import ClassPhase
from dreambooth.trainer.sampling.previews import Previews, preview_requests
from dreambooth.trainer.saving import outputs as naming
from dreambooth.trainer.saving import results
from dreambooth.trainer.saving.checkpoint import latest_step
from dreambooth.trainer.saving.keeper import RunKeeper
from dreambooth.trainer.saving.results import Trained
from dreambooth.trainer.spill import SpillWatch
from dreambooth.trainer.stepdown import (
    GoBack,
    SteppingDown,
    described,
    free_memory,
    read_rungs,
    stepped_down,
)
from dreambooth.trainer.steplog import MemoryProbe, StepLog
from dreambooth.trainer.weights import Written


class Session:
    """A plan on its way to a result. `inbox` None: nobody can interrupt (an export beside a run)."""

    def __init__(
        self,
        plan: Plan,
        folder: RunFolder,
        run_id: str,
        emit: Emit,
        inbox: Inbox | None,
        processes: Processes = ALONE,
    ) -> None:
        self.plan = plan
        self.settings = plan.settings
        self.folder = folder
        self.run_id = run_id
        self.emit = emit
        self.inbox = inbox
        self.processes = processes
        self.device = plan.machine.device
        self.models = RunModels(plan)
        self._step_down()
        self.tokenizer = default_tokenizer()
        self.previews = Previews(
            folder.samples,
            preview_requests(self.settings, plan.survey),
            self.settings,
            self.tokenizer,
            emit,
            should_stop=self._should_stop,
        )

    def run(self) -> None:
        """Everything. Raises StoppedByUser after a save when it was told to stop."""
        with self.processes.together():
            if self.processes.is_main:
                naming.claim(self.plan.outputs, self.folder.path)
                for place in (self.plan.outputs.folder, self.folder.path):
                    naming.remove_half_written(place, lambda said: self.emit("warning", text=said))
        self._restore_threads()
        assembly.set_up_arithmetic(self.plan)
        keep_to(self.device, self.settings.model.vram_limit)
        if rungs := self._step_down():
            self.emit(
                "warning", text=f"memory ran out in this run before: it goes on with {described(rungs)}"
            )
        self._make_class_images()
        data = self._plan_data()
        self._accelerator = assembly.make_accelerator(self.plan, self.folder.path)
        try:
            keeper = self._trained(data)
            with self.processes.together():
                if self.processes.is_main:
                    written, change = self._write_result(keeper.trained)
                    del (
                        keeper
                    )  # what the training took is given back before pictures are made of what was written
                    free_memory()
                    self._finish(written, change)
        finally:
            self._accelerator.end_training()  # what trackers still hold is written; processes part

    def _trained(self, data: DataPlan) -> RunKeeper:
        """Trains to the end. Where memory ran out in a step that may have reached the weights, all that was loaded is
        given up, and the run goes on from its last saved state as a resumed one does."""
        while True:
            try:
                return self._train_from_state(data)
            except GoBack as error:
                said = str(error)
            free_memory()
            saved = latest_step(self.folder.states)
            place = (
                "its beginning, since no state was saved yet"
                if saved is None
                else f"the state of step {saved}"
            )
            rungs = self._step_down()
            self.emit(
                "warning",
                text=f"{said}, in a backward pass that steps the weights: the run goes back to {place}, and on from there "
                f"with {described(rungs)}",
                memory={"step": saved or 0, **rungs},
            )

    def _train_from_state(self, data: DataPlan) -> RunKeeper:
        model = self.models.trained()
        encoding = self._encoding(data, model)
        keeper, engine = self._prepare(data, model, encoding)
        if self.processes.is_main:
            encoding.store.trim()  # never what this run uses
        training = self.settings.training
        self._train(
            keeper,
            SteppingDown(
                engine,
                self.settings,
                self.folder.path,
                self.emit,
                images=training.train_batch_size * (2 if self.plan.prior else 1),
                change=lambda rung: assembly.step_down(self.plan, model, engine, rung),
                processes=self.processes,
            ),
        )
        return keeper

    def _train(self, keeper: RunKeeper, engine: SteppingDown) -> None:
        inbox = SharedInbox(self.processes, self.inbox)
        start = keeper.restore(self.device) if latest_step(self.folder.states) is not None else 0
        self.emit("phase", name="training", of=self.plan.steps)
        expected = self.plan.expected.seconds
        watch = SpillWatch(self.device, self.emit, expected / self.plan.steps if expected else None)
        log = StepLog(self._emit_step, self.plan.steps, memory=MemoryProbe(self.device), watch=watch)
        try:
            outcome = train(
                engine, SharedKeeper(self.processes, keeper), inbox, log, assembly.cadence(self.plan), start
            )
        except NotFinite as error:
            raise explained(error, self.plan) from error
        finally:
            log.flush()
        if outcome is Outcome.STOPPED:
            raise StoppedByUser(
                "stopped after saving",
                remedy=f"`{dreambooth_command('resume', self.folder.path)}` goes on with it",
            )

    # ---- before training -------------------------------------------------------------------------------------

    def _restore_threads(self) -> None:
        """The bits of a CPU's sums depend on the number of threads: a resumed run takes the first one's."""
        threads = read_notes(self.folder.config, "run").get("threads", "")
        if threads.isdigit():
            torch.set_num_threads(int(threads))

    def _step_down(self) -> dict[str, Any]:
        """Goes on with what the run came to when memory ran out, now or before it was resumed."""
        rungs = read_rungs(self.folder.path)
        self.settings = stepped_down(self.settings, rungs)
        self.plan = dataclasses.replace(self.plan, settings=self.settings)
        self.models = RunModels(self.plan)
        return rungs

    def _should_stop(self) -> bool:
        return self.inbox is not None and self.inbox.should_stop()

    def _check_stop(self) -> None:
        if self._should_stop():
            raise StoppedByUser(
                "stopped; what was made so far is kept",
                remedy=f"`{dreambooth_command('resume', self.folder.path)}` goes on with it",
            )

    def _make_class_images(self) -> None:
        """Makes the class images that are missing, with the untrained model; each is kept as soon as it is done."""
        missing = self.plan.class_images_missing
        if not missing:
            return
        self.emit("phase", name="class images", of=missing)
        phase = ClassPhase(
            self.settings,
            self.plan.base,
            self.tokenizer,
            self.folder.path,
            self.emit,
            self._should_stop,
            self._check_stop,
            self.processes,
        )
        with self.processes.together():
            share = phase.share(self.plan.survey.class_folders())
        with self.processes.together():
            phase.make(self.models.drawing(), share)
        self._step_down()

    def _plan_data(self) -> DataPlan:
        found = survey_of(self.settings, self.plan.base)
        data = data_plan(self.plan, found)
        noted = self.folder.path / "data.json"
        fingerprint = data.fingerprint()
        learned = {**learned_from(found), "mixed_precision": self.plan.machine.mixed_precision}
        if not noted.exists() and self.processes.is_main:
            write_json(noted, {"fingerprint": fingerprint, "learned": learned})
        elif noted.exists() and json.loads(noted.read_bytes())["fingerprint"] != fingerprint:
            self.emit(
                "warning",
                text="images or captions have changed since this run began: it goes on with those that are there now, "
                "and its result is not what it would have been",
            )
        return data

    def _encoding(self, data: DataPlan, model: LoadedModel) -> Encoding:
        return Encoding(
            settings=self.settings,
            data=data,
            model=model,
            tokenizer=self.tokenizer,
            store=TensorStore(runs_dir_of(self.settings) / "cache"),
            device=self.device,
            steps=self.plan.steps,
            emit=self.emit,
            check_stop=self._check_stop,
            folder=self.folder.path,
            processes=self.processes,
        )

    # ---- training --------------------------------------------------------------------------------------------

    def _prepare(
        self, data: DataPlan, model: LoadedModel, encoding: Encoding
    ) -> tuple[RunKeeper, TrainingEngine]:
        training = self.settings.training
        latents = encoding.latents()
        self._step_down()
        trains_text = self.plan.trains_text
        batches = StepBatches(
            data,
            training.seed,
            latents,
            tokens=encoding.tokens() if trains_text else None,
            embeddings=encoding.later_embeddings(assembly.rest_later(self.plan, model))
            if trains_text
            else encoding.embeddings(),
            micro_batches=training.gradient_accumulation_steps,
            offset_noise=training.offset_noise,
            device=self.device,
            process=(self.processes.index, self.processes.count),
            sized=model.identified.family.sized,
        )
        assembly.rest(self.plan, model)
        assembly.bring_unet(self.plan, model)
        accelerator = self._accelerator
        weights = assembly.trained_weights(self.plan, model)
        stepper = assembly.stepper(self.plan, weights, accelerator.scaler)
        denoiser = Denoiser(
            model.components["unet"],
            text.encoders_of(model.components, model.identified.family) if trains_text else [],
            model.identified.family,
            self.settings.model.clip_skip,
        )
        engine = TrainingEngine(
            denoiser,
            stepper,
            assembly.objective(self.plan, model),
            batches,
            assembly.schedule(self.plan),
            accelerator=accelerator,
            prior_weight=self.settings.prior.prior_loss_weight,
            text_span=TextEncoderSpan(trains_text, self.plan.text_encoder_stop),
            ema=weights.ema,
            teacher=assembly.teacher(self.plan, weights, denoiser),
            before_step=assembly.before_step(self.plan, self.processes.index),
            forward_batch=training.forward_batch_size,
        )
        keeper = RunKeeper(
            self.folder.states,
            self.plan.outputs,
            weights,
            engine,
            self.emit,
            keep=self.settings.saving.checkpoints_total_limit,
            write_checkpoint=self.write_checkpoint,
            make_samples=self._sample_live,
            scaler=accelerator.scaler,
        )
        return keeper, engine

    def _emit_step(self, event: str, **fields: Any) -> None:
        self.emit(event, **fields)
        numbers = {name: fields[name] for name in ("loss", "instance_loss", "prior_loss", "lr")}
        self._accelerator.log(numbers, step=fields["step"])

    # ---- after training --------------------------------------------------------------------------------------

    def write_checkpoint(self, path: Path, trained: Trained) -> Written:
        """Writes a checkpoint with this run's metadata."""
        return results.write_checkpoint(
            path,
            self.plan.base,
            trained,
            self.settings,
            results.metadata(self.settings, self.run_id, results.learned_by(self.folder)),
            scratch=self.folder.path,
            adapter=self.plan.adapter,
        )

    def _write_result(self, trained: Trained) -> tuple[Written, dict[str, Any]]:
        """Writes the result; gives it and how far the weights have moved, as plain values."""
        dtype = DTYPES[self.settings.result.output_dtype]
        change = results.weight_change(self.plan.base, trained, dtype, self.plan.adapter)
        if results.is_unchanged(change):
            raise RunFailed(
                f"the training changed nothing that {self.settings.result.output_dtype} can hold, so nothing was written",
                remedy="raise learning_rate or the number of steps, or set output_dtype: float32",
            )
        self.emit("phase", name="export", of=1)
        written = self.write_checkpoint(self.plan.outputs.final, trained)
        self.emit("exported", step=self.plan.steps, path=written.path, sha256=written.sha256)
        return written, results.as_plain(change)

    def _finish(self, written: Written, change: dict[str, Any]) -> None:
        """Makes pictures of what was written, and notes that the run is done."""
        self._sample_result(Path(written.path))
        write_json(
            self.folder.result,
            {
                "path": str(written.path),
                "files": results.files_of(written),
                "weight_change": change,
                "steps": self.plan.steps,
            },
        )
        naming.release(self.plan.outputs)
        self._answer_late_commands()
        self.emit("done", path=written.path, weight_change=change)

    def _answer_late_commands(self) -> None:
        """Whoever gave a command after the last step hears that it was seen: what it asked for is done by now."""
        if self.inbox is not None:
            for command in self.folder.waiting_commands():
                self.inbox.answer(command)

    def _sample_live(self, step: int, model: LoadedModel) -> None:
        """Sample pictures of the weights as they are in training, under the training's own precision.

        Those of the untrained model are made once, however often a run without a state starts over.
        """
        if step == 0 and self.previews.are_made(0):
            return
        resting = [
            module for module in model.components.values() if next(module.parameters()).device != self.device
        ]
        if self._in_turn("samples"):
            resting = []  # each comes by itself while it is needed
        try:
            for module in resting:
                module.to(self.device)
            self.previews.make(step, model, dtype=self.plan.machine.compute_dtype)
        finally:
            for module in resting:
                module.to("cpu")

    def _in_turn(self, phase: str) -> bool:
        """Whether a phase's pictures are made with one component on the device after the other, since all together
        would not fit."""
        return self.plan.memory is not None and self.plan.memory.in_turn(phase)

    def _sample_result(self, path: Path) -> None:
        """The last sample pictures come from the written file, the first ones from the base: what a user will see."""
        if not self.previews:
            return
        self.emit("phase", name="samples", of=2)
        try:
            for step, written in ((0, None), (self.plan.steps, path)):
                if step == 0 and self.previews.are_made(0):
                    continue
                self.previews.make(step, self.models.written(written))
        except Exception as error:  # noqa: BLE001 - the checkpoint is written; a picture is never worth a run
            self.emit("warning", text=f"no sample pictures of the result: {type(error).__name__}: {error}")
