"""Trainers as processes of their own, each there in milliseconds: a server that has imported everything forks them.

    with trainers() as start:
        trainer = start("train", "config.yaml", output=log)
        trainer.kill()

Where there is no fork (Windows) each is started anew. `kill_at` ends a trainer by SIGKILL before its n-th operation
on files, `kill_on` before the n-th whose path has a given part; `operations` names a file that gets a line for each.
`trusts_8bit` leaves out the trial of the 8-bit optimizer, which takes longer than a run here.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
CAN_FORK = hasattr(os, "fork")
# Between any two of these nothing on the disk changes (but for what safetensors and torch write by themselves).
OPERATIONS = (
    "open",
    "write",
    "fsync",
    "replace",
    "rename",
    "mkdir",
    "rmdir",
    "unlink",
    "remove",
    "ftruncate",
)
PATIENCE = 120.0


@dataclass
class Trainer:
    """A process that was started; `output` is the file with what it printed."""

    pid: int
    output: Path
    _ask: Callable[..., Any]
    _code: int | None = field(default=None)

    def wait(self, seconds: float = PATIENCE) -> int:
        """The exit code, negative for a signal. Raises AssertionError if it goes on for longer."""
        code = self._poll(seconds)
        if code is None:
            self.kill()
            raise AssertionError(f"still running after {seconds} s; it said:\n{self.said()}")
        return code

    def ended(self) -> bool:
        return self._poll(0.0) is not None

    def _poll(self, seconds: float) -> int | None:
        if self._code is None:
            self._code = self._ask(do="wait", pid=self.pid, seconds=seconds)
        return self._code

    def send(self, number: int) -> None:
        """Sends a signal, if it is still there to hear it."""
        if self._code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """`kill -9`."""
        self.send(signal.SIGKILL)
        self._poll(PATIENCE)

    def said(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")

    def until(self, happened: Callable[[], Any], what: str = "it", seconds: float = PATIENCE) -> Any:
        """The first true value of `happened`, as soon as it is there. Raises AssertionError if it never is."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            over = self.ended()
            found = happened()
            if found:
                return found
            if over:
                raise AssertionError(
                    f"the trainer ended ({self._code}) before {what}; it said:\n{self.said()}"
                )
            time.sleep(0.002)
        raise AssertionError(f"{what} did not happen in {seconds} s")


Start = Callable[..., Trainer]


@contextlib.contextmanager
def trainers() -> Iterator[Start]:
    """Gives a function that starts `dreambooth ARGUMENT…`; what is still running at the end is killed."""
    environ = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1"}
    with contextlib.ExitStack() as stack:
        if CAN_FORK:
            server = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, str(Path(__file__).resolve())],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    env=environ,
                )
            )
            assert server.stdin is not None and server.stdout is not None
            ask = _asking(server.stdin, server.stdout)
        else:
            ask = _Starter(environ).answer
        started: list[Trainer] = []

        def start(*arguments: str | Path, output: Path, **options: Any) -> Trainer:
            pid = ask(
                do="start", arguments=[str(argument) for argument in arguments], output=str(output), **options
            )
            started.append(Trainer(pid, output, ask))
            return started[-1]

        try:
            yield start
        finally:
            for trainer in started:
                trainer.kill()
            if CAN_FORK:
                server.kill()  # it has nothing to tidy up, and would take its time


def _asking(requests: IO[str], answers: IO[str]) -> Callable[..., Any]:
    def ask(**request: Any) -> Any:
        requests.write(json.dumps(request) + "\n")
        requests.flush()
        return json.loads(answers.readline())

    return ask


class _Starter:
    """In place of the server where there is no fork."""

    def __init__(self, environ: dict[str, str]) -> None:
        self._environ = environ
        self._running: dict[int, subprocess.Popen[bytes]] = {}

    def answer(self, *, do: str, **request: Any) -> Any:
        if do == "wait":
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._running[request["pid"]].wait(request["seconds"])
            return None
        with Path(request["output"]).open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "dreambooth", *request["arguments"]],
                cwd=ROOT,
                env=self._environ | request.get("environ", {}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self._running[process.pid] = process
        return process.pid


# ---- the server's side -------------------------------------------------------------------------------------------


def serve() -> None:
    """Reads requests, forks and waits, until its standard input ends."""
    sys.path.insert(0, str(ROOT))
    _import_all()
    for line in sys.stdin:
        request = json.loads(line)
        answer = _start(request) if request["do"] == "start" else _wait(request["pid"], request["seconds"])
        print(json.dumps(answer), flush=True)


def _import_all() -> None:
    """What a run imports late, so that no child has to; nothing is computed here."""
    with contextlib.suppress(ImportError):  # runs that ask for it say that it is missing
        import bitsandbytes  # noqa: F401
    from accelerate import Accelerator  # noqa: F401
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL  # noqa: F401
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel  # noqa: F401
    from transformers.models.clip.modeling_clip import CLIPTextModel  # noqa: F401


def _wait(pid: int, seconds: float) -> int | None:
    deadline = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.002)


def _start(request: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        code = _run(request)
    finally:
        os._exit(code)


def _run(request: dict[str, Any]) -> int:
    """In the child: what the real process would do, with its output in a file."""
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    sys.stdout = sys.stderr = os.fdopen(1, "w", encoding="utf-8", buffering=1, closefd=False)
    os.environ.update(request.get("environ", {}))
    if {"kill_at", "kill_on", "operations"} & request.keys():
        _count_operations(request.get("kill_at", 0), request.get("kill_on"), request.get("operations"))
    from dreambooth import cli
    from dreambooth.trainer import eightbit

    if request.get("trusts_8bit"):
        assert callable(eightbit.examine)
        eightbit.examine = lambda *_, **__: eightbit.Verdict(True, "not tried")
    try:
        return cli.main(request["arguments"])
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    except BaseException:  # noqa: BLE001 - as the interpreter would show it
        import traceback

        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()


def _count_operations(kill_at: int, kill_on: tuple[str, int] | None, noted: str | None) -> None:
    """Counts operations on files; ends this process before number `kill_at`, or before the n-th of those that have
    `kill_on`'s part in their path, or notes each in a file."""
    notes = os.open(noted, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666) if noted else -1
    real_write = os.write
    part, kill_at = kill_on or ("", kill_at)
    count = 0

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            if name == "open" and not (arguments[1:] and arguments[1] & (os.O_CREAT | os.O_TRUNC)):
                return real(*arguments, **named)
            path = " to ".join(
                _path_of(about) for about in arguments[: 2 if name in ("replace", "rename") else 1]
            )
            count += part in path
            if count == kill_at and part in path:
                os.kill(os.getpid(), signal.SIGKILL)
            if notes >= 0:
                real_write(notes, f"{name} {path}\n".encode())
            return real(*arguments, **named)

        return operation

    for name in OPERATIONS:
        setattr(os, name, counted(name, getattr(os, name)))


def _path_of(about: Any) -> str:
    if isinstance(about, int):
        with contextlib.suppress(OSError):
            return str(Path(f"/proc/self/fd/{about}").readlink())
    return str(about)


if __name__ == "__main__":
    serve()
