# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""The page about a test run."""
import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
from conftest import tool
from pycocotools import mask as coco_mask
from report.breakdown import (
    by_area,
    by_kind,
    by_length,
    choose_samples,
    worst_words,
)
from report.page import MAX_FILTERED, write_report
from samples import evaluate, from_prob

from cris.evaluation.results import read_results_file, write_results_file

HOSTILE = '</script><script>alert(1)</script><img src=x onerror=alert(2)> "\''


def record(folder, expression, iou=0.5, image=0, area=8):
    mask = np.zeros((8, 10), np.uint8, order='F')
    mask.flat[:area] = 1
    rle = coco_mask.encode(mask)['counts'].decode()
    return dict(
        img_path=str(folder / f'{image}.png'), img_id=image, ref_id=1,
        sent_id=1, expression=expression, height=8, width=10,
        intersection=round(100 * iou), union=100, pred_area=8, gt_area=area,
        iou=iou, score=0.7, pred_rle=rle, gt_rle=rle)


@pytest.fixture
def records(tmp_path):
    for i in range(3):
        cv2.imwrite(
            str(tmp_path / f'{i}.png'), np.full((8, 10, 3), 90, np.uint8))
    return [record(tmp_path, HOSTILE, 0.0, 0),
            record(tmp_path, 'the red car', 0.2, 1),
            record(tmp_path, 'Red CAR, left', 0.5, 2),
            record(tmp_path, "the dog's ball", 0.9, 1, area=0),
            record(tmp_path, None, 1.0, 0, area=80)]


