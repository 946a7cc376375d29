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
from preparation.stats import collect_stats, print_stats, write_stats
from preparation.writers import WRITERS

from cris.datasets.masks import decode_mask


def records(root, name, **kwargs):
    """Everything that a conversion keeps, by ref."""
    images, faults = locate(str(root), name, **kwargs).read()[:2]
    assert not faults
    return {
        ref['ref_id']:
        (ref['split'], image['file_name'], image['img_id'], ref['ann_id'],
         ref['category'], ref['sent_ids'], ref['sentences'],
         ref['segmentation'] and decode_mask(
             ref['segmentation'], image['height'], image['width']).tobytes())
        for image in images for ref in image['refs']
    }


def add_image(data, i):
    """An image of 48 x 48 pixels with one ref of train."""
    data.images.append(
        dict(id=i, file_name=f'{i}.jpg', height=48, width=48))
    noise = np.random.default_rng(i).integers(0, 255, (48, 48, 3), np.uint8)
    cv2.imwrite(str(data.root / f'images/{i}.jpg'), noise)
    data.add_ref(i, [[5, 10, 40, 10, 40, 40, 5, 40]], 'train')


def test_every_form_has_a_writer():
    assert set(FORMS) == set(WRITERS)


class TestRoundTrips:

    def test_all_forms_in_a_ring(self, refer_set, tmp_path):
        rle = dict(size=[64, 64], counts=[100, 50, 64 * 64 - 150])
        refer_set.add_ref(2, rle, 'train', ['größe "x"', '左', 'a\tb'])
        refer_set.add_ref(2, [[1, 1, 9, 1, 9, 9], [5, 5, 30, 5, 30, 30]],
                          'testA')
        # The same image in two splits, and a name with a space in a folder.
        refer_set.images[2]['file_name'] = 'sub dir/bild ä 1.jpg'
        (refer_set.root / 'images/sub dir').mkdir()
        (refer_set.root / 'images/2.jpg').rename(
            refer_set.root / 'images/sub dir/bild ä 1.jpg')
        source = (refer_set.write(), 'refer')
        expected = records(*source)
        assert len(expected) == 8
        for form in FORMS:
            dst = tmp_path / f'as {form}'
            convert(locate(str(source[0]), source[1]), str(dst), form)
            found = records(dst, form)
            assert found == expected
            for split in ('train', 'val', 'testA'):
                assert [k for k, ref in found.items() if ref[0] == split] == [
                    k for k, ref in expected.items() if ref[0] == split]
            assert check(locate(str(dst), form)).usable
            source = (dst, form)

    def test_no_target_and_several(self, grefs, tmp_path):
        expected = records(grefs, 'grefcoco')
        convert(locate(str(grefs), 'grefcoco'), str(tmp_path / 'a'), 'jsonl')
        line = json.loads((tmp_path / 'a/train.jsonl').read_text().split(
            '\n')[0])
        assert line['mask'] is None
        convert(locate(str(tmp_path / 'a'), 'jsonl'), str(tmp_path / 'b'),
                'refer')
        found = records(tmp_path / 'b', 'refer')
        # The objects of a ref have become one annotation.
        keep = (0, 1, 2, 5, 6, 7)
        assert {k: [v[i] for i in keep] for k, v in found.items()
                } == {k: [v[i] for i in keep] for k, v in expected.items()}
        for form in ('coco', 'official-json'):
            with pytest.raises(ValueError, match='ref 2: it has no target'):
                convert(locate(str(grefs), 'grefcoco'), str(tmp_path / 'c'),
                        form)
            assert not (tmp_path / 'c').exists()

    def test_ids_that_are_unique_in_their_file_only(self, tmp_path):
        root = own_jsonl(tmp_path / 'own')
        shutil.copy(root / 'train.jsonl', root / 'val.jsonl')
        convert(locate(str(root), 'jsonl'), str(tmp_path / 'r'), 'refer')
        found = records(tmp_path / 'r', 'refer')
        assert len(found) == 6
        assert len({i for ref in found.values() for i in ref[5]}) == 8
        assert check(locate(str(tmp_path / 'r'), 'refer')).usable

    def test_an_annotation_id_of_two_masks_and_odd_sentence_ids(
            self, tmp_path):
        root = own_jsonl(tmp_path / 'own', [
            dict(image='0.jpg', mask=f'{i}.png', expressions=['a'], ann_id=7,
                 sent_ids=[[0]]) for i in range(2)
        ])
        expected = records(root, 'jsonl')
        convert(locate(str(root), 'jsonl'), str(tmp_path / 'r'), 'refer')
        found = records(tmp_path / 'r', 'refer')
        assert [ref[-1] for ref in found.values()] == [
            ref[-1] for ref in expected.values()]
        assert len({ref[-1] for ref in found.values()}) == 2
        assert [ref[5] for ref in found.values()] == [[0], [1]]

    def test_copies_are_no_links(self, refer_set, tmp_path):
        convert(locate(str(refer_set.root), 'refer'), str(tmp_path / 'a'),
                'jsonl')
        before = (refer_set.root / 'images/1.jpg').read_bytes()
        (tmp_path / 'a/images/1.jpg').write_bytes(b'')
        assert (refer_set.root / 'images/1.jpg').read_bytes() == before

    def test_refusals(self, refer_set, tmp_path):
        located = locate(str(refer_set.root), 'refer')
        with pytest.raises(FileExistsError, match='not empty'):
            convert(located, str(refer_set.root), 'jsonl')
        refer_set.refs[0]['ann_id'] = -5
        refer_set.write()
        with pytest.raises(ValueError, match='ref 0: its ann_id -5'):
            convert(located, str(tmp_path / 'a'), 'jsonl')
        shutil.rmtree(refer_set.root / 'images')
        with pytest.raises(FileNotFoundError, match='no folder of images'):
            convert(locate(str(refer_set.root), 'refer'), str(tmp_path / 'a'),
                    'jsonl')


