"""Kills the WebUI at random moments of a training and proves that the training does not notice.

    environments/host-tests-…/bin/python tests/host/kill_webui.py --trainer PYTHON [--kills 10]

The stand-in for the WebUI is killed (SIGKILL) and started again, over and over: before the trainer has its run folder,
while class images are made, between steps, at the end. After each start the tab has to be on the run again, further
than before. At the end the run's events must be those of one life, each step once, and the result's weights the bytes
that a run makes whose WebUI nobody killed. Prints a line for each kill; exit code 1 for the first difference.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from asking import Refused, ask
from servers import ROOT, Server, install_extension, place_base, standin

from dreambooth.shared.events import read_events

# Nothing in this run leaves anything to chance but its seed, so two of them make the same bytes.
FORM = {
    "output_name": "killed",
    "resolution": 64,
    "train_batch_size": 4,
    "learning_rate": 5e-5,
    "num_class_images": 4,
    "class_guidance_scale": 3,
    "class_infer_steps": 5,
    "checkpointing_steps": 20,
    "num_validation_images": 0,
}
STEPS_A_KILL = 15


class Difference(Exception):
    """The tab lost the run, or the run is another than one that nobody disturbed."""


def form(data: Path, steps: int) -> dict[str, Any]:
    photos = str(ROOT / "dreambooth" / "assets" / "demo")
    concept = {
        "instance_prompt": "photo of ohwx cat",
        "class_prompt": "photo of cat",
        "instance_data_dir": photos,
    }
    model = str(data / "models" / "Stable-diffusion" / "small-base.safetensors")
    return {**FORM, "model": model, "max_train_steps": steps, "concepts": [concept]}


def prepare(data: Path, trainer: str) -> Server:
    place_base(data)
    install_extension(data)
    environ = {"DREAMBOOTH_PYTHON": trainer, "OMP_NUM_THREADS": "1"}
    return standin(data, "--skip-load-model-at-start", environ=environ)


def begin(server: Server, steps: int, *, patience: float) -> None:
    """Presses Train, and waits for the answer no longer than `patience`."""
    try:
        ask(server.url, "/runs", {"form": form(server.data, steps)}, timeout=patience)
    except TimeoutError:
        return


def weights(data: Path) -> bytes:
    """The result's tensors: what follows the header, whose metadata name the run."""
    content = (data / "models" / "Stable-diffusion" / "killed.safetensors").read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


def look(server: Server) -> tuple[str, dict[str, Any]]:
    """The run that the tab is on, as a page just opened learns it, and its state."""
    active = ask(server.url, "/page")["active"]
    runs = ask(server.url, "/runs")["runs"]
    if not runs:
        return active, {"state": "starting", "step": 0}
    return active, ask(server.url, f"/runs/{runs[0]['name']}/live")


def look_until_found(server: Server, patience: float = 60.0) -> tuple[str, dict[str, Any]]:
    """The same, waiting for a trainer that has not made its run folder yet."""
    deadline = time.monotonic() + patience
    while True:
        active, live = look(server)
        if active or live["state"] not in ("running", "starting") or time.monotonic() > deadline:
            return active, live
        time.sleep(0.1)


def has_started(data: Path) -> bool:
    """Whether a trainer was started: before that, a killed WebUI has nothing to lose."""
    return any((data / "dreambooth" / "jobs").glob("*/log.txt"))


def wait_for_end(server: Server, patience: float = 3600.0) -> dict[str, Any]:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        _, live = look(server)
        if live["state"] not in ("running", "starting"):
            return live
        time.sleep(0.2)
    raise Difference(f"the run does not end: {live['log']}")


def check_whole(data: Path, steps: int) -> None:
    """One life, each step once, in order."""
    runs = [path.parent for path in (data / "dreambooth" / "runs").glob("*/events.jsonl")]
    if len(runs) != 1:
        raise Difference(f"not one run: {[run.name for run in runs]}")
    events, _ = read_events(runs[0] / "events.jsonl")
    told = [event["step"] for event in events if event.name == "step"]
    if told != list(range(1, steps + 1)):
        raise Difference(f"the steps are not 1 to {steps}, each once: {told}")
    names = [event.name for event in events]
    if names.count("plan") != 1 or names[-1] != "done":
        raise Difference(f"not one life from plan to done: {names.count('plan')} plans, then {names[-1]}")


def kill_again_and_again(server: Server, steps: int, kills: int, moments: random.Random) -> None:
    """`kills` times: kills the WebUI at a moment drawn at random, starts it again, and looks for the run.

    The moments lie all over the run: a step is drawn for each, those below 0 meaning "before the first step".
    """
    server.start()
    begin(server, steps, patience=moments.uniform(0.05, 1.0))
    furthest = 0
    for kill, step in enumerate(sorted(moments.randrange(-steps // 4, steps) for _ in range(kills)), 1):
        wait_for_step(server, step)
        time.sleep(moments.uniform(0.0, 0.5))
        server.kill()
        server.start()
        if not has_started(server.data):
            begin(server, steps, patience=moments.uniform(0.2, 2.0))
        active, live = look_until_found(server)
        if live["state"] in ("running", "starting"):
            if not active:
                raise Difference(f"after kill {kill} the tab has lost the run")
        elif live["state"] != "finished":
            raise Difference(f"after kill {kill} the run is {live['state']}: {live.get('error')}")
        if live["step"] < furthest:
            raise Difference(
                f"after kill {kill} the tab shows step {live['step']}, it was at {furthest} before"
            )
        furthest = live["step"]
        print(
            f"kill {kill}: {live['state']}, {live.get('phase', {}).get('name', '')}, step {furthest}",
            flush=True,
        )


def wait_for_step(server: Server, step: int, patience: float = 1800.0) -> None:
    """Until the run is so far, or over; at once for a step before the first."""
    deadline = time.monotonic() + patience
    while step > 0 and time.monotonic() < deadline:
        _, live = look(server)
        if live["step"] >= step or live["state"] not in ("running", "starting"):
            return
        time.sleep(0.1)


def prove(folder: Path, trainer: str, *, kills: int, seed: int, steps: int) -> None:
    """Raises Difference, or all is well."""
    disturbed, calm = folder / "killed", folder / "calm"
    server = prepare(disturbed, trainer)
    try:
        kill_again_and_again(server, steps, kills, random.Random(seed))
        live = wait_for_end(server)
        if live["state"] != "finished":
            raise Difference(f"the run ended as {live['state']}: {live['error']}")
        if look(server)[0]:
            raise Difference("a run that ended is still shown as running")
    finally:
        server.stop()
    check_whole(disturbed, steps)
    server = prepare(calm, trainer).start()
    try:
        begin(server, steps, patience=120)
        wait_for_end(server)
    finally:
        server.stop()
    if weights(disturbed) != weights(calm):
        raise Difference("the result's weights are others than those of a run that nobody disturbed")
    print(f"{kills} kills: one life, {steps} steps, the same weights as undisturbed")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trainer", required=True, help="a Python with the trainer's libraries")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=None)
    given = parser.parse_args()
    seed = random.randrange(10**6) if given.seed is None else given.seed
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        try:
            prove(Path(folder), given.trainer, kills=given.kills, seed=seed, steps=STEPS_A_KILL * given.kills)
        except (Difference, Refused, AssertionError) as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
