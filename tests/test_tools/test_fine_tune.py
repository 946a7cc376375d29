# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""The configs for own data, at a toy size, as docs/en/fine_tune.md has it."""
import json
import re

import pytest
from conftest import REPO, ReferSet, tool
from mmengine.config import Config

import cris

# R50 at widths that train in a second; as options, since that is what a user
# has, too.
TOY = [
    '--cfg-options', 'image_size=64', 'model.backbone.model_name=None',
    'model.backbone.init_cfg=None', 'model.backbone.embed_dim=32',
    'model.backbone.vision_cfg.image_size=64',
    'model.backbone.vision_cfg.layers=[1,1,1,1]',
    'model.backbone.vision_cfg.width=8',
    'model.backbone.text_cfg.context_length=17',
    'model.backbone.text_cfg.vocab_size=49408',
    'model.backbone.text_cfg.width=32', 'model.backbone.text_cfg.heads=2',
    'model.backbone.text_cfg.layers=1', 'model.neck.in_channels=[64,128,32]',
    'model.neck.out_channels=[16,32,64]', 'model.neck.sentence_channels=32',
    'model.decode_head.in_channels=32', 'model.decode_head.word_channels=32',
    'model.decode_head.sentence_channels=32',
    'model.decode_head.feedforward_channels=64',
    'train_dataloader.batch_size=2', 'train_cfg.max_epochs=1',
    'default_hooks.logger.interval=1', *(
        f'{part}_dataloader.{option}' for part in ('train', 'val', 'test')
        for option in ('num_workers=0', 'persistent_workers=False'))
]


@pytest.mark.parametrize('data, folder, form', [
    ('own-jsonl', 'own', 'jsonl'),
    ('own-coco', 'own', 'coco'),
    ('refer', 'refer', None),
])
def test_train_test_and_predict(data, folder, form, tmp_path):
    root = ReferSet(tmp_path / ('source' if form else 'data/refer')).write()
    if form:
        tool('dataset_converters/prepare.py', 'convert', root, '--dataset',
             'refer', '--to', form, '--out', tmp_path / 'data' / folder)
    (config, ) = (REPO / 'configs/cris').glob(f'cris_r50_1x*_{data}-4*.py')
    log = tool('train.py', config, *TOY, cwd=tmp_path)
    steps = re.findall(r'Epoch\(train\) +\[1\]\[(\d)/2\]', log)
    assert steps == ['1', '2']
    assert len(re.findall('image_size=64 has .* model_image_size=416',
                          log)) == 1

    work = tmp_path / 'work_dirs' / config.stem
    used = Config.fromfile(work / config.name)
    sizes = [
        transform.size for part in ('train', 'val', 'test')
        for transform in used[f'{part}_dataloader'].dataset.pipeline
        if transform.type == 'Letterbox'
    ]
    assert sizes == [64] * 3
    lr = used.optim_wrapper.optimizer.lr
    assert lr / used.auto_scale_lr.base_batch_size == pytest.approx(1e-4 / 64)

    tool('test.py', config, work / 'epoch_1.pth', '--out', 'scores.json', *TOY,
         cwd=tmp_path)
    scores = json.loads((tmp_path / 'scores.json').read_text())
    assert scores['n_expressions'] == 8
    assert f'mIoU: {scores["mIoU"]:.4f}' in log

    inferencer = cris.CRISInferencer(
        str(work / config.name), str(work / 'epoch_1.pth'), device='cpu')
    image = next((tmp_path / 'data' / folder / 'images').iterdir())
    (prediction, ) = inferencer(str(image), 'the thing')['predictions']
    assert prediction['masks'].shape[0] == 1