class TestSplit:

    @pytest.fixture(params=FORMS)
    def source(self, request, refer_set, tmp_path):
        """Ten images in train, in one of the forms; arguments of locate."""
        for i in range(3, 10):
            add_image(refer_set, i)
        for ref in refer_set.refs:
            ref['split'] = 'train'
        root = str(refer_set.write())
        if request.param == 'refer':
            return root, 'refer'
        convert(locate(root, 'refer'), str(tmp_path / 'own'), request.param)
        return str(tmp_path / 'own'), request.param

    def test_by_image_and_by_seed(self, source, tmp_path):
        located = locate(*source)
        for name, seed in (('a', 3), ('b', 3), ('c', 4)):
            counts = split_dataset(located, str(tmp_path / name), 0.3, seed)
            assert counts['train']['images'] == 7
            assert counts['val']['images'] == 3
        expected = records(*source)
        found = records(tmp_path / 'a', source[1], images=located.img_folder)
        assert {k: ref[1:] for k, ref in found.items()
                } == {k: ref[1:] for k, ref in expected.items()}
        images = {
            split: {ref[1] for ref in found.values() if ref[0] == split}
            for split in ('train', 'val')
        }
        assert not images['train'] & images['val']
        assert [len(images[split]) for split in ('train', 'val')] == [7, 3]
        a, b, c = ({
            path.relative_to(tmp_path / name): path.read_bytes()
            for path in (tmp_path / name).rglob('*') if path.is_file()
        } for name in 'abc')
        assert a == b != c
        assert not any(path.suffix == '.jpg' for path in a)

    def test_copied_images(self, source, tmp_path):
        split_dataset(locate(*source), str(tmp_path / 'a'), 0.5, 0, True)
        assert len(list((tmp_path / 'a/images').iterdir())) == 10
        assert check(locate(str(tmp_path / 'a'), source[1])).usable

    def test_other_splits_are_kept(self, refer_set, tmp_path):
        for ref in refer_set.refs[:2]:
            ref['split'] = 'test'
        located = locate(str(refer_set.write()), 'refer')
        counts = split_dataset(located, str(tmp_path / 'a'), 0.01)
        assert {k: n['images'] for k, n in counts.items()
                } == dict(test=1, train=1, val=1)

    @pytest.mark.parametrize('splits, fraction, message', [
        (('train', 'train', 'train'), 0, 'between 0 and 1'),
        (('train', 'train', 'train'), 1, 'between 0 and 1'),
        (('train', 'train', 'train'), float('nan'), 'between 0 and 1'),
        (('train', 'val', 'train'), .5, 'the splits train, val'),
        (('dev', 'test', 'test'), .5, 'the splits dev, test'),
        (('train', 'test', 'test'), .5, '0.jpg is the only image'),
    ])
    def test_refusals(self, refer_set, tmp_path, splits, fraction, message):
        for ref in refer_set.refs:
            ref['split'] = splits[ref['image_id']]
        located = locate(str(refer_set.write()), 'refer')
        with pytest.raises(ValueError, match=message):
            split_dataset(located, str(tmp_path / 'a'), fraction)
        assert not (tmp_path / 'a').exists()

    def test_faulty_entries_and_a_full_folder(self, refer_set, tmp_path):
        located = locate(str(refer_set.root), 'refer')
        with pytest.raises(FileExistsError, match='not empty'):
            split_dataset(located, str(refer_set.root), .5)
        refer_set.refs[0]['ann_id'] = -5
        refer_set.write()
        with pytest.raises(ValueError, match='ref 0: its ann_id -5'):
            split_dataset(located, str(tmp_path / 'a'), .5)


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
        dict(image='1.jpg', mask=['1.png', '2.png'], expressions=['both']),
    ]
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
    refs[5]['sentences'] = []  # 3
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
        'missing-annotation', 'missing-image-entry', 'no-sentence',
        'outside-image', 'empty-mask', 'mask-size', 'bad-mask',
        'missing-image', 'bad-image', 'image-size', 'unsafe-name',
        'duplicate-ref', 'tiny-mask', 'long-sentence', 'leaking-image'
    }


