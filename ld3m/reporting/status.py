"""What a run folder tells of its run while it is made and afterwards; read without PyTorch, in a moment."""

import json
import shlex
import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import safetensors
import yaml

from ld3m.errors import UserError, one_line, user_error_if_damaged
from ld3m.evaluation.rows import augmented, results, set_name
from ld3m.machine import lock

RECENT = 20
"""Logged iterations that the rate is of."""
PLACES = ("images", "grid.png", "evolution.gif", "evolution", "metrics.jsonl", "evaluation.json", "report.html", "logs")
"""What people look at, where it is there."""


@dataclass(frozen=True)
class Status:
    """What `ld3m status` prints; None where the run does not say."""

    run: str
    state: str
    """running, stopped, finished, or unknown where the system does not let us see whether a process is at work."""
    iteration: int
    """Iterations done, as far as they are logged or saved."""
    iterations: int
    """All that the recipe asks for."""
    loss_first: float | None
    """Of the first logged iteration."""
    loss: float | None
    """Of the last one, as the following numbers are."""
    grad_z: float | None
    grad_c: float | None
    learnt: dict[str, float]
    """What the objective learns beside Z and c, such as the step size of "mtt"."""
    peak_memory: int | None
    """Bytes: the most that a process has had, of a GPU its tensors."""
    iterations_per_second: float | None
    """Of recent iterations, by their logged seconds, which leave out what is saved and drawn between them."""
    seconds_left: float | None
    """Of a running run."""
    last_logged: str | None
    """When, in UTC."""
    seconds_since_logged: float | None
    checkpoint: int | None
    """The iteration that the newest checkpoint goes on with."""
    objective: str
    prior: str
    """Where it is from, the decaying skip and the steps."""
    evaluation: list[dict[str, Any]]
    """What `ld3m evaluate` measured: trained_on, arch, split, augment, mean, std, and the number of seeds."""
    look_at: list[str]


def find(names: Sequence[str]) -> Path:
    """A run's folder, finished or not; without a name, the newest below runs/, where something was written last.

    Raises:
        UserError: where there is none, or several are named.
    """
    if len(names) > 1:
        raise UserError(f"RUN: give one run, not {len(names)}: {', '.join(names)}")
    if names:
        folder = Path(names[0])
        if not (folder / "recipe.yaml").is_file():
            raise UserError(f"RUN: {folder} is not a run (it has no recipe.yaml)")
        return folder
    runs = [path.parent for path in Path("runs").glob("*/recipe.yaml")]
    if not runs:
        raise UserError("RUN: there is no run below runs/; make one with ld3m distill quickstart")
    return max(runs, key=_touched)


def _touched(folder: Path) -> float:
    names = ("recipe.yaml", "metrics.jsonl", "latents.safetensors")
    return max((folder / name).stat().st_mtime for name in names if (folder / name).is_file())


def read(folder: Path) -> Status:
    """The status of a run.

    Raises:
        UserError: where the folder's recipe.yaml is none.
    """
    at_work = lock.is_held(folder)  # first: a run that ends meanwhile is told as running, never as stopped
    recipe = _recipe(folder / "recipe.yaml")
    iterations, checkpoint, rows = recipe["distill"]["iterations"], _checkpoint(folder), _rows(folder)
    last = rows[-1] if rows else {}
    done = max(last.get("iteration", -1) + 1, checkpoint or 0)
    state = {True: "running", False: "stopped", None: "unknown"}[at_work]
    if not at_work and _finished(folder) == iterations:
        state = "finished"
    seconds = [sum(row["seconds"].values()) for row in rows[-RECENT:]]
    typical = statistics.median(seconds) if seconds else 0.0
    logged = (folder / "metrics.jsonl").stat().st_mtime if rows else None
    named = ("iteration", "loss", "grad_z", "grad_c", "peak_memory", "seconds")
    return Status(
        run=str(folder),
        state=state,
        iteration=done,
        iterations=iterations,
        loss_first=rows[0]["loss"] if rows else None,
        loss=last.get("loss"),
        grad_z=last.get("grad_z"),
        grad_c=last.get("grad_c"),
        learnt={key: value for key, value in last.items() if key not in named},
        peak_memory=last.get("peak_memory"),
        iterations_per_second=1 / typical if typical else None,
        seconds_left=(iterations - done) * typical if typical and state == "running" else None,
        last_logged=datetime.fromtimestamp(logged, UTC).isoformat(timespec="seconds") if logged else None,
        seconds_since_logged=round(max(0.0, time.time() - logged), 1) if logged else None,
        checkpoint=checkpoint,
        objective=recipe["distill"]["objective"],
        prior=f"{recipe['prior']['source']}, skip {recipe['prior']['skip']}, {recipe['prior']['steps']} steps",
        evaluation=_evaluation(folder),
        look_at=[name for name in PLACES if (folder / name).exists()],
    )


