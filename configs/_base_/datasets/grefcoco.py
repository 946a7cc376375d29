# gRefCOCO (unc): one target, several or none; train, val, testA, testB.
_base_ = './refcoco.py'
dataset = dict(data_root='data/grefcoco', split_file='grefs(unc).json')
train_dataloader = dict(dataset=dataset)
val_dataloader = dict(dataset=dataset)
test_dataloader = val_dataloader
val_evaluator = dict(type='RefSegMetric', generalized=True)
test_evaluator = val_evaluator
