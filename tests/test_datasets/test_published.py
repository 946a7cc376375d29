# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Sets as their authors and the Hub publish them."""
import io
import json
import pickle
import shutil

import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch
from hostile import large_png
from mmengine.dataset import pseudo_collate
from mmseg.registry import DATASETS
from PIL import Image
from preparation.locate import locate
from pyarrow import parquet
from test_preparation import (  # noqa: F401  a fixture
    checked,
    converted,
    grefs,
    mask_of,
)

from cris.datasets.masks import decode_mask
from cris.datasets.readers import READERS
from cris.datasets.records import plain_rle
from cris.evaluation import RefSegMetric
from cris.models.losses import TextToPixelContrastiveLoss

PIPELINE = [
    dict(type='LoadReferImage'), dict(type='ChooseExpressions'),
    dict(type='LoadReferMasks'), dict(type='Letterbox', size=64),
    dict(type='TokenizeExpressions', context_length=8),
    dict(type='PackReferInputs')]
TEST_PIPELINE = [PIPELINE[i] for i in (0, 1, 3, 2, 4, 5)]


def build(kind, root, split='train', **kwargs):
    test = kwargs.get('test_mode', False)
    return DATASETS.build(dict(
        type=kind, data_root=str(root), split=split, cache_dir=False,
        pipeline=TEST_PIPELINE if test else PIPELINE, **kwargs))


def read_refer(refer_set, split_file='refs(unc).p', split=None):
    root = refer_set.write()
    return READERS['refer'](f'{root}/instances.json', f'{root}/{split_file}',
                            split, f'{root}/images')


def refs_of(records):
    assert not records.faults
    return {ref['ref_id']: ref
            for image in records.images for ref in image['refs']}


SQUARE = [5, 10, 20, 10, 20, 40, 5, 40]


class TestQuirks:
    """What the field reads without a word is read, and counted."""

    @pytest.mark.parametrize('segmentation, dropped', [
        ([SQUARE, [1, 2, 3, 4]], True),
        ([[1, 2], SQUARE, [1, 2, 3, 4]], True),
        (SQUARE, False),
        ([[[5, 10], [20, 10], [20, 40], [5, 40]]], False),
        ([[5, 10], [20, 10], [20, 40], [5, 40]], False),
        ([[[5, 10], [20, 10], [20, 40], [5, 40]], [[1, 2], [3, 4]]], True),
    ])
    def test_polygons(self, refer_set, segmentation, dropped):
        refer_set.anns[0]['segmentation'] = segmentation
        found = read_refer(refer_set)
        (image, *_) = found.images
        mask = decode_mask(refs_of(found)[0]['segmentation'], 60, 90)
        assert np.array_equal(mask, decode_mask([SQUARE], 60, 90))
        assert image['refs'][0]['area'] == 15 * 30
        assert any('fewer than three points' in n
                   for n in found.notes) == dropped

    @pytest.mark.parametrize('segmentation', [
        [[1, 2, 3, 4]], [1, 2, 3, 4], [[1, 2], [3, 4]], [[1, 2, 3, 4], []],
        [[[1, 2, 3], [3, 4, 5]]]])
    def test_nothing_left_is_a_fault(self, refer_set, segmentation):
        refer_set.anns[0]['segmentation'] = segmentation
        (fault, ) = read_refer(refer_set).faults
        assert fault.where == 'ref 0'

    def test_refs_without_a_sentence(self, refer_set):
        refer_set.refs[1].update(sentences=[], sent_ids=[])
        found = read_refer(refer_set)
        assert 1 not in refs_of(found)
        assert found.notes == ['1 refs without a sentence are left out']
        result = checked(refer_set.root, 'refer')
        assert result.usable and [f.kind for f in result.findings] == [
            'left-out']

    def test_crowds(self, grefs):  # noqa: F811
        path = grefs / 'instances.json'
        content = json.loads(path.read_text())
        crowd = dict(content['annotations'][3], id=900100026438, iscrowd=1,
                     segmentation=dict(size=[80, 50], counts=[0, 4000]))
        alone = dict(crowd, id=900100026439)
        content['annotations'] += [crowd, alone]
        path.write_text(json.dumps(content))
        split_file = grefs / 'grefs(unc).json'
        refs = json.loads(split_file.read_text())
        of_image = [ref for ref in refs if ref['image_id'] == 1]
        assert len(of_image) == 2
        of_image[0]['ann_id'] = [content['annotations'][3]['id'], crowd['id']]
        of_image[1]['ann_id'] = [alone['id']]
        refs.append(dict(refs[0], ref_id=99, ann_id=-1))
        split_file.write_text(json.dumps(refs))
        found = READERS['refer'](str(path), str(split_file), None,
                                 f'{grefs}/images')
        areas = refs_of(found)
        assert areas[of_image[0]['ref_id']]['area'] == 15 * 30
        assert areas[of_image[1]['ref_id']]['area'] == 4000
        assert areas[99]['segmentation'] is None
        assert found.notes == ['1 crowd annotations, beside others of the '
                               'same ref, are left out']

    def test_numbers_of_other_types(self, refer_set):
        for image in refer_set.images:
            image.update(height=float(image['height']))
        refer_set.write()
        refs = pickle.loads(pickle.dumps(refer_set.refs))
        for ref in refs:
            ref.update(ref_id=np.int64(ref['ref_id']),
                       ann_id=np.int32(ref['ann_id']),
                       split=np.str_(ref['split']))
        for protocol in range(6):
            (refer_set.root / 'refs(unc).p').write_bytes(
                pickle.dumps(refs, protocol))
            found = READERS['refer'](
                f'{refer_set.root}/instances.json',
                f'{refer_set.root}/refs(unc).p', 'train')
            for key, ref in refs_of(found).items():
                assert type(key) is int and type(ref['split']) is str

    def test_texts_of_python_2(self, refer_set):
        texts = {'café': 'latin-1', 'größe 左': 'utf-8'}
        for ref, text in zip(refer_set.refs, texts, strict=False):
            ref['sentences'][0]['sent'] = text
        root = refer_set.write()
        content = pickle.dumps(refer_set.refs, 0)
        for text, encoding in texts.items():
            # Protocol 0 of Python 2 writes S'bytes'.
            unicode = b'V' + text.encode('raw-unicode-escape') + b'\n'
            assert unicode in content
            plain = repr(text.encode(encoding))[1:].encode()
            content = content.replace(unicode, b'S' + plain + b'\n')
        (root / 'refs(unc).p').write_bytes(content)
        found = READERS['refer'](f'{root}/instances.json',
                                 f'{root}/refs(unc).p', None)
        sentences = [r['sentences'][0] for r in refs_of(found).values()]
        assert sentences[:2] == list(texts)