class TestBrokenData:

    def test_check_finds_all_and_nothing_else(self, refer_set):
        kinds = plant(refer_set)
        assert len(kinds) == 15
        result = check(
            locate(str(refer_set.write()), 'refer'), decode_images=True)
        assert sorted(f.kind for f in result.findings) == sorted(kinds)
        assert not result.usable

    def test_training_refuses_it_with_the_list(self, refer_set):
        plant(refer_set)
        root = refer_set.write()
        with pytest.raises(ValueError) as error:
            DATASETS.build(dict(type='RefCOCODataset', data_root=str(root)))
        assert '9 fault(s)' in str(error.value)
        assert 'ref 6: its ann_id 9999 does not exist' in str(error.value)

    def test_training_skips_and_counts_them(self, refer_set):
        kinds = plant(refer_set)
        warnings = {'tiny-mask', 'long-sentence', 'leaking-image'}
        dataset = DATASETS.build(
            dict(
                type='RefCOCODataset',
                data_root=str(refer_set.write()),
                on_error='skip'))
        assert sorted(f.kind for f in dataset.faults) == sorted(
            kinds - warnings)
        # 4 + 19 refs of train, 12 of them at fault.
        assert len(dataset) == 11

    def test_an_untouched_set_has_no_findings(self, refer_set):
        result = check(
            locate(str(refer_set.root), 'refer'),
            decode_images=True,
            workers=1)
        assert result.findings == [] and result.usable
        assert result.counts['train'] == dict(refs=4, sentences=16, images=2)

    def test_further_findings(self, refer_set):
        images = refer_set.root / 'images'
        shutil.copy(images / '0.jpg', images / '3.jpg')
        refer_set.images.append(dict(refer_set.images[0], id=3,
                                     file_name='3.jpg'))
        refer_set.add_ref(3, [[30, 30, 70, 30, 70, 95, 30, 95]], 'val',
                          ['a', ' A ', ''])
        refer_set.refs[3]['ann_id'] = 102
        refer_set.refs[4]['image_id'] = 0
        result = check(
            locate(str(refer_set.write()), 'refer'), decode_images=True)
        assert {f.kind for f in result.findings} == {
            'duplicate-image', 'partly-outside', 'duplicate-sentence',
            'empty-sentence', 'duplicate-annotation', 'wrong-image'
        }

    def test_a_corrupt_image_whose_header_is_whole(self, refer_set):
        path = refer_set.root / 'images/1.png'
        cv2.imwrite(str(path), np.full((80, 50, 3), 7, np.uint8))
        content = bytearray(path.read_bytes())
        content[60] ^= 255
        path.write_bytes(content)
        refer_set.images[1]['file_name'] = '1.png'
        located = locate(str(refer_set.write()), 'refer')
        assert check(located).usable
        (fault, ) = check(located, decode_images=True).findings
        assert fault.kind == 'bad-image' and '1.png' in fault.message


    def test_what_is_left_out(self, refer_set, tmp_path, capsys):
        root = tmp_path / 'coco'
        convert(locate(str(refer_set.root), 'refer'), str(root), 'coco')
        content = json.loads((root / 'train.json').read_text())
        (ann, *_), (image, *_) = content['annotations'], content['images']
        mask = decode_mask(ann['segmentation'], image['height'],
                           image['width'])
        assert ann['area'] == mask.sum() and ann['bbox'] == [5, 10, 15, 30]
        for ann in content['annotations'][1:]:
            del ann['expressions']
        (root / 'train.json').write_text(json.dumps(content))
        result = check(locate(str(root), 'coco'))
        assert result.usable
        assert [f.kind for f in result.findings] == ['left-out'] * 2
        assert '3 of 4 annotations have no expressions' in summary(result)
        assert '1 of 2 images have no annotation' in summary(result)
        convert(locate(str(root), 'coco'), str(tmp_path / 'a'), 'jsonl')
        assert 'left out: ' in capsys.readouterr().out


