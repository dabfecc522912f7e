"""The trials of a search, in a journal that its workers share: enqueued, taken by one of them, measured, finished.

The journal is Optuna's, a file that needs no database and no more of a disk than that files can be created exclusively.
Who is at a trial holds a lock of its number, which the system releases if that process dies; another takes it up then.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ld3m.errors import UserError, some, user_error_if_damaged
from ld3m.files import writable
from ld3m.machine.lock import LOCK, check_kind, hold
from ld3m.tuning.draws import Draws
from ld3m.tuning.halving import Figure, Halving, Note

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

JOURNAL = "journal.jsonl"
"""The file of the trials; its folder is a search's."""
ADVICE = "give another --output, or remove that folder to begin again"
NO_LOCKS = "give an --output on a disk with file locks, such as a local one"


@dataclass(frozen=True)
class Taken:
    """A trial that this worker is at."""

    trial: "Trial"
    number: int
    settings: dict[str, str]
    figures: dict[int, Figure]
    """By rung, as far as another worker got that died."""


class Trials:
    """The trials of a search.

    Args:
        folder: of the search; it is there.
        draws: its candidates.
        about: what the search is; a journal of another one is refused.

    Raises:
        UserError: if the journal is damaged or another search's, or Optuna is missing.
    """

    def __init__(self, folder: Path, draws: Draws, about: dict[str, Any]) -> None:
        if importlib.util.find_spec("optuna") is None:
            raise UserError("ld3m tune needs the package optuna: pip install 'ld3m[tune]'")
        import optuna
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

        self.folder, self.draws = folder, draws
        self.exhausted = False
        """Whether every combination has been tried."""
        check_kind(folder, JOURNAL, "a search of ld3m tune")
        path = folder / JOURNAL
        path.touch()  # first of all, so that others know the folder by it
        writable(folder / "locks", ADVICE)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with hold(folder / LOCK, instead=NO_LOCKS), user_error_if_damaged(path, ADVICE):
            lock = JournalFileOpenLock(str(path))
            _cut_to_whole_lines(path, lock)
            self.study = optuna.create_study(
                storage=optuna.storages.JournalStorage(JournalFileBackend(str(path), lock_obj=lock)),
                sampler=optuna.samplers.RandomSampler(seed=0),  # never asked: `draws` are asked
                study_name="tune",
                direction="maximize",
                load_if_exists=True,
            )
            before = self.study.user_attrs.get("about")
            if before is None:
                self.study.set_user_attr("about", about)
        if unlike := [key for key in about if before and key in before and before[key] != about[key]]:
            raise UserError(f"output: {folder} holds another search ({some(unlike)} differ); {ADVICE}")

    # --- what is known -------------------------------------------------------------------------------------

    def notes(self) -> list[Note]:
        """All trials in their order, each once, also if it was taken up by another worker."""
        from optuna.trial import TrialState

        names = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
        found = {}
        for trial in self.study.get_trials(deepcopy=False):
            attrs = trial.user_attrs
            if trial.state == TrialState.FAIL and "failed" not in attrs:
                continue  # its worker died; the trial was enqueued again
            note = Note(
                attrs["number"],
                attrs["settings"],
                attrs["parameters"],
                _figures(attrs),
                names.get(trial.state, "running"),
                attrs.get("failed", ""),
            )
            found[note.number] = note
        return [found[number] for number in sorted(found)]

    def figure(self, job: str) -> Figure | None:
        """What a run got that is no trial's: another seed of a candidate, say."""
        found: Figure | None = self.study.user_attrs.get(f"run {job}")
        return found

    def keep(self, job: str, figure: Figure) -> None:
        """Notes what such a run got."""
        self.study.set_user_attr(f"run {job}", figure)

    # --- a trial's course ----------------------------------------------------------------------------------

    @contextmanager
    def take(self, limit: int | None, halving: Halving) -> Iterator[Taken | None]:
        """A trial for this worker alone, until the context ends; or None.

        It is one whose worker died, else one that is to be promoted, else a new one.

        Args:
            limit: the trials to make in all, those that failed not counted; None: as many as one likes.
        """
        with ExitStack() as held:
            with hold(self.folder / LOCK, instead=NO_LOCKS):  # so that nobody draws what another is drawing
                self._enqueue_of_the_dead()
                if not self._waiting() and not self._enqueue_promoted(halving):
                    self._enqueue_new(limit)
                taken = self._start(held)
            yield taken

    def others_are_at_work(self) -> bool:
        """Whether a trial is running in another worker that lives."""
        running = [note.number for note in self.notes() if note.state == "running"]
        return any(not self._is_free(number) for number in running)

    def record(self, taken: Taken, rung: int, figure: Figure) -> None:
        """Notes what a trial got in one of its runs."""
        taken.figures[rung] = figure
        taken.trial.set_user_attr(f"rung {rung}", figure)
        taken.trial.report(figure["mean"], rung)

    def complete(self, taken: Taken) -> None:
        """Ends a trial that has run on all rungs."""
        self.study.tell(taken.trial, taken.figures[max(taken.figures)]["mean"])

    def pause(self, taken: Taken) -> None:
        """Ends a trial for now: it is promoted later, or never."""
        from optuna.trial import TrialState

        self.study.tell(taken.trial, state=TrialState.PRUNED)

    def fail(self, taken: Taken, reason: str) -> None:
        """Ends a trial that could not be measured, through no fault of its settings as far as one knows."""
        from optuna.trial import TrialState

        taken.trial.set_user_attr("failed", reason)
        self.study.tell(taken.trial, state=TrialState.FAIL)

    # --- how a trial comes about ---------------------------------------------------------------------------

    def lock(self, job: object) -> Path:
        """The lock of whoever is at a trial or another run."""
        return self.folder / "locks" / str(job)

    def _is_free(self, number: int) -> bool:
        with hold(self.lock(number), wait=False, instead=NO_LOCKS) as ours:
            return ours

    def _waiting(self) -> "list[FrozenTrial]":
        from optuna.trial import TrialState

        return self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))

    def _enqueue_of_the_dead(self) -> None:
        """Enqueues trials again whose workers died."""
        from optuna.trial import TrialState

        again = {trial.user_attrs["number"] for trial in self._waiting()}
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            number = trial.user_attrs["number"]
            if not self._is_free(number):
                continue
            if number not in again:
                self.study.enqueue_trial(trial.user_attrs["parameters"], user_attrs=trial.user_attrs)
            self.study.tell(trial.number, state=TrialState.FAIL)

    def _enqueue_promoted(self, halving: Halving) -> bool:
        """Enqueues a trial again that is worth a longer run, if there is one."""
        if (number := halving.promoted(self.notes())) is None:
            return False
        trials = [each for each in self.study.get_trials(deepcopy=False) if each.user_attrs["number"] == number]
        attrs = trials[-1].user_attrs
        self.study.enqueue_trial(attrs["parameters"], user_attrs=attrs)
        return True

    def _enqueue_new(self, limit: int | None) -> None:
        """Enqueues a candidate that is unlike all others, if there is one and it is wanted."""
        notes = self.notes()
        if limit is not None and sum(note.state != "failed" for note in notes) >= limit:
            return
        known = {trial.user_attrs["fingerprint"] for trial in self.study.get_trials(deepcopy=False)}
        if attrs := self.draws.next(notes, known):
            self.study.enqueue_trial(attrs["parameters"], user_attrs=attrs)
        else:
            self.exhausted = True

    def _start(self, held: ExitStack) -> Taken | None:
        """The trial that waits longest, started and locked."""
        waiting = self._waiting()
        if not waiting:
            return None
        attrs = waiting[0].user_attrs
        held.enter_context(hold(self.lock(attrs["number"]), instead=NO_LOCKS))
        trial = self.study.ask(self.draws.distributions(attrs["parameters"]))
        taken = Taken(trial, attrs["number"], attrs["settings"], {})
        for rung, figure in _figures(attrs).items():
            self.record(taken, rung, figure)
        return taken


def _figures(attrs: dict[str, Any]) -> dict[int, Figure]:
    """By rung, from a trial's attributes."""
    return {int(name.removeprefix("rung ")): each for name, each in attrs.items() if name.startswith("rung ")}


def _cut_to_whole_lines(path: Path, lock: Any) -> None:
    """Removes a line at the end of a journal of which a process that was killed wrote a part only."""
    if not path.exists():
        return
    lock.acquire()
    try:
        content = path.read_bytes()
        if content and not content.endswith(b"\n"):
            path.write_bytes(content[: content.rfind(b"\n") + 1])
    finally:
        lock.release()
