# The small model of the model zoo: four times the pictures of the quickstart.
#   python tools/dataset_converters/refshapes.py --out data/refshapes16k \
#       --num-train 16000 --seed 0
#   python tools/train.py \
#       configs/cris/cris_tiny_1xb8-3e_refshapes16k-160x160.py --amp
# Hardware: 2 CPU cores with bfloat16, about 40 minutes. 1 x 8 images x 6
# expressions = 48. Expected: val mIoU TODO.
_base_ = './cris_tiny_1xb8-3e_refshapes-160x160.py'
data_root = 'data/refshapes16k'
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
