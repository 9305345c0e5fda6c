"""What happens once in a while: a state is saved, a checkpoint written, sample pictures made."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dreambooth.shared.errors import DreamboothError, RunFailed
from dreambooth.shared.events import Emit
from dreambooth.shared.paths import write_json
from dreambooth.trainer.adapters.attached import Attached
from dreambooth.trainer.engine import TrainingEngine
from dreambooth.trainer.models.convert import LoadedModel, canonical_state
from dreambooth.trainer.optim.ema import Average
from dreambooth.trainer.optim.optimizers import group_memory, lay_alike, page_again
from dreambooth.trainer.optim.rounding import as_float32
from dreambooth.trainer.saving.checkpoint import Progress, State, load_state, save_state
from dreambooth.trainer.saving.outputs import Outputs
from dreambooth.trainer.saving.results import Trained
from dreambooth.trainer.stepdown import is_out_of_memory
from dreambooth.trainer.weights import Written

WriteCheckpoint = Callable[[Path, Trained], Written]
MakeSamples = Callable[[int, LoadedModel], None]
NOTES = "made.json"


@dataclass
class TrainedWeights:
    """What is trained, seen as the tensors that states and exports hold, by component and canonical name: the modules'
    own, or those of the adapter that is `attached`."""

    model: LoadedModel
    components: tuple[str, ...]
    ema: Average | None = None
    attached: Attached | None = None

    def _state(self, component: str) -> dict[str, torch.Tensor]:
        if self.attached is not None:
            return self.attached.state(component)
        return canonical_state(component, self.model.components[component])

    def parameters(self) -> list[tuple[str, str, torch.nn.Parameter]]:
        """(component, canonical name, parameter) of all that the optimizer changes, in its order."""
        found = []
        for component in self.components:
            named = dict(self.model.components[component].named_parameters())
            names = {tensor.data_ptr(): name for name, tensor in self._state(component).items()}
            found += [
                (component, names[parameter.data_ptr()], parameter)
                for parameter in named.values()
                if parameter.requires_grad
            ]
        return found

    def weights(self) -> dict[str, dict[str, torch.Tensor]]:
        """The weights as they are in training; they share memory with the modules."""
        return {name: self._state(name) for name in self.components}

    def averages(self) -> dict[str, dict[str, torch.Tensor]]:
        """The averaged weights, {} without EMA."""
        if self.ema is None:
            return {}
        found: dict[str, dict[str, torch.Tensor]] = {name: {} for name in self.components}
        for (component, name, _), average in zip(self._order, self.ema.averages, strict=True):
            found[component][name] = average
        return found

    def __post_init__(self) -> None:
        self._order = self.parameters()  # while all of them still want gradients

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The modules hold the averages while the block runs, as a result would; nothing is copied."""
        averages = [] if self.ema is None else self.ema.averages
        self._swap(averages)
        try:
            yield
        finally:
            self._swap(averages)

    def _swap(self, averages: list[torch.Tensor]) -> None:
        for index, average in enumerate(averages):
            parameter = self._order[index][2]
            averages[index], parameter.data = parameter.data, average

    def result(self) -> Trained:
        """What is exported: the averages where there are some, else the weights."""
        weights = self.weights()
        for component, tensors in self.averages().items():
            weights[component].update(tensors)
        return weights


