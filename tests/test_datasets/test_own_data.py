# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""What all data set classes share: faults, exclusion, mixing, configs."""
import json
import shutil

import numpy as np
import pytest
from conftest import REPO, ReferSet
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmseg.registry import DATASETS
from preparation.convert import convert
from preparation.locate import locate
from test_preparation import own_jsonl
from test_refcoco import PIPELINE, build

DATA_CONFIGS = sorted((REPO / 'configs/_base_/datasets').glob('*.py'))
TYPES = {
    'jsonl': 'ReferJSONLDataset',
    'coco': 'ReferCOCODataset',
    'official-json': 'OfficialCRISDataset'
}


@pytest.mark.parametrize('form', TYPES)
def test_every_form_gives_the_samples_of_refer(refer_set, tmp_path, form):
    convert(locate(str(refer_set.root), 'refer'), str(tmp_path / 'b'), form)
    one = build(refer_set, num_expressions=2)
    other = DATASETS.build(dict(
        type=TYPES[form], data_root=str(tmp_path / 'b'), pipeline=PIPELINE,
        num_expressions=2))
    assert len(one) == len(other) == 2
    for i in range(2):
        np.random.seed(i)
        a = one[i]
        np.random.seed(i)
        b = other[i]
        assert np.array_equal(a['inputs'], b['inputs'])
        a, b = a['data_samples'], b['data_samples']
        assert (a.ref_ids, a.sent_ids, a.expressions, a.img_id) == (
            b.ref_ids, b.sent_ids, b.expressions, b.img_id)
        assert np.array_equal(a.gt_sem_seg.data, b.gt_sem_seg.data)


def test_no_image_that_is_held_out_by_any_member(tmp_path):
    roots = []
    for name in 'ab':
        data = ReferSet(tmp_path / name)
        for image in data.images:
            image['id'] += 100 * (name == 'b')  # only the names agree
        for thing in data.refs + data.anns:
            thing['image_id'] += 100 * (name == 'b')
        roots.append(data)
    for ref in roots[1].refs:
        ref['split'] = 'testA' if ref['image_id'] == 101 else 'train'
    configs = [dict(type='RefCOCODataset', data_root=str(data.write()))
               for data in roots]
    held_out = [dict(configs[0], split='val'),
                dict(configs[1], split=['testA'])]
    with DefaultScope.overwrite_default_scope('mmseg'):
        mixed = DATASETS.build(dict(type='ConcatDataset', datasets=[
            dict(config, pipeline=PIPELINE, exclude=held_out)
            for config in configs]))
    # Image 0 is val of a, image 1 testA of b.
    names = [mixed.get_data_info(i)['img_path'] for i in range(len(mixed))]
    assert [n[len(str(tmp_path)):] for n in names] == (
        ['/a/images/2.jpg'] * 2 + ['/b/images/2.jpg'] * 2)
    assert mixed[0]['inputs'].shape == (3, 64, 64)


def test_exclude_by_id_and_by_name(refer_set):
    assert len(build(refer_set, exclude=[1])) == 2
    assert len(build(refer_set, exclude=['2.jpg'])) == 2
    with pytest.raises(ValueError, match='no image left .* excluded'):
        build(refer_set, exclude=[1, '2.jpg'])


def test_excluded_images_of_one_folder_go_by_their_paths(tmp_path):
    root = own_jsonl(tmp_path / 'own', [
        dict(image='s1/0.jpg', mask='0.png', expressions='a', split='train'),
        dict(image='s2/0.jpg', mask='0.png', expressions='b', split='val')])
    for name in ('s1', 's2'):
        (root / 'images' / name).mkdir()
        shutil.copy(root / 'images/0.jpg', root / 'images' / name)
    (root / 'train.jsonl').rename(root / 'all.jsonl')
    cfg = dict(type='ReferJSONLDataset', data_root=str(root),
               ann_file='all.jsonl')
    dataset = DATASETS.build(
        dict(cfg, split='train', exclude=[dict(cfg, split='val')]))
    assert dataset.get_data_info(0)['img_path'].endswith('s1/0.jpg')


def test_several_splits(refer_set):
    assert len(build(refer_set, split=['val', 'train'])) == 6
    with pytest.raises(ValueError, match="no split 'testA'"):
        build(refer_set, split=['val', 'testA'])


def test_an_image_that_breaks_later_is_replaced(refer_set):
    raising = build(refer_set)
    skipping = build(refer_set, on_error='skip')
    testing = build(refer_set, on_error='skip', test_mode=True)
    (refer_set.root / 'images/1.jpg').write_bytes(b'broken')
    for dataset in (raising, testing):
        with pytest.raises(ValueError, match='1.jpg cannot be decoded'):
            dataset[0]
    np.random.seed(0)
    assert skipping[0]['data_samples'].img_path.endswith('2.jpg')
    assert skipping.num_skipped >= 1
    with pytest.raises(ValueError, match="on_error='ignore' must be"):
        build(refer_set, on_error='ignore')


def test_two_refs_with_one_id(refer_set):
    refer_set.refs[3]['ref_id'] = 2
    with pytest.raises(ValueError, match='ref 2: two refs have this id'):
        build(refer_set)
    dataset = build(refer_set, on_error='skip')
    assert len(dataset) == 3 and dataset.faults[0].kind == 'duplicate-ref'


@pytest.mark.parametrize('path', DATA_CONFIGS, ids=lambda path: path.stem)
def test_data_configs(path):
    cfg = Config.fromfile(path)
    datasets = [
        dataset for loader in (cfg.train_dataloader, cfg.val_dataloader,
                               cfg.test_dataloader)
        for dataset in loader.dataset.get('datasets', [loader.dataset])]
    for dataset in datasets:
        assert dataset.type in DATASETS
        with pytest.raises(FileNotFoundError):
            DATASETS.build(dict(dataset, data_root='/nowhere'))
    lengths = {step.context_length for dataset in datasets
               for step in dataset.pipeline
               if step.type == 'TokenizeExpressions'}
    long = path.stem.startswith(('refcocog', 'refcoco_mixed'))
    assert lengths == {22 if long else 17}
    generalized = cfg.val_evaluator.get('generalized', False)
    assert generalized == (path.stem in ('grefcoco', 'saco'))
    assert not cfg.train_dataloader.dataset.get('test_mode')
    assert cfg.test_dataloader.dataset.test_mode


def test_the_mixed_config_holds_out_every_evaluation_split():
    cfg = Config.fromfile(REPO / 'configs/_base_/datasets/refcoco_mixed.py')
    members = cfg.train_dataloader.dataset.datasets
    assert len({m.data_root for m in members}) == 3
    for member in members:
        assert {(e.data_root, *e.split) for e in member.exclude} == {
            ('data/refcoco', 'val', 'testA', 'testB'),
            ('data/refcoco+', 'val', 'testA', 'testB'),
            ('data/refcocog', 'val', 'test')}


def test_documented_lines_of_json():
    text = (REPO / 'docs/en/data.md').read_text()
    block = text.split('```json\n')[1].split('```')[0]
    lines = [json.loads(line) for line in block.strip().split('\n')]
    assert [type(line['mask']) for line in lines] == [str, list, type(None)]
