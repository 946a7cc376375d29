# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Own data in every form, good and bad."""
import json
import re
import shutil

import numpy as np
import pytest
from hostile import large_png, variants
from mmseg.registry import DATASETS
from PIL import Image
from test_preparation import grefs, own_jsonl  # noqa: F401  a fixture
from test_refcoco import PIPELINE
from torch.utils.data import DataLoader

from cris.datasets.headers import check_headers
from cris.datasets.masks import decode_mask
from cris.datasets.readers import READERS
from cris.datasets.readers.refer import read_refer
from cris.io.files import load_json, safe_join
from cris.io.images import MAX_PIXELS, decode_image, image_size

ANN_FILES = {
    'jsonl': '{split}.jsonl',
    'coco': '{split}.json',
    'official-json': 'anns/{split}.json'
}
GOOD = {
    'jsonl': dict(image='0.jpg', mask='0.png', expressions=['a dog']),
    'coco': dict(id=5, image_id=0, category_id=7,
                 segmentation=[[2, 1, 6, 1, 6, 5, 2, 5]]),
    'official-json': dict(
        bbox=[0, 0, 5, 5], cat=3, segment_id=0, img_name='0.jpg',
        sentences=[dict(idx=0, sent_id=50, sent='a dog'),
                   dict(idx=1, sent_id=51, sent='the dog')], sentences_num=2)
}
COCO_IMAGES = [dict(id=i, file_name=f'{i}.jpg', height=40, width=60)
               for i in range(2)]


@pytest.fixture
def root(tmp_path):
    """Images and masks of own data, and three lines of JSON."""
    (tmp_path / 'own/anns').mkdir(parents=True)
    return own_jsonl(tmp_path / 'own')


def write(root, form, entries, images=COCO_IMAGES):
    """An annotation file of train."""
    path = root / ANN_FILES[form].format(split='train')
    if form == 'jsonl':
        path.write_text('\n'.join(map(json.dumps, entries)))
        return
    if form == 'coco':
        entries = dict(images=images, annotations=entries,
                       categories=[dict(id=7, name='dog')])
    path.write_text(json.dumps(entries))


def read(root, form='jsonl', entries=None, **kwargs):
    """Records of train, after its annotation file was written."""
    if entries is not None:
        write(root, form, entries)
    args = dict(ann_file=f'{root}/{ANN_FILES[form]}', split='train',
                img_folder=f'{root}/images')
    if form != 'coco':
        args['mask_folder'] = f'{root}/masks'
    return READERS[form](**dict(args, **kwargs))


def only_fault(records):
    (fault, ) = records.faults
    return fault


