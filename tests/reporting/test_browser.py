"""The page in a real browser: filters, search, paging, one problem, keyboard, names for screen readers, escaping."""

import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from irpo_nemo.reporting.write import compare_runs, write_report
from tests.reporting.chromium import open_chromium, open_page, show_as, wait_until_idle, why_no_chromium
from tests.reporting.made_run import NASTY, make_config, make_run

pytestmark = pytest.mark.skipif(why_no_chromium() is not None, reason=str(why_no_chromium()))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = make_config(tmp_path_factory.mktemp("page"))
    folder = make_run(config)
    write_report(folder, config)
    return folder.page


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with open_chromium() as driver:
        yield driver


@pytest.fixture
def browser(chromium: Any, page: Path) -> Iterator[Any]:
    """The page, opened from disk; at the end the console must be empty."""
    show_as(chromium)
    chromium.get_log("browser")
    open_page(chromium, page)
    yield chromium
    assert chromium.get_log("browser") == []
    assert chromium.title == "made, irpo-nemo"


def find(browser: Any, selector: str) -> Any:
    return browser.find_element("css selector", selector)


def texts(browser: Any, selector: str) -> list[str]:
    return [element.text for element in browser.find_elements("css selector", selector)]


def wait_for(browser: Any, script: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 30, poll_frequency=0.02).until(lambda driver: driver.execute_script(f"return {script}"))


def choose(browser: Any, name: str, value: str) -> None:
    from selenium.webdriver.support.ui import Select

    Select(find(browser, f"#{name}")).select_by_value(value)
    wait_until_idle(browser)


def search(browser: Any, query: str) -> None:
    field = find(browser, "#query")
    field.clear()
    field.send_keys(query)
    wait_until_idle(browser)


def open_problem(browser: Any, problem_id: str) -> None:
    search(browser, problem_id)
    find(browser, "#items button").click()
    wait_for(browser, f"document.querySelector('#problem-title')?.textContent === '{problem_id}'")


def found(browser: Any) -> str:
    return str(find(browser, "#found").text)


def test_all_problems_stand_in_pages(browser: Any) -> None:
    assert found(browser) == "60 problems"
    assert texts(browser, "#items .id") == [f"test/{n}" for n in range(25)]
    assert (find(browser, "#pages").text, find(browser, "#earlier").is_enabled()) == ("Page 1 of 3", False)
    find(browser, "#later").click()
    find(browser, "#later").click()
    assert texts(browser, "#items .id") == [f"test/{n}" for n in range(50, 60)]
    assert (find(browser, "#pages").text, find(browser, "#later").is_enabled()) == ("Page 3 of 3", False)
    find(browser, "#earlier").click()
    assert find(browser, "#pages").text == "Page 2 of 3"


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ({"verdict": "greedy correct"}, "50 of 60 problems"),
        ({"verdict": "greedy correct", "model": "0"}, "20 of 60 problems"),
        ({"verdict": "greedy wrong", "model": "1"}, "20 of 60 problems"),
        ({"verdict": "all", "model": "1"}, "14 of 60 problems"),
        ({"verdict": "none", "model": "0"}, "15 of 60 problems"),
        ({"verdict": "some", "model": "0"}, "45 of 60 problems"),
        ({"verdict": "sample unparsable"}, "1 of 60 problems"),
        ({"change": "better"}, "30 of 60 problems"),
        ({"change": "worse"}, "10 of 60 problems"),
        ({"change": "same"}, "20 of 60 problems"),
        ({"change": "better", "from": "1", "to": "0"}, "10 of 60 problems"),
        ({"change": "better", "verdict": "all", "model": "1"}, "7 of 60 problems"),
        ({"split": "train", "verdict": "pairs"}, "45 of 60 problems"),
    ],
)
def test_filters_agree(browser: Any, choices: dict[str, str], expected: str) -> None:
    for name, value in choices.items():
        choose(browser, name, value)
    assert found(browser) == expected


def test_the_order_puts_what_was_lost_first(browser: Any) -> None:
    choose(browser, "sort", "lost")
    assert texts(browser, "#items .id")[:2] == ["test/7", "test/0"]
    find(browser, "button[type=reset]").click()
    wait_for(browser, "document.querySelector('#items .id').textContent === 'test/0'")
    assert found(browser) == "60 problems"


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("word12", ["test/12"]),
        ("WORD12 ", ["test/12"]),
        ("word1 ", ["test/1"]),
        ("word5", ["test/5", *(f"test/{n}" for n in range(50, 60))]),
        ("what is 33 ", ["test/16", "test/33"]),
        ("thinks word12", ["test/12"]),
        ("word12 word13", []),
        ("test/42", ["test/42"]),
        ("nosuchword", []),
        ("\u2028", [f"test/{n}" for n in range(25)]),
    ],
)
def test_search_finds_words_beginnings_and_ids(browser: Any, query: str, expected: list[str]) -> None:
    search(browser, query)
    assert texts(browser, "#items .id") == expected


