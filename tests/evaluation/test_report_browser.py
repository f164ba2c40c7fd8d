"""The page of a report, opened in Chromium: what it shows, on a phone and a desk, light and dark.

Needs Debian's chromium and chromium-driver, see CONTRIBUTING.md.
"""

import json
import os
import shutil

import numpy as np
import pytest

from thinkml.evaluation import Report
from thinkml.evaluation.bootstrap import Resampling
from thinkml.evaluation.metrics.registry import metrics_for
from thinkml.evaluation.report import embedded_plots
from thinkml.evaluation.result import Slice

from . import make_evaluations
from .test_report_formats import HOSTILE

pytestmark = pytest.mark.slow

NONE = Resampling(confidence=None)
FLAGS = (
    '--headless=new',
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
)
SCREENS = {'phone': (390, 844), 'desk': (1280, 900)}

# The lowest contrast of a text with its background, as WCAG 2 defines it, and this text.
CONTRAST = """
const parse = text => text.match(/[\\d.]+/g).map(Number);
const over = (top, below) => {
  const alpha = top.length > 3 ? top[3] : 1;
  return [0, 1, 2].map(i => alpha * top[i] + (1 - alpha) * below[i]);
};
const behind = element => {
  if (!element) return [255, 255, 255];
  return over(parse(getComputedStyle(element).backgroundColor), behind(element.parentElement));
};
const luminance = colour => {
  const [r, g, b] = colour.map(c => c / 255).map(
    c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
let least = [99, ''];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim()) continue;
  const ground = behind(element);
  const text = over(parse(getComputedStyle(element).color), ground);
  const [low, high] = [luminance(ground), luminance(text)].sort((a, b) => a - b);
  const ratio = (high + 0.05) / (low + 0.05);
  if (ratio < least[0]) least = [ratio, walker.currentNode.data];
}
return least;
"""


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    """Starts Chromium without a window, with its log of requests on."""
    programs = [shutil.which(name) for name in ('chromium', 'chromedriver')]
    if not all(programs):
        why = 'chromium is missing: as root, apt-get install chromium chromium-driver'
        pytest.fail(why) if os.environ.get('CI') else pytest.skip(why)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for flag in (*FLAGS, f'--user-data-dir={tmp_path_factory.mktemp("chromium")}'):
        options.add_argument(flag)
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL', 'performance': 'ALL'})
    driver = webdriver.Chrome(options, webdriver.ChromeService(programs[1]))
    yield driver
    driver.quit()


def look(browser, path, screen='desk', scheme='light'):
    """Opens a page on a screen, in a colour scheme."""
    width, height = SCREENS[screen]
    browser.get_log('performance')  # forgets what was before
    browser.execute_cdp_cmd(
        'Emulation.setDeviceMetricsOverride',
        {'width': width, 'height': height, 'deviceScaleFactor': 1, 'mobile': screen == 'phone'},
    )
    browser.execute_cdp_cmd(
        'Emulation.setEmulatedMedia',
        {'features': [{'name': 'prefers-color-scheme', 'value': scheme}]},
    )
    browser.get(path.as_uri())
    browser.execute_async_script(
        'const done = arguments[0];'
        'Promise.allSettled([...document.images].map(image => image.decode())).then(() => done());'
    )


def requested(browser):
    """Returns the addresses that the page requested."""
    messages = (json.loads(line['message'])['message'] for line in browser.get_log('performance'))
    return [
        message['params']['request']['url']
        for message in messages
        if message['method'] == 'Network.requestWillBeSent'
    ]


def binary(**fields):
    part = Slice('site = B', 40, {'f1': 0.5}, {'f1': (0.4, 0.6)}, {'f1': -0.2}, True)
    few = Slice('site = C', 3, {}, {}, {}, False)
    return make_evaluations.classification(
        ('benign', 'malignant'), 300, metrics=metrics_for('binary'),
        resampling=Resampling(num_resamples=20), slices={'site = B': part, 'site = C': few},
        warnings=('f1: no predictions of 1 of 2 classes; set to 0 there.',),
        data_fingerprint={'rows': 300, 'sha256': '0123456789abcdef' * 4}, **fields,
    )  # fmt: skip


