"""Why no plan is feasible: both numbers, the cause, the remedy."""

from __future__ import annotations

from dataclasses import replace

from llcompile.ir.errors import INFEASIBLE, CompileError
from llcompile.partition.clock import Clock
from llcompile.partition.formulation import least_workers, longest_stages
from llcompile.partition.many import outlook_of
from llcompile.partition.problem import HEAD, Problem
from llcompile.partition.solver import SolverStatus
from llrun.schema import WeightFormat

_NO_PLAN = "P201"

MORE_DISK = "more disk_bytes"
_SMALLER = ("a smaller --context", "more devices")


def size(count: float) -> str:
    """Bytes for people: 4.10 GiB, 512.0 MiB, 10 KiB."""
    for unit, name, digits in ((2**30, "GiB", 2), (2**20, "MiB", 1), (2**10, "KiB", 0)):
        if count >= unit:
            return f"{count / unit:.{digits}f} {name}"
    return f"{max(count, 0):.0f} bytes"


def check_possible(problem: Problem) -> None:
    """Raises CompileError P201 for the causes that need no solver."""
    if problem.head_alone():
        return
    causes = (
        _too_many_devices,
        _head_too_small,
        _disk_too_small,
        _block_too_large,
        _too_little_memory,
        _keep_too_large,
        _wish_too_large,
    )
    for fault in causes:
        text = fault(problem)
        if text:
            raise _error(text)


def refuse(problem: Problem, status: SolverStatus) -> CompileError:
    """The error for a problem that the solver found infeasible, or had no plan for when its time ran out."""
    if status is SolverStatus.INFEASIBLE:
        return _error(_no_arrangement(problem))
    return _error(
        f"none was found in {problem.options.time_limit_s:g} s, and none was ruled out. Use fewer devices or pins, or "
        "a longer --time-limit"
    )


def _error(text: str) -> CompileError:
    return CompileError(_NO_PLAN, f"no feasible plan: {text}", INFEASIBLE)


def _too_many_devices(problem: Problem) -> str | None:
    """--use-all: the head has the first and the last block, each worker at least one between them."""
    if not problem.options.use_all or len(problem.workers) <= max(problem.blocks - 2, 0):
        return None
    return (
        f"--use-all gives each of {len(problem.devices)} devices a block, with the first and the last of the model's "
        f"{problem.blocks} blocks on the head: at most {max(problem.blocks - 2, 0) + 1} devices. List fewer devices"
    )


def _head_too_small(problem: Problem) -> str | None:
    ends = [(0, 1), (problem.blocks - 1, problem.blocks)] if problem.blocks > 1 else [(0, 1)]
    need, free = problem.needed(ends), problem.free[HEAD]
    if need <= free:
        return None
    name = problem.devices[HEAD].name
    return (
        f"the first and the last block (embedding and output head) need {size(need)} on the head, {name} has "
        f"{_free_text(free)} free beside the runtime. {remedy_text(problem, 'a head with more memory')}"
    )


def _disk_too_small(problem: Problem) -> str | None:
    """The head's ends, or all disks together."""
    ends = [(0, 1), (problem.blocks - 1, problem.blocks)] if problem.blocks > 1 else [(0, 1)]
    need, room = problem.on_disk(ends), problem.disk[HEAD]
    if need > room:
        name = problem.devices[HEAD].name
        return (
            f"the files of the first and the last block have {size(need)}, disk_bytes leaves {name} {size(room)} "
            "beside the libraries. Give the head more disk_bytes"
        )
    need, room = problem.on_disk([(0, problem.blocks)]), sum(max(0.0, room) for room in problem.disk)
    if need <= room:
        return None
    files = f"the blocks' files have {size(need)}, disk_bytes leaves {size(room)} in all"
    return f"{files}. {remedy_text(problem, MORE_DISK)}"


def _block_too_large(problem: Problem) -> str | None:
    largest = max(range(len(problem.free)), key=lambda d: problem.free[d])
    block = max(range(problem.blocks), key=lambda b: problem.needed([(b, b + 1)]))
    need = problem.needed([(block, block + 1)])
    if need <= problem.free[largest]:
        return None
    return (
        f"block {block} needs {size(need)}, the largest device ({problem.devices[largest].name}) has "
        f"{_free_text(problem.free[largest])} free. {remedy_text(problem, *_SMALLER)}"
    )


def _too_little_memory(problem: Problem) -> str | None:
    weights = sum(cost.weights_bytes for cost in problem.costs)
    cache = sum(cost.cache_bytes for cost in problem.costs)
    free = sum(max(0, bytes_) for bytes_ in problem.free)
    if weights + cache <= free:
        return None
    return f"{_model_text(problem)}, the devices have {size(free)} free. {remedy_text(problem, *_SMALLER)}"