@pytest.mark.parametrize('option', ['resize_image', 'resize_mask'])
def test_pictures_of_another_size(refer_set, option):
    path = str(refer_set.root / 'images/1.jpg')
    image = cv2.imread(path)
    cv2.imwrite(path, cv2.resize(image, (51, 79)))
    with pytest.raises(ValueError, match="size_mismatch='resize_image'"):
        build('RefCOCODataset', refer_set.write(),
              data_prefix=dict(img_path='images'))
    kwargs = dict(data_prefix=dict(img_path='images'), size_mismatch=option)
    dataset = build('RefCOCODataset', refer_set.root, **kwargs)
    sample = dataset[0]['data_samples']
    size = (80, 50) if option == 'resize_image' else (79, 51)
    assert sample.ori_shape == size
    share = sample.gt_sem_seg.data.mean() / (15 * 30 / 80 / 50)
    assert abs(share * 80 / 50 - 1) < 0.1  # of the letterboxed square
    dataset = build('RefCOCODataset', refer_set.root, test_mode=True, **kwargs)
    sample = dataset[0]['data_samples']
    assert sample.ori_shape == (80, 50)  # scores are at the annotated size
    assert sample.gt_sem_seg.data.sum() == 2 * 4 * 15 * 30


# The forms of the Hub, made of a set in the REFER layout.
def coco_of(refer_set):
    anns = {ann['id']: ann for ann in refer_set.anns}
    images = {image['id']: image for image in refer_set.images}
    for ref in refer_set.refs:
        yield ref, anns[ref['ann_id']], images[ref['image_id']]


def write_annotations(refer_set, root):
    rows = [
        dict(sent_ids=ref['sent_ids'], file_name='x.jpg', split=ref['split'],
             ref_id=ref['ref_id'], ann_id=ref['ann_id'],
             image_id=ref['image_id'], sentences=ref['sentences'],
             raw_anns=json.dumps(ann), raw_image_info=json.dumps(image),
             image_path=f'images/{image["file_name"]}')
        for ref, ann, image in coco_of(refer_set)]
    shutil.copytree(refer_set.root / 'images', root / 'images')
    for i, part in enumerate((rows[:2], rows[2:])):
        write(root, f'train-{i:05d}-of-00002', part)


