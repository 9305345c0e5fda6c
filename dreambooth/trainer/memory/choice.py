"""Which settings a run takes where the user left the choice: the quickest that fit into the memory there is.

Every way to save memory has its price in time, or in how near a step is to a plain one; the cheapest sum of them whose
fullest phase fits is taken. What the user has set stays as it is, and the plan says whether it fits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dreambooth.shared.errors import InputError
from dreambooth.shared.settings import Settings
from dreambooth.trainer.memory.phases import RESULT_SAMPLES, SAMPLES, TRAINING, Memory, Phase
from dreambooth.trainer.memory.remedies import what_a_plan_leaves
from dreambooth.trainer.memory.room import GB, Room
from dreambooth.trainer.memory.ways import (
    IN_PARTS,
    PLAIN,
    Way,
    images_of,
    left_open,
    value_of,
    ways_of,
    with_ways,
)
from dreambooth.trainer.models.checkpointing import units_of
from dreambooth.trainer.models.tiles import TILE
from dreambooth.trainer.optim.optimizer_rules import check_fused_backward, check_weights_dtype

if TYPE_CHECKING:
    from dreambooth.trainer.planning.plan import Plan

# Adapters, a frozen text encoder and small pictures save that many times what they leave; below that only room helps
MOST_TO_BE_SAVED = 4
# The price of each way, as a share of a plain step's time. Computing everything twice in the forward pass is a third of
# a step's arithmetic (facts: 3.00 against 2.41 TFLOP for SD1.5), half as many images at once wait longer for Python.
# The others cost little time: their price is that a step is not quite the plain one. After 300 steps on the small base
# 8-bit states and weights in bfloat16 came to the plain loss, steps in the backward pass to one 7.5% above it
# (benchmarks/RESULTS.md); a picture that was encoded in tiles is another one, a little.
CHECKPOINTING = 0.25
HALVING = 0.10
EIGHT_BIT = 0.03
FACTORED = 0.40
STEP_IN_BACKWARD = 0.45
NARROW_WEIGHTS = 0.35
NARROW_BASE = 0.30
TILES = 0.20
# How many of the UNet's blocks are computed twice is tried in so many parts
PARTS = 4


@dataclass(frozen=True)
class Choice:
    """`settings` with nothing left open, `phases` of the run with them, and whether they fit; `notes` say what was chosen
    and why, `ways` what was asked for and what was chosen of all that memory depends on."""

    settings: Settings
    phases: tuple[Phase, ...]
    room: Room
    fits: bool
    notes: tuple[str, ...] = ()
    ways: tuple[Way, ...] = ()

    @property
    def fullest(self) -> Phase:
        return max(self.phases, key=lambda phase: phase.bytes)

    def in_turn(self, phase: str) -> bool:
        """Whether a phase's components are on the device one after the other."""
        return any(found.in_turn for found in self.phases if found.name == phase)

    def as_json(self) -> dict[str, Any]:
        """Plain values; sizes in bytes."""
        return {
            "phases": [phase.as_json() for phase in self.phases],
            "peak": self.fullest.bytes,
            "of": self.room.of,
            "free": self.room.free,
            "allowed": self.room.allowed,
            "usable": self.room.usable,
            "fits": self.fits,
            "ways": [way.as_json() for way in self.ways],
        }


def phases_of(plan: Plan, usable: int) -> list[Phase]:
    """The phases of a plan with the settings that it has, in so many bytes if they can be."""
    return Memory(plan).phases(usable)


def least_of(plan: Plan) -> int:
    """What a plan's training takes at least, told without counting any pass."""
    return Memory(plan).least()


@dataclass(frozen=True)
class Scale:
    """How a plan is weighed: `phases` counts them, `least` is quick and never more than the fullest of them."""

    phases: Callable[[Plan, int], Sequence[Phase]] = phases_of
    least: Callable[[Plan], int] = least_of


def choose(
    plan: Plan, asked: Settings, room: Room, works: Callable[[str], bool], scale: Scale | None = None
) -> Choice:
    """The cheapest settings that fit. `plan` has the plain ones, `asked` what was left open; `works` says whether an
    8-bit optimizer does here, and is asked only if one is needed. Where nothing has room for sample pictures too, the
    cheapest that has for all else: a picture is never worth a run.

    Raises InputError if a limit was named that nothing fits into.
    """
    scale = scale or Scale()
    found = _search(plan, asked, room, works, scale)
    notes: tuple[str, ...] = ()
    if not found.fits:
        found = _search(plan, asked, room, works, Scale(_without_samples(scale.phases), scale.least))
        phases = tuple(scale.phases(replace(plan, settings=found.settings), room.usable))
        if found.fits and len(phases) > len(found.phases):
            notes = (_samples_too_much(phases, room),)
        elif not found.fits:
            _refuse(found, asked)
            notes = (_too_much(found, asked),)
        found = replace(found, phases=phases)
    notes = (*_chosen(found, plan.settings), *_parts_in_vain(plan, found, asked, scale), *notes)
    return replace(found, notes=notes, ways=ways_of(replace(plan, settings=found.settings), asked))