def _keep_too_large(problem: Problem) -> str | None:
    """--keep: the first and the last layers, with the ends of the model, on a head that cannot hold them."""
    pins = [pin for pin in problem.options.pins if pin.keep]
    if not pins:
        return None
    ranges, head = [(pin.start, pin.stop) for pin in pins], problem.devices[HEAD].name
    blocks = " and ".join(f"{pin.start} to {pin.stop - 1}" for pin in pins)
    need, free = problem.needed(ranges), problem.free[HEAD]
    if need > free:
        remedy = "Keep fewer layers, or use a head with more memory"
        return (
            f"{pins[0]} keeps blocks {blocks} on the head, which need {size(need)}; {head} has {_free_text(free)} "
            f"free. {remedy}"
        )
    files, room = problem.on_disk(ranges), problem.disk[HEAD]
    if files > room:
        return (
            f"{pins[0]} keeps blocks {blocks} on the head, whose files have {size(files)}; disk_bytes leaves {head} "
            f"{size(room)}. Keep fewer layers, or give the head more disk_bytes"
        )
    return None


def _wish_too_large(problem: Problem) -> str | None:
    """A pinned run of blocks on a device that cannot hold it; a device of --use-all that can hold none."""
    numbers = {device.name: d for d, device in enumerate(problem.devices)}
    for pin in (pin for pin in problem.options.pins if not pin.keep):
        d = numbers[pin.device]
        ends = [(0, 1), (problem.blocks - 1, problem.blocks)] if d == HEAD else []
        ranges = [(b, b + 1) for b in sorted({b for r in [*ends, (pin.start, pin.stop)] for b in range(*r)})]
        need = problem.needed(ranges)
        if need <= problem.free[d] and problem.on_disk(ranges) > problem.disk[d]:
            files, room = size(problem.on_disk(ranges)), size(problem.disk[d])
            return (
                f"{pin} needs files of {files} on {pin.device}, disk_bytes leaves it {room}. Pin fewer blocks"
            )
        if need > problem.free[d]:
            with_ends = " with the first and last" if d == HEAD else ""
            return (
                f"{pin} needs {size(need)}{with_ends} on {pin.device}, which has {_free_text(problem.free[d])} "
                "free. Pin fewer blocks"
            )
    if problem.options.use_all:
        for d, longest in zip(problem.workers, longest_stages(problem), strict=True):
            if longest == 0 and problem.disk[d] < problem.least_file:
                return (
                    f"--use-all: the smallest block's file has {size(problem.least_file)}, disk_bytes leaves "
                    f"{problem.devices[d].name} {size(max(problem.disk[d], 0))}. Leave out --use-all, or the device"
                )
            if longest == 0:
                least = min(problem.needed([(b, b + 1)]) for b in range(1, problem.blocks - 1))
                return (
                    f"--use-all: the smallest block needs {size(least)}, {problem.devices[d].name} has "
                    f"{_free_text(problem.free[d])} free. Leave out --use-all, or the device"
                )
    return None


def _no_arrangement(problem: Problem) -> str:
    free = sum(max(0, bytes_) for bytes_ in problem.free)
    text = f"{_model_text(problem)}, the devices have {size(free)} free in all"
    wishes = [*dict.fromkeys(map(str, problem.options.pins))]
    wishes += ["--use-all"] if problem.options.use_all else []
    if wishes and _fits_without(problem, wishes=True):
        return f"{text}, but no consecutive stages of whole blocks fit with {', '.join(wishes)}. Leave out one of these"
    if _fits_without(problem, disk=True):
        return (
            f"{text}, but no consecutive stages of whole blocks fit onto their disks as well. Use {MORE_DISK}"
        )
    if least_workers(problem) > len(problem.workers):
        fault = "but less in whole blocks: too few blocks fit on the devices together"
    else:
        fault = "but no consecutive stages of whole blocks fit into them"
    return f"{text}, {fault}. {remedy_text(problem, *_SMALLER)}"


def _fits_without(problem: Problem, wishes: bool = False, disk: bool = False) -> bool:
    """Whether there is a plan without what the user wishes, or without bounds of disks."""
    free = replace(problem.options, pins=(), use_all=False) if wishes else problem.options
    boundless = tuple(replace(device, disk_bytes=None) for device in problem.cluster.devices)
    cluster = replace(problem.cluster, devices=boundless) if disk else problem.cluster
    without = Problem(problem.costs, problem.flows, cluster, free)
    return outlook_of(without, 1.0, Clock(free.time_limit_s / 10)).best is not None


def _model_text(problem: Problem) -> str:
    weights = sum(cost.weights_bytes for cost in problem.costs)
    cache = sum(cost.cache_bytes for cost in problem.costs)
    return f"the model needs {size(weights + cache)} (weights {size(weights)}, cache {size(cache)})"


def remedy_text(problem: Problem, *others: str) -> str:
    """What would help, fewer bits first where there are fewer to be had."""
    ways = ["--quant q4", *others] if problem.options.precision.weights != WeightFormat.Q4 else list(others)
    return "Use " + ", or ".join([", ".join(ways[:-1]), ways[-1]] if len(ways) > 1 else ways)


def _free_text(free: int) -> str:
    return size(max(free, 0))
