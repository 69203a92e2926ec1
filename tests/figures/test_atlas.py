"""The head atlas: what is measured is what the page holds, what is brushed is what comes back."""

import copy
import html
import json
import os
import re
import socket
import subprocess
import sys
import time

import nbformat
import numpy as np
import pytest
import torch

from srdyn import ablation, models, passport, prune, states
from srdyn.figures import atlas
from srdyn.loading import files, processes

TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom."
GRID = "[role=gridcell]:not(.none)"


@pytest.fixture(scope="module")
def model(place):
    return models.load(place, device="cpu")


@pytest.fixture(scope="module")
def tokens(model):
    return model.tokenizer(TEXT, return_tensors="pt").input_ids


@pytest.fixture(scope="module")
def shown(model):
    return atlas.show(model, text=TEXT, selected=[(0, 1), (2, 7)])


@pytest.fixture
def opened(visited, tmp_path):
    """Opens HTML from a file, in a window of its own."""

    def opened(text, **options):
        (tmp_path / "page.html").write_text(text)
        return visited(tmp_path / "page.html", **options)

    return opened


def given(page: str) -> dict:
    return json.loads(re.search(r'id="given">(.*?)</script>', page)[1])


def large(one):
    """A passport of Qwen3-Next's 36 × 32 heads after 1024 tokens, with the numbers of a small one."""
    grown = copy.deepcopy(one)
    grown.pop("text", None)
    grown["model"] |= {"name": "large", "layers": list(range(36))}
    grown["model"]["grid"] |= {"L": 36, "H": 32, "D": 128}
    grown["measured"]["positions"] = [2**i for i in range(11)]
    head = one["heads"][0] | {"spectra": [np.linspace(0, -140, 32).round().astype(int).tolist()] * 11}
    head |= {"rank": [*range(90, 101)], "null": {"low": [99] * 11, "high": [110] * 11}}
    grown["heads"] = [head | {"layer": layer, "head": i} for layer in range(36) for i in range(32)]
    return grown


def test_the_page_holds_what_the_instrument_measures(model, tokens, shown):
    [one], T = given(shown.page())["passports"], tokens.shape[1]
    positions = one["measured"]["positions"]
    assert [positions[0], positions[-1]] == [1, T]
    assert {2, 4, 8, 16} < set(positions)
    size = states.trace(model, tokens, range(1, T + 1), measure=lambda s: torch.linalg.matrix_norm(s))[:, 0]
    assert "".join(one["text"]["tokens"]) == TEXT
    assert len(one["heads"]) == len(one["text"]["gain"]) == 24
    for head, gain in zip(one["heads"], one["text"]["gain"], strict=True):
        layer = one["model"]["layers"].index(head["layer"])
        held = size[layer, :, head["head"]]
        assert gain == pytest.approx((100 * held.diff(prepend=held.new_zeros(1)) / held.max()).tolist(), abs=0.51)
        assert sum(gain) == pytest.approx(float(100 * held[-1] / held.max()), abs=0.5 * T)


def test_the_mask_is_of_what_was_selected_and_costs_what_its_ablation_does(model, tokens, shown):
    assert shown.selected.nonzero().tolist() == [[0, 1], [2, 7]]
    assert given(shown.page())["selected"] == [[0, 1], [2, 7]]
    with ablation.ablate_heads(model, shown.selected):
        expected = prune.loss(model, tokens).mean()
    assert shown.loss() == pytest.approx((prune.loss(model, tokens).mean(), expected))
    assert shown.loss()[0] != shown.loss()[1]


def test_what_the_text_costs_without_each_head_is_what_its_ablation_does(model, tokens):
    [one] = atlas.show(model, text=TEXT, removal=True).passports
    assert len({head["removal"]["bits"] for head in one["heads"]}) > 12
    assert {tuple(head["removal"]) for head in one["heads"]} == {("bits",)}  # one text has no interval
    head = one["heads"][11]
    alone = atlas.Atlas([one], model, tokens, [[one["model"]["layers"].index(head["layer"]), head["head"]]])
    before, after = alone.loss()
    assert head["removal"]["bits"] == pytest.approx(after - before, abs=1e-4)