class Page(HTMLParser):
    """Elements, as a browser would read them."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.content, self._open = [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._open = (tag, dict(attrs).get('id'))

    def handle_endtag(self, tag):
        self._open = None

    def handle_data(self, data):
        self.content[self._open] = self.content.get(self._open, '') + data

    def of(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


def page_of(records, tmp_path, **kwargs):
    results, out = tmp_path / 'results.json', tmp_path / 'new/report.html'
    results.write_text(json.dumps(records))
    faults = write_report(str(results), str(out), **kwargs)
    page = Page(out.read_text(encoding='utf-8'))
    return page, json.loads(page.content['script', 'data']), faults


def test_hostile_sentences_stay_text(records, tmp_path):
    page, data, faults = page_of(records, tmp_path)
    assert not faults
    assert [attrs.get('id') for attrs in page.of('script')] == ['data', None]
    assert all('onerror' not in attrs for _, attrs in page.elements)
    assert data['sentences'][:2] == [HOSTILE, 'the red car']
    assert HOSTILE in page.content['q', None]
    # Nothing but that one script may run, and nothing is fetched.
    policy = page.of('meta')[1]['content']
    script = page.content['script', None]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest())
    assert policy == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest.decode()}'")
    assert all(a['src'].startswith('data:image/') for a in page.of('img'))
    assert not page.of('link') and not page.of('a')

    # The pictures show both masks.
    assert data['pictures'].keys() == set('01234')
    content = base64.b64decode(data['pictures']['4'].split(',')[1])
    drawn = cv2.imdecode(np.frombuffer(content, np.uint8), 1)[..., ::-1]
    assert drawn.shape == (208, 260, 3)
    blue, red = drawn[100, 100, 2], drawn[100, 100, 0]
    assert blue > 120 and red < 75  # cyan: everything is predicted


def test_missing_pictures_are_said(records, tmp_path):
    moved = tmp_path / 'moved'
    moved.mkdir()
    for i in range(2):
        (tmp_path / f'{i}.png').rename(moved / f'{i}.png')
    page, _, faults = page_of(records, tmp_path)
    assert len(faults) == 2 and '--img-root' in faults[0]
    assert 'could not be drawn' in page.content['p', None]
    (tmp_path / '2.png').rename(moved / '2.png')
    assert page_of(records, tmp_path, img_root=str(moved))[-1] == []
    for r in records:
        del r['pred_rle']
    *_, (fault, ) = page_of(records, tmp_path, img_root=str(moved))
    assert 'the results hold no masks' in fault


def test_samples_are_of_other_images_and_the_most_confident_first(tmp_path):
    found = [record(tmp_path, 'a dog', 0.1, image) for image in (0, 0, 1)]
    found[2]['score'] = 0.9
    assert choose_samples(found, 3)['worst'] == [2, 0]


def test_figures(records, tmp_path):
    results = tmp_path / 'results.json'
    results.write_text(json.dumps(records))
    read, _ = read_results_file(str(results))
    assert choose_samples(read, 2) == dict(
        best=[4, 3], median=[2, 1], worst=[0, 1])
    bins = {b.label: (b.count, b.mean) for b in by_length(read)}
    assert bins['0'] == (1, 100)
    assert bins['3'][0] == 3 and bins['3'][1] == pytest.approx(160 / 3)
    areas = {b.label: b.count for b in by_area(read) if b.count}
    assert areas == {'10–20': 3, '50–100': 1, 'no target': 1}
    assert by_kind(read) == []
    many = 5 * read
    words = {row['word']: row for row in worst_words(many)}
    assert words['car']['count'] == 10
    assert words['car']['mean'] == pytest.approx(35)
    assert words['car']['difference'] == pytest.approx(-17)
    assert "dog's" in words and list(words)[:3] == ['1', '2', 'alert']
    assert worst_words(read) == []


@pytest.mark.parametrize('options', [
    {}, dict(inclusive=True), dict(empty_union=0.75, inclusive=True),
    dict(generalized=True, threshold=0.45), dict(sentences='last'),
    dict(gt_size=(2, 5)),
], ids=str)
@pytest.mark.parametrize('suffix', ['json', 'parquet'])
def test_scores_are_those_of_the_test(options, suffix, tmp_path):
    """Under every convention, with an IoU of exactly 0.5 and two empty."""
    target = np.zeros((5, 1, 10))
    target[:3, :, :8] = 1
    prob = np.zeros((5, 1, 10))
    prob[0, 0, :4], prob[1, 0, :6], prob[2, 0, :8] = 0.9, 0.6, 0.4
    prob[4, 0, :1] = 0.9  # predicted without a target
    path = tmp_path / f'results.{suffix}'
    scores = evaluate([from_prob(prob, target, [1, 1, 1, 2, 3])],
                      out_file=str(path), **options)
    write_report(str(path), str(tmp_path / 'report.html'))
    text = (tmp_path / 'report.html').read_text()
    shown = dict(re.findall('<dt>(.*)</dt><dd>(.*)</dd>', text))
    count = scores.pop('n_expressions')
    assert shown == {name: f'{score:.2f}' for name, score in scores.items()}
    assert f'{count} expressions' in text
    sign = '≥' if options.get('inclusive') else '&gt;'
    assert f'with IoU {sign} X' in text
    for key, words in dict(
            threshold='Threshold 0.45', generalized='N-acc and T-acc',
            sentences='the last sentence', gt_size='counted at 2 x 5',
            empty_union='ground truth is 75').items():
        assert (words in text) == (key in options), key


def test_confidence_is_shown_where_there_is_any(records, tmp_path):
    page, *_ = page_of(records, tmp_path)
    assert 'Confidence' not in page.content['h2', None]
    plain = len(page.of('img'))
    # IoU 0, 0.2, 0.5, 0.9 and 1: three of five are right; the fourth has no
    # target, for which a mask is wrong.
    sure = [dict(r, confidence=c) for r, c in zip(
        records, (.1, .1, .8, .8, .97), strict=True)]
    page, *_ = page_of(sure, tmp_path)
    assert 'Confidence' in page.content['h2', None]
    assert len(page.of('img')) == plain + 2
    text = (tmp_path / 'new/report.html').read_text()
    ece = (2 * .1 + 2 * abs(.5 - .8) + .03) / 5
    assert f'(ECE) is <b>{100 * ece:.2f}&nbsp;%</b>, in 15 bins' in text
    assert '40.00&nbsp;% are' in text and 'undefined' not in text
    for kept, said in ((lambda r: r['gt_area'], 'N-acc is undefined'),
                       (lambda r: not r['gt_area'], 'T-acc are')):
        page_of(list(filter(kept, sure)), tmp_path)
        text = (tmp_path / 'new/report.html').read_text()
        assert said in text and text.count('undefined') == 1


def test_a_page_of_many_records_stays_small(records, tmp_path):
    many = [
        dict(records[1], expression=f'{"word " * 60}{i}', iou=i / 60_000)
        for i in range(60_000)]
    _, data, _ = page_of(many, tmp_path)
    assert len(data['sentences']) == len(data['iou']) == MAX_FILTERED
    assert max(map(len, data['sentences'])) == 200
    assert len(data['pictures']) == 120
    assert data['iou'][0] == 0 and data['iou'][-1] == 100
    assert (tmp_path / 'new/report.html').stat().st_size < 13e6


def test_kinds_of_some_records(records, tmp_path):
    for i, kind in ((1, 'one'), (2, 'one'), (3, 'none')):
        records[i]['kind'] = kind
    path = tmp_path / 'results.parquet'
    write_results_file(records, str(path))
    read, _ = read_results_file(str(path))
    assert [(b.label, b.count, b.mean) for b in by_kind(read)] == [
        ('none', 1, 90), ('one', 2, 35), ('other', 2, 50)]
    write_report(str(path), str(tmp_path / 'report.html'))
    page = (tmp_path / 'report.html').read_text()
    assert '<tr><td>one</td><td>2</td><td>35.0 ±' in page


def test_command_line_and_parquet(records, tmp_path):
    table = tmp_path / 'results.parquet'
    write_results_file(records, str(table))
    out = tmp_path / 'report.html'
    log = tool('analysis_tools/report', table, '--out', out, '--num', 1,
               '--title', 'R50 <val>')
    assert '<h1>Test report: R50 &lt;val&gt;</h1>' in out.read_text()
    assert f'wrote {out}' in log and 'no picture' not in log
    assert '<dd>52.00</dd>' in out.read_text()
    assert len(re.findall('<figure>', out.read_text())) == 3
    log = tool('analysis_tools/report', tmp_path / 'no.json', ok=False)
    assert 'no.json does not exist' in log and 'Traceback' not in log


@pytest.mark.parametrize('content, message', [
    ('', 'not valid JSON'), ('[]', 'holds no records'),
    ('{"a": 1}', 'holds no records'), ('[3]', 'record 0: it is a int'),
    ('[{"iou": 1}]', 'record 0: height is None'), (dict(iou=1.5), 'not in'),
    (dict(iou=float('nan')), 'iou is nan'), (dict(height=0), '0 x 10 pixels'),
    (dict(expression=5), 'expression is 5, not a string'),
    (dict(score='high'), "score is 'high', not a number"),
    (dict(score=float('nan')), 'score is nan, not in'),
    (dict(intersection=9, union=3), 'intersection is 9'),
    (dict(gt_rle='!!'), 'characters outside the RLE'),
    (dict(height=float('nan')), 'height is nan, not in'),
    (dict(union=10**400), 'union is 1000.* not in'),
    (dict(inclusive=1), 'inclusive is 1, not true'),
    (dict(empty_union=2), 'empty_union is 2, not in'),
    (dict(confidence=1.2), 'confidence is 1.2, not in'),
    (dict(existence='no'), "existence is 'no', not a number"),
    ([{}, dict(inclusive=True)], 'record 1: .* other conventions'),
])
def test_bad_results(records, tmp_path, content, message):
    if isinstance(content, dict):
        content = [content]
    if isinstance(content, list):
        content = json.dumps([dict(records[1], **c) for c in content])
    path = tmp_path / 'results.json'
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        write_report(str(path), str(tmp_path / 'report.html'))
    assert not (tmp_path / 'report.html').exists()
