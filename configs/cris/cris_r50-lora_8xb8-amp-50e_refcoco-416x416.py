# The paper's CRIS R50 on RefCOCO with both encoders of CLIP frozen but for
# adapters; the neck and the head, which CLIP does not have, are trained.
#   bash tools/dist_train.sh configs/cris/cris_r50-lora_8xb8-amp-50e_refcoco-416x416.py 8
# Needs peft (requirements/optional.txt). Hardware: 8 GPUs x 8 = 64.
# Expected mIoU: unknown, not trained here.
_base_ = './cris_r50_8xb8-amp-50e_refcoco-416x416.py'
model = dict(backbone=dict(peft=dict(type='LoRA', r=16, lora_alpha=16)))
# The full rate: adapters are new, CLIP itself is not trained.
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'backbone': dict(lr_mult=1.0)}))