def test_what_a_browser_selects_comes_back_and_is_answered(model, shown, monkeypatch):
    widget = atlas.show(model, text=TEXT, live=True)
    assert not widget.selected.any()
    widget.set_state({"places": [[1, 2], [1, 3]]})  # as a message of the browser's does
    assert widget.selected.nonzero().tolist() == [[1, 2], [1, 3]]
    assert widget.answers
    assert widget.told == ""
    widget.set_state({"asked": 1})
    assert widget.told == "{:.3f} → {:.3f} bits a token".format(*widget.loss())
    data, _ = widget._repr_mimebundle_()
    assert {"text/html", "application/vnd.jupyter.widget-view+json"} <= data.keys()
    widget.close()
    monkeypatch.setattr(processes, "in_notebook", lambda: True)
    assert [type(atlas.show(*shown.passports, live=live)) is atlas.Atlas for live in (None, False)] == [False, True]
    monkeypatch.setenv("SRDYN_RUN", "reference")
    assert type(atlas.show(*shown.passports)) is atlas.Atlas


def test_without_a_kernel_it_is_a_frame_that_holds_the_page(shown):
    assert type(shown) is atlas.Atlas
    [page] = re.findall(r'^<iframe srcdoc="([^"]*)"', shown._repr_html_())
    assert html.unescape(page) == shown.page()


def test_passports_stand_for_their_models_and_need_none(shown):
    two = atlas.show(shown.passports[0], shown.passports[0])
    assert len(given(two.page())["passports"]) == 2
    with pytest.raises(ValueError, match="no model to remove heads from"):
        two.loss()


def test_what_cannot_be_shown_is_said(model, shown):
    with pytest.raises(ValueError, match="one or two models side by side, got 0"):
        atlas.show()
    with pytest.raises(ValueError, match="needs something to read: give text="):
        atlas.show(model)
    with pytest.raises(ValueError, match=r"one size, got \[3, 8\] and \[36, 32\]"):
        atlas.show(shown.passports[0], large(shown.passports[0]))


def test_long_texts_and_many_heads_stay_within_bounds(model, monkeypatch):
    monkeypatch.setattr(atlas, "NUMBERS", 24 * 10)
    [one] = atlas.show(model, text=TEXT).passports
    assert one["measured"]["positions"] == [1, 2, 4, 8, 10]
    assert len(one["text"]["tokens"]) == 10


@pytest.mark.site
def test_a_large_passport_is_small_and_opens_at_once(shown, opened, tmp_path):
    place = passport.save(large(shown.passports[0]), tmp_path)
    assert place.stat().st_size < 5_000_000
    began = time.monotonic()
    page = opened(place.read_text())
    page.locator(GRID).nth(40).click()
    assert page.locator("h3").inner_text().startswith("Layer 1, head 8: ")
    assert time.monotonic() - began < 3
    assert page.locator(GRID).count() == 1152


@pytest.mark.site
def test_mouse_and_keys_show_compare_and_select(shown, opened):
    page = opened(shown.page())
    cells, heads = page.locator(GRID), page.locator("h3")
    selected = lambda: json.loads(page.locator("main").get_attribute("data-selected"))  # noqa: E731
    assert page.locator("[aria-selected=true]").count() == 2
    cells.nth(9).click()
    assert [text[:15] for text in heads.all_inner_texts()] == ["Layer 1, head 1"]
    page.keyboard.press("ArrowDown")
    cells.nth(4).click(modifiers=["Shift"])
    assert [text[:15] for text in heads.all_inner_texts()] == ["Layer 2, head 1", "Layer 0, head 4"]

    cells.nth(1).hover()
    page.mouse.down()
    cells.nth(11).hover()
    page.mouse.up()
    assert selected() == [[0, 1], [0, 2], [0, 3], [1, 1], [1, 2], [1, 3]]
    assert [text[:15] for text in heads.all_inner_texts()] == ["Layer 2, head 1", "Layer 0, head 4"]
    cells.nth(2).click(modifiers=["Control"])
    assert selected() == [[0, 1], [0, 3], [1, 1], [1, 2], [1, 3]]
    cells.nth(16).focus()
    for key in ("Shift+ArrowRight", "Shift+ArrowUp"):
        page.keyboard.press(key)
    assert selected() == [[1, 0], [1, 1], [2, 0], [2, 1]]
    page.get_by_role("button", name="Select").click()
    cells.nth(23).focus()
    page.keyboard.press("Enter")
    assert selected() == [[1, 0], [1, 1], [2, 0], [2, 1], [2, 7]]
    page.get_by_role("button", name="Clear").click()
    assert selected() == []

    page.get_by_role("button", name="Compare").click()
    cells.nth(5).focus()
    page.keyboard.press(" ")
    assert heads.all_inner_texts()[1][:15] == "Layer 0, head 5"
    page.get_by_role("slider").focus()
    page.keyboard.press("Home")
    assert "after 1 token, the last one “I”" in page.locator(".at").inner_text()
    page.locator(".read span").nth(3).click()
    assert "after 4 tokens" in page.locator(".at").inner_text()
    page.get_by_label("Colour").select_option("half-life (tokens)")
    assert "half-life" in cells.first.get_attribute("aria-label")
    assert page.locator("svg[role=img][aria-label]").count() == 4


