"""How far a run is, while it is made and afterwards; read without torch, in a moment."""

import shlex
import statistics
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ld3m.errors import counted
from ld3m.evaluation.rows import augmented, best_figures, has_learnt, results, set_name
from ld3m.machine import lock
from ld3m.reading import unless_unreadable
from ld3m.recipe.rendering import SamplerRecipe
from ld3m.runs import manifests, metrics
from ld3m.runs.folder import (
    SAMPLING,
    SAMPLING_PARTS,
    document,
    iterations_done,
    iterations_saved,
    load_recipe,
    progress,
)

CHEAP = 2**28
"""Bytes of a checkpoint up to which all of it is looked at; of a larger one, whether the rest is there."""
RECENT = 20
"""Logged iterations by which the rate is measured."""
LOOK_AT = (
    "images",
    "grid.png",
    "real.png",
    "evolution.gif",
    "evolution",
    "metrics.jsonl",
    "evaluation.json",
    "report.html",
    "logs",
)
"""What people look at in a run's folder, if it exists."""


@dataclass(frozen=True)
class Status:
    """What `ld3m status` prints; None for what the run's folder does not say."""

    run: str
    state: str
    """running, stopped, finished, or unknown if the system does not let us see whether a process is at work."""
    iteration: int
    """Iterations done, as far as they are logged or saved."""
    iterations: int
    """Iterations that the recipe asks for."""
    loss_first: float | None
    """In the first logged iteration."""
    loss: float | None
    """In the last logged iteration, as are the following numbers."""
    grad_z: float | None
    grad_c: float | None
    learnt: dict[str, float]
    """What the objective learns beside Z and c, such as the step size of `mtt`."""
    peak_memory: int | None
    """Most bytes that a process has used; on a GPU, by its tensors."""
    damaged_lines: int
    """Lines of metrics.jsonl that cannot be read and were skipped."""
    iterations_per_second: float | None
    """Of recent iterations, by their logged seconds, which leave out what is saved and drawn between them."""
    seconds_left: float | None
    """None unless the run is running."""
    last_logged: str | None
    """Time of the last logged iteration, in UTC."""
    seconds_since_logged: float | None
    checkpoint: int | None
    """The iteration from which the newest checkpoint that is whole resumes."""
    newest_is_damaged: bool
    """Whether there is a later one, which is not."""
    unread: list[str]
    """What could not be read, a line each; all else is shown without it."""
    objective: str
    sampling: str
    """How Z was sampled; empty if it was not."""
    classes_kept: int
    """Classes of which a sampling that is not finished keeps images."""
    prior: str
    """Its source, and the decaying skip and the steps if it has any."""
    evaluation: list[dict[str, Any]]
    """What `ld3m evaluate` measured: trained_on, arch, split, augment, mean, std, the number of seeds, and how the
    networks were trained."""
    look_at: list[str]


def read(folder: Path) -> Status:
    """The status of a run.

    Raises:
        UserError: if the folder is not a run, or its recipe cannot be read.
    """
    at_work = lock.is_held(folder)  # first: a run that ends meanwhile is reported as running, never as stopped
    recipe, unread = load_recipe(folder), list[str]()
    logged = unless_unreadable(unread, metrics.Metrics([], 0), metrics.read, folder)
    iterations, done, rows = recipe.distill.iterations, progress(folder, logged, unread), logged.rows
    saved, checkpoint = _checkpoints(folder, unread, changing=bool(at_work))
    evaluation = unless_unreadable(unread, [], _evaluation, folder)
    last = rows[-1] if rows else {}
    state = {True: "running", False: "stopped", None: "unknown"}[at_work]
    if not at_work and unless_unreadable([], None, iterations_done, folder) == iterations:
        state = "finished"
    seconds = [metrics.seconds(row) for row in rows[-RECENT:]]
    typical = statistics.median(seconds) if seconds else 0.0
    written = (folder / metrics.FILE).stat().st_mtime if rows else None
    return Status(
        run=str(folder),
        state=state,
        iteration=done,
        iterations=iterations,
        loss_first=rows[0].get("loss") if rows else None,
        loss=last.get("loss"),
        grad_z=last.get("grad_z"),
        grad_c=last.get("grad_c"),
        learnt={key: value for key, value in last.items() if key not in metrics.COMMON},
        peak_memory=last.get("peak_memory"),
        damaged_lines=logged.damaged,
        iterations_per_second=1 / typical if typical else None,
        seconds_left=(iterations - done) * typical if typical and state == "running" else None,
        last_logged=datetime.fromtimestamp(written, UTC).isoformat(timespec="seconds") if written else None,
        seconds_since_logged=round(max(0.0, time.time() - written), 1) if written else None,
        checkpoint=checkpoint,
        newest_is_damaged=checkpoint != saved,
        unread=list(dict.fromkeys(unread)),
        objective=recipe.distill.objective,
        sampling=recipe.sampling_text + _took(folder, unread),
        classes_kept=len({path.name.rpartition("-")[0] for path in (folder / SAMPLING_PARTS).glob("*.safetensors")}),
        prior=_prior(recipe.prior),
        evaluation=evaluation,
        look_at=[name for name in LOOK_AT if (folder / name).exists()],
    )


