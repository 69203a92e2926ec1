"""A run's parameters are those of reference.yaml, under a preset, under single values; nothing else is passed over."""

import json

import pytest
import yaml

from srdyn.loading import files, presets
from srdyn.study.run import parameters, store

REFERENCE = ".shared: &shared {models: [a], eps: 1e-4}\n01_first: {<<: *shared, n: 8}\n02_second: {items: 3, n: 8}\n"


def notebook(source):
    cell = {"metadata": {"tags": ["parameters"]}, "source": [source]}
    return json.dumps({"cells": [{"metadata": {}, "source": ["# Title"]}, cell]})


OWN = {"own": "n: 2\n01_first: {n: 4}\n", "other": "01_first: {items: 4}\n"}


@pytest.fixture
def clone(clone):
    (clone / "notebooks/presets").mkdir(parents=True)
    (clone / "notebooks/01_first.ipynb").write_text(notebook("models = ['a']  # why\nn = 8\neps = 1.0e-4"))
    (clone / "notebooks/02_second.ipynb").write_text(notebook("quick = True\nitems = 3\nn = 8"))
    presets = {"reference": REFERENCE, "small": "n: 2\nitems: 20\n", "slip": "itmes: 2\n"} | OWN
    for name, text in presets.items():
        (clone / f"notebooks/presets/{name}.yaml").write_text(text)
    return clone


def test_a_preset_lies_over_the_reference_and_values_over_both(clone):
    both = ["01_first", "02_second"]
    first = {"models": ["a"], "eps": 1e-4, "n": 8}
    assert parameters.of_run(both, "reference", {}) == {"01_first": first, "02_second": {"items": 3, "n": 8}}
    small = parameters.of_run(both, "small", {"n": 3})
    assert small == {"01_first": first | {"n": 3}, "02_second": {"items": 20, "n": 3}}
    assert parameters.of_run(both, "reference", {"items": 5})["01_first"] == first
    own = parameters.of_run(both, "own", {})
    assert own == {"01_first": first | {"n": 4}, "02_second": {"items": 3, "n": 2}}


@pytest.mark.parametrize(
    ("stems", "preset", "given", "message"),
    [
        (["01_first"], "large", {}, "no preset 'large' in notebooks/presets; there are other, own, reference, slip, s"),
        (["02_second"], "other", {}, "preset other: 01_first has no parameter items; there are models, eps, n"),
        (["01_first"], "slip", {}, "preset slip: 01_first, 02_second has no parameter itmes"),
        (["01_first"], "small", {"items": 1}, "given: 01_first has no parameter items; there are models, eps, n"),
        (["01_first", "03_third"], "small", {}, "no notebook 03_third; there are 01_first, 02_second"),
    ],
)
def test_slips_are_named(stems, preset, given, message, clone):
    with pytest.raises(ValueError, match=message):
        parameters.of_run(stems, preset, given)


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("", {}),
        ("n=4", {"n": 4}),
        ("  n=4 eps=1e-3\tshares=[1e-3, .5E2,2.]", {"n": 4, "eps": 1e-3, "shares": [1e-3, 50.0, 2.0]}),
        ('models=["a b", "c n=3"] n=4', {"models": ["a b", "c n=3"], "n": 4}),
        ("attacks=[rare character, common number]", {"attacks": ["rare character", "common number"]}),
        ("cuts=[{layers: [0, 1]}] model='x y=1'", {"cuts": [{"layers": [0, 1]}], "model": "x y=1"}),
    ],
)
def test_values_are_yaml_with_spaces_inside_quotes_and_brackets(text, given):
    assert parameters.parsed(text) == given


@pytest.mark.parametrize(
    ("text", "message"), [("n", "as name=value, not 'n'"), ("4=n", "not '4'"), ("m=[a n=3", r"m=\[a n=3 is no YAML")]
)
def test_what_is_no_value_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        parameters.parsed(text)


def test_where_a_cell_departs_from_the_reference_is_said(clone):
    assert parameters.departures() == ['02_second: quick is false, in reference.yaml "missing"']
    path = clone / "notebooks/presets/reference.yaml"
    path.write_text(path.read_text().replace("items: 3", "quick: false, items: 3"))
    assert parameters.departures() == []
    (clone / "notebooks/01_first.ipynb").write_text(notebook("models = ['a']\nn = 4\nitems = 1\neps = 1e-4"))
    (clone / "notebooks/02_second.ipynb").unlink()
    assert parameters.departures() == [
        "01_first: n is 4, in reference.yaml 8",
        '01_first: items is 1, in reference.yaml "missing"',
        "02_second stands in reference.yaml, but is no notebook",
    ]


def test_committed_cells_are_those_of_the_reference_run_and_every_preset_can_be_had():
    assert parameters.departures() == []
    stems = sorted(path.stem for path in (files.root() / "notebooks").glob("[0-9]*.ipynb"))
    for path in (files.root() / "notebooks/presets").glob("*.yaml"):
        given = parameters.of_run(stems, path.stem, {})
        assert not any(found.get(parameters.QUICK) for found in given.values()) or path.stem == "smoke"
        assert yaml.safe_load(path.read_text()) == yaml.load(path.read_text(), presets.Loader)  # others read it too
    reference = parameters.of_run(stems, store.REFERENCE, {})
    assert reference["01_stratification"]["positions"][-1] == 2048
    assert reference.keys() == set(stems)
