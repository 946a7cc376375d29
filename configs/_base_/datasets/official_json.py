# The official repository's data/official/anns/<split>.json, masks/*.png and
# images/.
_base_ = './own_jsonl.py'
dataset = dict(type='OfficialCRISDataset', data_root='data/official')
train_dataloader = dict(dataset=dataset)
val_dataloader = dict(dataset=dataset)
test_dataloader = val_dataloader
