# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""check, convert and stats, on files on disk."""
import json
import shutil

import cv2
import numpy as np
import pytest
from conftest import ReferSet
from mmseg.registry import DATASETS
from PIL import Image
from preparation.check import check
from preparation.convert import convert, split_dataset
from preparation.known_sets import DATASETS as KNOWN
from preparation.known_sets import FORMS
from preparation.locate import locate
from preparation.report import summary, write_report
from preparation.stats import write_stats

from cris.datasets.masks import decode_mask


def checked(root, name, split_by=None, images=None, **kwargs):
    return check(locate(str(root), name, split_by, images), **kwargs)


def kinds_of(result):
    return [fault.kind for fault in result.findings]


def converted(root, name, dst, form):
    convert(locate(str(root), name), str(dst), form)
    return dst


def records(root, name, **kwargs):
    """Everything that a conversion keeps, by ref."""
    images, faults = locate(str(root), name, **kwargs).read()[:2]
    assert not faults
    return {
        ref['ref_id']: (
            ref['split'], image['file_name'], image['img_id'], ref['ann_id'],
            ref['category'], ref['sent_ids'], ref['sentences'],
            ref.get('kind'), mask_of(ref, image))
        for image in images for ref in image['refs']}


def mask_of(thing, image):
    return thing['segmentation'] and decode_mask(
        thing['segmentation'], image['height'], image['width']).tobytes()


def add_image(data, i):
    """An image of 48 x 48 pixels with one ref of train."""
    data.images.append(dict(id=i, file_name=f'{i}.jpg', height=48, width=48))
    noise = np.random.default_rng(i).integers(0, 255, (48, 48, 3), np.uint8)
    cv2.imwrite(str(data.root / f'images/{i}.jpg'), noise)
    data.add_ref(i, [[5, 10, 40, 10, 40, 40, 5, 40]], 'train')


def test_all_forms_in_a_ring(refer_set, tmp_path):
    rle = dict(size=[64, 64], counts=[100, 50, 64 * 64 - 150])
    refer_set.add_ref(2, rle, 'train', ['größe "x"', '左', 'a\tb'])
    refer_set.add_ref(
        2, [[1, 1, 9, 1, 9, 9], [5, 5, 30, 5, 30, 30]], 'testA')
    # The same image in two splits, and a name with a space in a folder.
    name = 'sub dir/bild ä 1.jpg'
    refer_set.images[2]['file_name'] = name
    images = refer_set.root / 'images'
    (images / 'sub dir').mkdir()
    content = (images / '2.jpg').rename(images / name).read_bytes()
    source = (refer_set.write(), 'refer')
    expected = records(*source)
    assert len(expected) == 8
    for i, form in enumerate((*FORMS, 'refer')):
        dst = converted(*source, tmp_path / f'{i} {form}', form)
        source = dst, 'hub' if form == 'parquet' else form
        found = records(*source)
        assert found == expected
        for split in ('train', 'val', 'testA'):
            assert [k for k, ref in found.items() if ref[0] == split] == [
                k for k, ref in expected.items() if ref[0] == split]
        assert checked(*source).usable
    (dst / 'images' / name).write_bytes(b'')  # a copy, not a link
    assert (images / name).read_bytes() == content


def test_no_target_and_several(grefs, tmp_path):
    expected = records(grefs, 'grefcoco')
    assert {v[7] for v in expected.values()} == {'one', 'none', 'many'}
    own = converted(grefs, 'grefcoco', tmp_path / 'a', 'jsonl')
    line, *_ = (own / 'train.jsonl').read_text().split('\n')
    assert json.loads(line)['mask'] is None
    found = records(converted(own, 'jsonl', tmp_path / 'b', 'refer'),
                    'refer')
    # The objects of a ref have become one annotation.
    keep = (0, 1, 2, 5, 6, 7, 8)
    assert {k: [v[i] for i in keep] for k, v in found.items()
            } == {k: [v[i] for i in keep] for k, v in expected.items()}
    for form in ('coco', 'official-json'):
        with pytest.raises(ValueError, match='ref 2: it has no target'):
            converted(grefs, 'grefcoco', tmp_path / 'c', form)
        assert not (tmp_path / 'c').exists()


def test_ids_that_are_unique_in_their_file_only(tmp_path):
    root = own_jsonl(tmp_path / 'own')
    shutil.copy(root / 'train.jsonl', root / 'val.jsonl')
    root = converted(root, 'jsonl', tmp_path / 'r', 'refer')
    found = records(root, 'refer')
    assert len(found) == 6
    assert len({i for ref in found.values() for i in ref[5]}) == 8
    assert checked(root, 'refer').usable


