# Your own data: data/own/train.json, val.json and images/, as COCO instances
# (docs/en/data.md).
_base_ = './own_jsonl.py'
dataset = dict(type='ReferCOCODataset')
train_dataloader = dict(dataset=dataset)
val_dataloader = dict(dataset=dataset)
test_dataloader = val_dataloader
