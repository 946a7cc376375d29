# The official repository's anns/<split>.json and masks/*.png.
_base_ = './refer.py'
dataset = dict(
    _delete_=True,
    type='OfficialCRISDataset',
    data_root='data/official',
    data_prefix=dict(img_path='images', mask_path='masks'))
train_dataloader = dict(
    dataset=dict(
        **dataset, num_expressions=8, pipeline=_base_.train_pipeline))
val_dataloader = dict(
    dataset=dict(
        **dataset, split='val', test_mode=True, pipeline=_base_.test_pipeline))
test_dataloader = val_dataloader