def write_answers(refer_set, root):
    for split in ('train', 'val'):
        rows = []
        for ref, ann, image in coco_of(refer_set):
            if ref['split'] == split:
                name = f'{image["id"]:012d}'
                rows.append(dict(
                    question_id=str(len(rows)), question='What is it?',
                    image=dict(path=None, bytes=(
                        refer_set.root / 'images' / image['file_name']
                    ).read_bytes()), iscrowd=0,
                    file_name=f'{name}_{ref["ref_id"]}.jpg',
                    answer=[s['sent'] for s in ref['sentences']],
                    segmentation=ann['segmentation'][0]))
        write(root, f'{split}-00000-of-00001', rows)


def write_samples(refer_set, root):
    for split in ('train', 'validation'):
        rows = {}
        for ref, ann, image in coco_of(refer_set):
            if ref['split'] == split.removesuffix('idation'):
                size = image['height'], image['width']
                row = rows.setdefault(image['id'], dict(
                    image=dict(path=None, bytes=(
                        refer_set.root / 'images' / image['file_name']
                    ).read_bytes()), image_id=image['id'],
                    file_name=image['file_name'], samples=[]))
                rle = plain_rle(ann['segmentation'], *size)
                row['samples'].append(dict(
                    id=ref['ref_id'], category='thing',
                    sentences=[s['sent'] for s in ref['sentences']],
                    mask=rle))
        write(root, f'{split}-00000-of-00001', list(rows.values()))


def write(root, name, rows):
    (root / 'data').mkdir(exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows),
                        root / f'data/{name}.parquet')


@pytest.fixture(params=[write_annotations, write_answers, write_samples])
def hub(request, refer_set, tmp_path):
    root = tmp_path / 'hub'
    root.mkdir()
    request.param(refer_set, root)
    return root


def masks_and_sentences(root, name):
    found = locate(str(root), name).read()
    assert not found.faults
    return sorted(
        (ref['split'].replace('validation', 'val'), ref['sentences'],
         mask_of(ref, image)) for image in found.images
        for ref in image['refs'])


def test_forms_of_the_hub(hub, refer_set, tmp_path):
    expected = masks_and_sentences(refer_set.root, 'refer')
    assert masks_and_sentences(hub, 'hub') == expected
    assert checked(hub, 'hub', decode_images=True).usable
    own = converted(hub, 'hub', tmp_path / 'own', 'jsonl')
    assert masks_and_sentences(own, 'jsonl') == expected
    back = converted(own, 'jsonl', tmp_path / 'back', 'parquet')
    assert masks_and_sentences(back, 'hub') == expected
    for test_mode in (False, True):
        ours, theirs = (
            [sample['data_samples'].gt_sem_seg.data.sum() for sample in build(
                kind, root, split='val', test_mode=test_mode,
                **prefix)]
            for kind, root, prefix in (
                ('ReferParquetDataset', hub, {}),
                ('RefCOCODataset', refer_set.root,
                 dict(data_prefix=dict(img_path='images')))))
        assert ours == theirs


@pytest.mark.parametrize('change, message', [
    (dict(image=dict(bytes=b'', path=None)), 'cannot be decoded'),
    (dict(image=dict(bytes=large_png(30_000), path=None)), 'limit of'),
    (dict(image=dict(bytes=None, path='../0.jpg')), 'leaves the folder'),
    (dict(file_name='../0.jpg'), 'leaves the folder'),
    (dict(segmentation=[1., 2., 3.]), 'three points'),
    (dict(answer=[]), 'no sentence'),
])
def test_bad_rows(refer_set, tmp_path, change, message):
    write_answers(refer_set, tmp_path)
    path = tmp_path / 'data/train-00000-of-00001.parquet'
    rows = parquet.read_table(path).to_pylist()
    write(tmp_path, path.stem, [rows[0], dict(rows[1], **change)])
    found = READERS['parquet'](f'{tmp_path}/data/*.parquet', str(tmp_path),
                               'train')
    (fault, ) = found.faults
    assert 'row 1' in fault.where and message in fault.message
    assert len(found.images) == 1


