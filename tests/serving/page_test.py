"""The page: static, strict, and in Chromium if there is one."""

import re
import shutil

import numpy as np
import pytest

from spacetime.media import video_writer
from spacetime.serving import app as app_lib
from spacetime.serving import jobs
from tests.helpers import service as service_lib

CHROMIUM = shutil.which('chromium') or shutil.which('google-chrome')


def test_page_needs_no_other_site_and_no_inline_code():
  html = (app_lib.PAGE / 'index.html').read_text()
  script = (app_lib.PAGE / 'app.js').read_text()
  assert not re.search(r'https?://', html + script)
  assert not re.search(r'<script(?![^>]*src)|<style|\son\w+=|\sstyle=', html)
  # Prompts are never parsed as HTML.
  assert not re.search(r'innerHTML|outerHTML|document\.write|eval\(', script)
  for name in re.findall(r"\$\('(\w+)'\)", script):
    assert f'id="{name}"' in html, name
  # Each field of the form has a label.
  fields = re.findall(r'<(?:input|select|textarea)[^>]*id="(\w+)"', html)
  labels = ''.join(re.findall(r'<label.*?</label>', html, re.DOTALL))
  for name in set(fields) - {'file'}:
    assert f'id="{name}"' in labels, name


@pytest.mark.e2e
@pytest.mark.skipif(CHROMIUM is None, reason='needs Chromium')
def test_page_in_chromium(tmp_path):
  playwright = pytest.importorskip('playwright.sync_api')
  service = service_lib.make(tmp_path)
  with (
    service_lib.running(service) as url,
    playwright.sync_playwright() as driver,
  ):
    browser = driver.chromium.launch(
      executable_path=CHROMIUM, args=['--no-sandbox']
    )
    page = browser.new_page(viewport={'width': 360, 'height': 740})
    errors = []
    page.on('pageerror', lambda error: errors.append(str(error)))
    page.goto(url)
    page.wait_for_selector('#model option', state='attached')
    assert page.evaluate('document.body.scrollWidth') <= 360
    # By keyboard alone; the prompt is text, not markup.
    prompt = '<b>a red 3</b>'
    page.focus('#prompt')
    page.keyboard.type(prompt)
    page.focus('#submit')
    page.keyboard.press('Enter')
    page.wait_for_selector('#queue li')
    assert page.inner_text('#queue li p') == prompt
    # Edit in the queue.
    page.click('#queue button:has-text("Edit")')
    page.fill('#queue input', 'a blue 7')
    page.click('#queue button:has-text("Save")')
    page.wait_for_selector('#queue p:has-text("a blue 7")')
    # Progress arrives without reloading.
    job = service.jobs.claim('w', lease_seconds=60, max_running=1)
    service.jobs.beat(
      job, lease_seconds=60, stage='sampling', steps_done=1, steps=4
    )
    page.wait_for_selector('.state:has-text("step 1 of 4")')
    # A refusal shows its reason.
    page.fill('#prompt', 'a naked woman')
    page.click('#submit')
    page.wait_for_selector('#error:has-text("refused by policy standard")')
    # Cancel.
    page.click('#queue button:has-text("Cancel")')
    assert not service.jobs.beat(
      job, lease_seconds=60, stage='sampling', steps_done=2, steps=4
    )
    service.jobs.fail(job, {'code': 'cancelled', 'message': 'x'}, keep=60)
    page.wait_for_selector('.state.failed')
    # A completed video: gallery, copied settings, after a reload too.
    page.fill('#prompt', 'a green 5')
    page.fill('#seed', '9')
    page.click('#submit')
    page.wait_for_selector('#queue p:has-text("a green 5")')
    job = service.jobs.claim('w', lease_seconds=60, max_running=1)
    work = service.files.work(job.id)
    work.mkdir()
    name = {'name': 'video.mp4', 'type': 'video/mp4'}
    frames = np.zeros((17, 64, 64, 3), np.uint8)
    video_writer.write_video(work / 'video.mp4', frames, fps=8)
    result = {
      'variants': {'video': name, 'thumbnail': name},
      'frames': 17,
      'provenance': {'state': 'trusted', 'issuer': 'me', 'watermark': 'ab'},
    }
    service.files.finish(job.id, result)
    service.jobs.complete(job, result, size=1, keep=60)
    page.wait_for_selector('#gallery p:has-text("trusted, signed by me")')
    page.reload()
    page.wait_for_selector('#gallery p:has-text("a green 5")')
    page.click('#gallery button:has-text("Copy settings")')
    assert page.input_value('#seed') == '9'
    assert page.input_value('#prompt') == 'a green 5'
    page.click('#gallery button:has-text("Remix")')
    page.wait_for_selector('#queue p:has-text("a green 5")')
    remixed = service.jobs.page('local', after=None, limit=1, descending=True)[
      0
    ][0]
    assert isinstance(remixed, jobs.Job) and remixed.remixed_from == job.id
    assert not errors, errors
    browser.close()