class RunKeeper:
    """Keeps a run's states, checkpoints and samples.

    What was made last is noted beside the states: a run that was interrupted after a save makes that step's
    checkpoint and samples when it goes on, unless they are there.
    """

    def __init__(
        self,
        states: Path,
        outputs: Outputs,
        weights: TrainedWeights,
        engine: TrainingEngine,
        emit: Emit,
        *,
        keep: int,
        write_checkpoint: WriteCheckpoint,
        make_samples: MakeSamples,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        self._states = states
        self._outputs = outputs
        self._weights = weights
        self._engine = engine
        self._emit = emit
        self._keep = keep
        self._write_checkpoint = write_checkpoint
        self._make_samples = make_samples
        self._scaler = scaler
        self._restored: int | None = None

    def save(self, step: int) -> None:
        """Saves the state after `step` steps."""
        ema = self._weights.ema
        state = State(
            progress=Progress(step, ema_updates=ema.updates if ema else 0),
            weights=self._weights.weights(),
            averages=self._weights.averages(),
            optimizer=self._engine.stepper.optimizer.state_dict(),
            scaler=self._scaler.state_dict() if self._scaler else {},
            clipping=self._engine.stepper.clipping(),
        )
        path = save_state(self._states, state, keep=self._keep)
        self._emit("checkpoint", step=step, path=path)

    def restore(self, device: torch.device) -> int:
        """Loads the newest state into modules, optimizer, averages and scaler; returns its step.

        Raises RunFailed if there is none, if it is damaged, or of another model or other settings.
        """
        state = load_state(self._states, device=device)
        try:
            _copy(state.weights, self._weights.weights())
            _copy(state.averages, self._weights.averages())
            _load_optimizer(self._engine.stepper.optimizer, state.optimizer)
            self._engine.stepper.restore_clipping(state.clipping)
            if self._scaler is not None and state.scaler:
                self._scaler.load_state_dict(dict(state.scaler))
        except (KeyError, ValueError, RuntimeError) as error:
            raise RunFailed(
                f"the saved state does not fit this model and these settings ({error})",
                where=str(self._states),
                remedy="put the model file and config.yaml back as they were when the run began, or start a new run",
            ) from error
        if self._weights.ema is not None:
            self._weights.ema.updates = state.progress.ema_updates
        self._restored = state.progress.step
        return self._restored

    @property
    def trained(self) -> Trained:
        """The trained tensors as they are now."""
        return self._weights.result()

    def export(self, step: int) -> None:
        """Writes a checkpoint of this step that can be used. A failure is said, and does not end the run."""
        if self._was_made("export", step):
            return
        try:
            written = self._write_checkpoint(self._outputs.at_step(step), self._weights.result())
        except Exception as error:
            if not isinstance(error, (DreamboothError, OSError)) and not is_out_of_memory(error):
                raise
            self._emit("warning", text=f"no checkpoint of step {step}: {error}")
            return
        self._emit("exported", step=step, path=written.path, sha256=written.sha256)
        self._note("export", step)

    def sample(self, step: int) -> None:
        """Makes sample pictures with the weights as they are now. A failure is said, and never ends the run."""
        if self._was_made("sample", step):
            return
        modules = list(self._weights.model.components.values())
        modes = [module.training for module in modules]
        try:
            with self._weights.averaged():
                self._make_samples(step, self._weights.model)
            self._note("sample", step)
        except Exception as error:  # noqa: BLE001 - a picture is never worth a run
            self._emit("warning", text=f"no sample pictures at step {step}: {type(error).__name__}: {error}")
        finally:
            for module, mode in zip(modules, modes, strict=True):
                module.train(mode)

    def _was_made(self, what: str, step: int) -> bool:
        """Whether that was made before the interruption after which the run went on at this very step."""
        return step == self._restored and self._notes().get(what) == step

    def _notes(self) -> dict[str, int]:
        try:
            notes = json.loads((self._states / NOTES).read_bytes())
        except (OSError, ValueError):
            return {}
        return notes if isinstance(notes, dict) else {}

    def _note(self, what: str, step: int) -> None:
        with contextlib.suppress(DreamboothError, OSError):  # without it, it would be made once more: no harm
            self._states.mkdir(exist_ok=True)
            write_json(self._states / NOTES, {**self._notes(), what: step})


def _copy(
    saved: Mapping[str, Mapping[str, torch.Tensor]], live: Mapping[str, Mapping[str, torch.Tensor]]
) -> None:
    """Copies all or, if names or shapes differ, raises ValueError."""
    for component in saved.keys() | live.keys():
        theirs = {name: tuple(tensor.shape) for name, tensor in saved.get(component, {}).items()}
        ours = {name: tuple(tensor.shape) for name, tensor in live.get(component, {}).items()}
        if theirs != ours:
            odd = sorted(dict(theirs.items() ^ ours.items()))[0]
            raise ValueError(
                f"{component}: {odd} is {theirs.get(odd, 'missing')}, not {ours.get(odd, 'there')}"
            )
    with torch.no_grad():
        for component, tensors in live.items():
            for name, tensor in tensors.items():
                tensor.copy_(saved[component][name])


def _load_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Loads what the optimizer remembers. Rates and flags stay those of the settings and of this machine."""
    own = optimizer.state_dict()["param_groups"]
    sizes = [[len(group["params"]) for group in groups] for groups in (saved["param_groups"], own)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"its optimizer has groups of {sizes[0]} parameters, not of {sizes[1]}")
    groups = [
        {**group, **group_memory(optimizer, before)}
        for group, before in zip(own, saved["param_groups"], strict=True)
    ]
    with as_float32(optimizer):
        optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
    lay_alike(optimizer)
    page_again(optimizer)