class TestFilesAndCounts:

    def test_missing_files_and_where_they_come_from(self, tmp_path):
        result = check(locate(str(tmp_path), 'refcoco'))
        text = summary(result)
        assert [f.kind for f in result.findings] == [
            'missing-file', 'missing-file', 'missing-folder'
        ]
        assert 'instances.json: it does not exist; it comes from' in text
        assert 'refs(unc).p' in text and 'lichengunc/refer' in text
        assert 'train2014.zip' in text and 'NOT usable' in text

    def test_counts_are_compared(self, refer_set):
        result = check(locate(str(refer_set.root), 'refcoco'))
        messages = [
            str(f) for f in result.findings if f.kind == 'wrong-count'
        ]
        assert len(messages) == 12 and not result.usable
        assert messages[0].startswith('split train: 4 refs can be used, but '
                                      'refcoco (unc) has 42404')
        umd = check(locate(str(refer_set.root), 'refcocog', 'umd'))
        assert [f.kind for f in umd.findings] == ['missing-file']
        root = refer_set.root
        shutil.copy(root / 'refs(unc).p', root / 'refs(google).p')
        google = summary(check(locate(str(root), 'refcoco', 'google')))
        assert 'split all: 6 refs can be used, but refcoco (google)' in google

    def test_published_counts(self):
        for name, split_by, split, number in (
                ('refcoco', 'unc', 'testB', 1810),
                ('refcoco', 'google', 'test', 5000),
                ('refcoco+', 'unc', 'train', 42278),
                ('refcocog', 'umd', 'val', 2573),
                ('refcocog', 'google', 'train', 44822)):
            assert KNOWN[name].counts[split_by][split][0] == number
        for name, total in (('refcoco', 142210), ('refcoco+', 141564)):
            counts = KNOWN[name].counts['unc']
            assert sum(n for _, n, _ in counts.values()) == total

    def test_a_broken_file_is_a_finding(self, refer_set):
        path = refer_set.root / 'instances.json'
        path.write_text(path.read_text()[:-100])
        (fault, ) = check(locate(str(refer_set.root), 'refer')).findings
        assert fault.kind == 'broken-file'
        assert 'instances.json is not valid JSON' in fault.message

    def test_an_image_of_two_splits_is_missing_once(self, refer_set,
                                                    tmp_path):
        refer_set.refs[3]['split'] = 'val'
        root = tmp_path / 'coco'
        convert(locate(str(refer_set.write()), 'refer'), str(root), 'coco')
        (root / 'images/1.jpg').unlink()
        findings = check(locate(str(root), 'coco')).findings
        assert [f.kind for f in findings] == ['missing-image', 'leaking-image']

    def test_the_named_set_inside_the_root(self, refer_set, tmp_path):
        refer_set.root.rename(tmp_path / 'refclef')
        assert check(locate(str(tmp_path), 'refclef')).usable

    def test_which_of_several_splits(self, refer_set):
        root = refer_set.root
        shutil.copy(root / 'refs(unc).p', root / 'refs(mine).p')
        with pytest.raises(ValueError, match='say which with --split-by'):
            locate(str(root), 'refer')
        assert check(locate(str(root), 'refer', 'mine')).usable
        with pytest.raises(ValueError, match='no split_by .mine.; it has unc'):
            locate(str(root), 'refcoco', 'mine')

    def test_refclef_without_its_bad_images(self, refer_set):
        refer_set.images[2]['id'] = 17975
        for thing in refer_set.anns[4:] + refer_set.refs[4:]:
            thing['image_id'] = 17975
        refer_set.anns[4]['segmentation'] = []
        root = refer_set.write()
        assert check(locate(str(root), 'refclef')).usable
        assert not check(locate(str(root), 'refer')).usable
        dataset = DATASETS.build(
            dict(
                type='RefCOCODataset', data_root=str(root),
                exclude=[19579, 17975, 19575]))
        assert len(dataset) == 2