def many_classes():
    return make_evaluations.classification(
        tuple(f'class {i:02}' for i in range(20)), 600, resampling=NONE
    )


REPORTS = {
    'binary': binary,
    'multiclass': many_classes,
    'multilabel': lambda: make_evaluations.multilabel(resampling=NONE),
    'regression': lambda: make_evaluations.regression(targets=2, resampling=NONE),
    'several': lambda: {
        f'site {name} of many': make_evaluations.classification(
            ('no', 'yes'), n=60, seed=seed, resampling=NONE, weight=np.full(60, 1.5)
        )
        for seed, name in enumerate('ABCD')
    },
}


@pytest.fixture(scope='module', params=REPORTS)
def saved(request, tmp_path_factory):
    """Returns a report and the page it was saved as."""
    report = Report(REPORTS[request.param]())
    path = tmp_path_factory.mktemp('reports') / f'{request.param}.html'
    report.save(path)
    return report, path


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('screen', SCREENS)
def test_the_page_fits_and_can_be_read(browser, saved, screen, scheme):
    report, path = saved
    look(browser, path, screen, scheme)
    wide, inner = browser.execute_script(
        'return [document.documentElement.scrollWidth, innerWidth]'
    )
    assert inner == SCREENS[screen][0]
    assert wide <= inner
    ratio, text = browser.execute_script(CONTRAST)
    assert ratio >= 4.5, text
    ground = browser.execute_script('return getComputedStyle(document.body).backgroundColor')
    assert (ground == 'rgb(255, 255, 255)') == (scheme == 'light')

    content = report.to_dict()
    shown = browser.execute_script('return document.body.innerText')
    for part in content.get('data_sets', {'': content}).values():
        for name, value in part['metrics'].items():
            assert name in shown
            assert f'{value:.4f}' in shown
    sizes = browser.execute_script('return [...document.images].map(i => i.naturalWidth)')
    assert sizes
    assert min(sizes) > 0


def test_the_page_makes_no_request_and_no_error(browser, saved):
    _, path = saved
    look(browser, path)
    entries = browser.execute_script(
        "return performance.getEntriesByType('resource').map(entry => entry.name)"
    )
    assert [address for address in entries if not address.startswith('data:')] == []
    asked = [address for address in requested(browser) if not address.startswith('data:')]
    assert asked == [path.as_uri()]
    assert browser.get_log('browser') == []


def test_what_is_too_wide_scrolls_in_its_box_by_keyboard_too(browser, tmp_path):
    path = tmp_path / 'report.html'
    Report(many_classes()).save(path)
    look(browser, path, 'phone')
    widths = browser.execute_script(
        "const box = document.querySelector('#confusion .table'); box.focus();"
        'box.scrollLeft = 50; const name = box.querySelector("tbody th").getBoundingClientRect();'
        'return [box.scrollWidth, box.clientWidth, document.activeElement === box, name.left, '
        'box.getBoundingClientRect().left]'
    )
    scrolled, visible, has_focus, name, box = widths
    assert scrolled > visible
    assert has_focus
    assert name == box  # the names of rows stay in sight


def test_names_of_users_run_no_script(browser, tmp_path, monkeypatch):
    monkeypatch.setattr(embedded_plots, '_plots', lambda evaluation: {})
    names = (*HOSTILE, 'x' * 300)
    evaluation = make_evaluations.classification(names, n=500, resampling=NONE, warnings=names)
    path = tmp_path / 'report.html'
    Report({name: evaluation for name in names[:3]}).save(path)
    look(browser, path, 'phone')
    assert browser.execute_script('return [window.hit, document.images.length]') == [None, 0]
    shown = browser.execute_script('return document.body.textContent')
    assert all(name in shown for name in names)
    wide, inner = browser.execute_script(
        'return [document.documentElement.scrollWidth, innerWidth]'
    )
    assert wide <= inner
