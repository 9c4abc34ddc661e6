"""Where the components of a model go and which of them are in memory together: a choice by sizes alone.

Three stages follow each other: text encoder, transformer, autoencoder. A component needs the memory of its weights as
long as they are there, and that of its work while its stage lasts.

    resident     all weights stay
    sequential   text encoder and transformer take turns, the small autoencoder stays; where decoding does not fit
                 beside the transformer, that leaves before it
    streamed     the same, and of the transformer's blocks only as many stay as have room; the others come in turn,
                 each while the one before it is computed

Nothing here changes what is computed: components are moved and take turns, they are not quantized. Of what fits, the
first is taken that costs the least time and keeps every stage where it was asked for: resident, sequential, streamed,
and then the same with the text encoder on the CPU, whose bfloat16 rounds otherwise than an accelerator's.

Reference: `reference/weights.md` section 4; stable-diffusion.cpp's --auto-fit, ComfyUI's model management.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from max_zimage.device.memory import NotEnoughMemoryError
from max_zimage.device.mesh import groups_of
from max_zimage.device.offload import PLACES
from max_zimage.device.plans import (
    HOST,
    IN_TURNS,
    PLACEMENTS,
    STAGES,
    Change,
    Needs,
    Plan,
    Wish,
    weights_on,
    work_on,
)
from max_zimage.errors import RequestError
from max_zimage.host.sizes import sized


def place(needs: Needs, memory: Mapping[str, int], wish: Wish, changes: Sequence[Change] = ()) -> Plan:
    """Choose.

    Args:
        needs: What the components take.
        memory: Device -> bytes that can be taken there: those that are asked for, and the CPU.
        wish: What is asked for.
        changes: What else could be asked for, the smallest change first; one that fits is named in the error.

    Raises:
        NotEnoughMemoryError: If nothing fits, with a table of the components.
        RequestError: If streamed blocks are asked for, and the transformer has none.
    """
    if wish.placement == "streamed" and ("transformer" not in needs or needs["transformer"].streams is None):
        raise RequestError.of(
            "placement",
            "{field} must be one of {others}, got streamed: the transformer's weights cannot come block by block here; "
            "take auto, which chooses by what fits",
            others=", ".join(each for each in PLACEMENTS if each != "streamed"),
        )
    found = _first(needs, memory, wish)
    if found is not None:
        return found
    wanted = with_peaks(_wanted(needs, wish), needs)
    raise NotEnoughMemoryError(_refusal(needs, memory, wish, wanted, _ways_out(needs, memory, wish, changes)))


def everything_on(names: Sequence[str], groups: int = 1) -> Plan:
    """All components on one device.

    Args:
        names: That device, or several that compute together, the one with all components first.
        groups: In which several share branch rows.
    """
    mesh = tuple(names) if len(names) > 1 else ()
    # Whoever sends requests decides about guidance, and a server draws those of several together.
    return Plan(devices=dict.fromkeys(STAGES, names[0]), mesh=mesh, groups=groups, is_padded=bool(mesh))


def grouped(wish: Wish, *, is_guided: bool) -> Wish:
    """The wish with what its devices share, where that is left to the checkpoint.

    Args:
        wish: The wish.
        is_guided: Whether pictures have two branches by default.
    """
    if not wish.mesh:
        return wish
    groups = groups_of(wish.split, len(wish.mesh), is_guided=is_guided)
    return replace(wish, groups=groups, is_padded=wish.is_padded or is_guided)


def with_peaks(plan: Plan, needs: Needs) -> Plan:
    """The plan with the memory that it takes for what has these needs."""
    streams = plan.residency == "streamed" and plan.devices["transformer"] != HOST
    peaks = dict.fromkeys([*plan.devices.values(), *plan.mesh, *([HOST] if streams else [])], 0)
    for stage in (name for name in STAGES if name in needs):
        for device in peaks:
            own = sum(weights_on(device, plan, name, needs[name]) for name in _there(plan, stage))
            own += work_on(device, plan, stage, needs[stage])
            peaks[device] = max(peaks[device], own)
    return replace(plan, peaks=peaks)


def _first(needs: Needs, memory: Mapping[str, int], wish: Wish) -> Plan | None:
    allowed = _allowed(memory, wish)
    tried: list[Plan] = []
    for candidate in _candidates(needs, wish):
        plan = with_peaks(candidate, needs)
        if all(peak <= allowed[device] for device, peak in plan.peaks.items()):
            return replace(plan, why=_reason(plan, needs, tried, allowed, wish))
        tried.append(plan)
    return None


def _allowed(memory: Mapping[str, int], wish: Wish) -> dict[str, int]:
    """Bytes of each device that may be taken."""
    allowed = dict(memory)
    for device in {wish.devices["transformer"], *wish.mesh} if wish.max_memory is not None else ():
        allowed[device] = min(allowed[device], wish.max_memory or 0)
    return allowed


def _candidates(needs: Needs, wish: Wish) -> Iterator[Plan]:
    """What may be done, the best first."""
    devices = {name: wish.devices[name] for name in needs}
    plan = Plan(devices=devices, mesh=wish.mesh, groups=wish.groups, is_padded=wish.is_padded)
    if wish.placement in ("auto", "resident"):
        yield plan
    turns = replace(plan, residency="sequential")
    if wish.placement in ("auto", "sequential"):
        yield turns
        yield replace(turns, decodes_alone=True)
    if wish.placement in ("auto", "streamed"):
        yield from _streamed(needs, plan)
    can_move = plan.devices.get("text_encoder", HOST) != HOST and "text_encoder" not in wish.named
    if can_move and wish.placement == "auto":
        moved = {**plan.devices, "text_encoder": HOST}
        yield replace(plan, devices=moved)
        yield replace(turns, devices=moved, decodes_alone=True)
        yield from _streamed(needs, replace(plan, devices=moved))


def _streamed(needs: Needs, plan: Plan) -> Iterator[Plan]:
    """The plan with streamed blocks, as few of them as may be first."""
    streams = needs["transformer"].streams
    if streams is None:
        return
    # A number of blocks that have places enough need not be streamed.
    stays = [streams.count, *range(streams.count - PLACES - 1, -1, -1)]
    for alone in (False, True):
        for stay in stays:
            yield replace(plan, residency="streamed", decodes_alone=alone, stay=stay)


def _wanted(needs: Needs, wish: Wish) -> Plan:
    """What a refusal speaks of: the best of all that may be done, or of streamed blocks what takes least."""
    found = [*_candidates(needs, wish)]
    return found[-1] if wish.placement == "streamed" else found[0]


def _there(plan: Plan, stage: str) -> list[str]:
    """The components whose weights are in memory in a stage."""
    gone = {*plan.others_of(stage)}
    if stage == "vae" and plan.residency != "resident":
        gone = {"text_encoder", "transformer"} if plan.decodes_alone else {"text_encoder"}
    return [name for name in plan.devices if name not in gone]


def _reason(plan: Plan, needs: Needs, tried: Sequence[Plan], allowed: Mapping[str, int], wish: Wish) -> str:
    """What is done, and why nothing that comes before it."""
    where = {device: [name for name in STAGES if _is_on(device, plan, name)] for device in plan.peaks}
    said = "; ".join(
        f"{_listed(names) or 'waiting blocks'} on {device}, about {sized(peak)} of {sized(allowed[device])}"
        for (device, names), peak in zip(where.items(), plan.peaks.values(), strict=True)
    )
    steps = ["text encoder and transformer take turns"] if {*IN_TURNS} <= plan.devices.keys() else []
    if plan.residency == "streamed" and (streams := needs["transformer"].streams) is not None:
        few = f"{streams.count - plan.stay} of the transformer's {streams.count} blocks are streamed"
        steps.append(few if plan.stay < streams.count else f"all of the transformer's {streams.count} blocks have room")
    steps += ["the transformer leaves before decoding"] if plan.decodes_alone else []
    how = "all stay in memory" if plan.residency == "resident" or not steps else ", and ".join(steps)
    if wish.placement != "auto" or not tried:
        return f"{how}: {said}"
    main = wish.devices["transformer"]
    needed = tried[0].peaks[main]
    return f"{how}: {said} (with all of them there it would be {sized(needed)})"


def _is_on(device: str, plan: Plan, name: str) -> bool:
    return plan.devices.get(name) == device or (name == "transformer" and device in plan.mesh)


def _listed(names: Sequence[str]) -> str:
    words = [name.replace("_", " ") for name in names]
    return "".join(words) if len(words) < 2 else f"{', '.join(words[:-1])} and {words[-1]}"


def _ways_out(needs: Needs, memory: Mapping[str, int], wish: Wish, changes: Sequence[Change]) -> list[str]:
    """The smallest changes that fit: of what is asked for, or else of how much may be taken."""
    ways = []
    # Whatever is chosen, the same is drawn; on several devices everything stays.
    freed = wish if wish.mesh else replace(wish, placement="auto")
    if freed != wish and (plan := _first(needs, memory, freed)) is not None:
        ways.append(f'placement="{plan.residency if plan.devices == wish.devices else "auto"}"')
    for change in changes if not ways else ():
        if _first(change.needs, memory, freed) is not None:
            ways.append(change.words)
            break
    is_kept = "text_encoder" in wish.named or wish.mesh  # else it has been tried elsewhere
    if not ways and is_kept and "text_encoder" in needs and wish.devices["text_encoder"] != HOST:
        moved = replace(freed, devices={**wish.devices, "text_encoder": HOST})
        if _first(needs, memory, moved) is not None:
            ways.append(f'encoder_device="{HOST}"')
    if wish.max_memory is not None:
        limited = {wish.devices["transformer"], *wish.mesh}
        plans = [with_peaks(each, needs) for each in _candidates(needs, wish)]
        fits = [each for each in plans if all(peak <= memory[device] for device, peak in each.peaks.items())]
        if fits:
            least = min(max(each.peaks[device] for device in limited) for each in fits)
            ways.append(f"max_memory={_rounded_up(least)}")
    return ways


def _rounded_up(count: int) -> str:
    """Bytes as `max_memory` takes them, in whole MiB and no fewer."""
    return f'"{-(-count // 2**20)}MiB"'


def _refusal(needs: Needs, memory: Mapping[str, int], wish: Wish, wanted: Plan, ways: Sequence[str]) -> str:
    allowed = _allowed(memory, wish)
    rows = [
        f"  {name:<12} on {wanted.devices[name]:<6} weights {sized(each.weights):>9}, work {sized(each.work):>9}"
        for name, each in needs.items()
    ]
    there = "; ".join(
        f"{device} has {sized(allowed[device])} for them, {sized(peak)} are needed"
        for device, peak in wanted.peaks.items()
    )
    out = f"{' or '.join(ways)} would fit" if ways else "nothing that could be changed would fit: take a larger device"
    return "\n".join([f"the model does not fit (placement {wish.placement}): {there}; {out}", *rows])