def _without_samples(
    phases: Callable[[Plan, int], Sequence[Phase]],
) -> Callable[[Plan, int], Sequence[Phase]]:
    return lambda plan, usable: [
        phase for phase in phases(plan, usable) if phase.name not in (SAMPLES, RESULT_SAMPLES)
    ]


def _search(plan: Plan, asked: Settings, room: Room, works: Callable[[str], bool], scale: Scale) -> Choice:
    """The cheapest settings whose phases fit, else the smallest."""
    smallest: Choice | None = None
    hopeless: set[tuple[Any, ...]] = set()
    for number, ways in enumerate(_by_price(plan, asked)):
        others = tuple(
            sorted((name, value) for name, value in ways.items() if name != "gradient_checkpointing")
        )
        if others in hopeless or not _may_be_taken(plan, ways, works):
            continue
        if number:  # with as little as these others can do: blocks that are computed twice save most
            most = {**ways, "gradient_checkpointing": "yes"} if "gradient_checkpointing" in ways else ways
            choice = _weighed(plan, most, room, scale, nothing_less=smallest)
            smallest = _smaller(smallest, choice)
            if choice is None or not choice.fits:
                hopeless.add(others)
                continue
        choice = _weighed(plan, ways, room, scale, nothing_less=smallest)
        smallest = _smaller(smallest, choice)
        if choice is not None and choice.fits:
            return choice
    assert smallest is not None, "the plain settings are possible"
    return smallest


def _weighed(
    plan: Plan, ways: dict[str, Any], room: Room, scale: Scale, *, nothing_less: Choice | None
) -> Choice | None:
    """A candidate with its phases; None if it cannot fit, nor be the smallest, whatever its passes take."""
    settings = with_ways(plan.settings, ways)
    tried = replace(plan, settings=settings)
    if nothing_less is not None and scale.least(tried) > max(room.usable, nothing_less.fullest.bytes):
        return None
    phases = tuple(scale.phases(tried, room.usable))
    return Choice(settings, phases, room, max(phase.bytes for phase in phases) <= room.usable)


def _smaller(one: Choice | None, other: Choice | None) -> Choice | None:
    if one is None or other is None:
        return one or other
    return other if other.fullest.bytes < one.fullest.bytes else one


def _may_be_taken(plan: Plan, ways: dict[str, Any], works: Callable[[str], bool]) -> bool:
    """Whether settings go together, and the optimizer does here."""
    optimizer = ways.get("optimizer", "")
    return _possible(with_ways(plan.settings, ways), plan) and (optimizer != "adamw8bit" or works(optimizer))


# ---- candidates ------------------------------------------------------------------------------------------------------


def _by_price(plan: Plan, asked: Settings) -> Iterator[dict[str, Any]]:
    """All that can be set where the user left it open, the cheapest first; the first is plain."""
    ways = [
        dict(pair for pair in chosen if pair[0])
        for chosen in itertools.product(
            _checkpointings(plan, asked), _batches(plan, asked), *_on_or_off(plan, asked)
        )
    ]
    units = units_of(plan.base)
    yield from sorted(ways, key=lambda one: _price(one, units, images_of(plan.settings)))


def _checkpointings(plan: Plan, asked: Settings) -> list[tuple[str, Any]]:
    if not left_open(asked, "gradient_checkpointing"):
        return [("", None)]
    units = units_of(plan.base)
    counts = sorted({math.ceil(units * part / PARTS) for part in range(PARTS + 1)})
    return [("gradient_checkpointing", {0: "no", units: "yes"}.get(count, str(count))) for count in counts]


def _batches(plan: Plan, asked: Settings) -> list[tuple[str, Any]]:
    """All images of a batch at once, half of them, and so on."""
    images = images_of(plan.settings)
    if not left_open(asked, IN_PARTS):
        return [("", None)]
    halves = dict.fromkeys(math.ceil(images / 2**power) for power in range(images.bit_length() + 1))
    return [(IN_PARTS, 0 if count == images else count) for count in halves]


def _on_or_off(plan: Plan, asked: Settings) -> list[list[tuple[str, Any]]]:
    """For each choice between plain and sparing: all of it, or nothing where the user has chosen or it makes no
    difference."""
    whole = plan.adapter is None
    sparing: tuple[tuple[str, tuple[str, ...], bool], ...] = (
        ("optimizer", ("adamw8bit", "adafactor") if whole else ("adamw8bit",), True),
        ("fused_backward", ("yes",), True),
        ("weights_dtype", ("bfloat16",), whole),
        ("base_precision", ("int8",), not whole),
        ("vae_tiling", ("yes",), max(map(max, plan.buckets)) > TILE),
    )
    return [
        [(name, value) for value in (PLAIN[name], *values)]
        for name, values, counts in sparing
        if counts and left_open(asked, name)
    ]