def test_report(refer_set, tmp_path):
    refer_set.refs[2]['sentences'][0]['sent'] = '<b>' + 'word ' * 20
    refer_set.refs[3]['sentences'] = []
    result = check(locate(str(refer_set.write()), 'refer'))
    text = summary(result)
    assert text.index('ERROR no-sent') < text.index('warning long-sentence')
    page = open(write_report(result, str(tmp_path / 'out'))).read()
    assert page.index('error no-sent') < page.index('warning long-sentence')
    assert page.count('<img src="data:image/jpeg;base64,') == 6
    assert '<b>word' not in page and '&lt;b&gt;word' in page
    report = json.loads((tmp_path / 'out/report.json').read_text())
    assert report['kinds'] == {'no-sentence': 1, 'long-sentence': 1}
    assert [f['level'] for f in report['findings']] == ['error', 'warning']
    assert report['usable'] is False
    assert report['counts']['val'] == dict(refs=2, sentences=8, images=1)


def test_stats(refer_set, tmp_path):
    images = locate(str(refer_set.root), 'refer').read().images
    stats = collect_stats(images)
    assert stats['splits']['val'] == dict(refs=2, sentences=8, images=1)
    assert stats['categories'] == {'thing': 6}
    assert stats['sentence_tokens'] == [5] * 24
    assert stats['referents_per_image'] == [2, 2, 2]
    mask = decode_mask(refer_set.anns[0]['segmentation'], 60, 90)
    assert stats['mask_share'][0] == pytest.approx(100 * mask.mean())
    assert 'tokens of a sentence: min 5' in print_stats(stats)
    path = write_stats(stats, str(tmp_path / 'out'))
    assert Image.open(path).size == (1100, 800)
