# The official repository's <split>.lmdb, read only.
_base_ = './refer.py'
dataset = dict(
    _delete_=True,
    type='OfficialLMDBDataset',
    data_root='data/official',
    data_prefix=dict(img_path=''))
train_dataloader = dict(
    dataset=dict(
        **dataset, num_expressions=8, pipeline=_base_.train_pipeline))
val_dataloader = dict(
    dataset=dict(
        **dataset, split='val', test_mode=True, pipeline=_base_.test_pipeline))
test_dataloader = val_dataloader
