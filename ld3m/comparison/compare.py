"""Several sets, and real images beside them, measured under one protocol: what is missing is trained, all is kept."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ld3m.comparison import page, table
from ld3m.comparison.named_sets import sets_and_recipe
from ld3m.comparison.published import Figure, read_figures
from ld3m.comparison.rows import general_notes, same_content, shared_protocol, varying, with_accuracies
from ld3m.comparison.sets import PREFIX, REAL, Measured, check, check_classes, counts, describe, folder_of, notes
from ld3m.comparison.significance import pairwise
from ld3m.data.prepared import ImageSet
from ld3m.errors import UserError
from ld3m.evaluation.evaluate import check_archs, measure_rows, prepare_to_test
from ld3m.evaluation.measure import Evaluation
from ld3m.evaluation.protocols import augments
from ld3m.evaluation.rows import Row, results
from ld3m.evaluation.training_sets import BASELINES, TrainingSets, check_teacher
from ld3m.files import cache_folder, writable, write_json, write_text
from ld3m.machine import environment
from ld3m.machine.determinism import repeatable
from ld3m.machine.memory import keep_freed_memory
from ld3m.machine.processes import Processes, watched_command
from ld3m.reading import unless_unreadable
from ld3m.recipe import Recipe
from ld3m.runs.folder import load_recipe
from ld3m.runs.options import Reading

FILE = "comparison"
"""The name of what is written, with .json, .md, .html and .svg after it."""


def compare(
    names: Sequence[str],
    overrides: Sequence[str],
    recipe: str | None,
    reading: Reading,
    against: Sequence[str],
    published: Path | None,
    split: str,
    again: bool,
    output: Path | None,
    command: str = "",
) -> tuple[dict[str, Any], Path, bool]:
    """Compares sets that a command line names, whose options these are, by the recipe that it names or theirs.

    Returns:
        What comparison.json holds, the folder that it is in, and whether this process is the one to print it.

    Raises:
        UserError: for an unknown set, a mistake in the recipe or in the published figures, and as `compare_sets`.
    """
    sets, measured_by = sets_and_recipe(names, recipe, list(overrides), reading)
    figures = read_figures(published, sets) if published else []
    folder = output or folder_of(sets)
    report, is_main = compare_sets(sets, measured_by, folder, against, figures, split, again, command)
    return report, folder, is_main


@watched_command
def compare_sets(
    processes: Processes,
    sets: Mapping[str, tuple[str, Path]],
    recipe: Recipe,
    output: Path,
    against: Sequence[str],
    published: Sequence[Figure],
    split: str,
    again: bool,
    command: str,
) -> tuple[dict[str, Any], bool]:
    """Trains networks on several sets by one protocol and writes the comparison, as JSON, Markdown, HTML and SVG.

    Networks are dealt to the processes of a launch. Each accuracy is kept in the cache by the content of its set, for
    good: an interrupted comparison resumes, and another one with some of the same sets trains only what is new. What a
    set's own evaluation.json has by the same protocol is not measured again either. Nothing is written into the sets.

    Baselines have as many real images of each class as a set; sets of other numbers have baselines of their own.

    Args:
        sets: by the name in the table, what the command line called it and its folder, in the layout of a run.
        against: names of `BASELINES`.

    Returns:
        What comparison.json holds, and whether this process is the one to print it.

    Raises:
        UserError: for what cannot be compared, an unknown architecture, baseline or split.
        SystemExit: after an interrupt; the same call resumes.
    """
    if unknown := [name for name in against if name not in BASELINES]:
        raise UserError(f"--against: {unknown[0]!r} is not known; known are {', '.join(BASELINES)}; sets go before it")
    if len(sets) + len(against) + len(published) < 2:
        raise UserError("SET: give two or more, or one with --against random or --published FILE")
    if recipe.evaluate.lr == "learnt":
        raise UserError("evaluate.lr: learnt is a rate of each set's own, and a comparison has one; give a number")
    check_archs(recipe)
    check_teacher(recipe, [folder for _, folder in sets.values()], against)
    for argument, folder in sets.values():
        check(argument, folder, recipe)
    if processes.is_main_process:
        writable(output, "give --output FOLDER")
    keep_freed_memory()
    rows, measured = list[Row](), list[Measured]()
    with repeatable(processes.device, recipe.tf32, warn_only=True):  # networks of other packages may not be repeatable
        images = prepare_to_test(recipe, split, processes.is_main_process)
        for argument, folder in sets.values():
            check_classes(argument, folder, images)
        groups = list(_groups({name: folder for name, (_, folder) in sets.items()}, images))
        asked = list[tuple[Evaluation, list[Row]]]()
        for number, group in enumerate(groups):
            folders: dict[str, Path | None] = {f"{PREFIX}{name}": folder for name, folder in group.items()}
            folders |= dict.fromkeys(name for name in against if name != "full" or number == 0)
            evaluation = _evaluation(processes, folders, recipe, images, split)
            asked.append((evaluation, _earlier(group, processes.is_main_process)))
        done = zip(groups, asked, measure_rows(processes, asked, recipe, again), strict=True)
        for number, (group, (evaluation, _), (found, _)) in enumerate(done):
            with_set, made = next(iter(group)) if len(groups) > 1 else None, evaluation.sets
            names = {each: _name(each, with_set) for each in evaluation.digests}
            rows += [{**row, "trained_on": names[row["trained_on"]]} for row in found]
            measured += [describe(each, name, made.folders.get(each), number, made) for each, name in names.items()]
    measured.sort(key=lambda each: each.kind == REAL)
    of_sets = [line for name, (_, folder) in sets.items() for line in notes(name, folder, images, recipe)]
    report = {
        "command": command,
        "data": recipe.data.source,
        "classes": len(images.classes),
        "split": split,
        "tested_on": sum(images.counts[split]),
        "protocol": shared_protocol(rows),
        "sets": with_accuracies(measured, rows),
        "published": [figure.model_dump() for figure in published],
        "differences": pairwise(measured, rows),
        "notes": [*of_sets, *same_content(rows), *varying(rows), *general_notes(rows, images.caveat)],
        "results": rows,
        "machine": environment.machine() | {"processes": processes.num_processes},
    }
    if processes.is_main_process:
        write(output, report)
    processes.wait_for_everyone()
    return report, processes.is_main_process


def write(output: Path, report: Mapping[str, Any]) -> None:
    """Writes a comparison in all its forms."""
    write_json(output / f"{FILE}.json", report)
    write_text(output / f"{FILE}.svg", page.draw(report))
    write_text(output / f"{FILE}.md", table.markdown(report))
    write_text(output / f"{FILE}.html", page.html(report))


def _groups(folders: Mapping[str, Path], images: ImageSet) -> Iterator[dict[str, Path]]:
    """The sets by how many images of each class they have, and how many are in each of these: baselines have as many.

    The order is kept.
    """
    sizes = {name: (counts(folder, images), load_recipe(folder).distill.factor) for name, folder in folders.items()}
    for size in dict.fromkeys(sizes.values()):
        yield {name: folder for name, folder in folders.items() if sizes[name] == size}


def _evaluation(
    processes: Processes, folders: Mapping[str, Path | None], recipe: Recipe, images: ImageSet, split: str
) -> Evaluation:
    """Sets and baselines as networks are trained on them; accuracies are kept in the cache."""
    sets = TrainingSets.of(recipe, folders, images, processes.device, processes.is_main_process)
    wanted = [(name, augments(recipe.evaluate)) for name in folders]
    return Evaluation.of(cache_folder(), images, split, sets, wanted, recipe, processes)


def _earlier(folders: Mapping[str, Path], says: bool) -> list[Row]:
    """What sets' own files have of them, under the names that they have here."""
    unread = list[str]()
    found = {name: unless_unreadable(unread, [], results, folder) for name, folder in folders.items()}
    for line in unread if says else ():
        print(f"left out: {line}", file=sys.stderr)
    return [
        {**row, "trained_on": f"{PREFIX}{name}"}
        for name, rows in found.items()
        for row in rows
        if row["trained_on"] == "distilled"
    ]


def _name(trained_on: str, as_many_as: str | None) -> str:
    """What results call a set; of several baselines of a kind each says which set it goes with."""
    with_set = as_many_as and trained_on in BASELINES and trained_on != "full"
    return f"{trained_on}, as many as {as_many_as}" if with_set else trained_on