OWN = dict(file_name='a.jpg', img_id=1, height=60, width=90, split='train',
           refs=[dict(ref_id=1, sentences=['a dog'], mask=None)])


@pytest.mark.parametrize('change, message', [
    (dict(file_name='../a.jpg'), 'leaves the folder'),
    (dict(file_name=None), 'is not a file name'),
    (dict(height=0), 'not a positive integer'),
    (dict(refs=None), 'are not a list of dicts'),
    (dict(refs=['a dog']), 'are not a list of dicts'),
    (dict(refs=[dict(ref_id=1, sentences=['a dog'])]), 'it has no mask'),
    (dict(refs=[dict(OWN['refs'][0], mask=dict(mask_file='/etc/passwd'))]),
     'has the key mask_file'),
    (dict(refs=[dict(OWN['refs'][0], ignore=dict(mask_file='/etc/passwd'))]),
     'has the key mask_file'),
])
def test_bad_rows_of_our_own_form(tmp_path, change, message):
    write(tmp_path, 'train', [dict(OWN, **change)])
    (fault, ) = READERS['parquet'](f'{tmp_path}/data/*', str(tmp_path)).faults
    assert message in fault.message


def test_pictures_that_only_seem_to_be_the_same(refer_set, tmp_path):
    write_answers(refer_set, tmp_path)
    path = tmp_path / 'data/train-00000-of-00001.parquet'
    rows = parquet.read_table(path).to_pylist()
    # Turned by its EXIF orientation, as OpenCV decodes it.
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.new('RGB', (80, 50)).save(file, 'JPEG', exif=exif)
    other = dict(rows[0], question_id='9', file_name=rows[0]['file_name'],
                 image=dict(bytes=file.getvalue(), path=None))
    write(tmp_path, path.stem, [*rows[:2], other])
    dataset = build('ReferParquetDataset', tmp_path, test_mode=True)
    assert [len(s['data_samples'].expressions) for s in dataset] == [8, 4]
    assert dataset[1]['data_samples'].ori_shape == (80, 50)


