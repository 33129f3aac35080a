"""Controls as options: what a command does not declare becomes a setting, and nothing else changes its place."""

from itertools import pairwise

import pytest
import tyro
from hypothesis import assume, given
from hypothesis import strategies as st

from pellucid.cli import _COMMANDS, STEERED
from pellucid.cli.arguments import gathered, options_of, with_settings
from pellucid.cli.commands import Edit, Read, Reproduce, Sample, Train

OWN = st.sampled_from(
    [["--out", "o"], ["--out=o"], ["-n", "5"], ["--n=5"], ["--seed", "3"], ["--controls"], ["--no-controls"]]
)
VALUE = st.sampled_from(["1", "-1", "-1.5", "-.5", "01011", "a=-1.5,b=2", "photo one.jpg", "cat", "=", "0,2"])
NAME = st.sampled_from(["bits", "fine", "num-steps", "num_steps", "guidance", "no-flip", "outer", "sets"])


@st.composite
def pieces(draw):
    """(kind, words): own options and --set groups, controls in both spellings, and words that stand alone."""
    kind = draw(st.sampled_from(["own", "control", "word", "set"]))
    if kind == "own":
        return kind, draw(OWN), []
    if kind == "word":
        return kind, [draw(st.sampled_from(["RUN", "photo.jpg"]))], []
    if kind == "set":
        values = [f"{draw(NAME)}={draw(VALUE)}" for _ in range(draw(st.integers(1, 3)))]
        return kind, ["--set", *values], values
    name, value = draw(NAME), draw(VALUE)
    words = [f"--{name}={value}"] if draw(st.booleans()) else [f"--{name}", value]
    return kind, words, [f"{name}={value}"]


@given(st.lists(pieces()))
def test_settings_and_the_rest_keep_their_order(parts):
    kinds = [kind for kind, _, _ in parts]
    assume(("set", "word") not in pairwise(kinds))  # a word behind --set is one of its settings
    words = [w for _, ws, _ in parts for w in ws]
    settings = [s for _, _, ss in parts for s in ss]
    rest = [w for kind, ws, _ in parts if kind in ("own", "word") for w in ws]
    assert with_settings(Sample, words) == rest + (["--set", *settings] if settings else [])


def parsed(command, *words):
    return tyro.cli(command, args=with_settings(command, list(words)), config=(tyro.conf.OmitArgPrefixes,))


def test_a_word_behind_a_control_stays_a_word():
    command = parsed(Read, "RUN", "--set", "a=1", "--label", "cat", "one.jpg", "--mode=odd", "two.jpg")
    assert [p.name for p in command.images] == ["one.jpg", "two.jpg"]
    assert command.settings == ("a=1", "label=cat", "mode=odd")
    command = parsed(Read, "RUN", "--label", "cat", "--", "-odd.jpg")
    assert [p.name for p in command.images] == ["-odd.jpg"]
    assert command.settings == ("label=cat",)


def test_an_option_of_several_values_may_be_given_several_times():
    words = [
        "cofi",
        "--set",
        "lr=1",
        "prior.bits=2",
        "--seed",
        "3",
        "--set=stages.coarse.steps=5",
        "--limit",
        "9",
    ]
    command = tyro.cli(Train, args=gathered(Train, words), config=(tyro.conf.OmitArgPrefixes,))
    assert command.settings == ("lr=1", "prior.bits=2", "stages.coarse.steps=5")
    assert (command.seed, command.limit) == (3, 9)
    words = ["cofi-ring", "--data", "a", "--scale", "tiny", "--data", "b", "c"]
    command = tyro.cli(Reproduce, args=gathered(Reproduce, words), config=(tyro.conf.OmitArgPrefixes,))
    assert command.data == ("a", "b", "c")
    words = ["cofi", "--set=lr=1", "prior.bits=2", "--seed", "3"]
    assert gathered(Train, words) == ["cofi", "--seed", "3", "--set", "lr=1", "prior.bits=2"]
    assert gathered(Train, ["cofi", "--", "--set", "x"]) == ["cofi", "--", "--set", "x"]


def test_values_may_be_negative_and_options_keep_theirs():
    command = parsed(
        Edit, "RUN", "--guidance", "-1", "p.jpg", "-n", "2", "--fine", "a=-1.5", "--seed=7", "--x=-.5"
    )
    assert (command.image.name, command.n, command.seed) == ("p.jpg", 2, 7)
    assert command.settings == ("guidance=-1", "fine=a=-1.5", "x=-.5")


@pytest.mark.parametrize("words", [["--bits"], ["--bits", "--out", "o"], ["--bits", "-n", "3"], ["--bits="]])
def test_a_control_without_a_value_says_how_to_write_it(words):
    with pytest.raises(ValueError, match=r"^--bits has no value; write --bits VALUE or --bits=VALUE$"):
        with_settings(Sample, ["RUN", *words])


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_comes_before_mistakes(word):
    assert with_settings(Sample, ["RUN", "--bits", word]) == ["--help"]


@pytest.mark.parametrize("name", [*STEERED, "train"])
def test_the_options_of_a_command_are_those_that_its_help_shows(name, capsys):
    kind = _COMMANDS[name]
    with pytest.raises(SystemExit):
        tyro.cli(kind, args=["--help"], config=(tyro.conf.OmitArgPrefixes,))
    shown = {
        w.strip("│ ,")
        for w in capsys.readouterr().out.replace("|", " ").split()
        if w.lstrip("│").startswith("-")
    }
    options = {w for w in shown if w.strip("-").replace("-", "").isalpha()}
    assert options_of(kind) <= options
    assert "--set" in options_of(kind)
    assert not {"--run", "--run-folder", "--image", "--images", "--settings"} & options_of(kind)


def test_what_a_command_of_no_model_does_not_know_stays_a_mistake(capsys):
    from pellucid.cli import main

    assert "train" not in STEERED
    assert "--regions" not in options_of(Train)
    with pytest.raises(SystemExit) as stopped:
        main(["train", "factorized", "--regions", "5"])
    assert stopped.value.code == 2
    assert "--regions" in capsys.readouterr().err