def _recipe(path: Path) -> dict[str, Any]:
    """The recipe as the run wrote it; not validated, for its data and prior may be elsewhere by now."""
    try:
        recipe: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        _ = recipe["distill"]["iterations"], recipe["distill"]["objective"]
        _ = recipe["prior"]["source"], recipe["prior"]["skip"], recipe["prior"]["steps"]
    except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError) as error:
        raise UserError(f"RUN: {path} is not a run's recipe ({one_line(error)})") from None
    return recipe


def _rows(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; one that is just being written, or was when the process died, is left out."""
    path = folder / "metrics.jsonl"
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        with suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def _checkpoint(folder: Path) -> int | None:
    return max((int(path.parent.name) for path in folder.glob("checkpoints/*/manifest.json")), default=None)


def _finished(folder: Path) -> int | None:
    """The iterations of the result, which is there once the run is finished."""
    path = folder / "latents.safetensors"
    if not path.is_file():
        return None
    with (
        user_error_if_damaged(path, "remove it, and ld3m distill makes it again"),
        safetensors.safe_open(path, "np") as file,
    ):
        return int(file.metadata()["iteration"])


def _evaluation(folder: Path) -> list[dict[str, Any]]:
    keys = ("trained_on", "arch", "split", "mean", "std")
    return [
        {**{key: row[key] for key in keys}, "augment": augmented(row), "seeds": len(row["accuracies"])}
        for row in results(folder)
    ]


# --- as text -----------------------------------------------------------------------------------------------


def text(status: Status) -> str:
    """A status for people: what is there, a line each."""
    share = f" ({100 * status.iteration // status.iterations} %)" if status.iterations else ""
    head = f"{status.run}: {status.state}, iteration {status.iteration:,} of {status.iterations:,}{share}"
    said = {name: value for name, value in _lines(status).items() if value}
    width = max(map(len, said)) + 2
    return "\n".join([head, *(f"  {name:<{width}}{value}" for name, value in said.items())])


def _lines(status: Status) -> dict[str, str]:
    rate, left, since = status.iterations_per_second, status.seconds_left, status.seconds_since_logged
    losses = (status.loss_first, status.loss)
    lines = {
        "loss": " → ".join(f"{loss:.5g}" for loss in losses if loss is not None),
        "gradient norms": _named(status.grad_z, "Z") + _named(status.grad_c, ", c"),
        **{f"learnt {name}": f"{value:.5g}" for name, value in status.learnt.items()},
        "rate": _rate(rate) if rate else "",
        "peak memory": f"{status.peak_memory / 2**30:,.2f} GiB" if status.peak_memory else "",
        "time left": f"about {duration(left)}" if left is not None else "",
        "last logged": f"{duration(since)} ago" if since is not None else "",
        "checkpoint": f"iteration {status.checkpoint:,}" if status.checkpoint is not None else "",
        "objective": status.objective,
        "prior": status.prior,
    }
    if status.state == "stopped":
        begun = f"from iteration {status.checkpoint:,}" if status.checkpoint else "from the beginning"
        recipe = shlex.quote(str(Path(status.run) / "recipe.yaml"))
        command = f"ld3m distill {recipe} -o {shlex.quote(status.run)}"
        lines["to go on"] = f"the same command, or {command}, goes on {begun}"
    elif status.state == "unknown":
        lines["running"] = f"cannot tell: no access to {Path(status.run) / lock.LOCK}"
    for row in status.evaluation:
        what = f"{set_name(row)} {row['arch']} ({row['split']})"
        lines[f"accuracy, {what}"] = f"{row['mean']:.2f} ± {row['std']:.2f} %, {row['seeds']} seeds"
    return lines | {"look at": ", ".join(status.look_at)}


def _named(value: float | None, name: str) -> str:
    return "" if value is None else f"{name} {value:.4g}"


def _rate(rate: float) -> str:
    return f"{rate:.3g} iterations/s" if rate >= 1 else f"{1 / rate:.3g} s an iteration"


def duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 3 min 20 s, 5 h 12 min, 2 d 4 h."""
    whole = round(seconds)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