def test_bad_files(refer_set, tmp_path):
    write_answers(refer_set, tmp_path)
    path = tmp_path / 'data/train-00000-of-00001.parquet'
    content = path.read_bytes()
    for broken in (b'', content[:-9], content[:len(content) // 2], b'PAR1'):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match='not a parquet file, or broken'):
            build('ReferParquetDataset', tmp_path)
    write(tmp_path, path.stem, [dict(picture=b'', text='a dog')])
    with pytest.raises(ValueError, match='columns picture, text.*answers: '):
        build('ReferParquetDataset', tmp_path)
    with pytest.raises(FileNotFoundError, match='no parquet file'):
        build('ReferParquetDataset', tmp_path, ann_file='data/{split}x*')
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"no split 'test'; it has train \("):
        build('ReferParquetDataset', tmp_path, split='test')
    path.with_name('train-00001-of-00001.parquet').write_bytes(content)
    with pytest.raises(ValueError, match='two refs have this id'):
        build('ReferParquetDataset', tmp_path)


def write_labelme(root, **entry):
    (root / 'train').mkdir()
    for name in 'ab':
        cv2.imwrite(str(root / f'train/{name}.jpg'),
                    np.zeros((40, 60, 3), np.uint8))
        (root / f'train/{name}.json').write_text(json.dumps(entry))


def shape(label, *points, **kwargs):
    return dict(label=label, points=points, **kwargs)


def test_labelme_with_a_region_to_ignore(tmp_path):
    write_labelme(tmp_path, text=['a dog', 'the dog'], shapes=[
        shape('target', [10, 5], [30, 5], [30, 25], [10, 25]),
        shape('ignore', [25, 0], [60, 0], [60, 40], [25, 40])])
    dataset = build('ReferLabelmeDataset', tmp_path, test_mode=True)
    sample = dataset[0]['data_samples']
    assert sample.expressions == ['a dog', 'the dog']
    target, ignore = (sample.get(key).data.numpy() > 0
                      for key in ('gt_sem_seg', 'gt_ignore'))
    assert target.sum() == 2 * 20 * 20 and ignore.sum() == 2 * 35 * 40
    # Whatever is predicted there, the scores are the same.
    for outside in (target, target & ~ignore, target | ignore):
        metric = RefSegMetric()
        metric.process({}, [dict(
            sample.to_dict(),
            pred_sem_seg=dict(data=torch.from_numpy(outside)))])
        scores = metric.evaluate(1)
        assert scores['mIoU'] == pytest.approx(100)
        assert scores['oIoU'] == 100
    batch = pseudo_collate([build('ReferLabelmeDataset', tmp_path)[0]])
    (sample, ) = batch['data_samples']
    assert sample.gt_ignore.data.shape == (1, 64, 64)


def test_regions_to_ignore_are_kept(tmp_path, capsys):
    write_labelme(tmp_path, text='a dog', shapes=[
        shape('target', [10, 5], [30, 5], [30, 25], [10, 25]),
        shape('ignore', [25, 0], [60, 0], [60, 40], [25, 40])])
    source = tmp_path, 'labelme'
    for form, name in (('jsonl', 'jsonl'), ('parquet', 'hub')):
        source = converted(*source, tmp_path / f'as {form}', form), name
        for image in locate(str(source[0]), name).read().images:
            (ref, ) = image['refs']
            assert decode_mask(ref['ignore'], 40, 60).sum() == 35 * 40
    assert 'note' not in capsys.readouterr().out
    converted(*source, tmp_path / 'refer', 'refer')
    assert 'regions to ignore of 2 refs' in capsys.readouterr().out


def test_loss_without_the_ignored_pixels():
    torch.manual_seed(0)
    logits, target = torch.randn(2, 1, 8, 8), torch.rand(2, 1, 8, 8)
    ignore = torch.rand(2, 1, 8, 8) > 0.5
    loss = TextToPixelContrastiveLoss()
    expected = loss(logits[~ignore], target[~ignore])
    changed = torch.where(ignore, 100., logits)
    assert torch.equal(loss(changed, target, ignore), expected)


def test_labelme_without_a_text(tmp_path):
    write_labelme(tmp_path, shapes=[
        shape('a dog', [10, 5], [30, 25], shape_type='rectangle'),
        shape('a cat', [20, 20], [20, 10], shape_type='circle'),
        shape('a cat', [3, 3], shape_type='point')])
    found = READERS['labelme'](f'{tmp_path}/{{split}}', str(tmp_path), 'train')
    first, second, *_ = refs_of(found).values()
    assert first['sentences'] == ['a dog'] and first['area'] == 400
    assert second['area'] == pytest.approx(np.pi * 100, rel=0.02)
    assert found.notes == ['2 points and lines of LabelMe are left out']
    assert checked(tmp_path, 'labelme').counts['train']['refs'] == 4


@pytest.mark.parametrize('entry, message', [
    ([1], 'no list "shapes"'), (dict(shapes=5), 'no list "shapes"'),
    (dict(shapes=[5]), 'not a shape with a label'),
    (dict(text=5, shapes=[]), 'among its sentences'),
    (dict(text='a', shapes=[shape('target', [1, 2])]), 'three points'),
    (dict(text='a', shapes=[shape('target', 5)]), 'cannot be read'),
    (dict(text='a', shapes=[shape('target', [1, 2], shape_type='circle')]),
     'not two points'),
])
def test_bad_labelme(tmp_path, entry, message):
    write_labelme(tmp_path, shapes=[])
    (tmp_path / 'train/b.json').write_text(json.dumps(entry))
    (fault, ) = READERS['labelme'](
        f'{tmp_path}/{{split}}', str(tmp_path), 'train').faults
    assert fault.where.endswith('b.json') and message in fault.message


def test_saco(refer_set, tmp_path):
    images = [
        dict(image, id=10 * image['id'] + k, text_input=text)
        for image in refer_set.images
        for k, text in enumerate(('a thing', 'a unicorn'))]
    anns = [dict(ann, image_id=10 * ann['image_id'])
            for ann in refer_set.anns]
    path = refer_set.root / 'gold.json'
    path.write_text(json.dumps(dict(images=images, annotations=anns)))
    refs = refs_of(READERS['saco'](str(path), f'{refer_set.root}/images'))
    assert [ref['area'] for ref in refs.values()] == [900, 0] * 3
    dataset = build('ReferSaCoDataset', refer_set.root, 'gold',
                    test_mode=True)
    assert len(dataset) == 3  # a picture is encoded once
    del images[0]['text_input']
    path.write_text(json.dumps(dict(images=images, annotations=anns)))
    (fault, ) = READERS['saco'](
        str(path), f'{refer_set.root}/images').faults
    assert 'it has no text_input' in fault.message