def _checkpoints(folder: Path, unread: list[str], changing: bool) -> tuple[int | None, int | None]:
    """The iterations of the newest checkpoint and of the newest whole one; not looked at while they are changing."""
    saved = unless_unreadable([], None, iterations_saved, folder)
    if changing or saved is None:
        return saved, saved
    newest = manifests.newest(folder, unread.append, CHEAP)
    return saved, int(newest.name) if newest else None


def _prior(prior: SamplerRecipe) -> str:
    if prior.source == "pixels":
        return "none: pixels"
    how = f"skip {prior.skip}, {prior.steps_text}" if prior.steps else "the autoencoder alone"
    return f"{prior.source}, {how}"


def _took(folder: Path, unread: list[str]) -> str:
    """What the sampling of a run took; empty if it is not finished, or nothing was sampled."""
    seconds = unless_unreadable(unread, {}, document, folder, SAMPLING).get("seconds")
    return f", {metrics.duration(seconds)}" if seconds else ""


def _evaluation(folder: Path) -> list[dict[str, Any]]:
    keys = ("trained_on", "arch", "split", "mean", "std")
    return [
        {
            **{key: row[key] for key in keys},
            "augment": augmented(row),
            "seeds": len(row["accuracies"]),
            **({"by": row["protocol"]["name"]} if "name" in row["protocol"] else {}),
            **{key: row["protocol"][key] for key in ("epochs", "batch", "lr", "ema")},
            **({"best": best} if (best := best_figures(row)) else {}),
            "has_learnt": has_learnt(row),
        }
        for row in results(folder)
    ]


# --- as text -----------------------------------------------------------------------------------------------


def text(status: Status) -> str:
    """A status for people, one line per fact that is known."""
    head = f"{status.run}: {status.state}, nothing is learnt"
    if status.iterations:
        share = 100 * status.iteration // status.iterations
        head = f"{status.run}: {status.state}, iteration {status.iteration:,} of {status.iterations:,} ({share} %)"
    known = {name: value for name, value in _lines(status).items() if value}
    width = max(map(len, known)) + 2
    lines = [f"  {name:<{width}}{value}" for name, value in known.items()]
    return "\n".join([head, *lines, *(f"  not shown: {line}" for line in status.unread)])


def _lines(status: Status) -> dict[str, str]:
    rate, left, since = status.iterations_per_second, status.seconds_left, status.seconds_since_logged
    losses = (status.loss_first, status.loss)
    kept = status.classes_kept
    so_far = f"; images of {kept} class{'es' * (kept > 1)} are kept so far" if kept else ""
    lines = {
        "loss": " → ".join(f"{loss:.5g}" for loss in losses if loss is not None),
        "gradient norms": _labelled(status.grad_z, "Z") + _labelled(status.grad_c, ", c"),
        **{f"learnt {name}": f"{value:.5g}" for name, value in status.learnt.items()},
        "rate": _rate(rate) if rate else "",
        "peak memory": f"{status.peak_memory / 2**30:,.2f} GiB" if status.peak_memory else "",
        "time left": f"about {metrics.duration(left)}" if left is not None else "",
        "damaged lines": f"{status.damaged_lines} in {metrics.FILE}, skipped" if status.damaged_lines else "",
        "last logged": f"{metrics.duration(since)} ago" if since is not None else "",
        "checkpoint": f"iteration {status.checkpoint:,}" if status.checkpoint is not None and status.iterations else "",
        "objective": status.objective if status.iterations else "",
        "sampling": status.sampling + so_far,
        "prior": status.prior,
    }
    if status.newest_is_damaged:
        lines["checkpoint"] = f"{lines['checkpoint'] or 'none that is whole'} (the newest is damaged)"
    if status.state == "stopped":
        begin = f"from iteration {status.checkpoint:,}" if status.checkpoint else "from the beginning"
        if status.classes_kept:
            begin = "after the images that are kept"
        recipe = shlex.quote(str(Path(status.run) / "recipe.yaml"))
        command = f"ld3m distill {recipe} -o {shlex.quote(status.run)}"
        lines["to resume"] = f"the same command, or {command}, resumes {begin}"
    elif status.state == "unknown":
        lines["running"] = f"cannot tell: no access to {Path(status.run) / lock.LOCK}"
    for row in status.evaluation:
        how = f"{row['split']}, {row['by']}" if "by" in row else row["split"]
        networks = f"{set_name(row)} {row['arch']} ({how}, epochs {row['epochs']}, lr {row['lr']:g})"
        spread = "" if row["std"] is None or row["seeds"] == 1 else f" ± {row['std']:.2f}"
        seeds = counted(row["seeds"], "seed")
        learnt = "" if row["has_learnt"] else ", has not learnt"
        best = f", best {row['best']['mean']:.2f} %" if "best" in row else ""
        lines[f"accuracy, {networks}"] = f"{row['mean']:.2f}{spread} %, {seeds}{best}{learnt}"
    return lines | {"look at": ", ".join(status.look_at)}


def _labelled(value: float | None, label: str) -> str:
    return "" if value is None else f"{label} {value:.4g}"


def _rate(rate: float) -> str:
    return f"{rate:.3g} iterations/s" if rate >= 1 else f"{1 / rate:.3g} s per iteration"
