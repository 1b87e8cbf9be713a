"""Facts about a run in words: model, data, machine, versions and time."""

import math
from collections.abc import Callable
from typing import Any

from ssljax.report.read import Run

_PARTS = {
    "start": "start and compilation",
    "waiting": "waiting for data",
    "evaluations": "evaluations",
    "checkpoints": "checkpoints",
    "lost": "steps done again",
}


def title(run: Run) -> str:
    """Returns "OBJECTIVE on SOURCE", or the name of the folder."""
    parts = (_get(run.config, "objective", "name"), _source(run))
    return " on ".join(str(part) for part in parts if part) or run.workdir.name


def headline(run: Run) -> list[str]:
    """Returns the facts below the title: workdir, model, devices, steps, examples, time."""
    facts = [f"workdir {run.workdir.name}"]
    if model := _model(run):
        facts.append(f"model {model}")
    if run.starts:
        facts.append(_devices(run.starts[-1]))
    if run.metrics:
        last = run.metrics[-1]
        facts.append(f"{last['step']:,} steps")
        if last.get("examples"):
            facts.append(f"{last['examples']:,} examples seen")
    if seconds := _total(run):
        facts.append(duration(seconds))
    if run.metrics and (skipped := run.metrics[-1].get("skipped_steps")):
        facts.append(f"{skipped:,.0f} steps skipped as not finite")
    return facts


def description(run: Run) -> dict[str, str]:
    """Returns {name: text} of the facts about a run that its files have, in the order in which they are shown.

    A fact that changed between starts is given once for each value, in their order. A workdir of a version that wrote
    no starts.jsonl has fewer facts.
    """
    length = [
        f"{_number(run, 'steps'):,} steps" if _number(run, "steps") else "",
        f"of {run.config['batch_size']:,} examples" if isinstance(run.config.get("batch_size"), int) else "",
        f"= {_number(run, 'epochs'):,.4g} epochs" if _number(run, "epochs") else "",
    ]
    found = {
        "workdir": str(run.workdir.resolve()),
        "objective": str(_get(run.config, "objective", "name") or ""),
        "model": _model(run),
        "data": _data(run),
        "length": " ".join(filter(None, length)),
        "FLOPs": f"{_number(run, 'flops'):.3g}" if _number(run, "flops") else "",
        "gradient noise scale": f"not measured: {reason}" if (reason := _no_noise_scale(run)) else "",
        "seed": str(run.config.get("seed", "")),
        "devices": _over_starts(run, _devices),
        "host": _over_starts(run, lambda start: _joined(start, "host", "platform")),
        "versions": _over_starts(run, _versions),
        "commit": _over_starts(run, lambda start: _joined(start, "commit")),
        "command": _over_starts(run, lambda start: _joined(start, "command")),
        "started": "; ".join(_moment(start) for start in run.starts),
        "time": time_of(run),
    }
    return {name: text for name, text in found.items() if text}


def _no_noise_scale(run: Run) -> str:
    return str(run.starts[-1].get("no_gradient_noise_scale") or "") if run.starts else ""


def duration(seconds: float) -> str:
    """Returns a time in seconds, minutes or hours: `90 s`, `3.2 min`, `2.5 h`."""
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _source(run: Run) -> str:
    mixture = _get(run.config, "data", "mixture")
    return str(_get(run.config, "data", "source") or ("a mixture" if mixture else ""))


def _model(run: Run) -> str:
    """Returns name, preset and number of parameters of the model."""
    names = [_get(run.config, "model", "name"), _get(run.config, "model", "preset")]
    count = _number(run, "parameters")
    parameters = [f"{count:,} parameters with all heads"] if count else []
    return ", ".join([*(str(name) for name in names if name), *parameters])


def _data(run: Run) -> str:
    """Returns source, number of examples, shapes, classes and tokens of the data."""
    elements = run.data.get("elements")
    shapes = [
        f"{name} {element.get('shape')} {element.get('dtype')}"
        for name, element in (elements.items() if isinstance(elements, dict) else ())
        if isinstance(element, dict) and name != "id"
    ]
    counts = [
        f"{value:,} {name.replace('size', 'examples').replace('num_', '').replace('vocab_examples', 'token ids')}"
        for name in ("size", "num_classes", "tokens", "vocab_size")
        if isinstance(value := run.data.get(name), int)
    ]
    mixture = _get(run.config, "data", "mixture")
    parts = mixture if isinstance(mixture, list) else []
    sources = [str(part["source"]) for part in parts if isinstance(part, dict) and "source" in part]
    return ", ".join([*filter(None, [" + ".join(sources) or _source(run)]), *counts, *shapes])


def _devices(start: dict[str, Any]) -> str:
    """Returns number and kind of the devices, with the axes of the mesh that share the work."""
    sizes = {axis: size for axis, size in start["mesh"].items() if size and size > 1}
    count = math.prod(sizes.values())
    axes = ", ".join(f"{axis} {size}" for axis, size in sizes.items())
    processes = start.get("processes", 1)
    several = f", {processes} processes" if isinstance(processes, int) and processes > 1 else ""
    return f"{count} × {start.get('device_kind', 'device')}" + (f" ({axes})" if axes else "") + several


def _versions(start: dict[str, Any]) -> str:
    versions = start.get("versions")
    named = versions.items() if isinstance(versions, dict) else ()
    return ", ".join([f"Python {start.get('python')}", *(f"{name} {version}" for name, version in named)])


def _moment(start: dict[str, Any]) -> str:
    return f"{start['time'][:16].replace('T', ' ')} UTC" + (f" from step {start['step']:,}" if start["step"] else "")


def _total(run: Run) -> float:
    """Returns the time of all starts, or the last `seconds` of metrics.jsonl for a workdir without starts.jsonl."""
    if run.starts:
        return sum(start["seconds"].get("total") or 0.0 for start in run.starts)
    seconds = run.metrics[-1].get("seconds") if run.metrics else None
    return seconds if isinstance(seconds, int | float) else 0.0


def time_of(run: Run) -> str:
    """Returns the time of all starts and its parts; training is what remains of the total ("goodput")."""
    total = _total(run)
    if not run.starts or not total:
        return duration(total) if total else ""
    spent = {name: sum(start["seconds"].get(part) or 0.0 for start in run.starts) for part, name in _PARTS.items()}
    parts = {"training": max(total - sum(spent.values()), 0.0), **spent}
    if not parts[_PARTS["lost"]]:  # no start was killed
        del parts[_PARTS["lost"]]
    shown = (f"{name} {duration(seconds)} ({100 * seconds / total:.0f} %)" for name, seconds in parts.items())
    return f"{duration(total)}: {', '.join(shown)}"


def _over_starts(run: Run, text: Callable[[dict[str, Any]], str]) -> str:
    return "; then ".join(dict.fromkeys(filter(None, map(text, run.starts))))


def _joined(start: dict[str, Any], *keys: str) -> str:
    return ", ".join(str(start[key]) for key in keys if start.get(key))


def _number(run: Run, key: str) -> float:
    """Returns a number of the newest start; 0: unknown."""
    value = run.starts[-1].get(key) if run.starts else None
    return value if isinstance(value, int | float) else 0


def _get(values: dict[str, Any], *keys: str) -> Any:
    """Returns a nested value; None if it is missing."""
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None  # type: ignore[assignment]
    return values