class TestJSONL:

    def test_the_records(self, root):
        images, faults, files, _ = read(root)
        assert not faults and len(files) == 4
        assert [i['file_name'] for i in images] == ['0.jpg', '1.jpg']
        assert (images[0]['height'], images[0]['width']) == (40, 60)
        first, second = images[0]['refs']
        assert first['sentences'] == ['a dog', 'the dog']
        assert second['sentences'] == ['a cat'] and second['sent_ids'] == [2]
        assert first['area'] == 15 * 9
        (both, ) = images[1]['refs']
        mask = decode_mask(both['segmentation'], 40, 60)
        assert mask.sum() == both['area'] == 2 * 15 * 9
        assert mask[10, 12] == mask[10, 22] == 1 and mask[10, 2] == 0

    def test_inline_masks_no_target_and_categories(self, root):
        masks = ([[2, 1, 6, 1, 6, 5, 2, 5]],
                 dict(size=[40, 60], counts=[9, 2391]), None, '0.png')
        (image, ) = read(root, 'jsonl', [
            dict(image='0.jpg', mask=mask, expressions='a', category=category)
            for mask, category in zip(
                masks, (3, 'dog', ['a'], None), strict=True)]).images
        assert [r['area'] for r in image['refs']] == [16, 2391, 0, 135]
        assert image['refs'][2]['segmentation'] is None
        assert [r['category'] for r in image['refs']] == [
            '3', 'dog', "['a']", None]

    def test_splits_in_one_file(self, root):
        write(root, 'jsonl', [dict(GOOD['jsonl'], split=split)
                              for split in ('train', 'val', 'train')])
        file = f'{root}/train.jsonl'
        for split, number in (('train', 2), ('val', 1), (['val', 'train'], 3)):
            (image, ) = read(root, ann_file=file, split=split).images
            assert len(image['refs']) == number
        with pytest.raises(ValueError, match="no split 'dev'; it has train"):
            read(root, ann_file=file, split='dev')

    @pytest.mark.parametrize('line, message', [
        ('{"image": "0.jpg", "mas', 'not valid JSON'),
        ('[1, 2]', r'it is \[1, 2\], not a JSON object'),
        ('{}', 'it has no image, mask, expressions'),
        ('{"image": "0.jpg", "mask": ' + '[' * 100_000, 'not valid JSON'),
    ])
    def test_lines_that_are_none(self, root, line, message):
        with open(root / 'train.jsonl', 'a') as file:
            file.write('\n\n' + line + '\n')
        fault = only_fault(read(root))
        assert fault.where.endswith('line 5')
        assert re.search(message, fault.message)

    def test_links_out_of_the_folder(self, root, tmp_path):
        secret = tmp_path / 'secret.jpg'
        (root / 'images/1.jpg').rename(secret)
        (root / 'images/1.jpg').symlink_to(secret)
        fault = only_fault(read(root))
        assert fault.kind == 'unsafe-name' and 'leads out' in fault.message
        # The folder itself may be a link, as train2014 often is.
        (root / 'images/1.jpg').unlink()
        secret.rename(root / 'images/1.jpg')
        (root / 'images').rename(tmp_path / 'elsewhere')
        (root / 'images').symlink_to(tmp_path / 'elsewhere')
        assert not read(root).faults

    @pytest.mark.parametrize('mode', ['P', '1', 'RGB', 'RGBA', 'LA', 'I;16'])
    def test_masks_of_any_mode(self, root, mode):
        mask = np.zeros((40, 60), np.uint8)
        mask[3:9, 4:11] = 1
        image = Image.fromarray(mask * 255)
        if mode == 'P':  # index 0 is white, index 1 black
            image = Image.fromarray(mask, 'P')
            image.putpalette([255, 255, 255, 0, 0, 0])
        elif mode == 'I;16':
            image = Image.fromarray(mask.astype(np.uint16) * 256)
        else:
            image = image.convert(mode)
        image.save(root / 'masks/0.png')
        segmentation = read(root).images[0]['refs'][0]['segmentation']
        assert np.array_equal(decode_mask(segmentation, 40, 60), mask)

    def test_a_byte_order_mark(self, root):
        """As Windows editors write it."""
        wanted = read(root)
        path = root / 'train.jsonl'
        path.write_bytes(b'\xef\xbb\xbf' + path.read_bytes())
        assert read(root) == wanted
        (root / 'a.json').write_bytes(b'\xef\xbb\xbf{"a": 1}')
        assert load_json(str(root / 'a.json')) == dict(a=1)


class TestCOCO:

    def test_expressions(self, root):
        records = read(root, 'coco', [
            dict(GOOD['coco'], expressions=['left dog', 'a dog']),
            dict(GOOD['coco'], id=6),
            dict(GOOD['coco'], id=7, expressions='right dog')])
        (image, ) = records.images
        assert not records.faults
        assert [r['ref_id'] for r in image['refs']] == [5, 7]
        assert image['refs'][1]['sentences'] == ['right dog']
        assert image['refs'][0]['category'] == 'dog'
        assert records.notes == [
            f'{root}/train.json: 1 of 3 annotations have no expressions',
            f'{root}/train.json: 1 of 2 images have no annotation with '
            'expressions and are not used'
        ]

    def test_category_names_mean_all_instances(self, root):
        other = [[12, 1, 16, 1, 16, 5, 12, 5]]
        images = read(root, 'coco', [
            GOOD['coco'], dict(GOOD['coco'], id=6, segmentation=other),
            dict(GOOD['coco'], id=8, image_id=1)]).images
        assert [[r['sentences'] for r in i['refs']] for i in images
                ] == [[['dog']], [['dog']]]
        assert [i['refs'][0]['area'] for i in images] == [32, 16]