def test_words_are_marked_and_completions_with_them_picked(browser: Any) -> None:
    open_problem(browser, "test/12")
    search(browser, "word12 thi")
    assert set(texts(browser, "#panel mark")) == {"word12", "thinks"}
    find(browser, "#only-found").click()
    assert len(texts(browser, ".candidate")) == 5
    search(browser, "is word12")
    assert texts(browser, "#only-found") == ["with the words searched 0"]


def test_a_problem_shows_candidates_with_verdict_rule_and_pairs(browser: Any) -> None:
    choose(browser, "split", "train")
    open_problem(browser, "train/7")
    assert find(browser, ".gold").text == "14"
    assert texts(browser, ".candidate h4") == [
        "sample 0 ✓ correct", "sample 1 ✓ correct", "sample 2 ✓ correct", "sample 3 ? unparsable"
    ]  # fmt: skip
    facts = texts(browser, ".candidate .facts")
    assert facts[0] == "answer 14 · rule made_rule · 3 tokens"
    assert "In pairs, chosen over sample 3" in facts
    assert "answer none · rule made_rule · 6 tokens · cut off" in facts
    assert texts(browser, ".pairs summary") == ["sample 0 over sample 3"] * 2
    find(browser, ".pairs summary").click()
    wait_for(browser, "document.querySelectorAll('.sides pre').length === 2")
    find(browser, "#only-unparsable").click()
    assert texts(browser, ".candidate h4") == ["sample 3 ? unparsable"]


def test_a_problem_shows_its_answers_over_the_models(browser: Any) -> None:
    open_problem(browser, "test/30")
    assert texts(browser, ".problem-head button") == ["Previous", "Next", ""], "the last one is for phones"
    rows = [row.replace("\n", " ").replace("\u00d7", "x") for row in texts(browser, "#problem tbody tr")]
    assert rows == [
        "M_0 ✗ wrong 61 2 of 4 ✓ correct 60 x2 ✗ wrong 63 x1 ✗ wrong 64 x1",
        "M_1 ✓ correct 60 3 of 4 ✓ correct 60 x3 ✗ wrong 64 x1",
    ]
    assert "Model 1 adds" in find(browser, ".candidate pre").text
    find(browser, "#tab-0").click()
    assert "Model 0 adds" in find(browser, ".candidate pre").text


def test_text_of_models_and_data_is_text(browser: Any) -> None:
    open_problem(browser, "test/30")
    summary = find(browser, "#problem details summary")
    summary.click()
    wait_for(browser, "document.querySelector('#problem details pre') !== null")
    script = "return [...document.querySelectorAll('#problem pre')].map((pre) => pre.textContent)"
    question, prompt, *completions = browser.execute_script(script)
    assert question == f"What is 30 plus 30? {NASTY}"
    assert question in prompt
    assert completions[0] == f"Model 1 adds word30 and thinks: {NASTY}\nFinal answer: 60"
    assert browser.find_elements("css selector", "#problem img, #problem script, #items img") == []


def test_the_address_names_the_problem(browser: Any, page: Path) -> None:
    open_problem(browser, "test/30")
    assert browser.current_url.endswith("#problem/test/test%2F30")
    browser.back()
    wait_for(browser, "document.querySelector('#problem-title') === null")
    open_page(browser, page, "#problem/train/train%2F9")
    wait_for(browser, "document.querySelector('#problem-title')?.textContent === 'train/9'")
    assert find(browser, "#split").get_attribute("value") == "train"
    open_page(browser, page, "#problem/train/no%2Fsuch")
    assert texts(browser, "#problem-title") == []


def test_the_keyboard_alone_is_enough(browser: Any) -> None:
    from selenium.webdriver import ActionChains, Keys

    def press(*keys: str) -> Any:
        ActionChains(browser).send_keys(*keys).perform()
        return browser.switch_to.active_element

    assert press(Keys.TAB).text == "Skip to the content"
    find(browser, "#query").click()
    order = [press(Keys.TAB).get_attribute("id") for _ in range(7)]
    assert order == ["split", "model", "verdict", "change", "from", "to", "sort"]
    assert press(Keys.TAB).text == "Show all"
    assert press(Keys.TAB).text.startswith("test/0")
    assert press(Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_UP).text.startswith("test/1\n")
    press(Keys.ENTER)
    wait_for(browser, "document.activeElement.id === 'problem-title'")
    tab = find(browser, "#tab-1")
    assert tab.get_attribute("aria-selected") == "true"
    browser.execute_script("arguments[0].focus()", tab)
    assert press(Keys.ARROW_LEFT).get_attribute("id") == "tab-0"
    assert find(browser, "#panel").get_attribute("aria-labelledby") == "tab-0"


