# Parquet files, of the Hub or written by prepare.py: data/hub/data/*.parquet.
_base_ = './own_jsonl.py'
dataset = dict(
    _delete_=True,
    type='ReferParquetDataset',
    data_root='data/hub')
train_dataloader = dict(
    drop_last=False,
    num_workers=4,
    # Neighbouring rows are read together; a stream is for one worker.
    batch_sampler=dict(type='ShardBatchSampler', streams=4, drop_last=True),
    dataset=dict(
        **dataset, split='train', pipeline=_base_.train_pipeline))
val_dataloader = dict(
    dataset=dict(
        **dataset, split='val', test_mode=True, pipeline=_base_.test_pipeline))
test_dataloader = val_dataloader