class TestOfficialJSON:

    def test_sentences(self, root):
        entry = GOOD['official-json']
        (image, ) = read(root, 'official-json', [
            entry, dict(entry, mask_name='1.png', segment_id='x'),
            dict(entry, segment_id='2', sentences=['plain'])]).images
        first, second, third = image['refs']
        assert first['sent_ids'] == [50, 51] and first['category'] == '3'
        assert first['segmentation'] == dict(mask_file=f'{root}/masks/0.png')
        assert second['segmentation']['mask_file'].endswith('/1.png')
        assert third['sentences'] == ['plain']

    @pytest.mark.parametrize('prompts, keys, expected', [
        (dict(p0='', p1='polyp', p2=['a', 'b']), None,
         ['', 'polyp', 'a', 'b']),
        (dict(p0='', p1='polyp', p2=['a', 'b']), ['p2', 'p1'],
         ['a', 'b', 'polyp']),
        (['x', ['y', dict(z='z')]], None, ['x', 'y', 'z']),
        ('one', None, ['one']),
        (dict(p0=dict(en='dog', list=['hound'])), ['p0', 'p9'],
         ['dog', 'hound']),
    ])
    def test_prompts_of_any_shape(self, root, prompts, keys, expected):
        entry = dict(img_name='0.jpg', segment_id=0, prompts=prompts)
        (image, ) = read(
            root, 'official-json', [entry], prompt_keys=keys).images
        assert image['refs'][0]['sentences'] == expected

    def test_prompt_keys_that_are_not_there(self, root):
        entry = dict(GOOD['official-json'], prompts=dict(p0='a'))
        fault = only_fault(read(
            root, 'official-json', [entry], prompt_keys=['q']))
        assert "they have 'p0'" in fault.message

    def test_a_dict_where_a_list_is_expected(self, root):
        with pytest.raises(ValueError, match='contains a dict, not the list'):
            read(root, 'official-json', dict(a=GOOD['official-json']))