def test_an_annotation_id_of_two_masks_and_odd_sentence_ids(tmp_path):
    root = own_jsonl(tmp_path / 'own', [
        dict(image='0.jpg', mask=f'{i}.png', expressions=['a'], ann_id=7,
             sent_ids=[[0]]) for i in range(2)])
    expected = records(root, 'jsonl').values()
    root = converted(root, 'jsonl', tmp_path / 'r', 'refer')
    found = records(root, 'refer').values()
    assert [ref[-1] for ref in found] == [ref[-1] for ref in expected]
    assert len({ref[-1] for ref in found}) == 2
    assert [ref[5] for ref in found] == [[0], [1]]


@pytest.mark.parametrize('form', FORMS)
def test_by_image_and_by_seed(refer_set, tmp_path, form):
    for i in range(3, 10):
        add_image(refer_set, i)
    for ref in refer_set.refs:
        ref['split'] = 'train'
    root = refer_set.write()
    if form != 'refer':
        root = converted(root, 'refer', tmp_path / 'own', form)
    form = 'hub' if form == 'parquet' else form
    located = locate(str(root), form)
    for name, seed in (('a', 3), ('b', 3), ('c', 4)):
        counts = split_dataset(located, str(tmp_path / name), 0.3, seed)
        assert counts['train']['images'] == 7
        assert counts['val']['images'] == 3
    expected = records(root, form)
    found = records(tmp_path / 'a', form, images=located.img_folder)
    assert {k: ref[1:] for k, ref in found.items()
            } == {k: ref[1:] for k, ref in expected.items()}
    train, val = ({ref[1] for ref in found.values() if ref[0] == split}
                  for split in ('train', 'val'))
    assert not train & val and (len(train), len(val)) == (7, 3)
    a, b, c = ({path.relative_to(tmp_path / name): path.read_bytes()
                for path in (tmp_path / name).rglob('*') if path.is_file()}
               for name in 'abc')
    assert a == b != c
    assert not any(path.suffix == '.jpg' for path in a)
    split_dataset(located, str(tmp_path / 'd'), 0.5, 0, True)
    if form != 'hub':  # the pictures are inside its files
        assert len(list((tmp_path / 'd/images').iterdir())) == 10
    assert checked(tmp_path / 'd', form).usable


def test_other_splits_are_kept(refer_set, tmp_path):
    for ref in refer_set.refs[:2]:
        ref['split'] = 'test'
    located = locate(str(refer_set.write()), 'refer')
    counts = split_dataset(located, str(tmp_path / 'a'), 0.01)
    assert [counts[k]['images'] for k in ('test', 'train', 'val')] == [1] * 3


@pytest.mark.parametrize('splits, fraction, message', [
    *((('train', 'train', 'train'), fraction, 'between 0 and 1')
      for fraction in (0, 1, float('nan'))),
    (('train', 'val', 'train'), .5, 'the splits train, val'),
    (('dev', 'test', 'test'), .5, 'the splits dev, test'),
    (('train', 'test', 'test'), .5, '0.jpg is the only image'),
])
def test_refusals(refer_set, tmp_path, splits, fraction, message):
    for ref in refer_set.refs:
        ref['split'] = splits[ref['image_id']]
    located = locate(str(refer_set.write()), 'refer')
    with pytest.raises(ValueError, match=message):
        split_dataset(located, str(tmp_path / 'a'), fraction)
    assert not (tmp_path / 'a').exists()


def test_what_is_not_written(refer_set, tmp_path):
    located, dst = locate(str(refer_set.root), 'refer'), str(tmp_path / 'a')
    for write, how in ((convert, 'jsonl'), (split_dataset, .5)):
        with pytest.raises(FileExistsError, match='not empty'):
            write(located, str(refer_set.root), how)
    refer_set.refs[0]['ann_id'] = -5
    refer_set.write()
    for write, how in ((convert, 'jsonl'), (split_dataset, .5)):
        with pytest.raises(ValueError, match='ref 0: its ann_id -5'):
            write(located, dst, how)
    refer_set.refs[0].update(ann_id=100, split='../x')
    refer_set.write()
    with pytest.raises(ValueError, match='cannot be part of a file name'):
        convert(located, dst, 'jsonl')
    shutil.rmtree(refer_set.root / 'images')
    with pytest.raises(FileNotFoundError, match='no folder of images'):
        converted(refer_set.root, 'refer', dst, 'jsonl')


