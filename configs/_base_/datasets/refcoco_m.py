# RefCOCO (unc) for training and validation. The test set is RefCOCO-M, the
# val split with pixel-accurate masks and with its pictures, as downloaded by
# prepare.py get refcoco-m --out data/refcoco-m
_base_ = './refcoco.py'
test_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='ReferParquetDataset',
        data_root='data/refcoco-m/hub',
        split='validation',
        test_mode=True,
        pipeline=_base_.test_pipeline))