BAD = {
    'jsonl': [
        (dict(image='../0.jpg'), 'unsafe-name', 'leaves the folder'),
        (dict(image='/etc/passwd'), 'unsafe-name', 'leaves the folder'),
        (dict(image='a\\..\\..\\0.jpg'), 'unsafe-name', 'leaves the folder'),
        (dict(image=['0.jpg']), 'unsafe-name', 'is not a file name'),
        (dict(mask='../masks/0.png'), 'unsafe-name', 'leaves the folder'),
        (dict(mask=['0.png', '../masks/0.png']), 'unsafe-name', 'leaves'),
        (dict(image='9.jpg'), 'missing-image', '9.jpg does not exist'),
        (dict(mask='9.png'), 'missing-mask', '9.png does not exist'),
        (dict(mask='small.png'), 'mask-size', r'is \[20, 60\], but the image'),
        (dict(mask='empty.png'), 'empty-mask', 'is empty'),
        (dict(mask='text.png'), 'bad-mask', 'it is not an image'),
        (dict(mask='cut.png'), 'bad-mask', 'cannot be decoded'),
        (dict(mask='a.jpg'), 'bad-mask', 'JPEG'),
        (dict(mask='huge.png'), 'bad-mask', f'limit of {MAX_PIXELS}'),
        (dict(image='huge.png'), 'image-too-large', f'limit of {MAX_PIXELS}'),
        (dict(image='cut.jpg'), 'bad-image', 'ends too early'),
        (dict(mask=[]), 'empty-mask', 'is empty'),
        (dict(mask=5), 'bad-mask', 'neither polygon nor RLE'),
        (dict(mask=dict(mask_file='/etc/passwd')), 'bad-mask', 'as a string'),
        (dict(mask=[[0, 0, 1e9, 0, 1e9, 1e9]]), 'bad-mask', 'far outside'),
        (dict(mask=[[0, 0, float('nan'), 0, 5, 5]]), 'bad-mask', 'far outs'),
        (dict(mask=dict(size=[40, 60], counts=[-9, 2409])), 'bad-mask',
         'negative run'),
        (dict(expressions=[]), 'no-sentence', 'no sentence'),
        (dict(expressions=['a', 5]), 'bad-sentence', '5'),
        (dict(expressions=None), 'bad-sentence', 'None'),
        (dict(sent_ids=[1, 2]), 'bad-sentence', '2 sent_ids for 1 sentences'),
        (dict(sent_ids=5), 'bad-sentence', 'its sent_ids 5 are not a list'),
        (dict(ref_id=0), 'duplicate-ref', 'two refs have this id'),
        (dict(ref_id=[1]), 'bad-entry', r'ref_id \[1\] is not a number'),
        (dict(image_id='0.jpg', image='1.jpg'), 'duplicate-id',
         "has the id '0.jpg' of '0.jpg'")],
    'coco': [
        (dict(image_id=9), 'missing-image-entry', 'image_id 9 does not exist'),
        (dict(image_id=[1]), 'bad-entry', r'\[1\] is not a number'),
        (dict(segmentation=[]), 'empty-mask', 'is empty'),
        (dict(segmentation=None), 'empty-mask', 'is empty'),
        # They could name any file of the disk.
        (dict(segmentation=dict(mask_file='/etc/x')), 'bad-mask', 'mask_file'),
        (dict(segmentation=[dict(mask_file='/etc/x')]), 'bad-mask',
         'mask_file'),
        (dict(category_id=1), 'no-sentence', 'neither expressions nor a cat')],
    'official-json': [
        (dict(img_name='../0.jpg'), 'unsafe-name', 'leaves'),
        (dict(segment_id='../masks/0'), 'unsafe-name', 'leaves'),
        (dict(mask_name='/etc/0.png'), 'unsafe-name', 'leaves'),
        (dict(segment_id=None), 'missing-mask', 'neither mask_name nor'),
        (dict(segment_id=77), 'missing-mask', '77.png does not exist'),
        (dict(sentences=[]), 'no-sentence', 'no sentence'),
        (dict(sentences=5), 'bad-sentence', '5')]
}


@pytest.mark.parametrize('form, change, kind, message', [
    (form, *case) for form, cases in BAD.items() for case in cases])
def test_bad_entries(root, form, change, kind, message):
    masks, images = root / 'masks', root / 'images'
    Image.fromarray(np.ones((20, 60), np.uint8)).save(masks / 'small.png')
    Image.fromarray(np.zeros((40, 60), np.uint8)).save(masks / 'empty.png')
    noise = Image.fromarray(
        np.random.default_rng(0).integers(0, 255, (40, 60), np.uint8))
    noise.save(masks / 'cut.png')
    noise.save(masks / 'a.jpg')
    (masks / 'text.png').write_text('no image')
    (masks / 'cut.png').write_bytes((masks / 'cut.png').read_bytes()[:900])
    (images / 'cut.jpg').write_bytes((images / '0.jpg').read_bytes()[:700])
    for folder in (masks, images):
        (folder / 'huge.png').write_bytes(large_png(30_000))
    other = dict(id=6, image_id=1) if form == 'coco' else {}
    records = read(root, form, [GOOD[form], {**GOOD[form], **other, **change}])
    fault = only_fault(records)
    assert fault.kind == kind
    assert fault.where == str(root / ANN_FILES[form]).format(split='train') + {
        'jsonl': ', line 2', 'coco': ', annotation 6',
        'official-json': ', entry 1'}[form]
    assert re.search(message, fault.message), fault.message
    assert '/etc/x' not in fault.message
    assert len(records.images[0]['refs']) == 1  # the good one is there


