# RefShapes with expressions for no, one or several objects:
# tools/dataset_converters/refshapes.py --out data/refshapes --num-train 4000 --generalized
_base_ = './refshapes.py'
dataset = dict(split_file='grefs(unc).json')
# 10 refs of a picture at most: 6 of one object, 2 of none, 2 of several.
train_dataloader = dict(dataset=dict(**dataset, num_expressions=10))
val_dataloader = dict(dataset=dataset)
test_dataloader = val_dataloader
val_evaluator = dict(type='RefSegMetric', generalized=True)
test_evaluator = val_evaluator
