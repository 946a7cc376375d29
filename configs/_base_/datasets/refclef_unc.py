# RefClef (unc): train, val, testA, testB, testC, testAB, testBC. REFER's
# reader takes testA and testAB for testA: here split=['testA', 'testAB'].
_base_ = './refcoco.py'
data_root = 'data/refclef'
dataset = dict(
    data_root=data_root,
    data_prefix=dict(img_path='saiapr_tc-12'),
    exclude=[19579, 17975, 19575])  # their masks do not fit the images
train_dataloader = dict(dataset=dataset)
val_dataloader = dict(dataset=dataset)
test_dataloader = dict(
    dataset=dict(**dataset, split=['testA', 'testAB']))