class TestGeneralized:

    def read(self, root):
        return read_refer(f'{root}/instances.json', f'{root}/grefs(unc).json',
                          'train', f'{root}/images')

    def test_one_several_none(self, grefs):  # noqa: F811
        (first, _) = self.read(grefs).images
        none, several = first['refs']
        assert none['segmentation'] is None and none['ann_id'] == [-1]
        mask = decode_mask(several['segmentation'], 80, 50)
        assert mask[20, 10] == mask[20, 30] == 1
        assert several['area'] == mask.sum()
        dataset = DATASETS.build(dict(
            type='RefCOCODataset', data_root=str(grefs),
            split_file='grefs(unc).json', pipeline=PIPELINE, test_mode=True))
        masks = dataset[0]['data_samples'].gt_sem_seg.data
        assert masks[:4].sum() == 0 and (masks[4:].sum((1, 2)) > 0).all()

    @pytest.mark.parametrize('ann_id, segmentation, message', [
        ([], None, 'empty list'),
        ([102, 999], None, 'ann_id 999 does not exist'),
        ([102, 100], None, 'lies in image 0'),
        ([102, -1], None, 'ann_id -1 does not exist'),
        ([102, 103], [], 'is empty'),
    ])
    def test_bad_refs(self, refer_set, grefs, ann_id, segmentation,  # noqa: F811
                      message):
        refer_set.refs[3]['ann_id'] = ann_id
        if segmentation is not None:
            refer_set.anns[3]['segmentation'] = segmentation
        root = refer_set.write()
        (root / 'grefs(unc).json').write_text(json.dumps(refer_set.refs))
        assert message in only_fault(self.read(root)).message


