_base_ = './cris_r50.py'
model = dict(
    backbone=dict(model_name='RN101'),
    neck=dict(in_channels=[512, 1024, 512], sentence_channels=512),
    decode_head=dict(sentence_channels=512))
