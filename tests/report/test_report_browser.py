"""Pages in a real Chromium: controls, keyboard, first screen, JavaScript off, print; screenshots go to artefacts/."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from atomdiffuser.io.tables import read_table
from atomdiffuser.report.formatting import interval, number
from atomdiffuser.report.results import AFFINE_COLUMNS
from benchmarks import made_up_series as fabricate
from benchmarks.report_pages import AXE, VIOLATIONS, state_cpu_ms

CHROMIUM = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)
ARTEFACTS = Path(__file__).parents[2] / "artefacts"
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run",
]  # fmt: skip
SHOWN = """[...document.querySelectorAll('#flicker > .frame')].findIndex(
    (frame) => getComputedStyle(frame).visibility === 'visible')"""
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield running
        running.close()


@pytest.fixture
def open_page(browser):
    """Open a file in a fresh context; whatever the page complains of, or asks of the network, fails the test."""
    contexts, complaints = [], []

    def opened(path: Path, *, viewport=DESKTOP, scheme="light", motion="no-preference", javascript=True):
        context = browser.new_context(
            viewport=viewport, color_scheme=scheme, reduced_motion=motion, java_script_enabled=javascript,
            accept_downloads=True,
        )  # fmt: skip
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
        tab.on("pageerror", lambda e: complaints.append(str(e)))
        tab.on("request", lambda r: complaints.append(r.url) if r.url.startswith(("http", "ws")) else None)
        tab.goto(path.as_uri())
        tab.wait_for_timeout(60)
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def shot(tab, name: str) -> None:
    ARTEFACTS.mkdir(exist_ok=True)
    tab.screenshot(path=ARTEFACTS / f"{name}.png")


@pytest.mark.parametrize(
    ("key", "scheme"),
    [
        ("good", "light"),
        ("good", "dark"),
        ("bad", "light"),
        ("no_current", "dark"),
        ("two", "light"),
        ("many", "light"),
    ],
)
def test_first_screen_fits(open_page, page, key, scheme):
    tab = open_page(page(key), scheme=scheme)
    shot(tab, f"series_{key}_{scheme}")
    for element in ("#verdict", "#flicker", "#map-canvas", "#decay-chart svg", "#time-box"):
        box = tab.locator(element).bounding_box()
        assert box and box["y"] >= 0 and box["y"] + box["height"] <= DESKTOP["height"], element
        assert box["x"] + box["width"] <= DESKTOP["width"] + 1, element


@pytest.mark.parametrize("key", ["good", "bad", "no_valid", "hostile"])
def test_phone_width_does_not_scroll_sideways(open_page, page, key):
    tab = open_page(page(key), viewport=PHONE)
    shot(tab, f"series_{key}_phone")
    assert tab.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_slider_links_map_charts_and_words(open_page, page, results):
    tab = open_page(page("good"))
    damage = read_table(results / "good" / "damage.parquet").query("region == 'whole'").set_index("frame")
    slider = tab.locator("#time")
    assert "Frame 39" in tab.inner_text("#time-read") and "measured" in tab.inner_text("#time-read")
    assert number(damage.loc[39, "contrast"]) in tab.inner_text("#time-read")
    pixels = "AD.paint(), document.getElementById('map-canvas').toDataURL()"
    last = tab.evaluate(pixels)
    slider.focus()
    tab.keyboard.press("ArrowLeft")
    tab.wait_for_timeout(60)
    text = tab.inner_text("#time-read")
    assert "Between frames 38 and 39" in text and "interpolated, not measured" in text
    assert "interpolated, not measured" in tab.inner_text("#map-label")
    assert "interpolated, not measured" in slider.get_attribute("aria-valuetext")
    tab.keyboard.press("PageDown")
    tab.wait_for_timeout(60)
    assert f"contrast {number(damage.loc[38, 'contrast'])}" in tab.inner_text("#time-read")
    tab.keyboard.press("Home")
    tab.wait_for_timeout(60)
    assert "Frame 0 " in tab.inner_text("#time-read")
    assert tab.evaluate(pixels) != last
    cursor = tab.locator("#decay-chart line.cursor")
    before = float(cursor.get_attribute("x1"))
    tab.click("#next")
    tab.wait_for_timeout(60)
    assert float(cursor.get_attribute("x1")) > before
    assert "Frame 1 " in tab.inner_text("#time-read")


def test_slider_is_fast(open_page, page):
    tab = open_page(page("size_of_2048"))
    per_state_ms = state_cpu_ms(tab, 30)
    assert per_state_ms < 1000 / 30, "30 states a second at 512², whatever else the machine does"


def test_first_state_is_the_reference_image(open_page, page):
    """At τ = 0 the model is exactly the identity: with the map transparent, the canvas shows the first frame itself."""
    tab = open_page(page("good"))
    tab.evaluate("AD.state.opacity = 0; AD.setTau(0)")
    difference = tab.evaluate(
        """() => {
            const canvas = document.getElementById('map-canvas'), { width, height } = canvas;
            const other = new OffscreenCanvas(width, height).getContext('2d');
            other.drawImage(document.getElementById('img-first'), 0, 0);
            const found = canvas.getContext('2d').getImageData(0, 0, width, height).data;
            const expected = other.getImageData(0, 0, width, height).data;
            return found.reduce((most, v, i) => Math.max(most, Math.abs(v - expected[i])), 0);
        }"""
    )
    assert difference <= 1


def test_drift_moves_the_picture_by_the_affine(open_page, page, results):
    """The canvas transform takes reference pixels to frame pixels: (x, y) of the canvas, centres half a pixel off."""
    tab = open_page(page("good"))
    tab.evaluate("AD.state.drift = true; AD.setTau(1)")
    matrix = tab.evaluate(
        """() => {
            const m = document.getElementById('map-canvas').getContext('2d').getTransform();
            return [m.a, m.b, m.c, m.d, m.e, m.f];
        }"""
    )
    row = read_table(results / "good" / "trajectory.parquet").iloc[-1]
    a_yy, a_yx, a_y, a_xy, a_xx, a_x = (row[c] for c in AFFINE_COLUMNS)
    y, x = 40.0, 70.0
    expected = (a_yy * y + a_yx * x + a_y, a_xy * y + a_xx * x + a_x)
    cx, cy = x + 0.5, y + 0.5
    found = (matrix[1] * cx + matrix[3] * cy + matrix[5] - 0.5, matrix[0] * cx + matrix[2] * cy + matrix[4] - 0.5)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert abs(expected[0] - y) > 3, "doing nothing would be off by more than three pixels"


def test_interpolated_affine_composes(open_page, page):
    from scipy.linalg import expm, logm

    tab = open_page(page("good"))
    a = [1.01, 0.02, 3.0, -0.015, 0.99, -7.5]
    b = [0.97, 0.05, -11.0, 0.03, 1.04, 22.0]
    found = np.array(tab.evaluate("([a, b]) => AD.between(AD.affine(a), AD.affine(b), 0.3)", [a, b])).reshape(3, 3)
    A, B = (np.vstack([np.reshape(m, (2, 3)), [0, 0, 1]]) for m in (a, b))
    np.testing.assert_allclose(found, expm(0.3 * logm(B @ np.linalg.inv(A)).real) @ A, atol=1e-9)
    assert np.abs(found - (0.7 * A + 0.3 * B)).max() > 1e-3, "an elementwise blend is another motion"
    assert tab.evaluate("AD.decayBetween(1, 0.25, 0.5)") == pytest.approx(0.5)


def test_script_formats_numbers_as_the_tables(open_page, page):
    tab = open_page(page("good"))
    values = [0, 1, -0.5, 0.41234, 9999.4, 9994, 3.2e4, -1.25e-5, 123.456, 0.0012345, 7.4999e6, 2.5e-3]
    assert tab.evaluate("(values) => values.map((v) => AD.number(v))", values) == [number(v) for v in values]
    assert tab.evaluate("AD.number(null)") == number(math.nan)


def test_space_bar_flickers(open_page, page):
    tab = open_page(page("good"))
    assert tab.evaluate(SHOWN) == 0
    tab.keyboard.press("Space")
    assert tab.evaluate(SHOWN) == 1
    assert tab.locator("#flicker-button").get_attribute("aria-pressed") == "true"
    tab.wait_for_timeout(950)
    assert tab.evaluate(SHOWN) == 0, "it goes on by itself after 0.8 s"
    tab.keyboard.press("Space")
    tab.wait_for_timeout(900)
    assert tab.evaluate(SHOWN) == 0
    assert tab.evaluate("scrollY") == 0, "the space bar does not scroll away"


def test_reduced_motion_switches_only_on_request(open_page, page):
    tab = open_page(page("good"), motion="reduce")
    assert tab.inner_text("#flicker-button") == "Show last"
    tab.click("#flicker-button")
    tab.wait_for_timeout(900)
    assert tab.evaluate(SHOWN) == 1
    assert tab.inner_text("#flicker-button") == "Show first"


def test_map_controls(open_page, page):
    tab = open_page(page("bad"))
    pixels = "document.getElementById('map-canvas').toDataURL()"
    contrast = tab.evaluate(pixels)
    tab.click("button[data-witness=intensity]")
    tab.wait_for_timeout(60)
    intensity = tab.evaluate(pixels)
    assert intensity != contrast and tab.inner_text("#map-label").startswith("intensity")
    tab.locator("#opacity").focus()
    tab.keyboard.press("Home")
    tab.wait_for_timeout(60)
    assert tab.evaluate(pixels) != intensity


def test_regions_are_linked_sortable_and_downloadable(open_page, page, results):
    tab = open_page(page("bad"))
    tab.locator("#regions th button", has_text="contrast lost").click()
    values = [
        float(v)
        for v in tab.eval_on_selector_all("#regions tbody tr", "rows => rows.map(r => r.cells[1].dataset.value)")
    ]
    assert values == sorted(values, reverse=True)
    assert tab.locator("#regions th[aria-sort=descending]").count() == 1
    row = tab.locator("#regions tr[data-region=grid_1_1]")
    row.focus()
    tab.keyboard.press("Enter")
    assert tab.locator("#region-select").input_value() != "0"
    assert "active" in tab.locator("[data-outline=grid_1_1]").get_attribute("class")
    assert "grid_1_1" in tab.inner_text("#time-read") or tab.wait_for_timeout(60) is None
    with tab.expect_download() as download:
        tab.click("button[data-csv=regions]")
    text = Path(download.value.path()).read_text(encoding="utf-8-sig")
    critical = read_table(results / "bad" / "critical_fluence.csv").query("witness == 'contrast'").set_index("region")
    for line in text.splitlines()[1:]:
        region, loss = line.split(",")[:2]
        assert float(loss) == critical.loc[region, "loss_percent"]


def test_pairs_can_be_read(open_page, page, results):
    tab = open_page(page("bad"))
    tab.click("button[data-pairs=hop_probability]")
    assert tab.inner_text("#pair-name") == "hop probability"
    pairs = read_table(results / "bad" / "pairs.parquet")
    n = fabricate.BAD.n_frames
    tab.locator("#pair-map").scroll_into_view_if_needed()
    box = tab.locator("#pair-map").bounding_box()
    pair = pairs[(pairs["reference"] == 2) & (pairs["moving"] == 6)].iloc[0]
    tab.mouse.move(box["x"] + box["width"] * 6.5 / n, box["y"] + box["height"] * 2.5 / n)
    text = tab.inner_text("#pair-read")
    assert text.startswith(f"2 → 6: residual {number(pair['residual_px'])} px")
    assert f"hop probability {number(pair['hop_probability'], 2)}" in text


def test_pairs_can_be_read_by_keyboard(open_page, page):
    tab = open_page(page("good"))
    tab.locator("#pair-map").focus()
    for key, pair in (("ArrowRight", "0 → 1"), ("ArrowRight", "0 → 2"), ("ArrowDown", "1 → 2"), ("ArrowLeft", "0 → 8")):
        tab.keyboard.press(key)
        assert tab.inner_text("#pair-read").startswith(f"{pair}: residual")


def test_pairs_of_a_long_series_are_rows_of_lags(open_page, page):
    tab = open_page(page("many"))
    assert tab.inner_text("#lag-names").split("\n") == ["lag 1", "lag 2", "lag 4", "lag 8"]


def test_strips_read_a_frame_and_lead_there(open_page, page, results):
    tab = open_page(page("bad"))
    trajectory = read_table(results / "bad" / "trajectory.parquet")
    lane = tab.locator(".strip >> nth=0")
    lane.scroll_into_view_if_needed()
    box = lane.bounding_box()
    x = box["x"] + box["width"] * (3.5 / fabricate.BAD.n_frames)
    tab.mouse.move(x, box["y"] + 10)
    assert tab.inner_text(".strip-value >> nth=0") == number(trajectory["closure_px"].iloc[3])
    assert tab.inner_text(".strip-axis span:nth-child(2)") == "frame 3"
    tab.mouse.click(x, box["y"] + 10)
    tab.wait_for_timeout(100)
    assert "Frame 3 " in tab.inner_text("#time-read")
    with tab.expect_download() as download:
        tab.click("#frames-csv")
    lines = Path(download.value.path()).read_text(encoding="utf-8-sig").splitlines()
    assert len(lines) == fabricate.BAD.n_frames + 1 and lines[0].startswith("frame,time_s,used,drift_y_nm")
    closure = lines[0].split(",").index("closure (px)")
    assert float(lines[4].split(",")[closure]) == pytest.approx(trajectory["closure_px"].iloc[3], rel=1e-5)


def test_fits_follow_the_chosen_region(open_page, page):
    tab = open_page(page("bad"))
    shown = "[...document.querySelectorAll('#kinetics tbody tr')].filter(r => !r.hidden).map(r => r.dataset.kinetics)"
    assert set(tab.evaluate(shown)) == {"whole"}
    before = tab.inner_text("#weights")
    tab.select_option("#region-select", label="hot spot")
    tab.wait_for_timeout(60)
    assert set(tab.evaluate(shown)) == {"whole", "hot spot"}
    assert tab.inner_text("#weights") != before and tab.inner_text("#weights-region") == "hot spot"
    assert "active" in tab.locator("[data-outline='hot spot']").get_attribute("class")
    tab.check("#all-kinetics")
    assert len(set(tab.evaluate(shown))) == 12


def test_uncertain_and_unseen_places_carry_no_colour(open_page, page, results):
    """Where σ is too large only a hint of the colour is left; where nothing was seen, none."""
    tab = open_page(page("good"))
    spread = """() => {
        AD.state.opacity = 1;
        const colourful = () => {
            AD.setTau(1);
            const c = document.getElementById('map-canvas');
            const copy = new OffscreenCanvas(c.width, c.height).getContext('2d');
            copy.drawImage(c, 0, 0);
            const d = copy.getImageData(0, 0, c.width, c.height).data;
            let n = 0;
            for (let i = 0; i < d.length; i += 4) {
                const rgb = [d[i], d[i + 1], d[i + 2]];
                n += Math.max(...rgb) - Math.min(...rgb) > 40;
            }
            return n;
        };
        const all = colourful();
        for (const s of AD.states) s.contrast.unsure.fill(1);
        const unsure = colourful();
        for (const s of AD.states) { s.contrast.unsure.fill(0); s.contrast.values.fill(NaN); }
        return [all, unsure, colourful()];
    }"""
    everything, unsure, unseen = tab.evaluate(spread)
    assert everything > 5000 and unsure < 0.05 * everything and unseen == 0


def test_without_javascript_figures_and_numbers_are_there(open_page, page, results):
    output = page("good")
    tab = open_page(output, javascript=False)
    shot(tab, "series_good_without_javascript")
    assert tab.locator("svg.figure").count() == 7
    assert tab.locator("#kinetics tbody tr").count() == tab.locator("#kinetics tbody tr:visible").count()
    assert tab.locator("svg.figure >> nth=0").is_visible()
    assert tab.locator("#img-first").is_visible() and tab.locator("#img-last").is_visible()
    assert not tab.locator("#time").is_visible() and not tab.locator("#flicker-button").is_visible()
    found = (
        read_table(results / "good" / "critical_fluence.csv")
        .query("region == 'whole' and witness == 'contrast'")
        .iloc[0]
    )
    text = interval(found["loss_percent"], found["loss_lo95"], found["loss_hi95"])
    assert text in tab.inner_text("#regions")


def test_print_shows_the_static_figures(open_page, page):
    tab = open_page(page("good"), scheme="dark")
    tab.emulate_media(media="print")
    assert tab.locator("svg.figure >> nth=0").is_visible()
    assert tab.locator("#img-last").is_visible() and not tab.locator("#time-box").is_visible()
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_session_page_sorts_filters_and_downloads(open_page, session):
    tab = open_page(session.html)
    shot(tab, "session")
    visible = "[...document.querySelectorAll('#series tbody tr')].filter(r => !r.hidden).length"
    total = len(session.entries)
    assert tab.evaluate(visible) == total
    tab.locator("#series th button", has_text="contrast lost").click()
    values = tab.eval_on_selector_all(
        "#series tbody tr", "rows => rows.map(r => (r.cells[4] || {dataset: {value: ''}}).dataset.value)"
    )
    numbers = [float(v) for v in values if v not in ("", "nan")]
    assert numbers == sorted(numbers, reverse=True)
    assert all(v in ("", "nan") for v in values[len(numbers) :]), "unknown values come last"
    tab.fill("#find", "mof")
    assert tab.evaluate(visible) == 1
    with tab.expect_download() as download:
        tab.click("button[data-csv=series]")
    assert len(Path(download.value.path()).read_text(encoding="utf-8-sig").splitlines()) == 2
    tab.fill("#find", "")
    tab.click("button[data-group=failed]")
    assert tab.evaluate(visible) == 1 and "no pair converged" in tab.inner_text("#series")
    tab.click("button[data-group='']")
    tab.set_viewport_size(PHONE)
    shot(tab, "session_phone")
    assert tab.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_session_page_dark(open_page, session):
    shot(open_page(session.html, scheme="dark"), "session_dark")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_contrast(open_page, page, scheme):
    """Every colour used for text reaches 4.5:1 on each background it stands on."""
    tab = open_page(page("good"), scheme=scheme)
    names = ["bg", "surface", "sunken", "ink", "muted", "accent", "contrast", "intensity", "good", "look", "bad"]
    names += ["good-bg", "look-bg", "bad-bg", "crystallinity", "along-y", "along-x", *(f"s{i}" for i in range(8))]
    colours = tab.evaluate(
        "(n) => n.map((v) => getComputedStyle(document.documentElement).getPropertyValue('--' + v).trim())", names
    )
    light = {n: _luminance(c) for n, c in zip(names, colours, strict=True)}
    on = {
        b: ("ink", "muted", "accent", "contrast", "intensity", "good", "look", "bad", *names[14:])
        for b in ("bg", "surface")
    }
    on |= {"sunken": ("ink", "muted"), "good-bg": ("good",), "look-bg": ("look", "ink"), "bad-bg": ("bad",)}
    for background, texts in on.items():
        for text in texts:
            hi, lo = sorted((light[text], light[background]), reverse=True)
            assert (hi + 0.05) / (lo + 0.05) >= 4.5, (text, background)


def test_every_control_and_picture_has_a_name(open_page, page, session):
    nameless = """() => [
        ...document.querySelectorAll('button, input, select, canvas, img, svg[role=img], a')
    ].filter((e) => !(
        e.getAttribute('aria-label') || e.hasAttribute('alt') || (e.labels && e.labels.length) || e.textContent.trim()
    )).map((e) => e.outerHTML.slice(0, 80))"""
    for path in (page("bad"), session.html):
        assert open_page(path).evaluate(nameless) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("key", ["bad", "no_current", "session"])
def test_axe_finds_no_serious_violation(open_page, page, session, key, scheme):
    if not AXE.is_file():
        pytest.skip("axe-core is not installed: npm install --no-save axe-core")
    tab = open_page(session.html if key == "session" else page(key), scheme=scheme)
    tab.evaluate(AXE.read_text(encoding="utf-8"))
    assert tab.evaluate(VIOLATIONS) == []


def _luminance(colour: str) -> float:
    digits = colour.lstrip("#")
    digits = "".join(d * 2 for d in digits) if len(digits) == 3 else digits
    rgb = np.array([int(digits[i : i + 2], 16) for i in (0, 2, 4)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])
