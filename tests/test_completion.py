"""What the shell offers when Tab is pressed, asked for as typer's shell functions ask: by environment variables."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Outcome, command

RECIPES = Path(__file__).parent.parent / "recipes"


def request(line: str) -> dict[str, str]:
    """How bash asks for what may stand in place of the last word of a line; after a blank that word is empty."""
    return {"_LD3M_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}


@pytest.fixture
def offered(ld3m: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """The words that are offered, in an empty working folder."""

    def words(line: str) -> list[str]:
        for name, value in request(line).items():
            monkeypatch.setenv(name, value)
        outcome = ld3m()
        assert (outcome.code, outcome.err) == (0, "")
        return outcome.out.split()

    return words


def shipped(pattern: str) -> list[str]:
    """Names of the recipes of the checkout, as users give them."""
    return sorted(path.relative_to(RECIPES).with_suffix("").as_posix() for path in RECIPES.rglob(pattern))


def test_recipes_are_offered_by_name(offered: Callable[[str], list[str]], tmp_path: Path) -> None:
    assert offered("ld3m distill fash") == shipped("fash*.yaml")
    assert offered("ld3m train-prior ") == shipped("prior-*.yaml")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "fashionable.yaml").touch()
    assert "fashionable" in offered("ld3m plan fash")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("distill quickstart distill.dm.p", "distill.dm.phase= distill.dm.pool="),
        ("distill quickstart distill.iter", "distill.iterations= distill.iterations=1000"),
        ("distill quickstart seed=1 prior.sk", "prior.skip= prior.skip=paper prior.skip=reference prior.skip=none"),
        ("distill quickstart prior.skip=p", "prior.skip=paper"),  # zsh and fish
        ("distill quickstart prior.skip =", "paper reference none"),  # bash, which ends a word at each =
        ("distill quickstart prior.skip = p", "paper"),
        ("distill quickstart tf32=", "tf32=true tf32=false"),
        ("distill quickstart nonsense=p", ""),
        ("train-prior prior-digits denoiser.st", "denoiser.steps= denoiser.steps=30000"),
        ("evaluate --arch vit,conv", "vit,convnet vit,convnet6"),
        ("evaluate experts.ep", "experts.epochs= experts.epochs=15"),
        ("evaluate --split v", "validation"),
        ("render --skip ", "paper reference none"),
        ("ablate quickstart --axis prior.ste", "prior.steps= prior.steps=10"),
        ("ablate quick", "quickstart"),
        ("evaluate --recipe quick", "quickstart"),
        ("distill --resu", "--resume"),
        ("experts --no", "--no-resume"),
        ("dis", "distill"),
    ],
)
def test_keys_values_and_options_are_offered(offered: Callable[[str], list[str]], line: str, words: str) -> None:
    assert offered(f"ld3m {line}") == words.split()


def test_run_folders_are_offered(offered: Callable[[str], list[str]], tmp_path: Path) -> None:
    for folder in ("runs/one", "runs/other", "runs/nothing", "imported/set-1", "ablations/a/quickstart/prior.steps=5"):
        (tmp_path / folder).mkdir(parents=True)
        if folder != "runs/nothing":
            (tmp_path / folder / "recipe.yaml").touch()
    assert offered("ld3m status runs/") == ["runs/one", "runs/other"]
    assert offered("ld3m push-to-hub i") == ["imported/set-1"]
    assert offered("ld3m evaluate ab") == ["ablations/a/quickstart/prior.steps=5"]
    assert offered("ld3m distill quickstart --resume runs/on") == ["runs/one"]


@pytest.mark.parametrize("line", ["ld3m distill quick", "ld3m distill quickstart distill.iter"])
def test_tab_does_not_wait_for_heavy_libraries(line: str) -> None:
    asking = [sys.executable, "-X", "importtime", "-m", "ld3m"]
    log = subprocess.run(asking, env=os.environ | request(line), capture_output=True, text=True, timeout=60).stderr
    imported = {entry.rpartition("|")[2].strip() for entry in log.splitlines()}
    assert "ld3m.cli.completion" in imported
    assert imported.isdisjoint({"torch", "diffusers", "datasets", "accelerate", "transformers", "scipy"})


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
def test_bash_takes_the_script_that_is_installed(tmp_path: Path) -> None:
    """As in a terminal: the function of the script is called with the words of the line, and leaves its answer."""
    (tmp_path / "ld3m").write_text(f'#!/bin/sh\nexec {" ".join(command())} "$@"\n')
    (tmp_path / "ld3m").chmod(0o755)
    session = """
        ld3m --install-completion > /dev/null && . ~/.bashrc
        COMP_WORDS=(ld3m distill quickstart prior.noi); COMP_CWORD=3
        set -- $(complete -p ld3m)
        while [ "$1" != -F ]; do shift; done; "$2" ld3m
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    environment = os.environ | {"HOME": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    process = subprocess.run(
        ["bash", "--norc", "-c", session], env=environment, capture_output=True, text=True, timeout=60
    )
    assert process.stdout.split() == ["prior.noise=", "prior.noise=fresh", "prior.noise=fixed"], process.stderr