def own_jsonl(root, lines=()):
    """Two images, three masks and three lines in train, or other lines."""
    rng = np.random.default_rng(0)
    (root / 'images').mkdir(parents=True)
    (root / 'masks').mkdir()
    for i in range(2):
        cv2.imwrite(str(root / f'images/{i}.jpg'),
                    rng.integers(0, 255, (40, 60, 3), np.uint8))
    for i in range(3):
        mask = np.zeros((40, 60), np.uint8)
        mask[5:20, 10 * i:10 * i + 9] = 255
        Image.fromarray(mask).save(root / f'masks/{i}.png')
    lines = lines or [
        dict(image='0.jpg', mask='0.png', expressions=['a dog', 'the dog']),
        dict(image='0.jpg', mask='1.png', expressions='a cat'),
        dict(image='1.jpg', mask=['1.png', '2.png'], expressions=['both'])]
    (root / 'train.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    return root


@pytest.fixture
def grefs(refer_set):
    """The REFER set as gRefCOCO has it: one, several, and no target."""
    for ref in refer_set.refs:
        ref['ann_id'] = [ref['ann_id']]
    refer_set.refs[2]['ann_id'] = [-1]
    refer_set.refs[3]['ann_id'] = [102, 103]
    root = refer_set.write()
    (root / 'refs(unc).p').unlink()
    (root / 'grefs(unc).json').write_text(json.dumps(refer_set.refs))
    return root


def plant(data: ReferSet):
    """Fifteen faults, each in entries of its own; returns their kinds."""
    for i in range(3, 22):
        add_image(data, i)
    refs = {ref['image_id']: ref for ref in data.refs if ref['image_id'] > 2}
    anns = {ann['image_id']: ann for ann in data.anns if ann['image_id'] > 2}
    images = {image['id']: image for image in data.images}
    folder = data.root / 'images'

    refs[3]['ann_id'] = 9999  # 1
    refs[4]['image_id'] = 7777  # 2
    refs[5]['sentences'] = 'a dog'  # 3
    anns[6]['segmentation'] = [[50, 60, 90, 60, 90, 90]]  # 4: all outside
    anns[7]['segmentation'] = dict(size=[48, 48], counts=[48 * 48])  # 5
    anns[8]['segmentation'] = dict(size=[40, 48], counts=[0, 1920])  # 6
    anns[9]['segmentation'] = [[1, 2, 3]]  # 7
    (folder / '10.jpg').unlink()  # 8
    content = (folder / '11.jpg').read_bytes()
    (folder / '11.jpg').write_bytes(content[:len(content) // 2])  # 9
    images[12]['height'] = 50  # 10
    images[13]['file_name'] = '../13.jpg'  # 11
    refs[14]['ref_id'] = refs[15]['ref_id']  # 12
    anns[16]['segmentation'] = [[3, 3, 6, 3, 6, 6, 3, 6]]  # 13: 9 pixels
    refs[17]['sentences'][0]['sent'] = 'very ' * 20  # 14
    data.refs.append(dict(refs[18], ref_id=900, split='val', ann_id=901,
                          sentences=[dict(sent_id=9000, sent='alone')]))
    data.anns.append(dict(anns[18], id=901))  # 15: its image leaks
    return {
        'missing-annotation', 'missing-image-entry', 'bad-sentence',
        'outside-image', 'empty-mask', 'mask-size', 'bad-mask',
        'missing-image', 'bad-image', 'image-size', 'unsafe-name',
        'duplicate-ref', 'tiny-mask', 'long-sentence', 'leaking-image'}


def test_fifteen_faults(refer_set):
    kinds = plant(refer_set)
    assert len(kinds) == 15
    root = refer_set.write()
    result = checked(root, 'refer', decode_images=True)
    assert sorted(kinds_of(result)) == sorted(kinds)
    assert not result.usable
    # Training refuses them with the list, or skips and counts them.
    config = dict(type='RefCOCODataset', data_root=str(root))
    with pytest.raises(ValueError) as error:
        DATASETS.build(config)
    assert '9 fault(s)' in str(error.value)
    assert 'ref 6: its ann_id 9999 does not exist' in str(error.value)
    dataset = DATASETS.build(dict(config, on_error='skip'))
    warnings = {'tiny-mask', 'long-sentence', 'leaking-image'}
    assert sorted(f.kind for f in dataset.faults) == sorted(kinds - warnings)
    # 4 + 19 refs of train, 12 of them at fault.
    assert len(dataset) == 11


def test_an_untouched_set_has_no_findings(refer_set):
    result = checked(refer_set.root, 'refer', decode_images=True, workers=1)
    assert result.findings == [] and result.usable
    assert result.counts['train'] == dict(refs=4, sentences=16, images=2)


def test_further_findings(refer_set):
    images = refer_set.root / 'images'
    shutil.copy(images / '0.jpg', images / '3.jpg')
    refer_set.images.append(dict(refer_set.images[0], id=3,
                                 file_name='3.jpg'))
    refer_set.add_ref(3, [[30, 30, 70, 30, 70, 95, 30, 95]], 'val',
                      ['a', ' A ', ''])
    refer_set.refs[3]['ann_id'] = 102
    refer_set.refs[4]['image_id'] = 0
    result = checked(refer_set.write(), 'refer', decode_images=True)
    assert set(kinds_of(result)) == {
        'duplicate-image', 'partly-outside', 'duplicate-sentence',
        'empty-sentence', 'duplicate-annotation', 'wrong-image'}


def test_a_corrupt_image_whose_header_is_whole(refer_set):
    path = refer_set.root / 'images/1.png'
    cv2.imwrite(str(path), np.full((80, 50, 3), 7, np.uint8))
    content = bytearray(path.read_bytes())
    content[60] ^= 255
    path.write_bytes(content)
    refer_set.images[1]['file_name'] = '1.png'
    root = refer_set.write()
    assert checked(root, 'refer').usable
    (fault, ) = checked(root, 'refer', decode_images=True).findings
    assert fault.kind == 'bad-image' and '1.png' in fault.message


def test_what_is_left_out(refer_set, tmp_path, capsys):
    root = converted(refer_set.root, 'refer', tmp_path / 'coco', 'coco')
    content = json.loads((root / 'train.json').read_text())
    (ann, *_), (image, *_) = content['annotations'], content['images']
    area = mask_of(ann, image).count(1)
    assert ann['area'] == area and ann['bbox'] == [5, 10, 15, 30]
    for ann in content['annotations'][1:]:
        del ann['expressions']
    (root / 'train.json').write_text(json.dumps(content))
    result = checked(root, 'coco')
    assert result.usable and kinds_of(result) == ['left-out'] * 2
    assert '3 of 4 annotations have no expressions' in summary(result)
    assert '1 of 2 images have no annotation' in summary(result)
    converted(root, 'coco', tmp_path / 'a', 'jsonl')
    assert 'note: ' in capsys.readouterr().out


def test_missing_files_and_where_they_come_from(tmp_path):
    result = checked(tmp_path, 'refcoco')
    text = summary(result)
    assert kinds_of(result) == [
        'missing-file', 'missing-file', 'missing-folder']
    for part in ('instances.json: it does not exist; it comes from',
                 'refs(unc).p', 'lichengunc/refer', 'train2014.zip',
                 'NOT usable'):
        assert part in text


def test_counts_are_compared(refer_set):
    root = refer_set.root
    result = checked(root, 'refcoco')
    assert kinds_of(result) == ['wrong-count'] * 12 and not result.usable
    assert str(result.findings[0]).startswith(
        'split train: 4 refs can be used, but refcoco (unc) has 42404')
    assert kinds_of(checked(root, 'refcocog', 'umd')) == ['missing-file']
    shutil.copy(root / 'refs(unc).p', root / 'refs(google).p')
    google = summary(checked(root, 'refcoco', 'google'))
    assert 'split all: 6 refs can be used, but refcoco (google)' in google


def test_published_counts():
    for name, split_by, split, number in (
            ('refcoco', 'unc', 'testB', 1810),
            ('refcoco', 'google', 'test', 5000),
            ('refcoco+', 'unc', 'train', 42278),
            ('refcocog', 'umd', 'val', 2573),
            ('refcocog', 'google', 'train', 44822)):
        assert KNOWN[name].counts[split_by][split][0] == number
    assert KNOWN['grefcoco'].counts['unc']['all'][1] == 259859
    assert KNOWN['refcoco-m'].counts['m']['validation'] == (2080, 5598, 1190)
    for name, total in (('refcoco', 142210), ('refcoco+', 141564)):
        counts = KNOWN[name].counts['unc']
        assert sum(n for _, n, _ in counts.values()) == total


def test_a_broken_file_is_a_finding(refer_set):
    path = refer_set.root / 'instances.json'
    path.write_text(path.read_text()[:-100])
    (fault, ) = checked(refer_set.root, 'refer').findings
    assert fault.kind == 'broken-file'
    assert 'instances.json is not valid JSON' in fault.message


def test_an_image_of_two_splits_is_missing_once(refer_set, tmp_path):
    refer_set.refs[3]['split'] = 'val'
    root = converted(refer_set.write(), 'refer', tmp_path / 'coco', 'coco')
    (root / 'images/1.jpg').unlink()
    assert kinds_of(checked(root, 'coco')) == ['missing-image',
                                               'leaking-image']


def test_val_and_test_may_share_images(refer_set):
    for i, ref in enumerate(refer_set.refs):
        ref['split'] = ('val', 'testA')[i % 2]
    assert checked(refer_set.write(), 'refer').findings == []


def test_grefcoco_has_its_own_refs_and_number(grefs):
    (grefs / 'refs(unc).p').write_bytes(b'of RefCOCO')
    (fault, ) = checked(grefs, 'grefcoco').findings
    assert fault.kind == 'wrong-count' and '259859' in fault.message


def test_unknown_numbers_are_said(refer_set):
    text = summary(checked(refer_set.root, 'rrsis-d', images='images'))
    assert 'published numbers of rrsis-d (unc) are not known' in text


def test_the_named_set_inside_the_root(refer_set, tmp_path):
    refer_set.root.rename(tmp_path / 'refclef')
    assert checked(tmp_path, 'refclef').usable


def test_which_of_several_splits(refer_set):
    root = refer_set.root
    shutil.copy(root / 'refs(unc).p', root / 'refs(mine).p')
    with pytest.raises(ValueError, match='say which with --split-by'):
        locate(str(root), 'refer')
    assert checked(root, 'refer', 'mine').usable
    with pytest.raises(ValueError, match='no split_by .mine.; it has unc'):
        locate(str(root), 'refcoco', 'mine')


def test_refclef_without_its_bad_images(refer_set):
    refer_set.images[2]['id'] = 17975
    for thing in refer_set.anns[4:] + refer_set.refs[4:]:
        thing['image_id'] = 17975
    refer_set.anns[4]['segmentation'] = []
    root = refer_set.write()
    assert checked(root, 'refclef').usable
    assert not checked(root, 'refer').usable
    dataset = DATASETS.build(dict(
        type='RefCOCODataset', data_root=str(root),
        exclude=[19579, 17975, 19575]))
    assert len(dataset) == 2


def test_report(refer_set, tmp_path):
    refer_set.refs[2]['sentences'][0]['sent'] = '<b>' + 'word ' * 20
    refer_set.refs[3]['sentences'] = 'a dog'
    result = checked(refer_set.write(), 'refer')
    text = summary(result)
    assert text.index('ERROR bad-sent') < text.index('warning long-sentence')
    page = open(write_report(result, str(tmp_path / 'out'))).read()
    assert page.index('error bad-sent') < page.index('warning long-sentence')
    assert page.count('<img src="data:image/jpeg;base64,') == 6
    assert '<b>word' not in page and '&lt;b&gt;word' in page
    report = json.loads((tmp_path / 'out/report.json').read_text())
    assert report['kinds'] == {'bad-sentence': 1, 'long-sentence': 1}
    assert [f['level'] for f in report['findings']] == ['error', 'warning']
    assert report['usable'] is False
    assert report['counts']['val'] == dict(refs=2, sentences=8, images=1)


def test_stats(refer_set, tmp_path):
    refer_set.refs[5]['sentences'] = 'a dog'
    records = locate(str(refer_set.write()), 'refer').read()
    text = write_stats(records, str(tmp_path / 'out'))
    assert text.startswith('1 faulty entries are left out; see check\n')
    assert 'tokens of a sentence: min 5' in text
    assert '1 categories: thing 5' in text
    stats = json.loads((tmp_path / 'out/stats.json').read_text())
    assert stats['splits']['val'] == dict(refs=2, sentences=8, images=1)
    assert stats['categories'] == {'thing': 5} and stats['no_target'] == 0
    for key, low, high in (('sentence_tokens', 5, 5),
                           ('referents_per_image', 1, 2)):
        assert (stats[key]['min'], stats[key]['max']) == (low, high)
    shares = [100 * np.mean(np.frombuffer(mask_of(
        ann, refer_set.images[ann['image_id']]), np.uint8))
        for ann in refer_set.anns[:5]]
    assert stats['mask_share']['mean'] == pytest.approx(np.mean(shares))
    assert Image.open(tmp_path / 'out/stats.png').size == (1100, 800)