def _price(ways: dict[str, Any], units: int, images: int) -> float:
    count = ways.get("gradient_checkpointing", "no")
    checkpointed = {"no": 0, "yes": units}.get(count, 0) if not count.isdecimal() else int(count)
    at_once = ways.get(IN_PARTS) or images
    return (
        CHECKPOINTING * checkpointed / max(1, units)
        + HALVING * math.log2(images / at_once)
        + EIGHT_BIT * (ways.get("optimizer") == "adamw8bit")
        + FACTORED * (ways.get("optimizer") == "adafactor")
        + STEP_IN_BACKWARD * (ways.get("fused_backward") == "yes")
        + NARROW_WEIGHTS * (ways.get("weights_dtype") == "bfloat16")
        + NARROW_BASE * (ways.get("base_precision") == "int8")
        + TILES * (ways.get("vae_tiling") == "yes")
    )


def _possible(settings: Settings, plan: Plan) -> bool:
    try:
        check_fused_backward(settings, plan.machine.mixed_precision, plan.processes)
        check_weights_dtype(settings, plan.machine.mixed_precision)
    except InputError:
        return False
    return True


# ---- what is said ----------------------------------------------------------------------------------------------------


def _chosen(choice: Choice, plain: Settings) -> tuple[str, ...]:
    """What was chosen that is not plain."""
    said = [
        f"{name}: {value_of(choice.settings, name)}"
        for name in (*PLAIN, IN_PARTS)
        if value_of(choice.settings, name) != value_of(plain, name)
    ]
    if not said:
        return ()
    return (
        f"{', '.join(said)} (auto, so that it fits: {_gb(choice.room.allowed)} GB of {choice.room.of} are "
        f"{'allowed' if _limited(choice.room) else 'free'}); set them yourself to have it otherwise",
    )


def _parts_in_vain(plan: Plan, choice: Choice, asked: Settings, scale: Scale) -> tuple[str, ...]:
    """A batch that was to go through in parts, and takes no less so: all gradients are kept from part to part."""
    if asked.training.forward_batch_size in range(1, images_of(choice.settings)):
        at_once = replace(plan, settings=with_ways(choice.settings, {IN_PARTS: 0}))
        whole = _training(scale.phases(at_once, choice.room.usable))
        parts = _training(choice.phases)
        if parts >= whole:
            return (
                f"forward_batch_size: {asked.training.forward_batch_size} saves no memory here: training takes "
                f"{_gb(parts)} GB with it and {_gb(whole)} GB with the whole batch at once, since all gradients are kept "
                "from part to part; 0 is quicker",
            )
    return ()


def _training(phases: Sequence[Phase]) -> int:
    return next(phase.bytes for phase in phases if phase.name == TRAINING)


def _limited(room: Room) -> bool:
    return bool(room.limit) and room.limit <= room.free


def _too_much(choice: Choice, asked: Settings) -> str:
    fullest, room = choice.fullest, choice.room
    return (
        f"this may not fit: {fullest.name} needs about {_gb(fullest.bytes)} GB, and of the {_gb(room.allowed)} GB of "
        f"{room.of} that are {'allowed' if _limited(room) else 'free'} {_gb(room.usable)} can be counted on; "
        f"{what_a_plan_leaves(choice.settings, asked)}"
    )


def _samples_too_much(phases: Sequence[Phase], room: Room) -> str:
    most = max(phase.bytes for phase in phases if phase.name in (SAMPLES, RESULT_SAMPLES))
    return (
        f"sample pictures take about {_gb(most)} GB, which may not fit beside the rest: one that does not is left out, and "
        "the training goes on"
    )


def _refuse(smallest: Choice, asked: Settings) -> None:
    """A limit that was named is kept; so is a card's size. The computer's memory can be lent by its disk."""
    room, need = smallest.room, smallest.fullest
    beyond_card = room.device == "cuda" and need.bytes > room.total
    if not beyond_card and not (_limited(room) and need.bytes > room.limit):
        return
    there = (
        f"{room.of} has {_gb(room.total)} GB" if beyond_card else f"vram_limit allows {room.limit / GB:g} GB"
    )
    help_ = what_a_plan_leaves(smallest.settings, asked)
    enough = f"set vram_limit to {room.limit_for(need.bytes):g} or more"
    if need.bytes <= MOST_TO_BE_SAVED * room.limit:
        enough = f"{enough}, or {help_}"
    raise InputError(
        f"the smallest setting needs about {_gb(need.bytes)} GB ({need.name}), and {there}",
        where="model" if beyond_card else "vram_limit",
        remedy=help_ if beyond_card else enough,
    )


def _gb(size: int) -> str:
    return f"{size / GB:.2f}"