def properties_of(node: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(item["name"], item["value"].get("value")) for item in node["properties"]]


def test_everything_that_takes_focus_has_a_name_and_a_role(browser: Any) -> None:
    open_problem(browser, "test/30")
    nodes = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    shown = [node for node in nodes if not node["ignored"]]
    focusable = [
        node for node in shown if any(p["name"] == "focusable" and p["value"]["value"] for p in node["properties"])
    ]
    nameless = [
        node["role"]["value"]
        for node in focusable
        if not node["name"]["value"] and node["role"]["value"] not in ("RootWebArea", "generic")
    ]
    assert len(focusable) > 20
    assert nameless == []
    roles = {node["role"]["value"] for node in shown}
    assert {"banner", "navigation", "main", "search", "tablist", "tab", "tabpanel", "status", "table", "image"} <= roles
    images = [node["name"]["value"] for node in shown if node["role"]["value"] == "image"]
    assert "Accuracy: greedy, 95% interval 33.3% to 66.7%; majority of 4 75% to 100%" in images
    assert "M_0, greedy wrong, 2 of 4 samples correct." in images
    ids = browser.execute_script("return [...document.querySelectorAll('[id]')].map((element) => element.id)")
    assert len(ids) == len(set(ids))


CONTRAST = """
const light = (rgb) => {
  const channels = rgb.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255);
  const [r, g, b] = channels.map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const probe = document.createElement("i"); document.body.append(probe);
const value = (name) => { probe.style.color = `var(--${name})`; return light(getComputedStyle(probe).color); };
const ratios = {};
for (const back of ["page", "card"]) for (const front of arguments[0]) {
  const [a, b] = [value(back), value(front)].sort(); ratios[`${front} on ${back}`] = (b + 0.05) / (a + 0.05); }
probe.remove(); return ratios;
"""
"""Contrast ratios after WCAG 2: https://www.w3.org/TR/WCAG21/#dfn-contrast-ratio"""


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_in_both_themes(browser: Any, dark: bool) -> None:
    show_as(browser, dark=dark)
    fronts = ["text", "soft", "accent", "correct", "wrong", "unparsable", "error"]
    ratios = browser.execute_script(CONTRAST, fronts)
    assert len(ratios) == 14
    assert {name: ratio for name, ratio in ratios.items() if ratio < 4.5} == {}


def test_the_theme_can_be_switched(browser: Any) -> None:
    background = "return getComputedStyle(document.body).backgroundColor"
    before = browser.execute_script(background)
    find(browser, "#theme").click()
    assert browser.execute_script(background) != before


def test_a_phone_shows_the_list_or_a_problem_and_never_scrolls_sideways(browser: Any, page: Path) -> None:
    show_as(browser, width=390, height=844)
    open_page(browser, page)
    overflow = "return document.documentElement.scrollWidth - innerWidth"
    assert browser.execute_script(overflow) == 0
    open_problem(browser, "test/30")
    assert not find(browser, "#list").is_displayed()
    assert browser.execute_script(overflow) == 0
    find(browser, ".close").click()
    assert find(browser, "#list").is_displayed()
    assert browser.switch_to.active_element.text.startswith("test/30")


def test_a_page_without_its_data_says_so(chromium: Any, page: Path, tmp_path: Path) -> None:
    shutil.copy(page, tmp_path / "alone.html")
    open_page(chromium, tmp_path / "alone.html")
    wait_for(chromium, "document.querySelector('#found').textContent.includes('cannot be read')")
    assert found(chromium) == "data/test.js cannot be read. Copy the whole report folder, not the page alone."


def test_a_web_server_may_serve_it_too(chromium: Any, page: Path) -> None:
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

    handler = functools.partial(Handler, directory=str(page.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        chromium.get(f"http://127.0.0.1:{server.server_address[1]}/index.html")
        wait_until_idle(chromium)
        assert found(chromium) == "60 problems"
        server.shutdown()


def test_the_comparison_opens_without_complaint(chromium: Any, tmp_path: Path) -> None:
    configs = [make_config(tmp_path, f"name={name}") for name in ("one", "two")]
    for config in configs:
        make_run(config)
    compare_runs(configs, tmp_path / "both.html")
    chromium.get_log("browser")
    open_page(chromium, tmp_path / "both.html")
    assert chromium.find_element("tag name", "h1").text == "Comparison"
    assert len(chromium.find_elements("tag name", "svg")) >= 6
    assert chromium.get_log("browser") == []