@pytest.mark.parametrize('format', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
def test_header_sizes_are_those_decoded(tmp_path, format):
    path = tmp_path / f'a.{format.lower()}'
    turned = Image.Exif()
    turned[0x0112] = 6  # by a quarter
    for exif in (Image.Exif(), turned):
        Image.new('RGB', (60, 40)).save(path, exif=exif)
        decoded = decode_image(path.read_bytes(), 'a')
        assert image_size(str(path)) == decoded.shape[:2]
        assert exif or decoded.shape == (40, 60, 3)
    assert decoded.shape[:2] == (60, 40) or format != 'JPEG'
    path.write_bytes(large_png(10_001))
    with pytest.raises(ValueError, match='10001 x 10001 = .* limit of 1000'):
        image_size(str(path))


@pytest.mark.parametrize('name', ['C:secret.png', 'C:/a', '//host/share/a'])
def test_names_of_other_drives(name):
    with pytest.raises(ValueError, match='leaves the folder'):
        safe_join('images', name)


class TestKindsOfFaults:
    """Errors carry their kind; nothing is read out of messages."""

    def test_a_path_that_contains_the_word_limit(self, tmp_path):
        root = own_jsonl(tmp_path / 'limit of size ')
        (root / 'images/0.jpg').write_text('not an image')
        (root / 'masks/1.png').write_text('not an image')
        assert [f.kind for f in read(root).faults] == [
            'bad-image', 'bad-image', 'bad-mask']
        (image, ) = check_headers(
            [dict(file_name='0.jpg', height=40, width=60)], f'{root}/images')
        assert image.kind == 'bad-image'

    @pytest.mark.parametrize('error', [
        AttributeError, KeyError, TypeError, RecursionError, ValueError])
    @pytest.mark.parametrize('form', GOOD)
    def test_an_error_of_our_own_code_is_no_fault_of_the_data(
            self, root, monkeypatch, form, error):
        assert len(read(root, form, [GOOD[form]]).images) == 1

        def fail(*args):
            raise error('a mistake of ours')

        monkeypatch.setattr('cris.datasets.records.mask_area', fail)
        with pytest.raises(error, match='a mistake of ours'):
            read(root, form)

    def test_errors_survive_a_data_worker(self, refer_set):
        """It rebuilds them from their message alone."""
        dataset = DATASETS.build(dict(
            type='RefCOCODataset', data_root=str(refer_set.root),
            pipeline=PIPELINE))
        (refer_set.root / 'images/1.jpg').write_bytes(b'broken')
        with pytest.raises(ValueError, match='1.jpg cannot be decoded'):
            next(iter(DataLoader(dataset, num_workers=1)))


FULL = dict(
    jsonl=dict(image='0.jpg', mask='0.png', expressions=['a'], image_id=3,
               ref_id=1, ann_id=2, sent_ids=[4], category='x', split='train'),
    coco=dict(id=1, image_id=0, category_id=7, expressions=['a'], ref_id=4,
              ann_id=5, sent_ids=[6], segmentation=[[1, 1, 9, 1, 9, 9]]),
    names=dict(id=1, image_id=0, category_id=7,
               segmentation=dict(size=[40, 60], counts=[100, 2300])),
    images=dict(id=0, file_name='0.jpg', height=40, width=60),
    entries=dict(img_name='0.jpg', segment_id=0, cat=3, image_id=5, ref_id=9,
                 sentences=[dict(sent_id=1, sent='a')]),
    prompts=dict(img_name='0.jpg', mask_name='0.png',
                 prompts=dict(a='x', b=['y', dict(z='k')])),
    refs=dict(ref_id=1, ann_id=[1], image_id=0, split='train',
              sentences=[dict(sent_id=1, sent='a')], category_id=7))


@pytest.mark.parametrize('part', FULL)
def test_hostile_values_are_faults(root, part):
    """Of every kind at every place; only ValueErrors come out."""
    good = FULL[part]
    form = dict(jsonl='jsonl', entries='official-json',
                prompts='official-json').get(part, 'coco')
    for value in (good, *variants(good)):
        if part in ('images', 'refs'):
            write(root, 'coco', [FULL['coco']],
                  [value if part == 'images' else FULL['images']])
        else:
            write(root, form, [value], [FULL['images']])
        try:
            if part == 'refs':
                (root / 'refs.json').write_text(json.dumps([value]))
                records = read_refer(
                    f'{root}/train.json', f'{root}/refs.json')
            else:
                records = read(root, form)
        except ValueError as error:
            # The file as a whole cannot be used, or has no such split.
            assert re.search('train|refs', str(error))
        else:
            found = sum(len(image['refs']) for image in records.images)
            left_out = 'are left out' in ''.join(records.notes)
            assert found + len(records.faults) + left_out == 1
            assert value != good or found == 1


class TestSplits:

    @pytest.mark.parametrize('type, form', [
        ('ReferJSONLDataset', 'jsonl'), ('ReferCOCODataset', 'coco'),
        ('OfficialCRISDataset', 'official-json')])
    def test_the_splits_that_have_files_are_listed(self, tmp_path, type, form):
        (tmp_path / 'anns').mkdir()
        path = str(tmp_path / ANN_FILES[form])
        for split in ('val', 'train', 'a test [1]'):
            open(path.format(split=split), 'w').close()
        with pytest.raises(FileNotFoundError) as error:
            DATASETS.build(dict(
                type=type, data_root=str(tmp_path), split='vall'))
        assert str(error.value) == (
            f'annotation file {path.format(split="vall")} does not exist: '
            'there are files of the splits train, val, a test [1]')

    def test_messages_name_the_file(self, root, monkeypatch):
        messages = []
        monkeypatch.setattr(
            'cris.datasets.base.print_log',
            lambda message, *args, **kwargs: messages.append(message))
        shutil.copy(root / 'train.jsonl', root / 'val.jsonl')
        DATASETS.build(dict(
            type='ReferJSONLDataset', data_root=str(root),
            split=['train', 'val'], on_error='skip'))
        where = (f"{root}/train.jsonl, {root}/val.jsonl, split ['train', "
                 "'val']")
        assert messages[-1] == f'{where}: 2 images, 6 refs, 8 sentences'