@pytest.mark.site
def test_a_drag_selects_in_a_shadow_root_where_marimo_keeps_widgets_and_colours_tell_the_damage(model, opened):
    rooted = 'mount(main.attachShadow({mode: "open"}).appendChild(document.createElement("div"))'
    page = opened(atlas.show(model, text=TEXT, removal=True).page().replace("mount(main", rooted))
    cells = page.locator(GRID)
    cells.nth(1).hover()
    page.mouse.down()
    cells.nth(10).hover()
    page.mouse.up()
    assert json.loads(page.locator("main").get_attribute("data-selected")) == [[0, 1], [0, 2], [1, 1], [1, 2]]
    page.get_by_label("Colour").select_option("bits a token without it")
    told = r"layer 0, head 1: bits a token without it -?[\d.e-]+"
    assert re.fullmatch(told, cells.nth(1).get_attribute("aria-label"))


@pytest.mark.site
@pytest.mark.parametrize("options", [{"width": 360, "has_touch": True}, {"color_scheme": "dark"}, {"width": 360}])
def test_it_fits_a_phone_and_is_dark_where_that_is_wanted(shown, opened, options):
    page = opened(atlas.show(*shown.passports * 2)._repr_html_(), **options)
    frame = page.frame_locator("iframe")
    cells = frame.locator(GRID)
    assert cells.count() == 48
    named = "cells => cells.every(cell => cell.ariaLabel.endsWith(' ' + cell.textContent) && cell.textContent)"
    assert cells.evaluate_all(named)  # what is heard holds what is seen
    cells.nth(1).click()
    assert frame.locator("h3").count() == 2  # its twin in the other model is shown beside it
    [inside] = page.frames[1:]
    assert inside.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.wait_for_function("document.querySelector('iframe').offsetHeight > 1000" if "width" in options else "true")
    dark = inside.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert dark == ("color_scheme" in options)
    if options.get("has_touch"):
        frame.get_by_role("button", name="Select").tap()
        cells.nth(1).tap()
        assert frame.locator("[aria-selected=true]").count() == 2  # in both


@pytest.fixture
def lab(tmp_path):
    """JupyterLab with an empty home and no more than this notebook; its address."""
    make = f"""from srdyn import models
from srdyn.figures import atlas
model = models.load({str(tmp_path / "model")!r}, device="cpu")
shown = atlas.show(model, text={TEXT!r}, selected=[(0, 1)])
shown"""
    cells = [nbformat.v4.new_code_cell(x) for x in (make, "print('places', shown.selected.nonzero().tolist())")]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(notebook, tmp_path / "atlas.ipynb")
    folders = {f"JUPYTER_{name}_DIR": str(tmp_path / name) for name in ("CONFIG", "RUNTIME", "DATA")}
    environment = os.environ | folders | {"PYTHONPATH": str(files.root()), "JUPYTER_PREFER_ENV_PATH": "1"}
    environment.pop("SRDYN_RUN", None)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [f"--port={port}", f"--notebook-dir={tmp_path}"]
    options += ["--no-browser", "--allow-root", "--ServerApp.port_retries=0", "--IdentityProvider.token=open"]
    with (tmp_path / "log").open("w") as told:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options], env=environment, stdout=told, stderr=told
        )
    for _ in range(300):
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.2)
    yield f"http://127.0.0.1:{port}/lab/tree/atlas.ipynb?token=open&reset"
    server.terminate()
    server.wait()


@pytest.mark.site
def test_in_jupyterlab_what_is_brushed_comes_back_to_python(browser, place, tmp_path, lab):
    (tmp_path / "model").symlink_to(place)
    page = browser.new_page(viewport={"width": 1400, "height": 1100})
    page.set_default_timeout(120_000)
    page.goto(lab)
    page.get_by_text("| Idle").wait_for()
    sources = page.locator(".jp-CodeCell .cm-content")
    sources.first.click()
    page.keyboard.press("Shift+Enter")
    heads = page.locator(".jp-OutputArea " + GRID)
    heads.nth(10).hover()
    page.mouse.down()
    heads.nth(19).hover()
    page.mouse.up()
    page.get_by_role("button", name="Loss without them").click()
    page.get_by_text(re.compile(r"\d\.\d{3} → \d+\.\d{3} bits a token")).wait_for()
    sources.nth(1).click()
    page.keyboard.press("Shift+Enter")
    page.get_by_text("places [[1, 2], [1, 3], [2, 2], [2, 3]]").wait_for()
    page.close()
