# SA-Co: data/saco/{train,val}.json, COCO with a phrase in each image entry.
# Many phrases mean nothing in their picture.
_base_ = './parquet.py'
dataset = dict(type='ReferSaCoDataset', data_root='data/saco')
train_dataloader = dict(batch_sampler=None, drop_last=True, dataset=dataset)
val_dataloader = dict(dataset=dataset)
test_dataloader = val_dataloader
val_evaluator = dict(type='RefSegMetric', generalized=True)
test_evaluator = val_evaluator
