# LabelMe folders, as ReasonSeg has them: data/labelme/{train,val}/*.json
# beside the pictures.
_base_ = './parquet.py'
dataset = dict(type='ReferLabelmeDataset', data_root='data/labelme')
train_dataloader = dict(batch_sampler=None, drop_last=True, dataset=dataset)
val_dataloader = dict(dataset=dataset)
test_dataloader = val_dataloader
